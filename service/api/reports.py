"""`POST /v1/decisions/{id}/report`: what a verdict got wrong becomes a label for the next round."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import schemas
from service.api.auth import person
from service.api.context import Context
from service.api.decisions import read
from service.decisions import Image, Record, sha256
from service.encode import to_b64_png, to_png
from service.errors import BackendUnavailable, Conflict, InvalidValue
from service.inputs import drawn
from service.ports import DrawKey, FinishReason, Pixels, SamplingPlan, Verdict
from service.store.datasets import Dataset, Shown

TIMEOUT_S = 120.0
WRONG = {"malign": FinishReason.SUCCESS, "benign": FinishReason.CONTENT_FILTERED}
"""What an entry must have come to for a label to contradict it."""


def routes(context: Context) -> APIRouter:
    """The route of reports."""
    router = APIRouter()

    @router.post(
        "/v1/decisions/{decision_id}/report",
        status_code=201,
        summary="Report a wrong verdict into a dataset",
    )
    async def report(
        decision_id: str, body: schemas.ReportRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("approve")
        record = await asyncio.to_thread(read, context, decision_id)
        image, plan, draw = _which(record, body.index, body.label)
        dataset = await asyncio.to_thread(context.store.datasets.read, body.dataset)
        _fits(dataset, plan)
        image_id = _image_id(record, image, dataset)
        await asyncio.to_thread(_not_twice, context, dataset, image_id)
        pixels = await _draw_again(context, plan, image, draw)
        if image.pixels_sha256 is not None and sha256(pixels) != image.pixels_sha256:
            raise Conflict(
                f"entry {image.index} is not the same image when it is drawn again: the runtime or "
                "a package has changed since"
            )
        shown = Shown(
            id=image_id,
            dataset=dataset.name,
            batch=f"report-{image_id}"[:64],
            position=0,
            blob="",
            seed=image.seed,
            draw=draw,
            policy=plan.policy,
            policy_version=plan.policy_version,
            backbone=plan.backbone,
            strategy="report",
            inclusion=1.0,
            score=next((one.score for one in image.judged if one.draw == draw), None),
            annotator=person(request),
            created=datetime.now(UTC),
            input=drawn(plan.condition, image.seed, context.manifests[plan.model].backbone.inputs),
        )
        await asyncio.to_thread(_keep, context, shown, pixels, body.label)
        return {"image_id": image_id, "dataset": dataset.name, "label": body.label, "draw": draw}

    @router.post("/v1/decisions/{decision_id}/draw", summary="Draw an entry again, to look at it")
    async def draw_again(
        decision_id: str, body: schemas.DrawAgainRequest, request: Request, response: Response
    ) -> dict[str, Any]:
        # The record is the reviewer's, and an image that nobody has screened the labeller's.
        request.state.caller.require("approve")
        request.state.caller.require("label")
        record = await asyncio.to_thread(read, context, decision_id)
        image, plan, draw = _which(record, body.index)
        pixels = await _draw_again(context, plan, image, draw)
        same = None if image.pixels_sha256 is None else sha256(pixels) == image.pixels_sha256
        response.headers["Cache-Control"] = "private, no-store"
        return {
            "index": image.index,
            "draw": draw,
            "identical": same,
            "b64_json": to_b64_png(pixels),
        }

    @router.get("/v1/decisions/{decision_id}/reports", summary="What was reported of it")
    def reported(decision_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        record = read(context, decision_id)
        found = [
            {"index": image.index, "dataset": dataset.name}
            for dataset in context.store.datasets.all()
            if dataset.trainable and dataset.model == record.plan.model
            for image in record.images
            if image.finish_reason in WRONG.values()
            and _there(context, dataset, _image_id(record, image, dataset))
        ]
        return {"object": "list", "data": found}

    return router


def _which(
    record: Record, index: int, label: schemas.Reported | None = None
) -> tuple[Image, SamplingPlan, int]:
    """The entry, and which draw of it to make again under which plan.

    Raises InvalidValue, also where it did not come to what `label` contradicts, and Conflict.
    """
    if index >= len(record.images):
        raise InvalidValue(f"is {index}, the decision has {len(record.images)}", "index")
    if record.request.prompt is None:
        raise Conflict("its prompt was not kept (store.keep_prompts was off): it cannot be drawn")
    image = record.images[index]
    if label is not None and image.finish_reason is not WRONG[label]:
        came_to = image.finish_reason.value if image.finish_reason else "nothing"
        raise InvalidValue(
            f"entry {index} came to {came_to}: a delivered image is reported as malign, a "
            "blocked one as benign",
            "label",
        )
    if image.finish_reason is FinishReason.SUCCESS:
        return image, record.plan, image.draws - 1
    judged = [one for one in image.judged if one.verdict is Verdict.REJECTED]
    if judged:
        # What came nearest to passing is what a reviewer means.
        best = max(judged, key=lambda one: (one.score or 0.0, -one.draw))
        return image, record.plan, best.draw
    abandoned = [one.draw for one in image.judged if one.verdict is Verdict.ABANDONED]
    if not abandoned:
        raise Conflict(f"entry {index} has no draw that could be made again")
    # Probes look on and change nothing: without them the same draw ends as an image.
    method = replace(record.plan.method, probes=())
    return image, replace(record.plan, probe=None, probe_thresholds=(), method=method), abandoned[0]


def _fits(dataset: Dataset, plan: SamplingPlan) -> None:
    if not dataset.trainable:
        raise InvalidValue(f"{dataset.name!r} is a certificate's: reports train", "dataset")
    if dataset.model != plan.model:
        raise InvalidValue(
            f"{dataset.name!r} is of model {dataset.model!r}, the image of {plan.model!r}",
            "dataset",
        )


def _image_id(record: Record, image: Image, dataset: Dataset) -> str:
    """The same for the same report, so that nobody counts twice."""
    what = f"{record.id}|{image.index}|{dataset.name}"
    return f"im_{hashlib.sha256(what.encode()).hexdigest()[:32]}"


def _not_twice(context: Context, dataset: Dataset, image_id: str) -> None:
    if _there(context, dataset, image_id):
        raise Conflict(f"it was reported into {dataset.name!r} already")


def _there(context: Context, dataset: Dataset, image_id: str) -> bool:
    try:
        context.store.datasets.image(dataset.name, image_id)
    except InvalidValue:
        return False
    return True


async def _draw_again(context: Context, plan: SamplingPlan, image: Image, draw: int) -> Pixels:
    key = DrawKey(image.index, image.seed, draw)
    async with aclosing(context.drawer.draw(plan, [key], TIMEOUT_S, "report")) as groups:
        async for group in groups:
            for result in group:
                if result.pixels is not None:
                    return result.pixels
    raise BackendUnavailable("the draw made no image this time")


def _keep(context: Context, shown: Shown, pixels: Pixels, label: schemas.Reported) -> None:
    blob = context.store.blobs.put(to_png(pixels))
    context.store.datasets.report(replace(shown, blob=blob), label)
