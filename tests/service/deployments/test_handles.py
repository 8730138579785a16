"""What Serve's handles may answer. Ray is real in integration/; here its answers come to order.

A judge that dies with a call that it had begun cannot be had to order from a real cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from service.deployments.handles import HandleDrawer, HandleScorer
from service.errors import BackendUnavailable, CensorUnavailable, InvalidValue, WinnowError
from service.ports import DrawKey
from tests.plans import JUDGED

IMAGE = np.zeros((2, 2, 1), np.uint8)


class Answer:
    """A DeploymentResponse: awaited once, or cancelled."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value

    def cancel(self) -> None:
        pass


def _score(*answers: Any) -> tuple[Any, int]:
    """What the scorer says, or raises, and how many answers it asked for."""
    left = list(answers)
    handle = SimpleNamespace(
        score=SimpleNamespace(remote=lambda judge, pixels: Answer(left.pop(0)))
    )
    scorer = HandleScorer({"tiny": handle})  # type: ignore[dict-item]
    try:
        found: Any = asyncio.run(scorer.score("tiny", "sha256:judge", [IMAGE], 5.0))
    except CensorUnavailable as error:
        found = error
    return found, len(answers) - len(left)


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("gone", b"x" * 16)])
def test_a_judge_that_dies_is_stood_in_for_once(death: Exception) -> None:
    assert _score(death, [0.9]) == ([0.9], 2)
    found, asked = _score(death, death, [0.9])
    assert isinstance(found, CensorUnavailable)
    assert asked == 2


def test_a_judge_that_refuses_or_fails_is_not_asked_again() -> None:
    refusal = RayTaskError("score", "trace", CensorUnavailable("not loaded"))
    bug = RayTaskError("score", "trace", ValueError("a bug"))
    for fault in (refusal, bug, TimeoutError()):
        found, asked = _score(fault, [0.9])
        assert isinstance(found, CensorUnavailable)
        assert asked == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_model_cannot_take_is_the_callers_mistake_and_asked_for_once(count: int) -> None:
    refusal = RayTaskError("draw", "trace", InvalidValue("has 3 tokens too many", "prompt"))
    asked = []

    def remote(*_: Any, **__: Any) -> Any:
        asked.append(1)
        return Failing(refusal) if count > 1 else Answer(refusal)

    method = SimpleNamespace(remote=remote)
    handle = SimpleNamespace(draw=method, draw_one=method, options=lambda **_: handle)
    drawer = HandleDrawer({"tiny": handle})  # type: ignore[dict-item]

    async def draw() -> None:
        keys = [DrawKey(index, index, 0) for index in range(count)]
        async for _ in drawer.draw(JUDGED, keys, 5.0):
            pass

    with pytest.raises(InvalidValue, match="3 tokens") as fault:
        asyncio.run(draw())
    assert fault.value.param == "prompt"
    assert len(asked) == 1


class Failing:
    """A stream of answers that begins with a fault."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def __aiter__(self) -> Failing:
        return self

    async def __anext__(self) -> Any:
        raise self._fault

    def cancel(self) -> None:
        pass


class Everywhere:
    """A handle whose replicas all answer a broadcast, or fail it."""

    def __init__(self, outcome: BaseException | None = None) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._outcome = outcome

    def options(self, **_: Any) -> Everywhere:
        return self

    def broadcast(self, method: str, *arguments: Any) -> Everywhere:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, timeout_s: float) -> list[None]:
        if self._outcome is not None:
            raise self._outcome
        return [None, None]


WEIGHTS = {"judge": "sha256:judge", "probe": "sha256:probe"}


@pytest.mark.parametrize("face", [HandleDrawer, HandleScorer])
def test_every_replica_is_told_to_load(face: type[HandleDrawer | HandleScorer]) -> None:
    handle = Everywhere()
    asyncio.run(face({"tiny": handle}).load("tiny", WEIGHTS))  # type: ignore[dict-item]
    assert handle.asked == [("load", WEIGHTS)]


@pytest.mark.parametrize(
    ("face", "fault"), [(HandleDrawer, BackendUnavailable), (HandleScorer, CensorUnavailable)]
)
def test_one_replica_that_cannot_load_is_a_fault(
    face: type[HandleDrawer | HandleScorer], fault: type[WinnowError]
) -> None:
    refusal = RayTaskError("load", "trace", fault("its canary failed"))
    gone = DeploymentUnavailableError(DeploymentID("Backbone-tiny"))
    for outcome, words in (
        (refusal, "its canary failed"),
        (ActorDiedError(), "did not answer"),
        (gone, "did not answer"),
        (TimeoutError(), "did not answer"),
    ):
        handle = Everywhere(outcome)
        with pytest.raises(fault, match=words):
            asyncio.run(face({"tiny": handle}).load("tiny", WEIGHTS))  # type: ignore[dict-item]
