"""The body of an answer to a generation request, as JSON in bytes."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from models.bundles.parts import Stage, at
from service.errors import ModerationBlocked
from service.generation.sampling_loop import ImageOutcome
from service.generation.service import Answer
from service.http import error_envelope
from service.images.encode import to_png
from service.policies.inputs import class_name
from service.ports import FinishReason

NO_IMAGE = b'"b64_json":null'
"""Where an image goes. No text holds this: JSON writes a quotation mark in one with a backslash."""

STEP = 3 * 2**16
"""Bytes that become base64 at once, in whole groups of three: the event loop's turn is between."""


def encode(answer: Answer) -> Iterator[bytes]:
    """The body in pieces: of a fault its error and the decision's id, else all of the outcome.

    Images are put between pieces of JSON: Python's encoder would hold its lock over all of them,
    and the event loop waits for that, whichever thread this runs in.
    """
    payload: dict[str, Any] = {"id": answer.decision_id}
    if answer.error is not None:
        payload = error_envelope.content(answer.error) | payload
    if answer.error is None or isinstance(answer.error, ModerationBlocked):
        payload |= _described(answer)
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if not answer.outcome.delivered:
        yield text
        return
    first, *others = text.split(NO_IMAGE)
    yield first
    for image, piece in zip(answer.outcome.images, others, strict=True):
        if image.pixels is None:
            yield NO_IMAGE
        else:
            png = to_png(image.pixels)
            yield b'"b64_json":"'
            for begin in range(0, len(png), STEP):
                yield b64encode(png[begin : begin + STEP])
            yield b'"'
        yield piece


def _described(answer: Answer) -> dict[str, Any]:
    """What the outcome has, without its images."""
    outcome, policy = answer.outcome, answer.order.policy
    plan = outcome.plan
    return {
        "created": int(time.time()),
        "model": plan.model,
        "policy": {
            "id": policy.name,
            "version": plan.policy_version,
            "guide": at(Stage.STEERS, plan.parts),
            "judge": plan.judge,
            "certified": answer.certified,
        },
        "data": [_entry(answer, image) for image in outcome.images],
        "usage": {
            "images_requested": len(outcome.images),
            "images_returned": outcome.delivered,
            "images_censored": outcome.count(FinishReason.CONTENT_FILTERED),
            "draws": outcome.draws,
            "nfe": outcome.nfe,
            # OpenAI's clients do arithmetic on these. Nothing is counted in tokens here.
            "input_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
            "output_tokens": 0,
            "total_tokens": 0,
        },
        "ignored": list(answer.order.ignored),
        "timings": {
            "queue_s": round(outcome.queue_s, 4),
            "denoise_s": round(outcome.denoise_s, 4),
            "judge_s": round(outcome.judge_s, 4),
        },
    }


def _entry(answer: Answer, image: ImageOutcome) -> dict[str, Any]:
    """One entry. Scores and thresholds are for keys that may see them."""
    plan, order = answer.outcome.plan, answer.order
    assert image.finish_reason is not None, "an outcome has settled every entry"
    verdicts: dict[str, Any] = {}
    if plan.judge is not None:
        verdict: dict[str, Any] = {"filtered": image.finish_reason is FinishReason.CONTENT_FILTERED}
        if order.caller.has("scores"):
            verdict |= {"benign_score": image.score, "threshold": plan.threshold}
        verdicts[plan.policy] = verdict
    label = plan.condition.label(image.seed)
    shown: dict[str, Any] = {}
    if label is not None:
        shown = {"class_label": label, "class_name": class_name(label, order.policy.inputs)}
    return {
        "index": image.index,
        "b64_json": None,
        "seed": image.seed,
        "finish_reason": image.finish_reason.value,
        "draws": image.draws,
        "content_filter_results": verdicts,
        **shown,
    }
