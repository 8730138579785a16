"""Datasets and shown images for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from service.store.datasets import Dataset, ImageToLabel, Purpose
from service.store.store import Store


def make_dataset(store: Store, name: str = "bars", purpose: Purpose = "labels") -> Dataset:
    """A dataset in the store."""
    dataset = Dataset(name, "tiny", "Is it dark?", [], purpose, datetime.now(UTC), "label/Ada")
    store.datasets.create(dataset)
    return dataset


def make_batch(
    store: Store, batch: str, count: int = 3, annotator: str = "label/Ada", **changes: Any
) -> list[ImageToLabel]:
    """A batch in the store; its images are a few bytes each."""
    values: dict[str, Any] = {
        "dataset": "bars",
        "seed": 2**53 - 1,
        "draw": 0,
        "policy": "none",
        "policy_version": 0,
        "backbone": "sha256:backbone",
        "strategy": "random",
        "inclusion": 1.0,
        "score": None,
        "created": datetime.now(UTC),
    }
    shown = [
        ImageToLabel(
            **{
                **values,
                "id": f"{batch}-{position}",
                "batch": batch,
                "position": position,
                "blob": store.blobs.put(f"{batch}-{position}".encode()),
                "annotator": annotator,
                **changes,
            }
        )
        for position in range(count)
    ]
    store.datasets.show(shown)
    return shown
