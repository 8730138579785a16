"""The sampling key: one value that says all that the law of a policy's draws depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any

from pydantic import ConfigDict

from models.bundles.parts import PARTS
from models.diffusion.method import Method


@dataclass(frozen=True)
class BackboneKey:
    """What draws, as `Bundle.backbone_key` has it.

    `weights` as they ran, the scheduler's configuration, and torch's dtype where torch runs them.
    `gradient` names the denoiser in torch that forward guidance differentiates, where another
    runtime draws.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    weights: str
    schedule: str
    dtype: str = "float32"
    gradient: str | None = None

    def used_by(self, parts: Iterable[str]) -> BackboneKey:
        """The key for draws with these parts: `gradient` counts only where one of them uses it."""
        if any(PARTS[part].nfe for part in parts):
            return self
        return replace(self, gradient=None)


@dataclass(frozen=True)
class SamplingKey:
    """All that the law of draws, and of their scores, depends on beside the seed.

    A threshold holds for one key alone. `parts` are the sha256 names of the reward's networks by
    part, the judge's among them. `guidance_scale` and `class_labels` are those that were asked for,
    rising; prompts are whatever they are. `size` is [H, W] of the images, None the backbone's
    default, which `weights` names. Not in it, because they change an image within the
    published tolerance and no law: device, packages, and what shares the batch.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    backbone: BackboneKey
    method: Method
    parts: Mapping[str, str] = field(default_factory=dict)
    guidance_scale: tuple[float, ...] = (1.0,)
    class_labels: tuple[int, ...] = ()
    size: tuple[int, int] | None = None

    def document(self) -> dict[str, Any]:
        """The key as JSON, without what is at its default: a field that comes later changes no
        key that does not use it."""
        found: dict[str, Any] = json.loads(canonical(_without_defaults(self)))
        return found

    def fingerprint(self) -> str:
        """The sha256 name of the key."""
        return f"sha256:{hashlib.sha256(canonical(self.document())).hexdigest()}"


def differences(here: object, there: object) -> dict[str, tuple[Any, Any]]:
    """The leaves of two keys that differ, by dotted path, with their value in each; None of what
    one of them lacks."""
    mine, other = dict(_leaves(here)), dict(_leaves(there))
    return {
        path: (mine.get(path), other.get(path))
        for path in sorted(mine | other)
        if mine.get(path) != other.get(path)
    }


def canonical(document: Any) -> bytes:
    """JSON with one spelling for each value: sorted keys, no spaces, ASCII. Refuses NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _without_defaults(value: Any) -> Any:
    if not is_dataclass(value):
        return dict(value) if isinstance(value, Mapping) else value
    return {
        one.name: _without_defaults(getattr(value, one.name))
        for one in fields(value)
        if getattr(value, one.name) != _default(one)
    }


def _default(one: Any) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        inner = {one.name: getattr(value, one.name) for one in fields(value)}
    elif isinstance(value, Mapping):
        inner = dict(value)
    else:
        yield path, value
        return
    for name, one in inner.items():
        yield from _leaves(one, f"{path}.{name}" if path else name)
