"""Jobs in the store: work that outlives a request, and the lease of the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from service.errors import Conflict
from service.store.database import Database, clock
from service.store.schema import jobs

State = Literal["queued", "running", "cancelling", "done", "failed", "cancelled"]
HELD: tuple[State, ...] = ("running", "cancelling")
OPEN: tuple[State, ...] = ("queued", *HELD)

LEASE_S = 15.0
"""A holder that was not heard for so long, by the store's clock, has died: another may take it."""

WAITS = "waits for its turn"
ABANDONED = "waits for a worker"
STAGE_CHARS = 128


class LeaseLost(Exception):
    """The job has ended, or another process runs it: what this one wrote was refused."""


class Cancelled(Exception):
    """Somebody wants the job to stop."""


@dataclass(frozen=True)
class Job:
    """A job as it was read. `lease` counts how often it was taken up, `deaths` how many of its
    holders fell silent; `progress` is in [0, 1]."""

    id: int
    kind: str
    subject: str
    state: State
    stage: str
    progress: float
    lease: int
    deaths: int
    holder: str
    heartbeat: datetime
    error: str | None
    created: datetime
    finished: datetime | None


class Jobs:
    """All jobs; nothing is deleted. Methods block, and raise StoreUnavailable.

    What a holder writes names its lease: once another has taken the job, it raises LeaseLost.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(
        self, kind: str, holder: str, accepts: Callable[[Job], bool] = lambda _: True
    ) -> Job | None:
        """The oldest job of a kind that waits, or whose holder has died, and that the caller
        accepts; None without one.

        From now on it is the caller's. Of callers at the same moment one gets it.
        """
        query = select(jobs).where(jobs.c.kind == kind, jobs.c.state.in_(OPEN)).order_by(jobs.c.id)
        with self._database.transaction() as connection:
            now = clock(connection)
            found = [Job(**row._mapping) for row in connection.execute(query)]
        for job in found:  # a caller may read the store to decide: not in a transaction
            if (job.state == "queued" or silent(job.state, job.heartbeat, now)) and accepts(job):
                taken = self._take(job.id, holder)
                if taken is not None:
                    return taken
        return None

    def _take(self, job_id: int, holder: str) -> Job | None:
        with self._database.transaction() as connection:
            now = clock(connection)
            mine = jobs.c.id == job_id
            job = Job(**connection.execute(select(jobs).where(mine)).one()._mapping)
            values: dict[str, Any] = {"lease": job.lease + 1, "holder": holder, "heartbeat": now}
            if job.state == "queued":
                values |= {"state": "running", "stage": "runs"}
            elif job.state in HELD and silent(job.state, job.heartbeat, now):
                values |= {"deaths": job.deaths + 1}
            else:
                return None
            claim = update(jobs).where(mine, jobs.c.lease == job.lease, jobs.c.state == job.state)
            claimed = connection.execute(claim.values(**values)).rowcount == 1
            return replace(job, **values) if claimed else None

    def beat(self, job: Job) -> State | None:
        """Say that the holder lives; returns the job's state, None when it is no longer its own."""
        with self._database.transaction(lasting=False) as connection:
            mine = (jobs.c.id == job.id, jobs.c.lease == job.lease, jobs.c.state.in_(HELD))
            connection.execute(update(jobs).where(*mine).values(heartbeat=clock(connection)))
            found: State | None = connection.scalar(select(jobs.c.state).where(*mine))
            return found

    def report(self, job: Job, stage: str, progress: float) -> None:
        """Say how far it is. Raises Cancelled and LeaseLost."""
        with self._database.transaction(lasting=False) as connection:
            hold(connection, job, stage=stage[:STAGE_CHARS], progress=progress)

    def release(self, job: Job) -> None:
        """Give it back unfinished: whoever is next goes on. One that is to stop ends instead.

        Raises LeaseLost.
        """
        with self._database.transaction() as connection:
            try:
                hold(connection, job, state="queued", stage=WAITS)
            except Cancelled:
                end(connection, job, "cancelled")

    def end(
        self, job: Job, state: Literal["failed", "cancelled"], error: str | None = None
    ) -> None:
        """End it without a result. Raises LeaseLost."""
        with self._database.transaction() as connection:
            end(connection, job, state, error)

    def read(self, kind: str, subject: str) -> Job | None:
        """The job that makes a subject, if there is one."""
        query = select(jobs).where(jobs.c.kind == kind, jobs.c.subject == subject)
        with self._database.transaction() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            job = Job(**row._mapping)
            stage = stage_of(job.state, job.stage, job.heartbeat, clock(connection))
            return replace(job, stage=stage)


def silent(state: str, heartbeat: datetime, now: datetime) -> bool:
    """Whether a job's holder has died, by the store's clock."""
    return state in HELD and now - heartbeat > timedelta(seconds=LEASE_S)


def stage_of(state: str, stage: str, heartbeat: datetime, now: datetime) -> str:
    """The stage of a job for people: of one whose holder has died, that it waits for another."""
    return ABANDONED if silent(state, heartbeat, now) else stage


def queue(connection: Connection, kind: str, subject: str) -> None:
    """Append a job, in the same transaction as its subject."""
    now = clock(connection)
    values: dict[str, Any] = {"state": "queued", "stage": WAITS, "progress": 0.0}
    values |= {"lease": 0, "deaths": 0, "holder": "", "heartbeat": now, "created": now}
    connection.execute(insert(jobs).values(kind=kind, subject=subject, **values))


def hold(connection: Connection, job: Job, **values: Any) -> None:
    """Nobody else can take the job until this transaction ends. Raises Cancelled and LeaseLost."""
    try:
        _write(connection, job, ("running",), **values)
    except LeaseLost:
        mine = (jobs.c.id == job.id, jobs.c.lease == job.lease)
        if connection.scalar(select(jobs.c.state).where(*mine)) == "cancelling":
            raise Cancelled(f"{job.kind} {job.subject} is to stop") from None
        raise


def done(connection: Connection, job: Job) -> None:
    """End a job in the same transaction as its result. Raises Cancelled and LeaseLost."""
    hold(connection, job, state="done", stage="done", progress=1.0, finished=clock(connection))


def end(
    connection: Connection,
    job: Job,
    state: Literal["failed", "cancelled"],
    error: str | None = None,
) -> None:
    """End a job that makes nothing. Raises LeaseLost."""
    ended = {"state": state, "stage": state, "error": error, "finished": clock(connection)}
    _write(connection, job, HELD, **ended)


def cancel(connection: Connection, kind: str, subject: str) -> None:
    """Stop a job: at once where it waits, else as soon as its holder hears of it.

    Raises Conflict when it has ended.
    """
    if not _drop(connection, kind, subject, ("queued",)):
        theirs = (jobs.c.kind == kind, jobs.c.subject == subject, jobs.c.state.in_(HELD))
        change = update(jobs).where(*theirs).values(state="cancelling", stage="is to stop")
        if connection.execute(change).rowcount != 1:
            raise Conflict(f"{kind} {subject!r} has ended already")


def drop(connection: Connection, kind: str, subject: str) -> None:
    """End a job that may have a holder, whose later writes are refused."""
    _drop(connection, kind, subject, OPEN)


def _drop(connection: Connection, kind: str, subject: str, states: tuple[State, ...]) -> bool:
    theirs = (jobs.c.kind == kind, jobs.c.subject == subject, jobs.c.state.in_(states))
    ended = {"state": "cancelled", "stage": "cancelled", "finished": clock(connection)}
    return connection.execute(update(jobs).where(*theirs).values(**ended)).rowcount == 1


def _write(connection: Connection, job: Job, states: tuple[State, ...], **values: Any) -> None:
    mine = (jobs.c.id == job.id, jobs.c.lease == job.lease, jobs.c.state.in_(states))
    change = update(jobs).where(*mine).values(heartbeat=clock(connection), **values)
    if connection.execute(change).rowcount != 1:
        raise LeaseLost(f"{job.kind} {job.subject} is no longer this process's")
