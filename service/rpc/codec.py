"""Messages as bytes: a JSON part, validated on arrival, followed by raw images.

Nothing in a message can run code; unknown fields are refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter

from service.engine.admission import Workload
from service.errors import WinnowError
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan

LENGTHS = struct.Struct("<II")
"""Lengths in bytes of the JSON part and of the JSON list of image shapes."""

SHAPES: TypeAdapter[list[tuple[NonNegativeInt, ...] | None]] = TypeAdapter(
    list[tuple[NonNegativeInt, ...] | None]
)

MESSAGE = 500
"""Most characters of an error's message."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class DrawCall:
    """Draws to be made within `timeout_s`. With `again`, another replica has refused them;
    `refused_nfe` is what the ingress refused on behalf of this replica since its last call."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    plan: SamplingPlan
    keys: tuple[DrawKey, ...]
    timeout_s: float
    tenant: str
    again: bool = False
    refused_nfe: float = 0.0


@dataclass(frozen=True)
class DrawReply:
    """Finished draws, and the backbone's remaining workload."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    results: list[DrawResult]
    workload: Workload


@dataclass(frozen=True)
class ScoreCall:
    """A judge is to score the images of this message within `timeout_s`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    judge: str
    timeout_s: float


class MessageCodec(Generic[Value]):
    """Messages of one type."""

    def __init__(self, kind: Any, config: ConfigDict | None = None) -> None:
        self._adapter: TypeAdapter[Value] = TypeAdapter(kind, config=config)

    def pack(self, value: Value, images: Sequence[Pixels | None] = ()) -> bytes:
        """A message of a value and uint8 images of any shape; None stays None."""
        body = self._adapter.dump_json(value)
        shapes = json.dumps([None if image is None else image.shape for image in images]).encode()
        parts = [LENGTHS.pack(len(body), len(shapes)), body, shapes]
        return b"".join(parts + [image.tobytes() for image in images if image is not None])

    def unpack(self, data: bytes) -> tuple[Value, list[Pixels | None]]:
        """Value and images of a message; the images are read-only views. Raises ValueError."""
        if len(data) < LENGTHS.size:
            raise ValueError("a message is cut short")
        body, shapes = LENGTHS.unpack_from(data)
        start = LENGTHS.size + body
        value = self._adapter.validate_json(data[LENGTHS.size : start])
        images: list[Pixels | None] = []
        place = start + shapes
        for shape in SHAPES.validate_json(data[start:place]):
            size = 0 if shape is None else prod(shape)
            view = np.frombuffer(data, np.uint8, size, place)
            images.append(None if shape is None else view.reshape(shape))
            place += size
        if place != len(data):
            raise ValueError("a message is longer than it says")
        return value, images


DRAWS: MessageCodec[DrawCall] = MessageCodec(DrawCall)
SCORES: MessageCodec[ScoreCall] = MessageCodec(ScoreCall)
NUMBERS: MessageCodec[list[float]] = MessageCodec(
    # NaN must arrive as what it is: a judge's score of that kind is a fault of the judge.
    list[float],
    ConfigDict(ser_json_inf_nan="constants"),
)
ACCEPTING: MessageCodec[bool] = MessageCodec(bool)
WORKLOAD: MessageCodec[Workload] = MessageCodec(Workload)
DRAW_REPLY: MessageCodec[DrawReply] = MessageCodec(DrawReply)


def pack_reply(drawn: DrawReply) -> bytes:
    """The message of a reply, with the pixels of draws that have any."""
    images = [result.pixels for result in drawn.results]
    results = [replace(result, pixels=None) for result in drawn.results]
    return DRAW_REPLY.pack(replace(drawn, results=results), images)


def unpack_reply(data: bytes) -> DrawReply:
    """See `pack_reply`. Raises ValueError for anything else."""
    drawn, images = DRAW_REPLY.unpack(data)
    pairs = zip(drawn.results, images, strict=True)
    return replace(drawn, results=[replace(one, pixels=image) for one, image in pairs])


def pack_fault(error: WinnowError) -> str:
    """An error as ASCII text, short enough for gRPC's headers."""
    message = error.message[:MESSAGE]
    return json.dumps([type(error).__name__, message, error.param, error.retry_after_s])


def unpack_fault(text: str) -> WinnowError | None:
    """The error that another process raised; None for any other text."""
    try:
        name, message, param, retry_after_s = json.loads(text)
        return _faults()[name](message, param, retry_after_s)
    except (ValueError, KeyError, TypeError):
        return None


def _faults(root: type[WinnowError] = WinnowError) -> dict[str, type[WinnowError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _faults(kind)
    return found
