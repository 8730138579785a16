"""Judge calls that share a pass: what one of them breaks is its own, and the late cost nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from service.errors import CensorUnavailable
from service.judge.batching import JudgeBatcher
from service.judge.judges import Judges
from tests.service.judge.test_judges import SHAPE, Always

IMAGE = np.zeros(SHAPE, np.uint8)


class Broken:
    """A judge that passed its canary and fails now."""

    def score(self, pixels: Any) -> Any:
        raise RuntimeError("out of memory")


class Short:
    """A judge that forgets an image."""

    def score(self, pixels: Any) -> Any:
        return np.full(len(pixels) - 1, 0.5)


class Held:
    """A judge that waits until a test lets it go on, and notes the size of each of its passes."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.go_on = threading.Event()

    def score(self, pixels: Any) -> Any:
        self.passes.append(len(pixels))
        assert self.go_on.wait(60)
        return pixels[:, 0, 0, 0] / 255


def _loop(judges: dict[str, Any], max_batch: int = 64) -> JudgeBatcher:
    return JudgeBatcher(Judges(judges, SHAPE), max_batch, lambda seconds: None)


@pytest.mark.parametrize("bad", [Broken(), Short()])
def test_a_judge_that_fails_fails_its_own_calls_alone(bad: Any) -> None:
    async def together() -> list[Any]:
        loop = _loop({"good": Always(0.75), "bad": bad})
        wanted = ["good", "bad", "good", "bad"]
        calls = [loop.score(judge, [IMAGE, IMAGE], 30.0) for judge in wanted]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(together())
    assert [found[0], found[2]] == [[0.75, 0.75], [0.75, 0.75]]
    for fault in (found[1], found[3]):
        assert isinstance(fault, CensorUnavailable)
        assert "judge bad failed" in str(fault)


def test_what_arrives_during_a_pass_shares_the_next_and_each_gets_its_own() -> None:
    async def scenario() -> None:
        judge = Held()
        loop = _loop({"judge": judge}, max_batch=4)
        images = [np.full(SHAPE, level, np.uint8) for level in range(6)]
        calls = [asyncio.ensure_future(loop.score("judge", [one], 30.0)) for one in images]
        await _until(lambda: bool(judge.passes))
        late = asyncio.ensure_future(loop.score("judge", [images[5], images[0]], 30.0))
        await asyncio.sleep(0)
        judge.go_on.set()
        scores = await asyncio.gather(*calls, late)
        assert scores == [[level / 255] for level in range(6)] + [[5 / 255, 0.0]]
        assert judge.passes == [4, 4]
        await loop.wait()

    asyncio.run(scenario())


def test_what_nobody_waits_for_is_not_scored() -> None:
    async def scenario() -> None:
        judge = Held()
        loop = _loop({"judge": judge})
        first = asyncio.ensure_future(loop.score("judge", [IMAGE], 30.0))
        await _until(lambda: bool(judge.passes))
        late = asyncio.ensure_future(loop.score("judge", [IMAGE], 0.0))
        left = asyncio.ensure_future(loop.score("judge", [IMAGE], 30.0))
        await asyncio.sleep(0)
        left.cancel()
        judge.go_on.set()
        assert await first == [0.0]
        with pytest.raises(CensorUnavailable, match="no time left"):
            await late
        with pytest.raises(asyncio.CancelledError):
            await left
        await loop.wait()
        assert judge.passes == [1]

    asyncio.run(scenario())


def test_an_unknown_judge_or_another_size_is_refused_before_it_joins_a_pass() -> None:
    async def scenario() -> None:
        loop = _loop({"judge": Always(0.5)})
        for judge, image in (("other", IMAGE), ("judge", np.zeros((9, 9, 1), np.uint8))):
            with pytest.raises(CensorUnavailable):
                await loop.score(judge, [image], 30.0)

    asyncio.run(scenario())


def test_the_event_loop_goes_on_while_a_judge_scores() -> None:
    async def scenario() -> None:
        judge = Held()
        loop = _loop({"judge": judge})
        call = asyncio.ensure_future(loop.score("judge", [IMAGE], 30.0))
        await _until(lambda: bool(judge.passes))
        assert not call.done()
        judge.go_on.set()
        await call

    asyncio.run(scenario())


async def _until(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.005)
