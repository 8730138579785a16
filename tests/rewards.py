"""Trained rewards for tests: rows of the store and blobs, as a training leaves them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from service.errors import Conflict
from service.policy import Policy
from service.store.datasets import Dataset
from service.store.store import Store


def calibrations(policy: Policy, thresholds: dict[int, float]) -> dict[str, Any]:
    """What a card says of a policy's sampling, at each of these step counts."""
    return {
        str(steps): {
            "method": asdict(policy.settings.method(steps)),
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
    weights = {part: store.blobs.put(data) for part, data in files.items()}
    if ready:
        card = {"calibrations": calibrations(policy, thresholds)}
        store.rewards.finish(reward_id, weights, card)
    return weights
