"""Decision records to test with: one delivered image and one that was held back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.bundles.sampling_key import BackboneKey
from service.generation.record import Decision, Record, Request, Versions, row
from service.generation.sampling_loop import ImageOutcome, Outcome
from service.policies.policy import sampling_of
from service.ports import DrawKey, FinishReason, Judged, Verdict
from service.store.schema import Row
from tests.plans import JUDGED

PIXELS = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
VERSIONS = Versions(
    bundle="tiny",
    sampling=sampling_of(JUDGED, BackboneKey("sha256:backbone", "sha256:s")),
    runtime="onnx",
    device="cpu",
    judge_device="cpu",
    packages={"winnow-serve": "0", "torch": "0", "onnxruntime": "0"},
)


def make_decision(prompt: str | None = "", **changes: Any) -> Decision:
    """A decision about to be made."""
    request = Request(n=2, deadline_s=60.0, on_filtered="never", prompt=prompt)
    return replace(Decision("request-1", "someone", request, JUDGED, VERSIONS), **changes)


def make_outcome() -> Outcome:
    """Image 0 accepted at its second draw; image 1 rejected at its only one."""
    delivered = ImageOutcome(0, 40, FinishReason.SUCCESS, draws=2, pixels=PIXELS, score=0.9)
    blocked = ImageOutcome(1, 41, FinishReason.CONTENT_FILTERED, draws=1, score=0.2)
    judged = [
        Judged(DrawKey(0, 40, 0), Verdict.ABANDONED, None, (0.1, float("nan")), 4),
        Judged(DrawKey(1, 41, 0), Verdict.REJECTED, 0.2, (), 10),
        Judged(DrawKey(0, 40, 1), Verdict.ACCEPTED, 0.9, (0.8,), 10),
    ]
    return Outcome(JUDGED, [delivered, blocked], draws=3, nfe=24, judged=judged)


def make_record(**changes: Any) -> Record:
    """The record of `make_outcome`."""
    return make_decision(**changes).record("ok", 1.5, make_outcome())


def make_row(number: int, created: datetime | None = None, **changes: Any) -> Row:
    """Row `number` of a test, made now unless it says when."""
    whole = row(make_record(id=f"img_{number:032x}", created=created or datetime.now(UTC)))
    return replace(whole, **changes)
