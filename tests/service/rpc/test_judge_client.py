"""Judges over real gRPC: every fault of theirs is one of the censor; nothing passes unscored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.errors import BackendUnavailable, CensorUnavailable
from service.rpc.codec import ACCEPTING, NUMBERS, SCORES
from service.rpc.judge_client import GrpcJudgeClient
from tests.service.rpc.peers import Peer, known, until

IMAGES = [np.full((2, 2, 1), level, np.uint8) for level in (3, 200)]
YES, NO = ACCEPTING.pack(True), ACCEPTING.pack(False)


@asynccontextmanager
async def judges(*states: bytes) -> AsyncGenerator[tuple[GrpcJudgeClient, list[Peer]], None]:
    """A scorer over so many judges."""
    peers = [Peer(str(number), state) for number, state in enumerate(states)]

    def read(message: bytes) -> bool:
        return ACCEPTING.unpack(message)[0]

    async with known(peers, read) as (replicas, _):
        yield GrpcJudgeClient({"tiny": replicas}), peers


async def score(judge_client: GrpcJudgeClient, timeout_s: float = 30.0) -> Sequence[float]:
    """The scores of the images."""
    return await judge_client.score("tiny", "sha256:judge", IMAGES, timeout_s)


def test_the_judge_sees_the_very_bytes() -> None:
    def brightness(request: bytes) -> bytes:
        call, images = SCORES.unpack(request)
        assert call.judge == "sha256:judge"
        return NUMBERS.pack([float(image.mean()) for image in images if image is not None])

    async def scenario() -> None:
        async with judges(YES) as (judge_client, peers):
            peers[0].answer = brightness
            assert await score(judge_client) == [3.0, 200.0]
            peers[0].answer = lambda request: NUMBERS.pack([math.nan, 0.5])
            assert math.isnan((await score(judge_client))[0])

    asyncio.run(scenario())


def test_a_judge_that_dies_is_stood_in_for_once() -> None:
    async def scenario() -> None:
        async with judges(YES, YES) as (judge_client, peers):
            for peer in peers:
                peer.answer = lambda request: asyncio.sleep(60)
            call = asyncio.ensure_future(score(judge_client))
            await until(lambda: sum(len(peer.last_called) for peer in peers) == 1)
            first, other = sorted(peers, key=lambda peer: -len(peer.last_called))
            other.answer = lambda request: NUMBERS.pack([0.25, 0.75])
            await first.server.close(0)
            assert await call == [0.25, 0.75]
            await other.server.close(0)
            with pytest.raises(CensorUnavailable):
                await score(judge_client)

    asyncio.run(scenario())


def test_a_judge_that_fails_is_stood_in_for_and_asked_last_for_a_while() -> None:
    """Who fails at once is always the least busy: it would get everything."""

    async def scenario() -> None:
        async with judges(YES, YES) as (judge_client, peers):
            peers[0].answer = lambda request: _raise(CensorUnavailable("not loaded"))
            peers[1].answer = lambda request: NUMBERS.pack([0.25, 0.75])
            for _ in range(4):
                assert await score(judge_client) == [0.25, 0.75]
            assert [len(peer.last_called) for peer in peers] == [1, 4]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "fault", [CensorUnavailable("not loaded"), BackendUnavailable("of another kind"), KeyError()]
)
def test_where_all_fail_the_censor_has_failed(fault: Exception) -> None:
    async def scenario() -> None:
        async with judges(YES, YES, YES) as (judge_client, peers):
            for peer in peers:
                peer.answer = lambda request: _raise(fault)
            with pytest.raises(CensorUnavailable):
                await score(judge_client)
            assert sum(len(peer.last_called) for peer in peers) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", [b"nonsense", NUMBERS.pack([0.5])[:-1]])
def test_what_is_no_score_is_a_fault_of_the_censor(answer: bytes) -> None:
    async def scenario() -> None:
        async with judges(YES) as (judge_client, peers):
            peers[0].answer = lambda request: answer
            with pytest.raises(CensorUnavailable):
                await score(judge_client)

    asyncio.run(scenario())


def test_a_judge_that_is_late_is_not_waited_for_twice() -> None:
    async def scenario() -> None:
        async with judges(YES, YES) as (judge_client, peers):
            for peer in peers:
                peer.answer = lambda request: asyncio.sleep(60)
            with pytest.raises(CensorUnavailable, match="not in time"):
                await score(judge_client, 0.1)
            assert sum(len(peer.last_called) for peer in peers) == 1

    asyncio.run(scenario())


def test_no_judge_is_a_fault_of_the_censor() -> None:
    async def scenario() -> None:
        async with judges() as (judge_client, _):
            with pytest.raises(CensorUnavailable):
                await score(judge_client)
            with pytest.raises(CensorUnavailable):
                await judge_client.ready()

    asyncio.run(scenario())


def test_a_judge_that_is_about_to_end_gets_no_new_work() -> None:
    async def scenario() -> None:
        async with judges(NO, YES) as (judge_client, peers):
            for peer in peers:
                peer.answer = lambda request: NUMBERS.pack([0.25, 0.75])
            for _ in range(3):
                await score(judge_client)
            assert [len(peer.last_called) for peer in peers] == [0, 3]

    asyncio.run(scenario())


def _raise(error: Exception) -> bytes:
    raise error
