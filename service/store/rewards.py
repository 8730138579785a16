"""Rewards in the store: trainings while they run, and what came of them, which never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import and_, insert, or_, select, update

from service.errors import Conflict, RewardNotFound
from service.store.database import Database
from service.store.policies import log
from service.store.schema import datasets, rewards

Status = Literal["queued", "training", "cancelling", "ready", "failed", "cancelled"]
RUNNING: tuple[Status, ...] = ("queued", "training", "cancelling")
SILENT_S = 15.0
"""A training that nobody has spoken for, for so long, has died with its process."""
DIED = "was cut off"
DIED_ERROR = "was cut off by a restart: train again"


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
        now = datetime.now(UTC)
        with self._database.transaction() as connection:
            purpose = select(datasets.c.purpose).where(datasets.c.name == dataset)
            if connection.scalar(purpose) == "certificate":
                raise Conflict(
                    f"dataset {dataset!r} is a certificate's: its labels may train nothing",
                    "dataset",
                )
            connection.execute(
                insert(rewards).values(
                    id=reward_id,
                    dataset=dataset,
                    parent=parent,
                    recipe=dict(recipe),
                    status="queued",
                    stage="waits for its turn",
                    progress=0.0,
                    heartbeat=now,
                    created=now,
                    created_by=by,
                )
            )
            log(connection, by, "reward.train", reward_id, {"dataset": dataset, "parent": parent})

    def read(self, reward_id: str) -> RewardVersion:
        """One reward. Raises RewardNotFound. A training whose process died reads as failed."""
        with self._database.transaction() as connection:
            row = connection.execute(select(rewards).where(rewards.c.id == reward_id)).one_or_none()
        if row is None:
            raise RewardNotFound(f"no reward {reward_id!r}", "reward")
        return _reward(row)

    def of(self, dataset: str | None = None, limit: int = 100) -> list[RewardVersion]:
        """The rewards of a dataset, or of all, the newest first."""
        query = select(rewards).order_by(rewards.c.created.desc()).limit(limit)
        if dataset is not None:
            query = query.where(rewards.c.dataset == dataset)
        with self._database.transaction() as connection:
            return [_reward(row) for row in connection.execute(query)]

    def take(self) -> RewardVersion | None:
        """The oldest training that waits; from now on it is the caller's alone."""
        here = rewards.c
        with self._database.transaction() as connection:
            query = select(rewards).where(here.status == "queued").order_by(here.created).limit(1)
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            values: dict[str, Any] = {"status": "training", "stage": "begins"}
            values["heartbeat"] = datetime.now(UTC)
            claim = update(rewards).where(here.id == row.id, here.status == "queued")
            if connection.execute(claim.values(**values)).rowcount != 1:
                return None
        return RewardVersion(**{**row._mapping, **values})

    def tend(self, silent_s: float = SILENT_S, running: str | None = None) -> None:
        """Keep those that wait alive, and the one that is `running` here; end those that died.

        For a worker to call every few seconds: nobody else speaks for a training that waits, and
        one that runs says nothing for as long as a stage takes.
        """
        here = rewards.c
        now = datetime.now(UTC)
        dead = update(rewards).where(here.heartbeat < now - timedelta(seconds=silent_s))
        with self._database.transaction() as connection:
            alive = or_(here.status == "queued", and_(here.id == running, here.status.in_(RUNNING)))
            connection.execute(update(rewards).where(alive).values(heartbeat=now))
            connection.execute(
                dead.where(here.status == "training").values(
                    status="failed", stage=DIED, error=DIED_ERROR
                )
            )
            connection.execute(
                dead.where(here.status == "cancelling").values(status="cancelled", stage=DIED)
            )

    def report(self, reward_id: str, stage: str, progress: float) -> bool:
        """A training tells how far it is, in [0, 1]; False when it is to stop."""
        here = rewards.c
        with self._database.transaction() as connection:
            change = update(rewards).where(here.id == reward_id)
            alive = connection.execute(
                change.where(here.status.in_(("queued", "training"))).values(
                    status="training", stage=stage, progress=progress, heartbeat=datetime.now(UTC)
                )
            )
            return alive.rowcount == 1

    def finish(self, reward_id: str, weights: Mapping[str, str], card: Mapping[str, Any]) -> None:
        """It is ready, and from now on never changes. Raises Conflict if it was cancelled."""
        self._end(
            reward_id, ("queued", "training"),
            status="ready", stage="ready", progress=1.0, weights=dict(weights), card=dict(card),
        )  # fmt: skip

    def fail(self, reward_id: str, error: str) -> None:
        """It came to nothing, for this reason."""
        self._end(reward_id, RUNNING, status="failed", stage="failed", error=error)

    def cancelled(self, reward_id: str) -> None:
        """It has stopped because somebody wanted it to."""
        self._end(reward_id, RUNNING, status="cancelled", stage="cancelled")

    def cancel(self, reward_id: str, by: str) -> None:
        """Stop a training: at once where it waits, else when it next reports.

        Raises Conflict when it has ended already.
        """
        if self.read(reward_id).status not in RUNNING:
            raise Conflict(f"reward {reward_id!r} has ended already")
        try:
            self._end(reward_id, ("queued",), status="cancelled", stage="cancelled")
        except Conflict:
            self._end(
                reward_id, ("training", "cancelling"), status="cancelling", stage="is to stop"
            )
        with self._database.transaction() as connection:
            log(connection, by, "reward.cancel", reward_id, {})

    def _end(self, reward_id: str, states: tuple[Status, ...], **values: Any) -> None:
        here = rewards.c
        change = update(rewards).where(here.id == reward_id, here.status.in_(states))
        with self._database.transaction() as connection:
            ended = connection.execute(change.values(heartbeat=datetime.now(UTC), **values))
        if ended.rowcount != 1:
            raise Conflict(f"reward {reward_id!r} has ended already")


def _reward(row: Any) -> RewardVersion:
    values = dict(row._mapping)
    heartbeat = values["heartbeat"]
    silent = datetime.now(UTC) - heartbeat > timedelta(seconds=SILENT_S)
    if values["status"] in RUNNING and silent:
        stopped = values["status"] == "cancelling"
        values |= {"status": "cancelled" if stopped else "failed", "stage": DIED}
        if not stopped:
            values["error"] = values["error"] or DIED_ERROR
    return RewardVersion(**values)
