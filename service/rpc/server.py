"""A replica's side: its methods on its own gRPC port, for callers with its token."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from service.errors import WinnowError
from service.rpc.codec import pack_fault

log = logging.getLogger("winnow.rpc")

SERVICE = "winnow"
TOKEN = "winnow-token"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A machine that dies closes no connection; keepalive notices it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Each process has connections of its own, which end with it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
"""Of both sides. Messages have no size limit, since images have none."""

Unary = Callable[[bytes], Awaitable[bytes]]
Stream = Callable[[bytes], AsyncGenerator[bytes, None]]


@dataclass(frozen=True)
class Address:
    """A replica's address and token; it is sent over Serve's own channel."""

    replica: str
    target: str
    token: str


class ReplicaServer:
    """A gRPC server of some methods, started by the first call of `address`.

    A method's WinnowError is raised at its caller; a cancelled call cancels the method.
    """

    def __init__(
        self, replica: str, host: str, unary: Mapping[str, Unary], streams: Mapping[str, Stream]
    ) -> None:
        """`host` is the address of this machine that the ingresses reach."""
        self._replica, self._host = replica, host
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._answer(method))
            for name, method in unary.items()
        } | {
            name: grpc.unary_stream_rpc_method_handler(self._yield(method))
            for name, method in streams.items()
        }
        self._token = secrets.token_hex(16)
        self._server: grpc.aio.Server | None = None
        self._starting = asyncio.Lock()
        self._address: Address | None = None

    async def address(self) -> Address:
        """Start listening, once; returns the address. Raises RuntimeError without a free port."""
        async with self._starting:
            if self._address is None:
                server = grpc.aio.server(options=OPTIONS)
                handler = grpc.method_handlers_generic_handler(SERVICE, self._handlers)
                server.add_generic_rpc_handlers((handler,))
                port = server.add_insecure_port(target(self._host, 0))
                await server.start()
                self._server = server
                self._address = Address(self._replica, target(self._host, port), self._token)
            return self._address

    async def close(self, grace_s: float) -> None:
        """Accept no more calls; running ones get `grace_s` seconds to finish."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _answer(self, method: Unary) -> Any:
        async def call(request: bytes, context: Any) -> bytes:
            await self._authenticate(context)
            try:
                return await method(request)
            except Exception as error:  # the caller is told, whatever it is
                await _abort(context, error)
                raise

        return call

    def _yield(self, method: Stream) -> Any:
        async def call(request: bytes, context: Any) -> AsyncIterator[bytes]:
            await self._authenticate(context)
            try:
                async with aclosing(method(request)) as messages:
                    async for message in messages:
                        yield message
            except Exception as error:  # the caller is told, whatever it is
                await _abort(context, error)

        return call

    async def _authenticate(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get(TOKEN, "")
        if not hmac.compare_digest(str(given).encode(), self._token.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token of this replica")


def target(host: str, port: int) -> str:
    """`host:port` as gRPC wants it."""
    try:
        six = ipaddress.ip_address(host).version == 6
    except ValueError:
        six = False
    return f"[{host}]:{port}" if six else f"{host}:{port}"


async def _abort(context: Any, error: Exception) -> None:
    if isinstance(error, WinnowError):
        await context.abort(grpc.StatusCode.ABORTED, pack_fault(error))
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)
