"""Sampling keys that differ from one in a single field, for every field there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from hypothesis import find
from hypothesis import strategies as st

from models.bundles.sampling_key import BackboneKey, SamplingKey
from models.diffusion.method import Method

KEY = SamplingKey(BackboneKey("sha256:w", "sha256:s"), Method(), {"judge": "sha256:j"})


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value with that field changed), through the dataclasses inside."""
    hints = get_type_hints(type(value))
    for one in fields(value):
        now = getattr(value, one.name)
        if is_dataclass(now):
            for path, other in mutations(now):
                yield f"{one.name}.{path}", replace(value, **{one.name: other})
        else:
            other = find(st.from_type(hints[one.name]), lambda found, now=now: found != now)
            yield one.name, replace(value, **{one.name: other})


FIELDS = [path for path, _ in mutations(KEY)]


def mutated(key: SamplingKey, path: str) -> SamplingKey:
    """The key with this one of `FIELDS` changed."""
    found: SamplingKey = dict(mutations(key))[path]
    return found
