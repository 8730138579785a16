"""What people say of a certificate's images; with the last label it is finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from service.errors import Conflict, InvalidValue
from service.store.certificates import OPEN, Status, finish, lock_attempt, read
from service.store.database import Database
from service.store.datasets import WITHDRAWN, Answer, ImageToLabel, append
from service.store.policies import log
from service.store.schema import images, labels

Judge = Callable[[Sequence[str | None], int], "tuple[Status, dict[str, Any]] | None"]
"""From the label of each image, None where it has none, and the number of blocked entries."""


@dataclass(frozen=True)
class LabelEntry:
    """One label as it was given; `withdrawn` takes back the one before. The last one counts."""

    image: str
    label: str
    annotator: str
    elapsed_ms: int
    created: datetime


class CertificateLabels:
    """Labels of certificates; all are appended. Methods block, and raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unlabelled(
        self, certificate_id: str, annotator: str, size: int, exclude_images: Sequence[str]
    ) -> list[ImageToLabel]:
        """Up to so many images that nobody has labelled; `exclude_images` are on the page already.

        Everybody is asked in an order of their own, so that two people rarely meet.
        """
        with self._database.transaction() as connection:
            dataset = read(connection, certificate_id).dataset
            said = _labels(connection, dataset)
            found = [
                one
                for one in connection.scalars(
                    select(images.c.id).where(images.c.dataset == dataset)
                )
                if one not in said and one not in exclude_images
            ]
            found.sort(key=lambda one: hashlib.sha256(f"{annotator}|{one}".encode()).digest())
            query = select(images).where(images.c.id.in_(found[:size]))
            shown = {row.id: ImageToLabel(**row._mapping) for row in connection.execute(query)}
            return [shown[one] for one in found[:size]]

    def label(
        self, certificate_id: str, answers: Sequence[Answer], annotator: str, judge: Judge
    ) -> list[str]:
        """Append a person's answers, and with the last one the result; all of it or nothing.

        Returns the images that another person labelled meanwhile: their labels stay. Raises
        Conflict when the attempt has ended, InvalidValue for an image that is not its own.
        """
        with self._database.transaction() as connection:
            now = lock_attempt(connection, certificate_id, OPEN)
            known = set(
                connection.scalars(select(images.c.id).where(images.c.dataset == now.dataset))
            )
            said = _labels(connection, now.dataset)
            for number, answer in enumerate(answers):
                if answer.image_id not in known:
                    raise InvalidValue(
                        f"{answer.image_id!r} is not an image of certificate {certificate_id!r}",
                        f"labels.{number}.image_id",
                    )
            lost = {
                answer.image_id
                for answer in answers
                if answer.image_id in said and said[answer.image_id].annotator != annotator
            }
            mine = [answer for answer in answers if answer.image_id not in lost]
            append(connection, mine, annotator, _since(now.created))
            final = {one: given.label for one, given in said.items()}
            final |= {answer.image_id: answer.label for answer in mine}
            ended = judge([final.get(one) for one in sorted(known)], now.result["blocked"])
            if ended is not None:
                finish(connection, now, *ended)
                detail = {"status": ended[0], **ended[1]}
                log(connection, annotator, "certificate.finish", certificate_id, detail)
            return sorted(lost)

    def withdraw(
        self, certificate_id: str, annotator: str, of: Sequence[str] | None = None
    ) -> list[str]:
        """Take back a person's answers to these images, by default the last; returns their images.

        Raises Conflict when there are none, or when the attempt has ended.
        """
        with self._database.transaction() as connection:
            now = lock_attempt(connection, certificate_id, OPEN)
            mine = [
                one
                for one in _labels(connection, now.dataset).values()
                if one.annotator == annotator and (of is None or one.image in of)
            ]
            if not mine:
                raise Conflict("there is no label of yours to take back")
            last = max(one.created for one in mine)
            gone = [one.image for one in mine if of is not None or one.created == last]
            back = [Answer(one, WITHDRAWN, 0) for one in gone]
            append(connection, back, annotator, _since(now.created))
            return gone

    def said(self, certificate_id: str) -> list[LabelEntry]:
        """Everything that people said, in order, what they took back too."""
        with self._database.transaction() as connection:
            return _said(connection, read(connection, certificate_id).dataset)

    def labelled(self, certificate_id: str) -> int:
        """How many images have a label that counts."""
        with self._database.transaction() as connection:
            return len(_labels(connection, read(connection, certificate_id).dataset))


def _said(connection: Connection, dataset: str) -> list[LabelEntry]:
    query = (
        select(
            labels.c.image,
            labels.c.label,
            labels.c.annotator,
            labels.c.elapsed_ms,
            labels.c.created,
        )
        .join(images, images.c.id == labels.c.image)
        .where(images.c.dataset == dataset)
        .order_by(labels.c.id)
    )
    rows = [dict(row._mapping) for row in connection.execute(query)]
    return [LabelEntry(**row) for row in rows]


def _labels(connection: Connection, dataset: str) -> dict[str, LabelEntry]:
    """The label that counts of each image that has one."""
    last = {one.image: one for one in _said(connection, dataset)}
    return {image: one for image, one in last.items() if one.label != WITHDRAWN}


def _since(begun: datetime) -> datetime:
    """Now, and not before the beginning: another replica's clock may have been ahead."""
    return max(datetime.now(UTC), begun)
