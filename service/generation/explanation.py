"""Why each entry of a decision came to what it came to, in sentences and numbers."""

from __future__ import annotations

import math
from typing import Any

from models.bundles.manifest import Inputs
from models.diffusion.condition import size_text
from service.generation.record import Draw, Image, Record
from service.policies.inputs import NO_INPUTS, class_name
from service.ports import FinishReason, Verdict

OTHERWISE = {
    FinishReason.DEADLINE: "was not ready before the deadline",
    FinishReason.CANCELLED: "was accepted, but held back because another entry was blocked",
    FinishReason.ERROR: "made no valid image",
    None: "was never settled",
}


def explain(record: Record, inputs: Inputs = NO_INPUTS) -> dict[str, Any]:
    """What a reviewer asks of a decision, as JSON: why, by which versions, what would have passed.

    `inputs` are the model's, for the names of classes. `prompt` is None where it was not kept.
    `would_pass_at` is the highest threshold with which the entry leaves, None if none does.
    """
    plan, condition = record.plan, record.plan.condition
    return {
        "id": record.id,
        "policy": plan.policy,
        "policy_version": plan.policy_version,
        "outcome": record.outcome,
        "threshold": plan.threshold,
        "probe_thresholds": list(plan.probe_thresholds),
        "max_draws": plan.max_draws,
        "prompt": record.request.prompt,
        "negative_prompt": None if record.request.prompt is None else condition.negative_prompt,
        "guidance_scale": condition.guidance_scale,
        # None is the model's default.
        "size": None if condition.size is None else size_text(condition.size),
        "versions": record.versions.model_dump(),
        "images": [_image(record, image, inputs) for image in record.images],
    }


def _image(record: Record, image: Image, inputs: Inputs) -> dict[str, Any]:
    label = record.plan.condition.label(image.seed)
    scores = [one.score for one in image.judged if one.score is not None]
    best = max(scores, default=None)
    return {
        "index": image.index,
        "seed": image.seed,
        "class_label": label,
        "class_name": None if label is None else class_name(label, inputs),
        "finish_reason": image.finish_reason.value if image.finish_reason else None,
        "why": _why(record, image, best),
        "would_pass_at": best,
        "draws": [
            {
                "draw": one.draw,
                "verdict": one.verdict.value,
                "why": _verdict(record, one),
                "score": one.score,
                "probe_scores": list(one.probe_scores),
            }
            for one in image.judged
        ],
    }


def _why(record: Record, image: Image, best: float | None) -> str:
    plan = record.plan
    if image.finish_reason is FinishReason.SUCCESS:
        if plan.threshold is None or image.score is None:
            return "Delivered: this policy has no judge, so nothing was compared."
        return (
            f"Delivered: draw {image.draws - 1} scored {image.score:.4f}, and the threshold is "
            f"{plan.threshold:.4f}. A threshold above {_ceil(image.score)} would have asked for "
            "another draw."
        )
    if image.finish_reason is FinishReason.CONTENT_FILTERED:
        tries = f"{image.draws} draw{'s' if image.draws > 1 else ''}"
        if best is None:
            return (
                f"Blocked: the probes stopped all of {tries}, so the judge saw none, and no "
                "threshold of the judge would have let one pass. More draws might."
            )
        return (
            f"Blocked: of {tries} none reached the threshold of {plan.threshold:.4f}. The best "
            f"scored {best:.4f}: it would have passed at a threshold of {_floor(best)} or less. "
            "More draws might too."
        )
    return f"No image: it {OTHERWISE[image.finish_reason]}."


def _floor(score: float) -> str:
    """Four digits with which a sentence about "or less" is true."""
    return f"{math.floor(score * 1e4) / 1e4:.4f}"


def _ceil(score: float) -> str:
    """Four digits with which a sentence about "above" is true."""
    return f"{math.ceil(score * 1e4) / 1e4:.4f}"


def _verdict(record: Record, one: Draw) -> str:
    plan = record.plan
    if one.verdict is Verdict.ABANDONED:
        for number, score in enumerate(one.probe_scores):
            limit = plan.probe_thresholds[number] if number < len(plan.probe_thresholds) else None
            if score is not None and limit is not None and score < limit:
                return f"probe {number + 1} scored {score:.4f}, below its {limit:.4f}"
        return "a probe stopped it"
    if one.score is not None and plan.threshold is not None:
        reached = "reaches" if one.score >= plan.threshold else "is below"
        return f"{one.score:.4f} {reached} {plan.threshold:.4f}"
    return str(one.verdict.value)
