"""Certificates in the store: every attempt, what was fixed before it, and how it ended, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import CertificateNotFound, Conflict, StoreUnavailable
from service.store.database import Database
from service.store.datasets import Dataset, Shown
from service.store.policies import log
from service.store.schema import certificates, datasets, images, labels

Status = Literal["drawing", "labelling", "passed", "failed", "abandoned"]
OPEN: tuple[Status, ...] = ("drawing", "labelling")
SILENT_S = 180.0
"""Drawing that has said nothing for so long has died with its process."""


@dataclass(frozen=True)
class Certificate:
    """An attempt. `terms` never change; `result` is how far it is, and once finished its end."""

    id: str
    policy: str
    policy_version: int
    fingerprint: str
    attempt: int
    terms: Mapping[str, Any]
    dataset: str
    status: Status
    result: Mapping[str, Any]
    created: datetime
    created_by: str
    finished: datetime | None


COUNTING = 0x57494E4E
"""PostgreSQL's advisory lock of those who number an attempt."""


class Certificates:
    """All attempts; nothing is ever deleted. Methods block, and raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        dataset: Dataset,
        certificate_id: str,
        policy: tuple[str, int],
        fingerprint: str,
        terms_of: Callable[[int], Mapping[str, Any]],
    ) -> Certificate:
        """Append an attempt and its dataset; `terms_of` fixes its terms from its number.

        The number is one more than the last of that policy's name, or of the same fingerprint
        under another name: copies of a policy share their attempts. Raises Conflict while an
        attempt of this policy is open.
        """
        name, version = policy
        here = certificates.c
        try:
            with self._database.transaction() as connection:
                # From here on nobody else counts attempts: SQLite lets one write at a time, and
                # PostgreSQL is told.
                if connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(COUNTING)))
                connection.execute(insert(datasets).values(**asdict(dataset)))
                self._end_silent(connection)
                unfinished = connection.scalar(
                    select(here.id).where(here.policy == name, here.status.in_(OPEN))
                )
                if unfinished is not None:
                    raise Conflict(
                        f"certificate {unfinished!r} of policy {name!r} is not finished: label "
                        "it, or abandon it",
                        "policy",
                    )
                last, latest = connection.execute(
                    select(func.max(here.attempt), func.max(here.created)).where(
                        or_(here.policy == name, here.fingerprint == fingerprint)
                    )
                ).one()
                attempt = 1 + (last or 0)
                # Evidence has the attempts in the order of their times, and clocks differ.
                now = datetime.now(UTC)
                created = max(now, latest or now)
                terms = terms_of(attempt)
                connection.execute(
                    insert(certificates).values(
                        id=certificate_id,
                        policy=name,
                        policy_version=version,
                        fingerprint=fingerprint,
                        attempt=attempt,
                        terms=dict(terms),
                        dataset=dataset.name,
                        status="drawing",
                        result=_progress(0, 0),
                        created=created,
                        created_by=dataset.created_by,
                    )
                )
                detail = {"policy": name, "version": version, "attempt": attempt}
                log(connection, dataset.created_by, "certificate.begin", certificate_id, detail)
                return read(connection, certificate_id)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, IntegrityError):
                raise Conflict("somebody else began an attempt meanwhile", "policy") from None
            raise

    def read(self, certificate_id: str) -> Certificate:
        """One attempt. Raises CertificateNotFound."""
        with self._database.transaction() as connection:
            self._end_silent(connection)
            return read(connection, certificate_id)

    def all(self, policy: str | None = None, fingerprint: str | None = None) -> list[Certificate]:
        """Every attempt of a policy's name or of a fingerprint, or all; the newest first."""
        query = select(certificates).order_by(
            certificates.c.created.desc(), certificates.c.attempt.desc()
        )
        if policy is not None:
            same = [certificates.c.policy == policy]
            if fingerprint is not None:
                same.append(certificates.c.fingerprint == fingerprint)
            query = query.where(or_(*same))
        with self._database.transaction() as connection:
            self._end_silent(connection)
            return [_certificate(row) for row in connection.execute(query)]

    def passed(self) -> dict[str, Certificate]:
        """The passed certificate of each fingerprint that has one."""
        query = (
            select(certificates)
            .where(certificates.c.status == "passed")
            .order_by(certificates.c.created)
        )
        with self._database.transaction() as connection:
            return {row.fingerprint: _certificate(row) for row in connection.execute(query)}

    def used(self, backbone: str, seeds: Sequence[int]) -> set[int]:
        """Those seeds of this backbone whose images somebody may have labelled already."""
        query = select(images.c.seed).where(
            images.c.backbone == backbone, images.c.seed.in_([*seeds])
        )
        with self._database.transaction() as connection:
            return set(connection.scalars(query))

    def add(
        self, certificate_id: str, batch: Sequence[Shown], before: int, blocked: int, n: int
    ) -> int:
        """Drawing goes on: fresh images, and how many entries the policy has blocked so far.

        Returns how many of the n there are now. Raises Conflict when the attempt has ended, or
        when there were not `before` images already.
        """
        with self._database.transaction() as connection:
            now = hold(connection, certificate_id, ("drawing",))
            if now.result["drawn"] != before:
                raise Conflict(f"certificate {certificate_id!r} has {now.result['drawn']} images")
            if batch:
                connection.execute(insert(images), [asdict(image) for image in batch])
            there = now.result["drawn"] + len(batch)
            _write(
                connection,
                certificate_id,
                status="drawing" if there < n else "labelling",
                result=_progress(there, blocked),
            )
            return int(there)

    def abandon(self, certificate_id: str, by: str, reason: str) -> None:
        """End an attempt without a result; it stays on record. Raises Conflict if it has ended."""
        with self._database.transaction() as connection:
            now = hold(connection, certificate_id, OPEN)
            finish(connection, now, "abandoned", {"reason": reason})
            log(connection, by, "certificate.abandon", certificate_id, {"reason": reason})

    def images(self, certificate_id: str) -> list[Shown]:
        """All images of an attempt, in the order of drawing."""
        with self._database.transaction() as connection:
            dataset = read(connection, certificate_id).dataset
            query = select(images).where(images.c.dataset == dataset).order_by(images.c.position)
            return [Shown(**row._mapping) for row in connection.execute(query)]

    def _end_silent(self, connection: Connection) -> None:
        """Whose drawing has died is abandoned: the images that are missing cannot be made up."""
        before = datetime.now(UTC) - timedelta(seconds=SILENT_S)
        query = select(certificates).where(certificates.c.status == "drawing")
        for now in [_certificate(row) for row in connection.execute(query)]:
            if datetime.fromisoformat(now.result["heartbeat"]) < before:
                reason = {"reason": "the process that drew its images ended"}
                with suppress(Conflict):  # somebody else has found out too
                    finish(connection, now, "abandoned", reason)
                    log(connection, "winnow", "certificate.abandon", now.id, reason)


def _progress(drawn: int, blocked: int) -> dict[str, Any]:
    return {"drawn": drawn, "blocked": blocked, "heartbeat": datetime.now(UTC).isoformat()}


def read(connection: Connection, certificate_id: str) -> Certificate:
    query = select(certificates).where(certificates.c.id == certificate_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise CertificateNotFound(f"no certificate {certificate_id!r}", "certificate")
    return _certificate(row)


def _certificate(row: Any) -> Certificate:
    return Certificate(**row._mapping)


def hold(connection: Connection, certificate_id: str, states: Sequence[Status]) -> Certificate:
    """The attempt, which nobody else can change until this transaction ends."""
    here = certificates.c
    # A write, and not a read: it makes others wait in SQLite as in PostgreSQL.
    change = update(certificates).where(here.id == certificate_id)
    connection.execute(change.values(dataset=here.dataset))
    now = read(connection, certificate_id)
    if now.status not in states:
        raise Conflict(f"certificate {certificate_id!r} is {now.status}: it stays as it is")
    return now


def finish(
    connection: Connection, now: Certificate, status: Status, result: Mapping[str, Any]
) -> None:
    known = {key: now.result[key] for key in ("drawn", "blocked")}
    ended = datetime.now(UTC)
    # Another replica's clock may be ahead, and no label may be from after the end.
    of_it = select(images.c.id).where(images.c.dataset == now.dataset)
    last = connection.scalar(select(func.max(labels.c.created)).where(labels.c.image.in_(of_it)))
    _write(
        connection,
        now.id,
        status=status,
        result=known | dict(result),
        finished=max(ended, last or ended),
    )


def _write(connection: Connection, certificate_id: str, **values: Any) -> None:
    here = certificates.c
    change = update(certificates).where(here.id == certificate_id, here.status.in_(OPEN))
    if connection.execute(change.values(**values)).rowcount != 1:
        raise Conflict(f"certificate {certificate_id!r} has ended meanwhile")
