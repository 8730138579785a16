"""What Serve's handles may answer to a broadcast. Ray is real in integration/."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from service.errors import BackendUnavailable, CensorUnavailable
from service.serving.handles import load, score_everywhere

WEIGHTS = {"judge": "sha256:judge", "probe": "sha256:probe"}
IMAGE = np.zeros((2, 2, 1), np.uint8)


class Everywhere:
    """A handle whose replicas answer a broadcast, or fail it."""

    def __init__(self, outcome: Any = None) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._outcome = outcome

    def broadcast(self, method: str, *arguments: Any) -> Everywhere:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool = False) -> Any:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def test_every_replica_is_told_to_load() -> None:
    backbone, judge = Everywhere(), Everywhere()
    asyncio.run(load(backbone, judge, WEIGHTS))  # type: ignore[arg-type]
    assert backbone.asked == judge.asked == [("load", WEIGHTS)]


@pytest.mark.parametrize(
    ("place", "fault"), [("backbone", BackendUnavailable), ("judge", CensorUnavailable)]
)
def test_one_replica_that_cannot_load_is_a_fault(
    place: str, fault: type[BackendUnavailable | CensorUnavailable]
) -> None:
    refusal = RayTaskError("load", "trace", fault("its canary failed"))
    gone = DeploymentUnavailableError(DeploymentID("Backbone-tiny"))
    for outcome, words in (
        (refusal, "its canary failed"),
        (ActorDiedError(), "did not answer"),
        (gone, "did not answer"),
        (TimeoutError(), "did not answer"),
    ):
        handles: Any = {"backbone": Everywhere(), "judge": Everywhere()}
        handles[place] = Everywhere(outcome)
        with pytest.raises(fault, match=words):
            asyncio.run(load(weights=WEIGHTS, **handles))


def test_a_judge_that_fails_its_canary_is_told_apart_from_those_that_score_it() -> None:
    handle: Any = Everywhere([[0.25], RuntimeError("dead")])
    assert asyncio.run(score_everywhere({"tiny": handle}, "tiny", "j", IMAGE)) == [0.25, None]
    handle = Everywhere(TimeoutError())
    with pytest.raises(CensorUnavailable):
        asyncio.run(score_everywhere({"tiny": handle}, "tiny", "j", IMAGE))
