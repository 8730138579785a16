"""Every error that a route or the framework raises becomes an answer in
`service.http.error_envelope`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.text import ID, ID_IN_WORDS
from service.config import NAME, NAME_IN_WORDS
from service.errors import InvalidValue, MethodNotAllowed, NotFound, WinnowError, shown
from service.http.error_envelope import response

log = logging.getLogger("winnow.api")


def install(app: FastAPI) -> None:
    """Make the app answer every error in this shape.

    None of the handlers waits for a thread: to refuse must stay cheap when all are busy.
    """

    @app.exception_handler(WinnowError)
    async def known(_: Request, error: WinnowError) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        # Starlette's router knows these two alone, and names one route's methods of several.
        path, methods = (
            request.scope["path"],
            allowed(request.app.state.routes, request.scope["path"]),
        )
        if not methods:
            return response(NotFound(f"there is no path {shown(path)}"))
        there = ", ".join(methods)
        answer = response(
            MethodNotAllowed(f"{shown(path)} has no {request.method}: it has {there}")
        )
        answer.headers["Allow"] = there
        return answer


def allowed(routes: Sequence[Route], path: str) -> list[str]:
    """The methods of all routes with this path; HEAD is wherever GET is."""
    found = {
        method for route in routes if route.path_regex.match(path) for method in route.methods or ()
    }
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


class Unexpected:
    """Answers what nothing else has caught with 500, and says why in the log alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; a fault after the response has begun breaks the connection off."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise
            log.error("unexpected fault", exc_info=error)
            fault = WinnowError("an unexpected fault; the log holds its cause")
            await response(fault)(scope, receive, send)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidValue:
    """pydantic's first complaint, as an error that names the field and its limit."""
    first = errors[0]
    path = [part(one) for one in first["loc"] if one not in ("body", "path", "query")]
    return InvalidValue(in_words(first), ".".join(path) or None)


def in_words(fault: Mapping[str, Any]) -> str:
    """The reason why a value was refused, for the caller."""
    given = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            return "this service has no such field"
        case "missing":
            return "is missing"
        case "string_pattern_mismatch" if given.get("pattern") == NAME:
            return NAME_IN_WORDS
        case "string_pattern_mismatch" if given.get("pattern") == ID:
            return ID_IN_WORDS
        case "too_short":
            return f"must hold {given['min_length']} or more"
        case "too_long":
            return f"must hold {given['max_length']} or fewer"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a JSON object"
        case "invalid_key":
            return "the name of a field must be whole Unicode"
    return str(fault["msg"])


def part(name: object) -> str:
    """A part of a field's path; its name may be whatever was sent."""
    text = str(name)
    return text if text.isidentifier() and len(text) <= 64 else shown(text)[1:-1]
