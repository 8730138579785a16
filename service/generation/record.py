"""A decision record: all that is needed to explain what a request came to, and to make it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from models.bundles.manifest import Manifest
from models.bundles.sampling_key import SamplingKey
from service.config import ModelSettings
from service.generation.sampling_loop import ImageOutcome, Outcome
from service.ports import FinishReason, Pixels, SamplingPlan, Verdict
from service.store.schema import Row

RECORD_VERSION = 1

PACKAGES = ("winnow-serve", "torch", "onnxruntime", "numpy", "diffusers")
"""What an image depends on."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Versions(_Part):
    """What ran. `sampling` is all that the law of the draws depended on; the rest changes an image
    within the published tolerance.

    `device` is as configured, and the packages are those of the ingress, as all replicas share one
    installation.
    """

    bundle: str
    sampling: SamplingKey
    runtime: str
    device: str
    judge_device: str
    packages: dict[str, str]


class Request(_Part):
    """What was asked for. `prompt` is None where there was one, or a negative one, and it was not
    kept."""

    n: int
    deadline_s: float
    on_filtered: str
    prompt: str | None


class Draw(_Part):
    """One settled draw of an image. A score that was no number is None."""

    draw: int
    verdict: Verdict
    score: float | None
    probe_scores: tuple[float | None, ...]
    nfe: int


class Image(_Part):
    """One entry of the response; `pixels_sha256` is of the delivered [H, W, C] bytes."""

    index: int
    seed: int
    finish_reason: FinishReason | None
    draws: int
    score: float | None
    pixels_sha256: str | None
    judged: tuple[Draw, ...]


class Record(_Part):
    """The whole record. `outcome` is `ok` or the code of the error that the caller got.

    A request that a fault ended, or its caller left, has what was settled until then, and nothing
    was delivered: an image that was accepted by then is `cancelled`, and one that was still open
    has no `finish_reason`.
    """

    record_version: int = RECORD_VERSION
    id: str
    created: datetime
    request_id: str
    key: str
    outcome: str
    request: Request
    plan: SamplingPlan
    versions: Versions
    images: tuple[Image, ...]
    usage: dict[str, int]
    timings: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """What is known of a request before anything is drawn; `record` adds how it ended."""

    request_id: str
    key: str
    request: Request
    plan: SamplingPlan
    versions: Versions
    # Not the request id: a caller may send that twice.
    id: str = field(default_factory=lambda: f"img_{uuid4().hex}")
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def record(self, code: str, seconds: float, outcome: Outcome) -> Record:
        """The record of a request that ended with `code` after `seconds`."""
        timings = {"seconds": round(seconds, 4)}
        for name in ("queue_s", "denoise_s", "judge_s"):
            timings[name] = round(getattr(outcome, name), 4)
        return Record(
            id=self.id,
            created=self.created,
            request_id=self.request_id,
            key=self.key,
            outcome=code,
            request=self.request,
            plan=self.plan,
            versions=self.versions,
            images=tuple(_image(image, outcome) for image in outcome.images),
            usage={"delivered": outcome.delivered, "draws": outcome.draws, "nfe": outcome.nfe},
            timings=timings,
        )


def row(record: Record) -> Row:
    """A record as the store's table holds it."""
    return Row(
        id=record.id,
        created=record.created,
        request_id=record.request_id,
        key_name=record.key,
        policy=record.plan.policy,
        outcome=record.outcome,
        # By way of JSON text, which turns NaN into null: not every database takes NaN.
        document=json.loads(record.model_dump_json()),
    )


def redacted_plan(plan: SamplingPlan, keep_prompts: bool) -> tuple[SamplingPlan, str | None]:
    """A plan as a record holds it, and what the record says of the prompt.

    Prompts are personal: they are kept, the negative one too, only where the operator asked for it.
    """
    condition = plan.condition
    if keep_prompts or not (condition.prompt or condition.negative_prompt):
        return plan, condition.prompt
    return replace(plan, condition=replace(condition, prompt="", negative_prompt="")), None


def versions(model: ModelSettings, manifest: Manifest, sampling: SamplingKey) -> Versions:
    """What runs a model where draws depend on `sampling`."""
    return Versions(
        bundle=manifest.name,
        sampling=sampling,
        runtime=model.backbone.runtime,
        device=model.backbone.device,
        judge_device=model.judge.device,
        packages=packages(),
    )


@cache
def packages() -> dict[str, str]:
    """The versions of what an image depends on. Read from metadata: nothing is imported."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # The build with CUDA is another package of the same module.
        return metadata.version(f"{name}-gpu")


def sha256(pixels: Pixels) -> str:
    """The sha256 name of an image's bytes."""
    return f"sha256:{hashlib.sha256(pixels.tobytes()).hexdigest()}"


def _image(image: ImageOutcome, outcome: Outcome) -> Image:
    judged: list[dict[str, Any]] = [
        {
            "draw": one.key.draw,
            "verdict": one.verdict,
            "score": one.score,
            "probe_scores": one.probe_scores,
            "nfe": one.nfe,
        }
        for one in outcome.judged
        if one.key.index == image.index
    ]
    return Image(
        index=image.index,
        seed=image.seed,
        finish_reason=image.finish_reason,
        draws=image.draws,
        score=image.score,
        pixels_sha256=None if image.pixels is None else sha256(image.pixels),
        judged=tuple(Draw(**one) for one in judged),
    )
