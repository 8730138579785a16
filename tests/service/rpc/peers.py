"""ReplicaPool to talk to: real gRPC servers in this process, which a test tells what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from service.rpc.replicas import ReplicaPool
from service.rpc.server import ReplicaServer

State = TypeVar("State")


class Peer:
    """A replica that says `state`, and answers `draw`, `score` and `ready` as it is told.

    `asked` has the requests that it got.
    """

    def __init__(self, name: str, state: bytes) -> None:
        self.name, self.state = name, state
        self.last_called: list[bytes] = []
        self.answer: Callable[[bytes], Any] = lambda request: b""
        self.cancelled = asyncio.Event()
        self.server = ReplicaServer(
            name,
            "127.0.0.1",
            unary={"score": self._one, "ready": self._one},
            streams={"draw": self._several, "watch": self._watch},
        )

    async def _one(self, request: bytes) -> bytes:
        self.last_called.append(request)
        try:
            found = self.answer(request)
            return await found if asyncio.iscoroutine(found) else found
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _several(self, request: bytes) -> AsyncGenerator[bytes, None]:
        yield await self._one(request)

    async def _watch(self, _: bytes) -> AsyncGenerator[bytes, None]:
        said = None
        while True:
            if self.state != said:
                said = self.state
                yield said
            await asyncio.sleep(0.01)


class Serve:
    """Where Serve says its replicas listen; a test adds and takes away."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = list(peers)

    async def find(self) -> list[Any]:
        """The addresses of all."""
        return [await peer.server.address() for peer in self.peers]


@asynccontextmanager
async def known(
    peers: Sequence[Peer], read: Callable[[bytes], State]
) -> AsyncGenerator[tuple[ReplicaPool[State], Serve], None]:
    """The replicas, once all of them were met."""
    serve = Serve(peers)
    replicas: ReplicaPool[State] = ReplicaPool("peers", serve.find, read)
    try:
        await until(lambda: len(replicas.known) == len(peers), replicas.all)
        yield replicas, serve
    finally:
        await replicas.close()
        for peer in serve.peers:
            await peer.server.close(0)


async def until(condition: Callable[[], bool], step: Callable[[], Any] | None = None) -> None:
    """Wait for it; the time limit is only for a test that would hang."""
    async with asyncio.timeout(60):
        while not condition():
            if step is not None:
                await step()
            await asyncio.sleep(0.01)
