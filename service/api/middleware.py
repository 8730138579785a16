"""Middleware: a limit on the body, fields of the head that stand once, and an id on everything."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, InvalidValue
from service.http.error_envelope import response

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
SINGLETONS = (
    *("Host", "Content-Type", "Content-Length", "Cookie", "Origin"),
    *("Sec-Fetch-Site", "X-CSRF-Token"),
)
"""What is read of a head, and may stand in it once: of two, each reader takes its own.

`Authorization` and `X-Request-ID` have checks of their own.
"""


class BodyLimit:
    """Refuses bodies above the `limit` of their path, in bytes, announced or not."""

    def __init__(self, app: ASGIApp, limit: Callable[[str], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a body that announces too much, and end the reading of one that has too much.

        Nothing is read here: a caller who may not call is refused before its body is in memory.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > limit:
            await response(_too_large(limit))(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


class SingletonFields:
    """Refuses a head that says one thing twice, and one of HTTP/1.1 that names no host."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request with 400, naming the field, or pass it on."""
        fault = _head_fault(scope) if scope["type"] == "http" else None
        await (self._app if fault is None else response(fault))(scope, receive, send)


class RequestId:
    """Takes the caller's `X-Request-ID`, or makes one, and returns it: the outermost of all.

    One that is not of letters, digits, `_` and `-` is refused, and a fresh one is returned.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the id into `scope["state"]` and into the response's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("x-request-id")
        fits = len(given) == 1 and REQUEST_ID.fullmatch(given[0]) is not None
        request_id = given[0] if fits else uuid.uuid4().hex

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        if given and not fits:
            fault = InvalidValue("must be 1 to 64 letters, digits, _ or -, once", "X-Request-ID")
            await response(fault)(scope, receive, stamped)
            return
        scope.setdefault("state", {})["request_id"] = request_id
        await self._app(scope, receive, stamped)


def _head_fault(scope: Scope) -> InvalidValue | None:
    headers = Headers(scope=scope)
    for name in SINGLETONS:
        if len(headers.getlist(name)) > 1:
            return InvalidValue("stands twice in the head", name)
    host = headers.get("host")
    if host is None and scope["http_version"] != "1.0":
        return InvalidValue("is missing, and HTTP/1.1 wants it", "Host")
    if host is not None and not HOST.fullmatch(host):
        return InvalidValue("is no host with or without a port", "Host")
    return None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes")
