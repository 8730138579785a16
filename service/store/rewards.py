"""Rewards in the store: a training's job until it is ready, and what came of it, for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Select, and_, insert, select, update

from service.errors import Conflict, RewardNotFound
from service.store import jobs as job_store
from service.store.blobs import NAME
from service.store.database import Database, clock
from service.store.jobs import Job, stage_of
from service.store.policies import log
from service.store.schema import datasets, jobs, rewards

TRAINING = "training"
"""The kind of job that makes rewards."""

Status = Literal["queued", "training", "cancelling", "ready", "failed", "cancelled"]
WORDS = {"running": "training", "done": "ready"}
"""What a job's states are called of a reward, where it is otherwise."""


@dataclass(frozen=True)
class RewardVersion:
    """A training, and once it is ready a reward that never changes.

    `weights` name its networks by part (`judge`, `clean_guide`, `probe`, `guide`, `distilled`);
    `card` tells what it learned from and how well it does.
    """

    id: str
    dataset: str
    parent: str | None
    recipe: Mapping[str, Any]
    status: Status
    stage: str
    progress: float
    heartbeat: datetime
    weights: Mapping[str, str] | None
    card: Mapping[str, Any] | None
    error: str | None
    created: datetime
    created_by: str


class Rewards:
    """Trainings and rewards. Methods block, and raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queue(
        self, reward_id: str, dataset: str, parent: str | None, recipe: Mapping[str, Any], by: str
    ) -> None:
        """Note that a training is wanted. Raises Conflict for a certificate's dataset."""
        with self._database.transaction() as connection:
            purpose = select(datasets.c.purpose).where(datasets.c.name == dataset)
            if connection.scalar(purpose) == "certificate":
                raise Conflict(
                    f"dataset {dataset!r} is a certificate's: its labels may train nothing",
                    "dataset",
                )
            row = {"id": reward_id, "dataset": dataset, "parent": parent, "recipe": dict(recipe)}
            created = {"created": datetime.now(UTC), "created_by": by}
            connection.execute(insert(rewards).values(**row, **created))
            job_store.queue(connection, TRAINING, reward_id)
            log(connection, by, "reward.train", reward_id, {"dataset": dataset, "parent": parent})

    def read(self, reward_id: str) -> RewardVersion:
        """One reward. Raises RewardNotFound."""
        found = self._read(_rewards().where(rewards.c.id == reward_id))
        if not found:
            raise RewardNotFound(f"no reward {reward_id!r}", "reward")
        return found[0]

    def of(self, dataset: str | None = None, limit: int = 100) -> list[RewardVersion]:
        """The rewards of a dataset, or of all, the newest first."""
        query = _rewards().order_by(rewards.c.created.desc()).limit(limit)
        if dataset is not None:
            query = query.where(rewards.c.dataset == dataset)
        return self._read(query)

    def _read(self, query: Select[Any]) -> list[RewardVersion]:
        with self._database.transaction() as connection:
            now = clock(connection)
            return [_reward(row, now) for row in connection.execute(query)]

    def networks(self) -> set[str]:
        """The sha256 names of all parts of all rewards: canaries too, which are images.

        Of a damaged row they are those that can still be read in it.
        """
        query = select(rewards.c.weights).where(rewards.c.weights.is_not(None))
        with self._database.transaction() as connection:
            return {
                name for parts in connection.scalars(query) for name in NAME.findall(str(parts))
            }

    def finish(self, job: Job, weights: Mapping[str, str], card: Mapping[str, Any]) -> None:
        """It is ready, and from now on never changes. Raises Cancelled and LeaseLost."""
        with self._database.transaction() as connection:
            job_store.done(connection, job)
            made = update(rewards).where(rewards.c.id == job.subject)
            connection.execute(made.values(weights=dict(weights), card=dict(card)))

    def cancel(self, reward_id: str, by: str) -> None:
        """Stop a training: at once where it waits, else when it next reports.

        Raises Conflict when it has ended already.
        """
        with self._database.transaction() as connection:
            job_store.cancel(connection, TRAINING, reward_id)
            log(connection, by, "reward.cancel", reward_id, {})


def _rewards() -> Select[Any]:
    job = [jobs.c.state, jobs.c.stage, jobs.c.progress, jobs.c.heartbeat, jobs.c.error]
    same = and_(jobs.c.subject == rewards.c.id, jobs.c.kind == TRAINING)
    return select(rewards, *job).join(jobs, same)


def _reward(row: Any, now: datetime) -> RewardVersion:
    values = dict(row._mapping)
    state = values.pop("state")
    values["stage"] = stage_of(state, values["stage"], values["heartbeat"], now)
    values["status"] = WORDS.get(state, state)
    values["stage"] = WORDS.get(values["stage"], values["stage"])
    return RewardVersion(**_readable(values))


def _readable(values: dict[str, Any]) -> dict[str, Any]:
    """A row; one that is damaged counts as a training that failed, and says why."""
    wanted = {"recipe": True, "weights": values["status"] == "ready"}
    wanted["card"] = wanted["weights"]
    damaged = [
        name
        for name, needed in wanted.items()
        if not isinstance(values[name], dict) and (needed or values[name] is not None)
    ]
    if not damaged:
        return values
    why = f"its {' and '.join(damaged)} cannot be read: the row in the store is damaged"
    nothing: dict[str, Any] = {"recipe": {}, "weights": None, "card": None}
    ended = {"status": "failed", "stage": "cannot be read", "error": why}
    return values | {name: nothing[name] for name in damaged} | ended
