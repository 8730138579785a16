"""Reports: what a verdict got wrong becomes a label for the next round."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from models.bundles.manifest import Manifest
from models.bundles.parts import PARTS, Stage
from service.errors import BackendUnavailable, Conflict, DecisionNotFound, InvalidValue
from service.generation.record import Image, Record, sha256
from service.images.encode import to_png
from service.policies.inputs import drawn
from service.ports import BackboneClient, DrawKey, FinishReason, Pixels, SamplingPlan, Verdict
from service.store.datasets import Dataset, ImageToLabel
from service.store.store import Store

ID = re.compile(r"img_[0-9a-f]{32}")
TIMEOUT_S = 120.0
Reported = Literal["malign", "benign"]
WRONG = {"malign": FinishReason.SUCCESS, "benign": FinishReason.CONTENT_FILTERED}
"""What an entry must have come to for a label to contradict it."""


@dataclass(frozen=True)
class DrawnAgain:
    """An entry's draw, made again as a PNG; `identical` to what left, None where nothing did."""

    draw: int
    png: bytes
    identical: bool | None


@dataclass(frozen=True)
class ReportService:
    """Draws the entries of decisions again, and puts them into datasets under another label."""

    store: Store
    backbone_client: BackboneClient
    manifests: Mapping[str, Manifest]

    async def report(
        self, decision_id: str, index: int, label: Reported, into: str, by: str
    ) -> ImageToLabel:
        """Put entry `index` into a dataset, labelled; returns it as it is kept there.

        Raises DecisionNotFound, DatasetNotFound, InvalidValue, what a draw raises, and Conflict
        where it was reported already, or cannot be drawn as it was.
        """

        def look() -> tuple[Image, SamplingPlan, int, Dataset, str]:
            record = read(self.store, decision_id)
            image, plan, draw = _draw_to_repeat(record, index, label)
            dataset = self.store.datasets.read(into)
            _check_dataset(dataset, plan)
            image_id = _image_id(record, image, dataset)
            if self._is_reported(dataset, image_id):
                raise Conflict(f"it was reported into {dataset.name!r} already")
            return image, plan, draw, dataset, image_id

        image, plan, draw, dataset, image_id = await asyncio.to_thread(look)
        pixels = await self._draw(plan, image, draw)
        shown = ImageToLabel(
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
            annotator=by,
            created=datetime.now(UTC),
            input=drawn(plan.condition, image.seed, self.manifests[plan.model].backbone.inputs),
        )

        def keep() -> ImageToLabel:
            if _identical(image, pixels) is False:
                raise Conflict(
                    f"entry {image.index} is not the same image when it is drawn again: the "
                    "runtime or a package has changed since"
                )
            kept = replace(shown, blob=self.store.blobs.put(to_png(pixels)))
            self.store.datasets.report(kept, label)
            return kept

        return await asyncio.to_thread(keep)

    async def draw_again(self, decision_id: str, index: int) -> DrawnAgain:
        """Draw entry `index` again, to look at it. Raises as `report` does."""
        record = await asyncio.to_thread(read, self.store, decision_id)
        image, plan, draw = _draw_to_repeat(record, index)
        pixels = await self._draw(plan, image, draw)
        return await asyncio.to_thread(
            lambda: DrawnAgain(draw, to_png(pixels), _identical(image, pixels))
        )

    def reported(self, decision_id: str) -> list[dict[str, Any]]:
        """The entries that were reported, and into which datasets. Blocks."""
        record = read(self.store, decision_id)
        return [
            {"index": image.index, "dataset": dataset.name}
            for dataset in self.store.datasets.all()
            if dataset.trainable and dataset.model == record.plan.model
            for image in record.images
            if image.finish_reason in WRONG.values()
            and self._is_reported(dataset, _image_id(record, image, dataset))
        ]

    def _is_reported(self, dataset: Dataset, image_id: str) -> bool:
        try:
            self.store.datasets.image(dataset.name, image_id)
        except InvalidValue:
            return False
        return True

    async def _draw(self, plan: SamplingPlan, image: Image, draw: int) -> Pixels:
        key = DrawKey(image.index, image.seed, draw)
        draws = self.backbone_client.draw(plan, [key], TIMEOUT_S, "report")
        async with aclosing(draws) as groups:
            async for group in groups:
                for result in group:
                    if result.pixels is not None:
                        return result.pixels
        raise BackendUnavailable("the draw made no image this time")


def document(store: Store, decision_id: str) -> dict[str, Any]:
    """A decision's record as it is stored. Raises DecisionNotFound."""
    found = store.decisions.read(decision_id) if ID.fullmatch(decision_id) else None
    if found is None:
        raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
    return found


def read(store: Store, decision_id: str) -> Record:
    """A decision's record. Raises DecisionNotFound, Conflict for one of another Winnow."""
    try:
        return Record.model_validate(document(store, decision_id))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Conflict(
            "the record was written by another version of Winnow, and this one cannot read it "
            f"({where}: {first['msg']}): GET /v1/decisions/{decision_id} shows it as it is"
        ) from None


def _draw_to_repeat(
    record: Record, index: int, label: Reported | None = None
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
    parts = {
        part: name
        for part, name in record.plan.parts.items()
        if PARTS[part].stage is not Stage.PROBES
    }
    plan = replace(record.plan, parts=parts, probe_thresholds=(), method=method)
    return image, plan, abandoned[0]


def _check_dataset(dataset: Dataset, plan: SamplingPlan) -> None:
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


def _identical(image: Image, pixels: Pixels) -> bool | None:
    """Whether these are the pixels that left; None where none did."""
    return None if image.pixels_sha256 is None else sha256(pixels) == image.pixels_sha256
