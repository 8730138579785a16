"""Datasets in the store: images that were shown, and what people said of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Select, and_, func, insert, select

from service.errors import Conflict, DatasetNotFound, InvalidValue
from service.store.database import PAUSE_S, Collision, Database
from service.store.policies import log
from service.store.schema import datasets, images, labels

Label = Literal["benign", "malign", "unsure"]
Purpose = Literal["labels", "certificate"]
WITHDRAWN = "withdrawn"
BRINGING_ROWS = 200
"""Labels brought in at a time: few enough that a request's write waits for milliseconds."""


@dataclass(frozen=True)
class Dataset:
    """A question about a model's images.

    `inputs` are what to draw them under (`service.policies.inputs.parse`); none is the model's
    default.
    """

    name: str
    model: str
    question: str
    inputs: list[dict[str, Any]]
    purpose: Purpose
    created: datetime
    created_by: str

    @property
    def trainable(self) -> bool:
        """Whether rewards may learn from it: a certificate's labels prove, and teach nothing."""
        return self.purpose == "labels"


@dataclass(frozen=True)
class ImageToLabel:
    """One image that somebody is to label; `blob` names its PNG, `inclusion` is in (0, 1].

    `input` is what the model was asked for (`service.policies.inputs.drawn`), None where it takes
    nothing.
    """

    id: str
    dataset: str
    batch: str
    position: int
    blob: str
    seed: int
    draw: int
    policy: str
    policy_version: int
    backbone: str
    strategy: str
    inclusion: float
    score: float | None
    annotator: str
    created: datetime
    input: dict[str, Any] | None = None


@dataclass(frozen=True)
class LabelledImage:
    """An image and the label that counts: the last one that was not withdrawn."""

    image: ImageToLabel
    label: Label
    annotator: str
    elapsed_ms: int
    labelled: datetime


@dataclass(frozen=True)
class Answer:
    """What a person says of an image, a Label or WITHDRAWN, and after how long."""

    image_id: str
    label: str
    elapsed_ms: int


class Datasets:
    """Datasets, their images and labels; all are appended. Methods block, and raise
    StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, dataset: Dataset) -> None:
        """Make a dataset. Raises Conflict when the name is taken."""
        try:
            with self._database.transaction() as connection:
                connection.execute(insert(datasets).values(**asdict(dataset)))
                log(connection, dataset.created_by, "dataset.create", dataset.name, {})
        except Collision:
            raise Conflict(f"dataset {dataset.name!r} exists already", "name") from None

    def read(self, name: str) -> Dataset:
        """One dataset. Raises DatasetNotFound."""
        row = self._database.one(select(datasets).where(datasets.c.name == name))
        if row is None:
            raise DatasetNotFound(f"no dataset {name!r}", "dataset")
        return Dataset(**row._mapping)

    def all(self) -> list[Dataset]:
        """Every dataset, by name."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(datasets).order_by(datasets.c.name))
            return [Dataset(**row._mapping) for row in rows]

    def show(self, batch: Sequence[ImageToLabel]) -> None:
        """Append images that somebody will be asked about."""
        with self._database.transaction() as connection:
            connection.execute(insert(images), [asdict(image) for image in batch])

    def open_batch(
        self, dataset: str, annotator: str, exclude_batches: Sequence[str], within: timedelta
    ) -> list[ImageToLabel]:
        """The images of the oldest batch that was drawn for a person and has no label yet.

        `exclude_batches` are batches that the person's page has already. Labels that were taken
        back do not count, so such a batch is open again.
        """
        recent = datetime.now(UTC) - within
        with self._database.transaction() as connection:
            answered = (
                select(images.c.batch)
                .join(labels, labels.c.image == images.c.id)
                .where(labels.c.id.in_(_current()), labels.c.label != WITHDRAWN)
            )
            batch = connection.scalar(
                select(images.c.batch)
                .where(
                    images.c.dataset == dataset,
                    images.c.annotator == annotator,
                    images.c.created > recent,
                    images.c.batch.not_in([*exclude_batches]),
                    images.c.batch.not_in(answered),
                )
                .order_by(images.c.created)
                .limit(1)
            )
            if batch is None:
                return []
            query = select(images).where(images.c.batch == batch).order_by(images.c.position)
            return [ImageToLabel(**row._mapping) for row in connection.execute(query)]

    def image(self, dataset: str, image_id: str) -> ImageToLabel:
        """One image. Raises InvalidValue when it is not of this dataset."""
        query = select(images).where(images.c.id == image_id, images.c.dataset == dataset)
        row = self._database.one(query)
        if row is None:
            raise InvalidValue(f"{image_id!r} is not an image of dataset {dataset!r}", "image_id")
        return ImageToLabel(**row._mapping)

    def label(self, dataset: str, answers: Sequence[Answer], annotator: str) -> None:
        """Append a person's answers, all or none; of an image the last answer counts.

        Raises InvalidValue when an image is not of this dataset, or its batch is another person's;
        Conflict for a certificate's dataset, which `certificate_labels` keeps.
        """
        wanted = {answer.image_id for answer in answers}
        with self._database.transaction() as connection:
            _no_certificate(connection, dataset)
            known = select(images.c.id, images.c.annotator).where(
                images.c.id.in_(wanted), images.c.dataset == dataset
            )
            owners = {row.id: row.annotator for row in connection.execute(known)}
            for number, answer in enumerate(answers):
                if owners.get(answer.image_id) != annotator:
                    raise InvalidValue(
                        f"{answer.image_id!r} is not among the images that {annotator!r} was shown",
                        f"labels.{number}.image_id",
                    )
            append(connection, answers, annotator)

    def report(self, shown: ImageToLabel, label: Label) -> None:
        """Append an image together with its label, or neither.

        Raises Conflict for a certificate's dataset, and for a certificate's image.
        """
        with self._database.transaction() as connection:
            _no_certificate(connection, shown.dataset)
            _no_proof(connection, [shown.blob])
            connection.execute(insert(images), [asdict(shown)])
            append(connection, [Answer(shown.id, label, 0)], shown.annotator)

    def bring(self, labelled: Sequence[LabelledImage], by: str) -> int:
        """Append labels from elsewhere with their images; returns how many were new.

        An image that is here already, or whose pixels have a label in this dataset, is passed over:
        bringing a file twice, or a dataset's own, changes nothing. Of equal images the last counts.
        Raises Conflict when one is a certificate's, and then nothing is brought in. A fault of the
        store leaves what came before it: bringing the same again does the rest.
        """
        # In small transactions: SQLite has one writer at a time, and requests wait to be recorded.
        equal: dict[str, list[LabelledImage]] = {}
        for one in labelled:
            equal.setdefault(one.image.blob, []).append(one)
        blobs = list(equal)
        with self._database.transaction() as connection:
            _no_certificate(connection, labelled[0].image.dataset)
            _no_proof(connection, blobs)
        fresh = 0
        for start in range(0, len(blobs), BRINGING_ROWS):
            if start:
                time.sleep(PAUSE_S)
            part = [one for blob in blobs[start : start + BRINGING_ROWS] for one in equal[blob]]
            # Somebody else may bring one of them this moment: then it is known.
            fresh += self._database.repeat(partial(self._import_labels, part, by))
        return fresh

    def _import_labels(
        self, labelled: Sequence[LabelledImage], by: str, connection: Connection
    ) -> int:
        dataset = labelled[0].image.dataset
        blobs = [one.image.blob for one in labelled]
        _no_certificate(connection, dataset)
        _no_proof(connection, blobs)
        ids = [one.image.id for one in labelled]
        known = set(connection.scalars(select(images.c.id).where(images.c.id.in_(ids))))
        here = _labelled(and_(images.c.dataset == dataset, images.c.blob.in_(blobs)))
        said = set(connection.scalars(here.with_only_columns(images.c.blob)))
        fresh = {
            one.image.blob: one
            for one in labelled
            if one.image.id not in known and one.image.blob not in said
        }
        if not fresh:
            return 0
        connection.execute(insert(images), [asdict(one.image) for one in fresh.values()])
        for one in fresh.values():
            answer = Answer(one.image.id, one.label, one.elapsed_ms)
            append(connection, [answer], one.annotator, one.labelled)
        log(connection, by, "dataset.import", dataset, {"labels": len(fresh)})
        return len(fresh)

    def withdraw(
        self, dataset: str, annotator: str, batch: str | None = None
    ) -> list[LabelledImage]:
        """Take back a person's labels of a batch, by default of the last; returns what they were.

        Its images may be labelled again. Raises Conflict when there is nothing to take back.
        """
        theirs = and_(images.c.dataset == dataset, labels.c.annotator == annotator)
        if batch is not None:
            theirs = and_(theirs, images.c.batch == batch)
        with self._database.transaction() as connection:
            _no_certificate(connection, dataset)
            last = _labelled(theirs).order_by(labels.c.id.desc()).limit(1)
            newest = connection.execute(last).one_or_none()
            if newest is None:
                raise Conflict("there is no label of yours to take back")
            said = and_(theirs, images.c.batch == newest.batch)
            query = _labelled(said).order_by(images.c.position)
            gone = [_read(row) for row in connection.execute(query)]
            append(connection, [Answer(one.image.id, WITHDRAWN, 0) for one in gone], annotator)
            return gone

    def labelled(self, dataset: str) -> list[LabelledImage]:
        """Every image of a dataset with the label that counts, in the order of labelling."""
        with self._database.transaction() as connection:
            query = _labelled(images.c.dataset == dataset).order_by(labels.c.id)
            return [_read(row) for row in connection.execute(query)]

    def counts(self, dataset: str) -> dict[str, int]:
        """How many labels of each kind count, and how many seconds they took."""
        query = (
            select(labels.c.label, func.count(), func.sum(labels.c.elapsed_ms))
            .join(images, images.c.id == labels.c.image)
            .where(images.c.dataset == dataset, labels.c.id.in_(_current()))
            .group_by(labels.c.label)
        )
        found = dict.fromkeys(get_args(Label), 0) | {"elapsed_ms": 0}
        with self._database.transaction() as connection:
            for label, count, elapsed in connection.execute(query):
                if label != WITHDRAWN:
                    # Of a word that nobody knows here nobody is sure.
                    found[label if label in get_args(Label) else "unsure"] += count
                    found["elapsed_ms"] += int(elapsed or 0)
        return found

    def purgeable(self, since: datetime, before: datetime) -> list[str]:
        """Blobs of images from that time that no later image shares; rows and labels stay."""
        later = select(images.c.blob).where(images.c.created >= before)
        query = (
            select(images.c.blob)
            .where(images.c.created >= since, images.c.created < before)
            .where(images.c.blob.not_in(later))
            .distinct()
        )
        with self._database.transaction() as connection:
            return list(connection.scalars(query))

    def shown_since(self, blob: str, moment: datetime) -> bool:
        """Whether an image of this blob is from that moment or later."""
        query = select(images.c.id).where(images.c.blob == blob, images.c.created >= moment)
        with self._database.transaction() as connection:
            return connection.scalar(query.limit(1)) is not None


def append(
    connection: Connection, answers: Sequence[Answer], annotator: str, at: datetime | None = None
) -> None:
    """Append what a person says of images; of an image's labels the last one counts."""
    said = {"annotator": annotator, "created": at or datetime.now(UTC)}
    rows = [
        {"image": one.image_id, "label": one.label, "elapsed_ms": one.elapsed_ms} | said
        for one in answers
    ]
    if rows:
        connection.execute(insert(labels), rows)


def _no_certificate(connection: Connection, dataset: str) -> None:
    """Raises Conflict: a certificate counts its labels itself, and is closed with the last."""
    purpose = connection.scalar(select(datasets.c.purpose).where(datasets.c.name == dataset))
    if purpose == "certificate":
        raise Conflict(
            f"dataset {dataset!r} is a certificate's: label it by way of /v1/certificates"
        )


def _no_proof(connection: Connection, blobs: Sequence[str]) -> None:
    """Raises Conflict: what a certificate counts must teach nothing, under any name."""
    query = (
        select(images.c.blob)
        .join(datasets, datasets.c.name == images.c.dataset)
        .where(datasets.c.purpose == "certificate", images.c.blob.in_(blobs))
    )
    if (blob := connection.scalar(query.limit(1))) is not None:
        raise Conflict(f"image {blob} is a certificate's, and may not train: leave it out")


def _current() -> Select[tuple[int]]:
    """The ids of the labels that count: the last of each image."""
    return select(func.max(labels.c.id)).group_by(labels.c.image)


def _labelled(condition: ColumnElement[bool]) -> Select[Any]:
    said = [labels.c.label, labels.c.annotator, labels.c.elapsed_ms, labels.c.created]
    return (
        select(images, *(column.label(f"said_{column.name}") for column in said))
        .join(labels, labels.c.image == images.c.id)
        .where(and_(condition, labels.c.id.in_(_current()), labels.c.label != WITHDRAWN))
    )


def _read(row: Any) -> LabelledImage:
    values = dict(row._mapping)
    said = {key: values.pop(f"said_{key}") for key in ("label", "annotator", "elapsed_ms")}
    labelled = values.pop("said_created")
    return LabelledImage(image=ImageToLabel(**values), labelled=labelled, **said)
