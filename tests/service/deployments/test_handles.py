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

from service.deployments.handles import HandleScorer
from service.errors import CensorUnavailable

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
