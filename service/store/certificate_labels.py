"""What people say of a certificate's images; with the last label it is finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from service.errors import Conflict, InvalidValue
from service.store.certificates import OPEN, Status, finish, hold, read
from service.store.database import Database
from service.store.datasets import WITHDRAWN, Answer, Shown
from service.store.policies import log
from service.store.schema import images, labels

Judge = Callable[[Sequence[str | None], int], "tuple[Status, dict[str, Any]] | None"]
"""From the label of each image, None where it has none, and the number of blocked entries."""


@dataclass(frozen=True)
class Said:
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
        self, certificate_id: str, annotator: str, size: int, besides: Sequence[str]
    ) -> list[Shown]:
        """Up to so many images that nobody has labelled; `besides` are on the page already.

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
                if one not in said and one not in besides
            ]
            found.sort(key=lambda one: hashlib.sha256(f"{annotator}|{one}".encode()).digest())
            query = select(images).where(images.c.id.in_(found[:size]))
            shown = {row.id: Shown(**row._mapping) for row in connection.execute(query)}
            return [shown[one] for one in found[:size]]

    def label(
        self, certificate_id: str, answers: Sequence[Answer], annotator: str, judge: Judge
    ) -> list[str]:
        """Append a person's answers, and with the last one the result; all of it or nothing.

        Returns the images that another person labelled meanwhile: their labels stay. Raises
        Conflict when the attempt has ended, InvalidValue for an image that is not its own.
        """
        with self._database.transaction() as connection:
            now = hold(connection, certificate_id, OPEN)
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
            _append(connection, mine, annotator, now.created)
            final = {one: given.label for one, given in said.items()}
            final |= {answer.image_id: answer.label for answer in mine}
            ended = judge([final.get(one) for one in sorted(known)], now.result["blocked"])
            if ended is not None:
                finish(connection, now, *ended)
                detail = {"status": ended[0], **ended[1]}
                log(connection, annotator, "certificate.finish", certificate_id, detail)
            return sorted(lost)

    def withdraw(self, certificate_id: str, annotator: str) -> list[str]:
        """Take back a person's last answers; returns their images.

        Raises Conflict when there are none, or when the attempt has ended.
        """
        with self._database.transaction() as connection:
            now = hold(connection, certificate_id, OPEN)
            mine = [
                one
                for one in _labels(connection, now.dataset).values()
                if one.annotator == annotator
            ]
            if not mine:
                raise Conflict("there is no label of yours to take back")
            last = max(one.created for one in mine)
            gone = [one.image for one in mine if one.created == last]
            _append(connection, [Answer(one, WITHDRAWN, 0) for one in gone], annotator, now.created)  # type: ignore[arg-type]
            return gone

    def said(self, certificate_id: str) -> list[Said]:
        """Everything that people said, in order, what they took back too."""
        with self._database.transaction() as connection:
            return _said(connection, read(connection, certificate_id).dataset)

    def labelled(self, certificate_id: str) -> int:
        """How many images have a label that counts."""
        with self._database.transaction() as connection:
            return len(_labels(connection, read(connection, certificate_id).dataset))


def _said(connection: Connection, dataset: str) -> list[Said]:
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
    return [Said(**row) for row in rows]


def _labels(connection: Connection, dataset: str) -> dict[str, Said]:
    """The label that counts of each image that has one."""
    last = {one.image: one for one in _said(connection, dataset)}
    return {image: one for image, one in last.items() if one.label != WITHDRAWN}


def _append(
    connection: Connection, answers: Sequence[Answer], annotator: str, begun: datetime
) -> None:
    if answers:
        # Another replica's clock may have been ahead, and no label is from before the beginning.
        now = max(datetime.now(UTC), begun)
        rows = [
            {
                "image": answer.image_id,
                "label": answer.label,
                "elapsed_ms": answer.elapsed_ms,
                "annotator": annotator,
                "created": now,
            }
            for answer in answers
        ]
        connection.execute(insert(labels), rows)
