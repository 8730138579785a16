"""Connections to replicas: who may call, what a fault becomes, and who is known to live."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from service.errors import CensorUnavailable
from service.rpc.codec import ACCEPTING
from service.rpc.replicas import Replica, ReplicaTimeout, ReplicaUnavailable
from tests.service.rpc.peers import Peer, known, until

YES = ACCEPTING.pack(True)


def _read(message: bytes) -> bool:
    return ACCEPTING.unpack(message)[0]


def test_only_who_has_the_replicas_token_is_let_in() -> None:
    async def scenario() -> None:
        peer = Peer("a", YES)
        address = await peer.server.address()
        stranger: Replica[bool] = Replica(replace(address, token="0" * 32))
        for call in (stranger.ask("score", b"", 5.0), anext(stranger.stream("draw"))):
            with pytest.raises(ReplicaUnavailable, match="UNAUTHENTICATED"):
                await call
        assert peer.last_called == []
        friend: Replica[bool] = Replica(address)
        assert await friend.ask("score", b"x", 5.0) == b""
        await stranger.close()
        await friend.close()
        await peer.server.close(0)

    asyncio.run(scenario())


def test_a_fault_of_ours_arrives_and_any_other_is_a_replica_that_is_gone() -> None:
    def refuse(request: bytes) -> bytes:
        raise CensorUnavailable("not loaded", "judge", 2.0)

    def fail(request: bytes) -> bytes:
        raise KeyError("secret")

    async def scenario() -> None:
        peer = Peer("a", YES)
        async with known([peer], _read) as (replicas, _):
            (replica,) = replicas.known
            peer.answer = refuse
            with pytest.raises(CensorUnavailable, match="not loaded") as fault:
                await replica.ask("score", b"", 5.0)
            assert (fault.value.param, fault.value.retry_after_s) == ("judge", 2.0)
            peer.answer = fail
            with pytest.raises(ReplicaUnavailable, match="KeyError") as gone:
                await replica.ask("score", b"", 5.0)
            assert "secret" not in str(gone.value)

    asyncio.run(scenario())


def test_who_waits_too_long_is_told_so_and_the_work_ends() -> None:
    async def scenario() -> None:
        peer = Peer("a", YES)
        async with known([peer], _read) as (replicas, _):
            (replica,) = replicas.known
            peer.answer = lambda request: asyncio.sleep(60)
            with pytest.raises(ReplicaTimeout):
                await replica.ask("score", b"", 0.05)
            await asyncio.wait_for(peer.cancelled.wait(), 30)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_work(stream: bool) -> None:
    async def scenario() -> None:
        peer = Peer("a", YES)
        async with known([peer], _read) as (replicas, _):
            (replica,) = replicas.known
            peer.answer = lambda request: asyncio.sleep(60)
            work = anext(replica.stream("draw")) if stream else replica.ask("score", b"", 60)
            task = asyncio.ensure_future(work)
            await until(lambda: len(peer.last_called) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(peer.cancelled.wait(), 30)
            assert replica.calls == 1, "the watch alone"

    asyncio.run(scenario())


def test_a_call_that_a_dying_replica_held_is_gone_and_not_cancelled() -> None:
    """A cancellation would look as if the client had left, and nobody would be answered."""

    async def scenario() -> None:
        peer, other = Peer("a", YES), Peer("b", YES)
        async with known([peer, other], _read) as (replicas, serve):
            replica = next(one for one in replicas.known if one.address.replica == "a")
            peer.answer = lambda request: asyncio.sleep(60)
            call = asyncio.ensure_future(replica.ask("score", b"", 60))
            await until(lambda: len(peer.last_called) == 1)
            serve.peers.remove(peer)
            await peer.server.close(0)
            with pytest.raises(ReplicaUnavailable):
                await call
            await until(lambda: [one.address.replica for one in replicas.known] == ["b"])

    asyncio.run(scenario())


def test_a_replica_that_came_later_is_found() -> None:
    async def scenario() -> None:
        peer = Peer("a", YES)
        async with known([peer], _read) as (replicas, serve):
            serve.peers.append(Peer("b", YES))
            await until(lambda: len(replicas.known) == 2)

    asyncio.run(scenario())


def test_serve_may_be_gone_for_a_while() -> None:
    async def scenario() -> None:
        peer = Peer("a", YES)
        async with known([peer], _read) as (replicas, serve):
            asked = asyncio.Event()

            async def find() -> list[object]:
                asked.set()
                raise grpc.RpcError("the controller is being restarted")

            replicas._find = find
            await asyncio.wait_for(asked.wait(), 30)
            assert len(replicas.known) == 1
            replicas._find = serve.find

    asyncio.run(scenario())


def test_who_is_silent_is_asked_only_where_there_is_no_other() -> None:
    async def scenario() -> None:
        async with known([Peer("a", YES), Peer("b", YES)], _read) as (replicas, _):
            first, second = replicas.known
            first.last_heard -= 100
            assert replicas.known == [second]
            second.last_heard -= 100
            assert replicas.known == [first, second]

    asyncio.run(scenario())
