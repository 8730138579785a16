"""One client's connection: uvicorn's, with time and size limits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.config import Limits
from service.errors import HeadTooLarge, InvalidHttp, Overloaded, RequestTimeout, WinnowError
from service.http import error_envelope

HEAD_BYTES = 65_536
BODY_RATE = 2**20
"""Bytes a second: a body that is sent as fast may take longer than `limits.body_s`."""
LINGER_S = 2.0
"""How long a refused client may go on sending; nothing reads it."""
LAST_S = 1.0
"""How long an idle connection stays open when the listener ends: a request may be on its way."""


@dataclass
class ConnectionCounts:
    """The number of connections, in all and by address."""

    limits: Limits
    count: Counter[str] = field(default_factory=Counter)

    def full(self, peer: str) -> bool:
        """Whether the limits allow no further connection of this address."""
        limits = self.limits
        return (
            self.count[peer] >= limits.connections_per_peer
            or self.count.total() >= limits.connections
        )

    def add(self, peer: str) -> None:
        """Count a connection."""
        self.count[peer] += 1

    def remove(self, peer: str) -> None:
        """Remove one from the count."""
        self.count[peer] -= 1
        if self.count[peer] <= 0:
            del self.count[peer]


Phase = Literal["idle", "head", "body", "answer"]


class Connection(HttpToolsProtocol):
    """Refuses, as JSON, what uvicorn would wait for without end or answer in plain text.

    A head has `limits.head_s` from its first byte, and a first one from the connection's start; a
    body has `limits.body_s` from the end of its head, and a second more for each MiB of it. From
    when its client first stops reading, the whole rest of an answer has `limits.body_s`, and a
    second more for each MiB; one of unknown length has `limits.body_s` each time.
    `scope["state"]["received"]` is the `time.monotonic()` of the first byte.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        peers: ConnectionCounts,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._peers, self._peer = peers, ""
        self._phase: Phase = "idle"
        self._head_bytes = self._field_bytes = self._body_bytes = 0
        self._refused = self._pipelined = self._last = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    # What uvicorn calls when the listener ends.
    def shutdown(self) -> None:
        """Answer the request that is arriving or running on this connection, and none after it."""
        if self._refused or self._running:
            super().shutdown()
            return
        self._last = True
        if self._phase != "head":
            self._wait(LAST_S)

    # What asyncio calls.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        if self._peers.full(peer):
            self._refuse(Overloaded("too many connections are open", retry_after_s=1.0))
            return
        self._peer = peer
        self._peers.add(peer)
        self._wait(self._peers.limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer:
            self._peers.remove(self._peer)
            self._peer = ""
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self._pipelined or self.transport.is_closing():
            return
        super().data_received(data)
        if self._phase in ("idle", "answer") and self._timer is None and not self._running:
            # Empty lines: uvicorn has ended its own wait for the next request.
            self._wait(self._peers.limits.head_s)
        if self._phase == "head":
            self._head_bytes += len(data)
            self._check_head(self._head_bytes)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            left = self.transport.get_write_buffer_size()
            if self._sending:
                left += self.cycle.expected_content_length
            seconds = self._peers.limits.body_s + left / BODY_RATE
            self._unread = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if not self._sending:
            self._stop_sending()
        super().resume_writing()

    # What uvicorn calls when it has handed over the end of an answer.
    def on_response_complete(self) -> None:
        if not self.flow.write_paused:
            self._stop_sending()
        super().on_response_complete()

    # What the parser calls.
    def on_message_begin(self) -> None:
        if self._running:
            # A request before the answer to the last one: uvicorn would stop reading, and nobody
            # would notice that the client has left. The answer ends the connection.
            self._pipelined = True
            self.cycle.keep_alive = False
        if self._pipelined:
            self.url, self.headers = b"", []
            return
        super().on_message_begin()
        self.scope["state"]["received"] = time.monotonic()
        self._phase, self._head_bytes, self._field_bytes = "head", 0, 0
        self._wait(self._peers.limits.head_s)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_field(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._check_field(len(name) + len(value))

    def on_headers_complete(self) -> None:
        if self._pipelined or self._refused:
            return
        self._phase, self._body_bytes = "body", 0
        self._wait(self._peers.limits.body_s)
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not (self._pipelined or self._refused):
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._pipelined or self._refused:
            return
        self._phase = "answer"
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidHttp("this is not valid HTTP/1.1"))

    def _check_field(self, size: int) -> None:
        # What came in one piece with the end of the head, or with a body.
        self._field_bytes += size
        self._check_head(self._field_bytes)

    def _check_head(self, size: int) -> None:
        if size > HEAD_BYTES:
            self._refuse(HeadTooLarge(f"the head is larger than {HEAD_BYTES} bytes"))

    @property
    def _running(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _sending(self) -> bool:
        """Whether an answer of known length has begun, and its end is still to come."""
        return self._running and self.cycle.chunked_encoding is False

    def _stop_sending(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self, seconds: float, waited_s: float = 0.0) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._late, waited_s + seconds)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self, waited_s: float) -> None:
        answered = self._phase == "body" and self.cycle.response_complete
        if self._phase == "body" and self._body_bytes and not answered:
            more_s, self._body_bytes = self._body_bytes / BODY_RATE, 0
            self._wait(more_s, waited_s)
            return
        if answered or self._phase in ("idle", "answer"):
            # Nothing was asked, or it has its answer.
            self.transport.close()
            return
        message = f"the {self._phase} of the request did not arrive within {waited_s:.3g} s"
        self._refuse(RequestTimeout(message))

    def _refuse(self, error: WinnowError) -> None:
        """Answer the request that is arriving with an error, and close the connection."""
        self._stop_waiting()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        running = self._running
        if running:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # While an answer to the request before is being written, there is no place for another.
        if running and (self._phase != "body" or self.cycle.response_started):
            self.transport.close()
            return
        self.transport.write(_as_http(error))
        # Closed at once, what is still on its way here would reset the connection, and the answer
        # would be lost.
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)


def _as_http(error: WinnowError) -> bytes:
    """A whole response with the error's status, headers and JSON."""
    response = error_envelope.response(error)
    phrase = HTTPStatus(response.status_code).phrase
    headers = [
        *response.raw_headers,
        (b"x-request-id", uuid.uuid4().hex.encode()),
        (b"connection", b"close"),
    ]
    lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)
