"""The port, on which every ingress of a machine listens (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from service.config import ConfigError, Limits
from service.http.connection import Connection, ConnectionCounts

BACKLOG = 1024


class Listener:
    """uvicorn on the shared port, in the running event loop."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, limits: Limits, keep_alive_s: float
    ) -> None:
        self._socket = bind(host, port)
        config = uvicorn.Config(
            app,
            # uvicorn calls it with keywords, as it would the class.
            http=cast(
                "type[asyncio.Protocol]", partial(Connection, peers=ConnectionCounts(limits))
            ),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",  # its warnings are of clients' mistakes
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(keep_alive_s),
            backlog=BACKLOG,
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections from now on. Raises RuntimeError when the app does not start."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._serving.done():
                raise RuntimeError("the HTTP server did not start") from self._serving.exception()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Accept no more connections; returns when every request has its answer."""
        if self._serving is None or self._serving.done():
            return
        # The kernel resets what still waits to be accepted on a socket that is closed.
        waiting = list(islice(self._accepted(), BACKLOG))
        for server in self._server.servers:
            server.close()
        for accepted in waiting:
            with suppress(OSError):  # it has left
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, accepted)
        self._server.should_exit = True
        await self._serving

    def _accepted(self) -> Iterator[socket.socket]:
        with suppress(OSError):  # none is left, or no descriptor
            while True:
                yield self._socket.accept()[0]

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes one for each connection."""
        server = self._server
        return server.config.http_protocol_class(  # type: ignore[call-arg]
            config=server.config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address that other processes of this user may share. Raises ConfigError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
        found.listen(BACKLOG)
        found.setblocking(False)
    except OSError as error:
        raise ConfigError(f"port {port} on {host} cannot be used ({error.strerror})") from None
    return found
