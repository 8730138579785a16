"""Certificates in the store: every attempt, what was fixed before it, and how it ended, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, or_, select, update

from service.errors import CertificateNotFound, Conflict
from service.store import jobs
from service.store.database import Collision, Database
from service.store.datasets import Dataset, ImageToLabel
from service.store.jobs import Job, LeaseLost
from service.store.policies import log
from service.store.schema import certificates, datasets, images, labels

Status = Literal["drawing", "labelling", "passed", "failed", "abandoned"]
OPEN: tuple[Status, ...] = ("drawing", "labelling")
DRAWING = "drawing"
"""The kind of job that makes a certificate's images."""


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

    @property
    def readable(self) -> bool:
        """Whether its terms and its result are whole; a row may be damaged."""
        if not (isinstance(self.terms, dict) and isinstance(self.result, dict)):
            return False
        covers = self.terms.get("covered")
        wanted = {"epsilon", "delta", "attempt", "allowed", "delta_attempt", "n"}
        needed = {"drawn", "blocked"} | (
            {"bound"} if self.status in ("passed", "failed") else set()
        )
        return (
            wanted | {"num_inference_steps"} <= set(self.terms)
            and needed <= set(self.result)
            and isinstance(covers, dict)
            and isinstance(covers.get("inputs"), dict)
        )


@dataclass(frozen=True)
class Progress:
    """How far drawing is: images that are there, entries that the policy blocked, and the seeds
    that were asked for and are neither yet."""

    drawn: int = 0
    blocked: int = 0
    pending: Sequence[int] = ()


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
                        result=asdict(Progress()),
                        created=created,
                        created_by=dataset.created_by,
                    )
                )
                jobs.queue(connection, DRAWING, certificate_id)
                detail = {"policy": name, "version": version, "attempt": attempt}
                log(connection, dataset.created_by, "certificate.begin", certificate_id, detail)
                return read(connection, certificate_id)
        except Collision:
            raise Conflict("somebody else began an attempt meanwhile", "policy") from None

    def read(self, certificate_id: str) -> Certificate:
        """One attempt. Raises CertificateNotFound."""
        with self._database.transaction() as connection:
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
        return [_certificate(row) for row in self._database.all(query)]

    def passed(self) -> dict[str, Certificate]:
        """The passed certificate of each fingerprint that has one."""
        query = (
            select(certificates)
            .where(certificates.c.status == "passed")
            .order_by(certificates.c.created)
        )
        with self._database.transaction() as connection:
            found = [_certificate(row) for row in connection.execute(query)]
        # One whose bound cannot be read proves nothing; the list of certificates names it.
        return {one.fingerprint: one for one in found if one.readable}

    def ask(self, job: Job, backbone: str, seeds: Sequence[int]) -> Progress:
        """Drawing goes on with up to `len(seeds)` seeds: those that are pending, and then some of
        these, unless somebody may have labelled this backbone's image of them. They are noted
        before they are drawn, so that whoever takes over asks for the same.

        Raises LeaseLost, and Conflict where the attempt cannot be read.
        """
        with self._database.transaction() as connection:
            now, progress = _held(connection, job)
            theirs = (images.c.backbone == backbone, images.c.seed.in_([*seeds]))
            used = {*connection.scalars(select(images.c.seed).where(*theirs)), *progress.pending}
            missing = min(len(seeds), now.terms["n"] - progress.drawn) - len(progress.pending)
            fresh = [seed for seed in seeds if seed not in used][: max(missing, 0)]
            return _note(connection, now, replace(progress, pending=[*progress.pending, *fresh]))

    def settle(self, job: Job, settled: Sequence[int], made: Sequence[ImageToLabel]) -> Progress:
        """Of the pending seeds these are settled: with an image in `made`, or else blocked.

        With the last image the job is done, and labelling begins. Raises as `ask`.
        """
        with self._database.transaction() as connection:
            now, progress = _held(connection, job)
            if not {*settled} <= {*progress.pending}:
                raise Conflict(f"certificate {now.id!r} does not wait for these seeds")
            placed = [
                asdict(replace(image, position=position))
                for position, image in enumerate(made, progress.drawn)
            ]
            if placed:
                connection.execute(insert(images), placed)
            progress = Progress(
                progress.drawn + len(made),
                progress.blocked + len(settled) - len(made),
                [seed for seed in progress.pending if seed not in settled],
            )
            if progress.drawn == now.terms["n"]:
                jobs.done(connection, job)
                _write(connection, now.id, status="labelling")
            return _note(connection, now, progress)

    def give_up(self, job: Job, reason: str) -> None:
        """Drawing came to nothing: the attempt is abandoned. Raises LeaseLost."""
        with self._database.transaction() as connection:
            now = _lock(connection, job.subject)
            jobs.end(connection, job, "failed", reason)
            finish(connection, now, "abandoned", {"reason": reason})
            log(connection, "winnow", "certificate.abandon", now.id, {"reason": reason})

    def abandon(self, certificate_id: str, by: str, reason: str) -> None:
        """End an attempt without a result; it stays on record. Raises Conflict if it has ended."""
        with self._database.transaction() as connection:
            now = lock_attempt(connection, certificate_id, OPEN)
            jobs.drop(connection, DRAWING, certificate_id)
            finish(connection, now, "abandoned", {"reason": reason})
            log(connection, by, "certificate.abandon", certificate_id, {"reason": reason})

    def images(self, certificate_id: str) -> list[ImageToLabel]:
        """All images of an attempt, in the order of drawing."""
        with self._database.transaction() as connection:
            dataset = read(connection, certificate_id).dataset
            query = select(images).where(images.c.dataset == dataset).order_by(images.c.position)
            return [ImageToLabel(**row._mapping) for row in connection.execute(query)]


def read(connection: Connection, certificate_id: str) -> Certificate:
    query = select(certificates).where(certificates.c.id == certificate_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise CertificateNotFound(f"no certificate {certificate_id!r}", "certificate")
    return _certificate(row)


def _certificate(row: Any) -> Certificate:
    return Certificate(**row._mapping)


def lock_attempt(
    connection: Connection, certificate_id: str, states: Sequence[Status]
) -> Certificate:
    """The attempt, which nobody else can change until this transaction ends. Raises Conflict."""
    now = _lock(connection, certificate_id)
    if now.status not in states:
        raise Conflict(f"certificate {certificate_id!r} is {now.status}: it stays as it is")
    return now


def _lock(connection: Connection, certificate_id: str) -> Certificate:
    here = certificates.c
    # A write, and not a read: it makes others wait in SQLite as in PostgreSQL.
    change = update(certificates).where(here.id == certificate_id)
    connection.execute(change.values(dataset=here.dataset))
    return read(connection, certificate_id)


def _held(connection: Connection, job: Job) -> tuple[Certificate, Progress]:
    """The attempt of a drawing job, and how far it is; nobody else can change it.

    The attempt is locked before the job, as where somebody abandons it.
    """
    now = _lock(connection, job.subject)
    jobs.hold(connection, job)
    if now.status != "drawing":
        raise LeaseLost(f"certificate {now.id!r} is {now.status}")
    if not now.readable:
        raise Conflict(f"certificate {now.id!r} cannot be read: its row in the store is damaged")
    return now, Progress(**now.result)


def _note(connection: Connection, now: Certificate, progress: Progress) -> Progress:
    _write(connection, now.id, result=asdict(progress))
    return progress


def finish(
    connection: Connection, now: Certificate, status: Status, result: Mapping[str, Any]
) -> None:
    previous = now.result if isinstance(now.result, dict) else {}
    known = {key: previous.get(key, 0) for key in ("drawn", "blocked")}
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
