"""`/v1/datasets`: questions, the images that people are asked about, and what they said."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field

from service.api import exchange, schemas
from service.api.auth import Caller
from service.api.context import Context, Proposer
from service.api.pictures import pictures
from service.api.text import Sent, Text
from service.config import NAME, Name
from service.errors import (
    Conflict,
    DatasetNotFound,
    InvalidValue,
    ModelNotFound,
    PolicyNotAllowed,
)
from service.inputs import of_model, parse
from service.store.datasets import Answer, Dataset, Label

GOAL = {"benign": 80, "malign": 40, "seconds": 180}
"""What a reward is learned from: three minutes of labels. A certificate's teach nothing."""

MAX_BATCH = 100
Form = Annotated[exchange.Format, Query(alias="format")]
Id = Annotated[Text, Field(min_length=1, max_length=64)]


class _Body(Sent):
    model_config = ConfigDict(extra="forbid", strict=True)


class DatasetRequest(_Body):
    """`POST /v1/datasets`: a question about the images of a model."""

    name: Name
    model: str | None = Field(None, max_length=64)
    question: Text = Field(min_length=3, max_length=200)
    inputs: schemas.Inputs = Field([])


class BatchRequest(_Body):
    """`POST /v1/datasets/{name}/batches`: `besides` are batches that the page holds already."""

    size: int = Field(25, ge=1, le=MAX_BATCH)
    strategy: Literal["random", "mixed"] | None = None
    policy: Name | None = None
    besides: list[Id] = Field([], max_length=16)


class Said(_Body):
    """One answer."""

    image_id: Id
    label: Label
    elapsed_ms: int = Field(ge=0, le=3_600_000)


class LabelsRequest(_Body):
    """`POST /v1/datasets/{name}/labels`: all are kept, or none."""

    labels: list[Said] = Field(min_length=1, max_length=MAX_BATCH)


def routes(context: Context, desk: Proposer) -> APIRouter:
    """The routes of datasets; all need the label scope, for their images are unscreened.

    To choose what they are of needs the approve scope as well.
    """
    router = APIRouter()
    datasets = context.store.datasets

    def find(request: Request, name: str) -> Dataset:
        request.state.caller.require("label")
        if not re.fullmatch(NAME, name):
            raise DatasetNotFound(f"no dataset {name!r}", "dataset")
        return datasets.read(name)

    @router.post("/v1/datasets", status_code=201, summary="Ask a question about a model's images")
    def create(body: DatasetRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        if body.inputs:
            _may_choose(request.state.caller)
        default = context.settings.policies[context.settings.default_policy].model
        model = body.model or default
        if model not in context.manifests:
            known = ", ".join(context.manifests)
            raise ModelNotFound(f"no model {model!r} (there are {known})", "model")
        question = " ".join(body.question.split())
        inputs = _inputs(context, model, body.inputs)
        now, by = datetime.now(UTC), request.state.annotator
        dataset = Dataset(body.name, model, question, inputs, "labels", now, by)
        datasets.create(dataset)
        return _dataset(context, dataset)

    @router.get("/v1/datasets", summary="All datasets")
    def listed(request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        return {
            "object": "list",
            "data": [_dataset(context, dataset) for dataset in datasets.all()],
            "models": list(context.manifests),
            # What a new dataset of each model may, or must, say in `inputs`.
            "kinds": {
                name: manifest.backbone.inputs.kind for name, manifest in context.manifests.items()
            },
        }

    @router.get("/v1/datasets/{name}", summary="One dataset, its counts and its goal")
    def one(name: str, request: Request) -> dict[str, Any]:
        return _dataset(context, find(request, name))

    @router.post("/v1/datasets/{name}/batches", summary="The images to label next")
    async def batch(name: str, body: BatchRequest, request: Request) -> dict[str, Any]:
        dataset = await asyncio.to_thread(find, request, name)
        _for_labels(dataset)
        shown = await desk.propose(
            dataset,
            body.size,
            body.strategy,
            request.state.annotator,
            body.besides,
            body.policy,
        )
        images = await asyncio.to_thread(pictures, context, dataset.model, shown)
        return {"id": shown[0].batch, "dataset": name, "images": images}

    @router.post("/v1/datasets/{name}/labels", summary="Say what images are")
    def label(name: str, body: LabelsRequest, request: Request) -> dict[str, Any]:
        dataset = find(request, name)
        answers = [Answer(said.image_id, said.label, said.elapsed_ms) for said in body.labels]
        datasets.label(name, answers, request.state.annotator)
        context.metrics.labels(answer.label for answer in answers)
        return _dataset(context, dataset)

    @router.post("/v1/datasets/{name}/labels/undo", summary="Take back your last batch of labels")
    def undo(name: str, request: Request) -> dict[str, Any]:
        dataset = find(request, name)
        gone = datasets.withdraw(name, request.state.annotator)
        images = pictures(context, dataset.model, [one.image for one in gone])
        for image, was in zip(images, gone, strict=True):
            image["label"] = was.label
        return {"id": gone[0].image.batch, "images": images, **_dataset(context, dataset)}

    @router.get("/v1/datasets/{name}/images/{image_id}", summary="One image, as PNG")
    def image(name: str, image_id: Text, request: Request) -> Response:
        find(request, name)
        shown = datasets.image(name, image_id)
        return Response(
            context.store.blobs.get(shown.blob),
            media_type="image/png",
            headers={"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"},
        )

    @router.get("/v1/datasets/{name}/export", summary="The labels as a file")
    def export(
        name: str, request: Request, form: Form = "jsonl", images: bool | None = None
    ) -> Response:
        # A certificate's labels stay in it, and its judge's scores would sway whoever labels.
        dataset = find(request, name)
        _for_labels(dataset)
        wanted = form == "jsonl" if images is None else images
        labelled, blobs = datasets.labelled(name), context.store.blobs
        lines = exchange.write(labelled, dataset.question, blobs, form, wanted)
        kind = {"jsonl": "application/jsonl", "csv": "text/csv"}[form]
        disposition = f'attachment; filename="{name}.{form}"'
        headers = {"Content-Disposition": disposition, "Cache-Control": "private, no-store"}
        return StreamingResponse(lines, media_type=kind, headers=headers)

    @router.post("/v1/datasets/{name}/import", summary="Bring in labels that were exported")
    async def bring(name: str, request: Request, form: Form = "jsonl", anyway: bool = False) -> Any:
        dataset = await asyncio.to_thread(find, request, name)
        _for_labels(dataset)
        if dataset.inputs:
            _may_choose(request.state.caller)
        body = await request.body()
        return await asyncio.to_thread(_bring, context, dataset, body, form, anyway, request)

    return router


def _may_choose(caller: Caller) -> None:
    """Raises PolicyNotAllowed: with the label scope alone one would have a model draw anything."""
    if not caller.has("approve"):
        raise PolicyNotAllowed(
            "choosing what a model is asked to draw, unscreened, is a reviewer's business: this "
            "needs a key with the 'approve' scope beside 'label'",
            "inputs",
        )


def _bring(
    context: Context,
    dataset: Dataset,
    body: bytes,
    form: exchange.Format,
    anyway: bool,
    request: Request,
) -> dict[str, Any]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidValue("the body is not UTF-8", "body") from None
    backbone = context.manifests[dataset.model].backbone
    shape = (backbone.height, backbone.width, backbone.channels)
    question = None if anyway else dataset.question
    found = list(exchange.read(text, form, dataset.name, shape, question))
    if not found:
        raise InvalidValue("the body holds no label", "body")
    # Blobs first: a row without its image would be worse than an image without a row.
    for _, png in found:
        context.store.blobs.put(png)
    by = request.state.annotator
    fresh = context.store.datasets.bring([labelled for labelled, _ in found], by)
    known = len(found) - fresh
    return {"imported": fresh, "known_already": known, **_dataset(context, dataset)}


def _inputs(context: Context, model: str, given: Sequence[schemas.Input]) -> list[dict[str, Any]]:
    """What a dataset's images are drawn under, checked against the model. Raises InvalidValue."""
    choices = of_model(model, context.manifests[model].backbone.inputs)
    if choices.inputs.kind == "text" and not given:
        raise InvalidValue(
            f"model {model!r} takes a prompt: list those to draw images of, each as "
            '{"prompt": "…"}',
            "inputs",
        )
    asked = [one.model_dump() for one in given]
    return parse(asked, choices, context.settings.limits.prompt_chars)


def _dataset(context: Context, dataset: Dataset) -> dict[str, Any]:
    counts = context.store.datasets.counts(dataset.name)
    seconds = counts.pop("elapsed_ms") / 1000
    return {
        "name": dataset.name,
        "object": "dataset",
        "model": dataset.model,
        "question": dataset.question,
        "inputs": dataset.inputs,
        "purpose": dataset.purpose,
        "created": int(dataset.created.timestamp()),
        "created_by": dataset.created_by,
        "counts": {**counts, "seconds": round(seconds, 1)},
        "goal": GOAL if dataset.trainable else None,
    }


def _for_labels(dataset: Dataset) -> None:
    if dataset.purpose != "labels":
        raise Conflict(
            f"dataset {dataset.name!r} is for a certificate: its images are fixed, and nothing "
            "may learn from it"
        )
