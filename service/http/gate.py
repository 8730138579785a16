"""The number of running requests: bounded, and drained when the service stops."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded, Stopping, WinnowError
from service.http.error_envelope import response

UNCOUNTED = ("/health/live", "/health/ready", "/-/healthz")
WITH_BODY = ("POST", "PUT", "PATCH")
BUSY_S = 1.0
STOPPING_S = 5.0


class Gate:
    """Counts the requests of this ingress: at most `limit` run.

    One whose whole answer is there runs no more: it is `sending`, as slowly as its client reads.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = self.sending = 0
        self.stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def stop(self, grace_s: float) -> bool:
        """Refuse new requests; returns whether all others were answered within `grace_s`."""
        self.stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        return self._idle.is_set()

    def refusal(self, path: str) -> WinnowError | None:
        """The error for a request to this path; None if it may run."""
        if self.stopping and path != "/health/live":
            return Stopping("the service is stopping", retry_after_s=STOPPING_S)
        if self.running >= self.limit and path not in UNCOUNTED:
            message = f"{self.running} requests are running here, as many as may"
            return Overloaded(message, retry_after_s=BUSY_S)
        return None

    def enter(self) -> None:
        """Count a request that runs."""
        self.running += 1
        self._idle.clear()

    def send(self) -> None:
        """Count a request that ran as one whose answer is being sent."""
        self.running -= 1
        self.sending += 1

    def leave(self, sending: bool) -> None:
        """Remove a request from the count."""
        if sending:
            self.sending -= 1
        else:
            self.running -= 1
        if not self.running + self.sending:
            self._idle.set()


class GateMiddleware:
    """Applies the gate to every request but those for health.

    A request runs once its body has arrived, for an incomplete one takes no place, until the head
    of its answer gives a length; one without is still being made while it is sent.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or run and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gate, path = self._gate, scope["path"]
        if fault := gate.refusal(path):
            await response(fault)(scope, receive, _closing(send))
            return
        if path in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        inside, sending = scope["method"] not in WITH_BODY, False
        if inside:
            gate.enter()

        async def counted() -> Message:
            nonlocal inside
            message = await receive()
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if whole and not inside:
                if fault := gate.refusal(path):
                    raise fault
                gate.enter()
                inside = True
            return message

        async def answered(message: Message) -> None:
            nonlocal sending
            whole = message["type"] == "http.response.start" and _has_length(message)
            if whole and inside and not sending:
                gate.send()
                sending = True
            await send(message)

        try:
            await self._app(scope, counted, answered)
        finally:
            if inside:
                gate.leave(sending)


def _has_length(start: Message) -> bool:
    return any(name.lower() == b"content-length" for name, _ in start["headers"])


def _closing(send: Send) -> Send:
    """Close the connection, so that the client's next request may reach another ingress."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].append((b"connection", b"close"))
        await send(message)

    return closing
