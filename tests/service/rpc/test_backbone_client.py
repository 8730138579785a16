"""Backbones over real gRPC: which one draws, who is refused without being asked, and who not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.engine.admission import Backlog, TickTimes, Workload
from service.errors import BackendUnavailable, InvalidValue, Overloaded
from service.ports import DrawKey, DrawResult
from service.rpc.backbone_client import GrpcBackboneClient
from service.rpc.codec import DRAWS, WORKLOAD, DrawReply, pack_reply
from service.rpc.retry_times import SPARE
from tests.plans import JUDGED
from tests.service.rpc.peers import Peer, known, until

PACE = TickTimes()
for _ in range(9):
    PACE.observe(4, 0.1)
IDLE = Workload(slots=4, max_waiting=256, pace=PACE)
STEPS = JUDGED.method.num_inference_steps


def busy(draws: int, **changes: Any) -> Workload:
    """A backbone whose slots are full and before which so many draws wait."""
    waiting = {"other": Backlog(draws, draws * 50.0)}
    return Workload(
        slots=4,
        max_waiting=256,
        running=4,
        running_nfe=200.0,
        waiting=waiting,
        pace=PACE,
        **changes,
    )


def made(request: bytes, load: Workload = IDLE) -> bytes:
    """All draws that were asked for, at once, from a backbone with so much to do."""
    call = DRAWS.unpack(request)[0]
    results = [DrawResult(key, None, 50, 0.0, 0.1, True) for key in call.keys]
    return pack_reply(DrawReply(results, load))


@asynccontextmanager
async def backbones(
    *loads: Workload,
) -> AsyncGenerator[tuple[GrpcBackboneClient, list[Peer]], None]:
    """A drawer over so many backbones, each of which draws at once."""
    peers = [Peer(str(number), WORKLOAD.pack(load)) for number, load in enumerate(loads)]
    for peer, load in zip(peers, loads, strict=True):
        peer.answer = partial(made, load=load)

    def read(message: bytes) -> Workload:
        return WORKLOAD.unpack(message)[0]

    async with known(peers, read) as (replicas, _):
        yield GrpcBackboneClient({JUDGED.model: replicas}), peers


async def draw(
    backbone_client: GrpcBackboneClient, *keys: DrawKey, timeout_s: float = 30.0
) -> list[DrawResult]:
    """What comes back."""
    found: list[DrawResult] = []
    async for group in backbone_client.draw(JUDGED, keys, timeout_s, "me"):
        found += group
    return found


def test_the_backbone_that_is_done_first_draws() -> None:
    async def scenario() -> None:
        async with backbones(busy(30), IDLE) as (backbone_client, peers):
            assert [one.key.seed for one in await draw(backbone_client, DrawKey(0, 7, 0))] == [7]
            assert [len(peer.last_called) for peer in peers] == [0, 1]

    asyncio.run(scenario())


def test_what_was_sent_counts_before_a_backbone_says_so() -> None:
    async def scenario() -> None:
        async with backbones(IDLE, replace(IDLE, slots=3)) as (backbone_client, peers):
            held = asyncio.Event()

            async def later(request: bytes) -> bytes:
                await held.wait()
                return made(request)

            for peer in peers:
                peer.answer = later
            calls = [
                asyncio.create_task(draw(backbone_client, DrawKey(0, seed, 0))) for seed in range(7)
            ]
            await until(lambda: sum(len(peer.last_called) for peer in peers) == 7)
            assert [len(peer.last_called) for peer in peers] == [4, 3]
            held.set()
            await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_a_result_says_what_there_is_left_to_do() -> None:
    """One place, and calls one after another: none is refused for the one before it."""
    small = Workload(slots=1, max_waiting=0, pace=PACE)

    async def scenario() -> None:
        async with backbones(small) as (backbone_client, peers):
            for seed in range(5):
                await draw(backbone_client, DrawKey(0, seed, 0))
            peers[0].answer = partial(made, load=replace(small, running=1, running_nfe=50.0))
            await draw(backbone_client, DrawKey(0, 5, 0))
            waiting = {"me": Backlog(1, 50.0)}
            full = replace(small, running=1, running_nfe=50.0, waiting=waiting)
            peers[0].answer = partial(made, load=full)
            await draw(backbone_client, DrawKey(0, 6, 0))
            with pytest.raises(Overloaded, match="the limit is 0"):
                await draw(backbone_client, DrawKey(0, 7, 0))

    asyncio.run(scenario())


def test_of_equal_backbones_the_one_not_asked_for_longest_draws() -> None:
    async def scenario() -> None:
        async with backbones(IDLE, IDLE, IDLE) as (backbone_client, peers):
            for seed in range(6):
                await draw(backbone_client, DrawKey(0, seed, 0))
            assert [len(peer.last_called) for peer in peers] == [2, 2, 2]

    asyncio.run(scenario())


def test_what_none_would_take_is_refused_unasked_with_the_shorter_wait() -> None:
    async def scenario() -> None:
        async with backbones(busy(30), busy(60)) as (backbone_client, peers):
            with pytest.raises(Overloaded) as early:
                backbone_client.check(JUDGED, [DrawKey(0, 0, 0)], 3.0, "me")
            with pytest.raises(Overloaded) as refusal:
                await draw(backbone_client, DrawKey(0, 0, 0), timeout_s=3.0)
            own = [STEPS / JUDGED.acceptance]
            with pytest.raises(Overloaded) as known_to_it:
                busy(30).check("me", own, 3.0)
            assert early.value.retry_after_s == pytest.approx(known_to_it.value.retry_after_s)
            # The first may be back by then: the second is told when both have room.
            after_s = SPARE * busy(30).work_s(own[0]) / 2
            assert early.value.retry_after_s is not None
            assert refusal.value.retry_after_s == pytest.approx(early.value.retry_after_s + after_s)
            assert not any(peer.last_called for peer in peers)
            # Autoscaling hears of it with the next call.
            await draw(backbone_client, DrawKey(0, 0, 1, fresh=False), timeout_s=3.0)
            (request,) = [*peers[0].last_called, *peers[1].last_called]
            call = DRAWS.unpack(request)[0]
            assert call.refused_nfe == pytest.approx(2 * STEPS / JUDGED.acceptance)

    asyncio.run(scenario())


def test_what_one_backbone_refuses_another_may_try_once() -> None:
    def refuse(request: bytes) -> bytes:
        raise Overloaded("full after all", retry_after_s=4.0)

    async def scenario() -> None:
        async with backbones(IDLE, busy(1), busy(2)) as (backbone_client, peers):
            peers[0].answer = refuse
            assert len(await draw(backbone_client, DrawKey(0, 0, 0))) == 1
            assert [len(peer.last_called) for peer in peers] == [1, 1, 0]
            assert DRAWS.unpack(peers[1].last_called[0])[0].again
            for peer in peers:
                peer.answer = refuse
            with pytest.raises(Overloaded, match="full after all"):
                await draw(backbone_client, DrawKey(0, 0, 0))
            assert sum(len(peer.last_called) for peer in peers) == 4

    asyncio.run(scenario())


def test_redraws_are_never_refused_here() -> None:
    async def scenario() -> None:
        async with backbones(busy(500)) as (backbone_client, _):
            assert (
                len(await draw(backbone_client, DrawKey(0, 0, 1, fresh=False), timeout_s=1.0)) == 1
            )

    asyncio.run(scenario())


def test_a_backbone_that_is_about_to_end_takes_redraws_alone() -> None:
    async def scenario() -> None:
        ending = Workload(slots=4, max_waiting=256, draining=True)
        async with backbones(ending, busy(3)) as (backbone_client, peers):
            await draw(backbone_client, DrawKey(0, 0, 0))
            assert [len(peer.last_called) for peer in peers] == [0, 1]
        async with backbones(ending) as (backbone_client, peers):
            with pytest.raises(Overloaded):
                await draw(backbone_client, DrawKey(0, 0, 0))
            await draw(backbone_client, DrawKey(0, 0, 1, fresh=False))
            assert len(peers[0].last_called) == 1

    asyncio.run(scenario())


def test_what_the_model_cannot_take_is_the_callers_mistake_and_asked_for_once() -> None:
    def refuse(request: bytes) -> bytes:
        raise InvalidValue("has 3 tokens too many", "prompt")

    async def scenario() -> None:
        async with backbones(IDLE, IDLE) as (backbone_client, peers):
            for peer in peers:
                peer.answer = refuse
            with pytest.raises(InvalidValue, match="3 tokens") as fault:
                await draw(backbone_client, DrawKey(0, 0, 0))
            assert fault.value.param == "prompt"
            assert sum(len(peer.last_called) for peer in peers) == 1

    asyncio.run(scenario())


def test_a_backbone_that_dies_or_talks_nonsense_is_asked_again_by_the_router() -> None:
    async def scenario() -> None:
        async with backbones(IDLE) as (backbone_client, peers):
            peers[0].answer = lambda request: b"nonsense"
            with pytest.raises(BackendUnavailable):
                await draw(backbone_client, DrawKey(0, 0, 0))
            peers[0].answer = lambda request: asyncio.sleep(60)
            call = asyncio.ensure_future(draw(backbone_client, DrawKey(0, 0, 0)))
            await until(lambda: len(peers[0].last_called) == 2)
            await peers[0].server.close(0)
            with pytest.raises(BackendUnavailable):
                await call

    asyncio.run(scenario())


def test_ready_means_that_a_backbone_was_heard_of_late() -> None:
    async def scenario() -> None:
        async with backbones(IDLE) as (backbone_client, _peers):
            await backbone_client.ready()
            (replica,) = backbone_client._backbones[JUDGED.model].known
            replica.last_heard -= 100
            with pytest.raises(BackendUnavailable):
                await backbone_client.ready()

    asyncio.run(scenario())


def test_a_backbone_that_fails_is_stood_in_for_and_asked_last_for_a_while() -> None:
    """Who fails at once is always the first that would be done: it would get everything."""

    def fail(request: bytes) -> bytes:
        raise BackendUnavailable("its networks are not here")

    async def scenario() -> None:
        async with backbones(IDLE, busy(3)) as (backbone_client, peers):
            peers[0].answer = fail
            for seed in range(4):
                assert len(await draw(backbone_client, DrawKey(0, seed, 0))) == 1
            assert [len(peer.last_called) for peer in peers] == [1, 4]

    asyncio.run(scenario())


def test_what_a_backbone_refused_does_not_count_as_its_work() -> None:
    def refuse(request: bytes) -> bytes:
        raise Overloaded("full after all", retry_after_s=4.0)

    async def scenario() -> None:
        async with backbones(IDLE) as (backbone_client, peers):
            peers[0].answer = refuse
            with pytest.raises(Overloaded):
                await draw(backbone_client, DrawKey(0, 0, 0))
            (replica,) = backbone_client._backbones[JUDGED.model].known
            assert replica.state == IDLE

    asyncio.run(scenario())
