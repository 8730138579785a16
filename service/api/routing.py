"""Routes that know their caller, and refuse what they would not read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import json_body as body
from service.api.text import unprintable
from service.errors import InvalidValue, NotFound, shown

LONGEST = 256
"""Characters of a query's part: no name or id has as many."""


class CallerResolver(Protocol):
    """Who calls: `app.state.caller_resolver`."""

    def identify(self, request: Request) -> None:
        """Put the caller into the request's state. Raises InvalidApiKey or OriginRefused."""
        ...

    def check_host(self, request: Request) -> None:
        """Raises InvalidApiKey where anybody may call, but not under the name that was asked."""
        ...


class Route(APIRoute):
    """A route for callers that are known; before anything is read of a request, its caller is.

    Then unknown, repeated and empty parameters are refused, and a body that is not what the route
    reads. Where `openapi_extra` describes a request body, the route reads the bytes by itself.
    """

    open: ClassVar[bool] = False
    for_script: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, after these checks."""
        handle = super().get_route_handler()
        names = frozenset(field.alias for field in self.dependant.query_params)
        raw = "requestBody" in (self.openapi_extra or {})
        reads = self.body_field is not None
        needs = self.body_field is not None and self.body_field.field_info.is_required()

        async def checked(request: Request) -> Response:
            caller_resolver: CallerResolver = request.app.state.caller_resolver
            (caller_resolver.check_host if self.open else caller_resolver.identify)(request)
            _check_path(request.path_params)
            _drop_range(request)
            if not self.for_script:
                _check_query(request.scope["query_string"], names)
            if raw:
                body.check_encoding(request.headers)
            elif request.method == "POST":
                sent = await request.body()
                if sent:
                    body.check_json(request.headers)
                if needs or (reads and sent):
                    request = _Read(request.scope, request.receive, body.read(sent))
                elif sent and body.read(sent):
                    raise InvalidValue("this route takes nothing: leave the body out")
            return await handle(request)

        return checked


class OpenRoute(Route):
    """A route for everybody."""

    open = True


class PageRoute(OpenRoute):
    """A file for browsers: what parameters a page has, its script reads."""

    for_script = True


class _Read(Request):
    """A request whose body was read as JSON already."""

    def __init__(self, scope: Scope, receive: Receive, value: dict[str, Any]) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        """Not empty, which is all that FastAPI asks."""
        return b"{}"

    async def json(self) -> dict[str, Any]:
        return self._value


class Head:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD on as a GET, and its answer back with nothing in it."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_alone(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, headers_alone)


def _check_path(parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        if shown(value) != repr(value):
            raise NotFound(f"{shown(value)} is longer than any name here", name)


def _drop_range(request: Request) -> None:
    """An answer is made anew for each request: parts of two of them would make no whole."""
    if "range" in request.headers:
        kept = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        request.scope["headers"] = kept


def _check_query(query: bytes, names: Collection[str]) -> None:
    if not query:
        return
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidValue("the query is not UTF-8, percent-encoded") from None
    seen = set()
    for name, value in pairs:
        if name not in names:
            known = f"it takes {', '.join(sorted(names))}" if names else "it takes none"
            raise InvalidValue(f"this route has no parameter {shown(name)}: {known}")
        if name in seen:
            raise InvalidValue("stands twice in the query", name)
        if not value:
            raise InvalidValue("must not be empty: leave it out", name)
        if len(value) > LONGEST:
            raise InvalidValue(f"has {len(value)} characters, the limit is {LONGEST}", name)
        if unprintable(value):
            raise InvalidValue("must hold no control characters", name)
        seen.add(name)
