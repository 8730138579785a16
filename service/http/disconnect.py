"""Cancellation of a request whose client has disconnected."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """Cancels a request's task when its connection closes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and watch for a disconnect from the end of the body on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = asyncio.current_task()
        gone = asyncio.Event()
        listener: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            if request is not None:
                request.cancel()

        async def receive_and_watch() -> Message:
            nonlocal listener
            if listener is not None:
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                listener = asyncio.create_task(watch())
            return message

        try:
            await self._app(scope, receive_and_watch, send)
        except ClientDisconnect:
            pass  # in the middle of its body
        except asyncio.CancelledError:
            if not gone.is_set():
                raise
        finally:
            if listener is not None:
                listener.cancel()
