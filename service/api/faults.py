"""Every error as `{"error": {message, type, code, param}}`, with headers that say if to retry."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.config import NAME, NAME_IN_WORDS
from service.errors import InvalidValue, WinnowError

log = logging.getLogger("winnow.api")

RETRY_MARGIN = 1.25
"""A wait is a prediction: who comes back a moment too early would be refused again."""


def install(app: FastAPI) -> None:
    """Make the app answer every error in this shape."""

    @app.exception_handler(WinnowError)
    def known(_: Request, error: WinnowError) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        return JSONResponse(
            body(message, "invalid_request_error", code),
            status_code=error.status_code,
            headers={**(error.headers or {}), "x-should-retry": "false"},
        )

    @app.exception_handler(Exception)
    def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected fault", exc_info=error)
        answer = response(WinnowError("an unexpected fault; the log holds its cause"))
        # Starlette answers these outside of all middleware, so `RequestId` never sees them.
        answer.headers["X-Request-ID"] = request.state.request_id
        return answer


def response(error: WinnowError, extra: Mapping[str, Any] | None = None) -> JSONResponse:
    """The response to a fault; `extra` stands beside `error` in the body."""
    headers = {}
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(RETRY_MARGIN * (error.retry_after_s or 0.1)))
    else:
        headers["x-should-retry"] = "false"
    message = error.message
    if error.param and not message.startswith(error.param):
        message = f"{error.param}: {message}"
    return JSONResponse(
        body(message, error.type, error.code, error.param) | dict(extra or {}),
        status_code=error.status,
        headers=headers,
    )


def body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The error object of OpenAI's API."""
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidValue:
    """pydantic's first complaint, as an error that names the field and its limit."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return InvalidValue(f"{param}: this service has no such field", param)
    if not path:
        return InvalidValue(
            "the body must be a JSON object, sent as Content-Type: application/json"
        )
    if first["type"] == "json_invalid":
        return InvalidValue("the body is not JSON")
    return InvalidValue(f"{param}: {_limit(first)}" if param else _limit(first), param)


def _limit(fault: Mapping[str, Any]) -> str:
    """What a value must be, in words for whoever sent it."""
    given = fault.get("ctx", {})
    if fault["type"] == "string_pattern_mismatch" and given.get("pattern") == NAME:
        return NAME_IN_WORDS
    if fault["type"] == "too_short":
        return f"must hold {given['min_length']} or more"
    if fault["type"] == "too_long":
        return f"must hold {given['max_length']} or fewer"
    return str(fault["msg"])
