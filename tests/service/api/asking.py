"""Servers of models that are asked for something: a class, or a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from models.bundles.bundle import Bundle
from tests.bundles import asking, settings
from tests.echo import Echo
from tests.service.api.server import Served, serve

CLASSES: dict[str, Any] = {
    "kind": "class",
    "class_names": ("zero", "one", "two", "three", "none"),
    "null_class": 4,
    "guidance_scale": 3.0,
}
TEXT: dict[str, Any] = {"kind": "text", "max_tokens": 8, "guidance_scale": 7.5}


@contextmanager
def serve_asked(
    bundle: Bundle, inputs: dict[str, Any], policy: dict[str, Any] | None = None, **changes: Any
) -> Iterator[tuple[Served, Echo]]:
    """A server of a model with these inputs, and the backbone that draws for it.

    `policy` is what policy `bright` says of them; no calibration is of these inputs, so it has a
    threshold of its own.
    """
    policies = settings(str(bundle.folder))["policies"]
    policies["bright"] |= {"threshold": 0.5} | (policy or {})
    echo = Echo()
    changes = {"policies": policies, "limits": {"prompt_chars": 200}} | changes
    with serve(asking(bundle, **inputs), backbone_client=echo, **changes) as served:
        yield served, echo
