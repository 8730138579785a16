"""Every error as `{"error": {message, type, code, param}}`, with headers about retries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from service.errors import WinnowError

LONGEST = 2000
"""Most characters of a message: enough for our own lists, not for what a caller sent."""

RETRY_MARGIN = 1.25
"""Waits are predictions: a client that returns a little too early would be refused again."""


def response(error: WinnowError, extra: Mapping[str, Any] | None = None) -> JSONResponse:
    """The response to a fault; `extra` stands beside `error` in the body."""
    found = content(error) | dict(extra or {})
    return JSONResponse(found, status_code=error.status, headers=headers(error))


def headers(error: WinnowError) -> dict[str, str]:
    """The headers of a fault: whether and when to retry."""
    found = {"x-should-retry": "false"}
    if error.retryable:
        found = {"Retry-After": str(math.ceil(RETRY_MARGIN * (error.retry_after_s or 0.1)))}
    if error.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return found


def content(error: WinnowError) -> dict[str, Any]:
    """The body of a fault."""
    message = error.message
    if error.param and not message.startswith(error.param):
        message = f"{error.param}: {message}"
    return body(message, error.type, error.code, error.param)


def body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The error object of OpenAI's API; a message that repeats much of a request is cut."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}
