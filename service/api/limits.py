"""Middleware: a limit on the body, and a request id on everything."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.faults import response
from service.errors import BodyTooLarge, InvalidValue

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BodyLimit:
    """Refuses bodies above `limit` bytes, whether or not they announce their length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand it on whole."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        body = b""
        too_large = not announced.isdecimal() or int(announced) > self._limit
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self._limit
            more = message.get("more_body", False) and not too_large
        if too_large:
            fault = BodyTooLarge(f"the body is larger than {self._limit} bytes")
            await response(fault)(scope, receive, send)
            return
        handed_on = False

        async def replay() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


class RequestId:
    """Takes the caller's `X-Request-ID`, or makes one, and with `stamp` returns it.

    Ray Serve's proxy puts the id on every response itself: behind it, `stamp` is false.
    """

    def __init__(self, app: ASGIApp, stamp: bool = True) -> None:
        self._app = app
        self._stamp = stamp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the id into `scope["state"]` and into the response's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        request_id = given or uuid.uuid4().hex

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start" and self._stamp:
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
            fault = InvalidValue("must be 1 to 64 letters, digits, _ or -", "X-Request-ID")
            await response(fault)(scope, receive, stamped)
            return
        scope.setdefault("state", {})["request_id"] = request_id
        await self._app(scope, receive, stamped)
