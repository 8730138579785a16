"""Stand-ins for what learns: as quick as a test, and as clever as one pixel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.jobs.kind import Kind
from service.jobs.lease import Lease
from service.jobs.runner import run_job
from service.labelling.examples import Example
from service.labelling.recipe import Recipe
from service.labelling.selection import SelectedCandidate
from service.store.jobs import Job
from service.store.store import Store


@dataclass(frozen=True)
class Trained:
    """As `service.labelling.training.Trained`."""

    files: Mapping[str, bytes]
    card: dict[str, Any]


def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The first pixel of each image, in [0, 1]."""
    return np.asarray(pixels[:, 0, 0, 0] / 255, dtype=np.float64)


@dataclass
class Training:
    """The module `service.labelling.training`, as far as the labelling service uses it.

    `seen` are the arguments of each training; a test may make it fail, or hold it until `go`.
    """

    fault: Exception | None = None
    go: threading.Event | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    refits: list[list[Example]] = field(default_factory=list)

    def refit(
        self, examples: Sequence[Example]
    ) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
        """Learns nothing: brightness is what it scores."""
        self.refits.append(list(examples))
        return brightness

    def train(
        self,
        examples: Sequence[Example],
        recipe: Recipe,
        generator: Any,
        shape: tuple[int, int, int],
        method_of: Mapping[int, Any],
        report: Callable[[str, float], None],
        warm_start: Mapping[str, bytes] | None = None,
        features: Path | None = None,
    ) -> Trained:
        """Two stages, and files of a few bytes."""
        self.seen.append(
            {"examples": list(examples), "recipe": recipe, "shape": shape}
            | {"methods": dict(method_of), "warm_start": warm_start, "generator": generator}
            | {"features": features}
        )
        report("judge", 0.25)
        while self.go is not None and not self.go.wait(0.02):
            report("judge", 1.0)
        if self.fault:
            raise self.fault
        report("calibration", 1.0)
        wrong = [{"id": one.id, "label": one.label, "score": 0.5} for one in examples[:3]]
        curve = [[0.1, 0.05, 20], [0.5, 0.45, 8], [0.9, 0.97, 60]]
        calibrations = {
            str(steps): {
                "threshold": 0.5,
                "probe_thresholds": [],
                "acceptance": 0.8,
            }
            for steps in method_of
        }
        parts = {"judge": b"judge", "clean_guide": b"clean", "probe": b"probe"}
        card = {"auc": 0.97, "calibration_curve": curve, "mistakes": wrong}
        return Trained(parts, {**card, "recipe": asdict(recipe), "calibrations": calibrations})


def choose(
    scores: NDArray[np.float64] | None, n: int, strategy: str, rng: np.random.Generator
) -> list[SelectedCandidate]:
    """As `service.labelling.selection.choose`; mixed means the darkest first."""
    if scores is None:
        return [SelectedCandidate(index, "random", 1.0) for index in range(n)]
    return [SelectedCandidate(int(index), "malign", 0.5) for index in np.argsort(scores)[:n]]


class TakenElsewhere(AssertionError):
    """A service that runs on this store took the training first."""


def take(store: Store) -> Job:
    """The oldest training that waits, for a test to finish."""
    found = store.jobs.take("training", "a test")
    if found is None:
        raise TakenElsewhere("no training waits")
    return found


def run_next(store: Store, kind: Kind) -> str:
    """Run the oldest training that waits, in this thread; returns the reward's id."""
    job = take(store)
    run_job(store.jobs, kind, Lease(store.jobs, job))
    return job.subject
