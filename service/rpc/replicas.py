"""The ingress's side: a deployment's running replicas, each with its own connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import grpc

from service.errors import WinnowError
from service.rpc.codec import unpack_fault
from service.rpc.server import OPTIONS, SERVICE, TOKEN, Address

log = logging.getLogger("winnow.rpc")

DISCOVERY_S = 5.0
"""Seconds between two discoveries of replicas through Serve."""
EAGER_S, EAGER_FOR_S = 1.0, 60.0
"""The shorter interval, and for how long it applies after a replica was lost."""
MIN_INTERVAL_S = 0.1
"""The least interval, when a replica was lost or none is known."""
STALE_S = 3.0
"""A replica that has not reported for so long is called only where there is no other."""

FAILED_S = 5.0
"""How long after a failed call a replica is called after all others."""

State = TypeVar("State")
Find = Callable[[], Any]
"""Returns the addresses of Serve's replicas, with an exception in place of each that failed."""


class ReplicaUnavailable(Exception):
    """A replica did not answer: it has died, or cannot be reached, or broke the protocol."""


class ReplicaTimeout(ReplicaUnavailable):
    """A replica did not answer in the time that it had."""


class Replica(Generic[State]):
    """One replica. `state` is its last report, None before the first."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.state: State | None = None
        self.calls = 0
        self.last_called = 0.0
        self.last_heard = 0.0
        self.failed = -FAILED_S
        self._channel = grpc.aio.insecure_channel(address.target, options=OPTIONS)
        self._metadata = ((TOKEN, address.token),)

    @property
    def fresh(self) -> bool:
        """Whether it has reported recently."""
        return time.monotonic() - self.last_heard < STALE_S

    @property
    def failed_recently(self) -> bool:
        """Whether a call failed recently: a replica that fails at once always looks least busy."""
        return time.monotonic() - self.failed < FAILED_S

    def update(self, state: State) -> None:
        """Store a report."""
        self.state, self.last_heard = state, time.monotonic()

    def record_failure(self) -> None:
        """Store that a call failed just now."""
        self.failed = time.monotonic()

    async def ask(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The answer to a call. Raises the replica's WinnowError, or ReplicaUnavailable; cancelling
        it cancels the work."""
        with self._called():
            call: Any = self._channel.unary_unary(f"/{SERVICE}/{method}")
            answer: bytes = await call(request, timeout=timeout_s, metadata=self._metadata)
            return answer

    async def stream(
        self, method: str, request: bytes = b"", timeout_s: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The answers to a call, as they come; see `ask`. Closing it cancels the work."""
        start: Any = self._channel.unary_stream(f"/{SERVICE}/{method}")
        call = start(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with self._called():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    @contextmanager
    def _called(self) -> Iterator[None]:
        """Count a call, and translate gRPC's errors."""
        self.calls += 1
        self.last_called = time.monotonic()
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error
        except asyncio.CancelledError:
            _raise_if_closed()
            raise
        finally:
            self.calls -= 1

    async def close(self) -> None:
        """Close the connection; calls in it end."""
        await self._channel.close()


class ReplicaPool(Generic[State]):
    """The running replicas: discovered through Serve, each watched by a stream of its reports."""

    def __init__(self, name: str, find: Find, read: Callable[[bytes], State]) -> None:
        """`name` is for logs; `find` asks Serve; `read` unpacks a report."""
        self.name = name
        self._find, self._read = find, read
        self._known: dict[str, Replica[State]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._discovery: asyncio.Task[None] | None = None
        self._discovered = asyncio.Event()
        self._changed = asyncio.Event()
        self._eager_until = time.monotonic() + EAGER_FOR_S

    async def all(self) -> Sequence[Replica[State]]:
        """The replicas that can be called; those that reported recently if there are any.

        The first call starts the discovery in the background, and waits for its first result.
        """
        if self._discovery is None:
            self._discovery = asyncio.create_task(self._discover())
        if not self._known:
            # With no replica known, wait until Serve was asked once more.
            self._changed.set()
            self._discovered.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._discovered.wait(), EAGER_S)
        return self.known

    @property
    def known(self) -> Sequence[Replica[State]]:
        """The same, of those known now."""
        known = [replica for replica in self._known.values() if replica.state is not None]
        return [replica for replica in known if replica.fresh] or known

    async def close(self) -> None:
        """Stop the discovery and close all connections."""
        tasks = [*self._watching.values(), *([self._discovery] if self._discovery else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _discover(self) -> None:
        while True:
            self._changed.clear()
            try:
                for found in await self._find():
                    if isinstance(found, Address) and found.replica not in self._known:
                        self._connect(found)
                await self._wait_for_states()
            except Exception as error:  # Serve is being restarted, say: those known stay known
                log.warning("%s could not be looked for: %s", self.name, error)
            self._discovered.set()
            # A replica that Serve names and that cannot be reached must not make this a busy loop.
            await asyncio.sleep(MIN_INTERVAL_S)
            wait_s = EAGER_S if time.monotonic() < self._eager_until else DISCOVERY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s - MIN_INTERVAL_S)

    async def _wait_for_states(self) -> None:
        """Wait at most 0.2 s for the first reports of new replicas."""
        for _ in range(20):
            if all(replica.state is not None for replica in self._known.values()):
                return
            await asyncio.sleep(0.01)

    def _connect(self, address: Address) -> None:
        replica: Replica[State] = Replica(address)
        self._known[address.replica] = replica
        self._watching[address.replica] = asyncio.create_task(self._watch(replica))

    async def _watch(self, replica: Replica[State]) -> None:
        name = replica.address.replica
        try:
            async for message in replica.stream("watch"):
                replica.update(self._read(message))
            log.info("%s %s has ended", self.name, name)
        except (ReplicaUnavailable, WinnowError, ValueError) as error:
            log.warning("%s %s is gone: %s", self.name, name, error)
        finally:
            del self._known[name], self._watching[name]
            self._eager_until = time.monotonic() + EAGER_FOR_S
            self._changed.set()
            await replica.close()


def _fault(error: grpc.aio.AioRpcError) -> Exception:
    if error.code() is grpc.StatusCode.ABORTED and (fault := unpack_fault(error.details() or "")):
        return fault
    kind = (
        ReplicaTimeout if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else ReplicaUnavailable
    )
    return kind(f"{error.code().name}: {error.details()}")


def _raise_if_closed() -> None:
    """Raise where gRPC cancelled the call because its connection was closed, not its caller."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise ReplicaUnavailable("the connection was closed") from None
