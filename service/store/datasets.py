"""Datasets in the store: images that were shown, and what people said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Select, and_, func, insert, select
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, DatasetNotFound, InvalidValue, StoreUnavailable
from service.store.database import Database
from service.store.policies import log
from service.store.schema import datasets, images, labels

Label = Literal["benign", "malign", "unsure"]
Purpose = Literal["labels", "certificate"]
WITHDRAWN = "withdrawn"
BRINGING_TRIES = 20


@dataclass(frozen=True)
class Dataset:
    """A question about a model's images.

    `inputs` are what to draw them under (`service.inputs.parse`); none is the model's default.
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
class Shown:
    """One image that somebody is to label; `blob` names its PNG, `inclusion` is in (0, 1].

    `input` is what the model was asked for (`service.inputs.drawn`), None where it takes nothing.
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
class Labelled:
    """An image and the label that counts: the last one that was not withdrawn."""

    image: Shown
    label: Label
    annotator: str
    elapsed_ms: int
    labelled: datetime


@dataclass(frozen=True)
class Answer:
    """What a person says of an image, and after how long."""

    image_id: str
    label: Label
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
        except StoreUnavailable as error:
            if isinstance(error.__cause__, IntegrityError):
                raise Conflict(f"dataset {dataset.name!r} exists already", "name") from None
            raise

    def read(self, name: str) -> Dataset:
        """One dataset. Raises DatasetNotFound."""
        with self._database.transaction() as connection:
            row = connection.execute(select(datasets).where(datasets.c.name == name)).one_or_none()
        if row is None:
            raise DatasetNotFound(f"no dataset {name!r}", "dataset")
        return Dataset(**row._mapping)

    def all(self) -> list[Dataset]:
        """Every dataset, by name."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(datasets).order_by(datasets.c.name))
            return [Dataset(**row._mapping) for row in rows]

    def show(self, batch: Sequence[Shown]) -> None:
        """Append images that somebody will be asked about."""
        with self._database.transaction() as connection:
            connection.execute(insert(images), [asdict(image) for image in batch])

    def open_batch(
        self, dataset: str, annotator: str, besides: Sequence[str], within: timedelta
    ) -> list[Shown]:
        """The images of the oldest batch that was drawn for a person and has no label yet.

        `besides` are batches that the person's page has already. Labels that were taken back do not
        count, so such a batch is open again.
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
                    images.c.batch.not_in([*besides]),
                    images.c.batch.not_in(answered),
                )
                .order_by(images.c.created)
                .limit(1)
            )
            if batch is None:
                return []
            query = select(images).where(images.c.batch == batch).order_by(images.c.position)
            return [Shown(**row._mapping) for row in connection.execute(query)]

    def image(self, dataset: str, image_id: str) -> Shown:
        """One image. Raises InvalidValue when it is not of this dataset."""
        query = select(images).where(images.c.id == image_id, images.c.dataset == dataset)
        with self._database.transaction() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise InvalidValue(f"{image_id!r} is not an image of dataset {dataset!r}", "image_id")
        return Shown(**row._mapping)

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
            self._append(connection, [vars(answer) for answer in answers], annotator)

    def report(self, shown: Shown, label: Label) -> None:
        """Append an image together with its label, or neither.

        Raises Conflict for a certificate's dataset, and for a certificate's image.
        """
        with self._database.transaction() as connection:
            _no_certificate(connection, shown.dataset)
            _no_proof(connection, [shown.blob])
            connection.execute(insert(images), [asdict(shown)])
            self._append(connection, [vars(Answer(shown.id, label, 0))], shown.annotator)

    def bring(self, labelled: Sequence[Labelled], by: str) -> int:
        """Append labels from elsewhere with their images, all or none; returns how many were new.

        An image that is here already, or whose pixels have a label in this dataset, is passed over:
        bringing a file twice, or a dataset's own, changes nothing. Of equal images the last counts.
        Raises Conflict when one is a certificate's.
        """
        for tries_left in reversed(range(BRINGING_TRIES)):
            try:
                return self._bring(labelled, by)
            except StoreUnavailable as error:
                # Somebody else may have brought one of them this moment: now it is known.
                if not (tries_left and isinstance(error.__cause__, IntegrityError)):
                    raise
        raise AssertionError("unreachable")

    def _bring(self, labelled: Sequence[Labelled], by: str) -> int:
        dataset = labelled[0].image.dataset
        with self._database.transaction() as connection:
            _no_certificate(connection, dataset)
            _no_proof(connection, [one.image.blob for one in labelled])
            ids = [one.image.id for one in labelled]
            known = set(connection.scalars(select(images.c.id).where(images.c.id.in_(ids))))
            here = _labelled(images.c.dataset == dataset).with_only_columns(images.c.blob)
            said = set(connection.scalars(here))
            fresh = {
                one.image.blob: one
                for one in labelled
                if one.image.id not in known and one.image.blob not in said
            }
            if not fresh:
                return 0
            connection.execute(insert(images), [asdict(one.image) for one in fresh.values()])
            connection.execute(
                insert(labels),
                [
                    {
                        "image": one.image.id,
                        "label": one.label,
                        "annotator": one.annotator,
                        "elapsed_ms": one.elapsed_ms,
                        "created": one.labelled,
                    }
                    for one in fresh.values()
                ],
            )
            log(connection, by, "dataset.import", dataset, {"labels": len(fresh)})
        return len(fresh)

    def withdraw(self, dataset: str, annotator: str) -> list[Labelled]:
        """Take back a person's last batch of labels; returns what they were.

        Its images may be labelled again. Raises Conflict when there is nothing to take back.
        """
        theirs = and_(images.c.dataset == dataset, labels.c.annotator == annotator)
        with self._database.transaction() as connection:
            _no_certificate(connection, dataset)
            last = _labelled(theirs).order_by(labels.c.id.desc()).limit(1)
            newest = connection.execute(last).one_or_none()
            if newest is None:
                raise Conflict("there is no label of yours to take back")
            batch = and_(theirs, images.c.batch == newest.batch)
            query = _labelled(batch).order_by(images.c.position)
            gone = [_read(row) for row in connection.execute(query)]
            self._append(
                connection,
                [{"image_id": one.image.id, "label": WITHDRAWN, "elapsed_ms": 0} for one in gone],
                annotator,
            )
            return gone

    def labelled(self, dataset: str) -> list[Labelled]:
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
                    found[label] = count
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

    def _append(self, connection: Any, answers: Sequence[dict[str, Any]], annotator: str) -> None:
        now = datetime.now(UTC)
        connection.execute(
            insert(labels),
            [
                {
                    "image": answer["image_id"],
                    "label": answer["label"],
                    "elapsed_ms": answer["elapsed_ms"],
                    "annotator": annotator,
                    "created": now,
                }
                for answer in answers
            ],
        )


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


def _read(row: Any) -> Labelled:
    values = dict(row._mapping)
    said = {key: values.pop(f"said_{key}") for key in ("label", "annotator", "elapsed_ms")}
    labelled = values.pop("said_created")
    return Labelled(image=Shown(**values), labelled=labelled, **said)
