"""Trained rewards for tests: rows of the store and blobs, as a training leaves them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from models.bundles import parts as table
from service.errors import Conflict
from service.policies.policy import Policy
from service.store.datasets import Dataset
from service.store.store import Store
from tests.feedback import take


def calibrations(
    policy: Policy, thresholds: dict[int, float], weights: dict[str, str]
) -> dict[str, Any]:
    """What the card of a reward of these networks says of a policy's sampling, at each of these
    step counts."""
    # Of a reward that lacks a part, a card may still say something.
    whole = dict.fromkeys(table.files(), "") | weights
    parts = table.parts_for(policy.settings.method(1), whole)
    drawn = replace(policy, parts=parts)
    return {
        str(steps): {
            "sampling": drawn.sampling(steps).document(),
            "threshold": threshold,
            "probe_thresholds": [threshold / 100] * len(policy.settings.probes),
            "acceptance": 0.75,
        }
        for steps, threshold in thresholds.items()
    }


def put_reward(
    store: Store,
    reward_id: str,
    policy: Policy,
    files: dict[str, bytes],
    thresholds: dict[int, float],
    by: str = "label",
    ready: bool = True,
) -> dict[str, str]:
    """Keep a reward for a policy; returns the names of its networks."""
    now = datetime.now(UTC)
    dataset = Dataset(
        f"{policy.settings.model}-labels", policy.settings.model, "Is it?", [], "labels", now, by
    )
    with suppress(Conflict):  # the reward before has made it
        store.datasets.create(dataset)
    store.rewards.queue(reward_id, dataset.name, None, {}, by)
    # At once: where a service runs on this store, it looks for trainings four times a second.
    job = take(store) if ready else None
    weights = {part: store.blobs.put(data) for part, data in files.items()}
    if job is not None:
        assert job.subject == reward_id
        card = {"calibrations": calibrations(policy, thresholds, weights)}
        store.rewards.finish(job, weights, card)
    return weights
