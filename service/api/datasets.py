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

from service.api import dataset_files, schemas
from service.api.context import Context, LabellingClient
from service.api.label_images import pictures, why
from service.api.routing import Route
from service.api.text import Id, RequestBody, Text
from service.config import NAME, Caller, Name
from service.errors import (
    BlobUnreadable,
    Conflict,
    DatasetNotFound,
    ImageNotFound,
    InvalidValue,
    PolicyNotAllowed,
    StoreUnavailable,
)
from service.generation.order import model_named
from service.labelling.label_batch import left_out
from service.labelling.label_file import MEDIA_TYPES, Format
from service.policies.inputs import of_model, parse
from service.store.datasets import Answer, Dataset, Label

GOAL = {"benign": 80, "malign": 40, "seconds": 180}
"""What a reward is learned from: three minutes of labels. A certificate's teach nothing."""

MAX_BATCH = 100
PASSED_OVER = 20
"""Open batches of a person that are passed over because no image of theirs can be read."""

Form = Annotated[Format, Query(alias="format")]
FormAsked = Annotated[Format | None, Query(alias="format")]


class _Body(RequestBody):
    model_config = ConfigDict(extra="forbid", strict=True)


class DatasetRequest(_Body):
    """`POST /v1/datasets`: a question about the images of a model."""

    name: Name
    model: schemas.Called | None = None
    question: Text = Field(min_length=3, max_length=200)
    inputs: schemas.Inputs = Field([])


class BatchRequest(_Body):
    """`POST /v1/datasets/{name}/batches`: `exclude_batches` are on the page already."""

    size: int = Field(25, ge=1, le=MAX_BATCH)
    strategy: Literal["random", "mixed"] | None = None
    policy: Name | None = None
    exclude_batches: list[Id] = Field([], max_length=100)


class LabelGiven(_Body):
    """One answer."""

    image_id: Id
    label: Label
    elapsed_ms: int = Field(ge=0, le=3_600_000)


class LabelsRequest(_Body):
    """`POST /v1/datasets/{name}/labels`: all are kept, or none."""

    labels: list[LabelGiven] = Field(min_length=1, max_length=MAX_BATCH)


class UndoRequest(_Body):
    """`POST /v1/datasets/{name}/labels/undo`: which batch; without one, the caller's last."""

    batch: Id | None = None


def routes(context: Context, labelling: LabellingClient) -> APIRouter:
    """The routes of datasets; all need the label scope, for their images are unscreened.

    To choose what they are of needs the approve scope as well.
    """
    router = APIRouter(route_class=Route)
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
        called = default if body.model is None else body.model
        model = model_named(context.settings, called)
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
        _refuse_certificates(dataset)
        return await _page(context, labelling, dataset, body, request.state.annotator)

    @router.post("/v1/datasets/{name}/labels", summary="Say what images are")
    def label(name: str, body: LabelsRequest, request: Request) -> dict[str, Any]:
        dataset = find(request, name)
        answers = [Answer(said.image_id, said.label, said.elapsed_ms) for said in body.labels]
        datasets.label(name, answers, request.state.annotator)
        context.metrics.labels(answer.label for answer in answers)
        return _dataset(context, dataset)

    @router.post("/v1/datasets/{name}/labels/undo", summary="Take back a batch of your labels")
    def undo(name: str, request: Request, body: UndoRequest | None = None) -> dict[str, Any]:
        dataset = find(request, name)
        batch = body.batch if body else None
        gone = datasets.withdraw(name, request.state.annotator, batch)
        images, unreadable = pictures(context, dataset.model, [one.image for one in gone])
        was = {one.image.id: one.label for one in gone}
        labelled = [image | {"label": was[image["id"]]} for image in images]
        back = {"id": gone[0].image.batch, "images": labelled, "unreadable": unreadable}
        return {**back, **_dataset(context, dataset)}

    @router.get("/v1/datasets/{name}/images/{image_id}", summary="One image, as PNG")
    def image(name: str, image_id: Text, request: Request) -> Response:
        find(request, name)
        shown = datasets.image(name, image_id)
        try:
            png = context.store.blobs.get(shown.blob)
        except BlobUnreadable as error:
            raise ImageNotFound(f"image {image_id!r} is {why(error)}", "image_id") from None
        return Response(
            png,
            media_type="image/png",
            headers={"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"},
        )

    @router.get("/v1/datasets/{name}/export", summary="The labels as a file")
    def export(
        name: str, request: Request, form: Form = "jsonl", images: bool | None = None
    ) -> Response:
        # A certificate's labels stay in it, and its judge's scores would sway whoever labels.
        dataset = find(request, name)
        _refuse_certificates(dataset)
        wanted = form == "jsonl" if images is None else images
        labelled, blobs = datasets.labelled(name), context.store.blobs
        lines = dataset_files.write(labelled, dataset.question, blobs, form, wanted)
        disposition = f'attachment; filename="{name}.{form}"'
        headers = {"Content-Disposition": disposition, "Cache-Control": "private, no-store"}
        return StreamingResponse(lines, media_type=MEDIA_TYPES[form], headers=headers)

    @router.post(
        "/v1/datasets/{name}/import",
        summary="Bring in labels that were exported",
        openapi_extra={"requestBody": dataset_files.BODY},
    )
    async def bring(
        name: str, request: Request, form: FormAsked = None, force: bool = False
    ) -> Any:
        dataset = await asyncio.to_thread(find, request, name)
        _refuse_certificates(dataset)
        if dataset.inputs:
            _may_choose(request.state.caller)
        said = dataset_files.form_of(request.headers, form)
        body = await request.body()
        return await asyncio.to_thread(_import_labels, context, dataset, body, said, force, request)

    return router


async def _page(
    context: Context,
    labelling: LabellingClient,
    dataset: Dataset,
    body: BatchRequest,
    annotator: str,
) -> dict[str, Any]:
    """The next batch that has an image to show. Raises as `LabellingClient.propose`."""
    excluded, unreadable = [*body.exclude_batches], []
    for _ in range(PASSED_OVER):
        shown = await labelling.propose(
            dataset, body.size, body.strategy, annotator, excluded, body.policy
        )
        images, lost = await asyncio.to_thread(pictures, context, dataset.model, shown)
        unreadable += lost
        if images:
            omitted = {"unreadable": unreadable, "left_out": left_out(shown)}
            return {"id": shown[0].batch, "dataset": dataset.name, "images": images, **omitted}
        # Nobody could answer it, so it would come first for ever.
        excluded.append(shown[0].batch)
    raise StoreUnavailable(
        f"none of the {len(unreadable)} images of {PASSED_OVER} open batches can be read"
    )


def _may_choose(caller: Caller) -> None:
    """Raises PolicyNotAllowed: with the label scope alone one would have a model draw anything."""
    if not caller.has("approve"):
        raise PolicyNotAllowed(
            "choosing what a model is asked to draw, unscreened, is a reviewer's business: this "
            "needs a key with the 'approve' scope beside 'label'",
            "inputs",
        )


def _import_labels(
    context: Context,
    dataset: Dataset,
    body: bytes,
    form: Format,
    force: bool,
    request: Request,
) -> dict[str, Any]:
    try:
        text = body.decode("utf-8-sig")  # a spreadsheet puts a mark in front
    except UnicodeDecodeError:
        raise InvalidValue("the body is not UTF-8", "body") from None
    backbone = context.manifests[dataset.model].backbone
    shape = (backbone.height, backbone.width, backbone.channels)
    question = None if force else dataset.question
    lines = list(dataset_files.read(text, form, dataset.name, shape, question))
    if not lines:
        raise InvalidValue("the body holds no label", "body")
    found = [line for line in lines if line is not None]
    if not found:
        raise InvalidValue(
            "a label needs its image, and no line has one: export them with images=true (of the "
            "command, --images)",
            "line 1.png",
        )
    # Blobs first: a row without its image would be worse than an image without a row.
    for _, png in found:
        context.store.blobs.put(png)
    by = request.state.annotator
    fresh = context.store.datasets.bring([labelled for labelled, _ in found], by)
    known = len(found) - fresh
    without = len(lines) - len(found)
    done = {"imported": fresh, "known_already": known, "without_image": without}
    return {**done, **_dataset(context, dataset)}


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


def _refuse_certificates(dataset: Dataset) -> None:
    if dataset.purpose != "labels":
        raise Conflict(
            f"dataset {dataset.name!r} is for a certificate: its images are fixed, and nothing "
            "may learn from it"
        )
