"""`POST /v1/images/generations`: from JSON to an order, and from an answer to JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.context import Context
from service.api.json_body import JSON
from service.api.routing import Route
from service.api.schemas import GenerationRequest
from service.errors import InvalidValue
from service.http import error_envelope

PROMISES = {
    "Idempotency-Key": "not supported: give a seed to get the same images",
    "x-request-timeout-seconds": "not supported: set censor.deadline_s",
    "x-request-disconnect-disabled": "not supported: work stops when its caller leaves",
}
"""Headers that ask for what is not done, and what is instead; others mean nothing to anybody."""

SLICE = 256 * 1024
"""Bytes of a body that are sent at once: asyncio would copy all that the socket does not take."""


class JSONBody(Response):
    """A body that is JSON already, sent in slices."""

    media_type = JSON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then slice after slice, each once the socket has room."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for begin in range(0, len(self.body), SLICE):
            end = begin + SLICE
            part = {"body": bytes(self.body[begin:end]), "more_body": end < len(self.body)}
            await send({"type": "http.response.body", **part})
        if self.background is not None:
            await self.background()


def routes(context: Context) -> APIRouter:
    """The generation route."""
    router, generation = APIRouter(route_class=Route), context.generation

    @router.post("/v1/images/generations", summary="Generate images under a policy")
    async def generate(body: GenerationRequest, request: Request) -> Response:
        caller, state = request.state.caller, request.state
        caller.require("generate")
        _refuse_headers(request.headers)
        received = getattr(state, "received", None) or time.monotonic()
        order = generation.order(body.wanted, caller, state.request_id, received)
        answer = await generation.generate(order)
        status, headers = 200, {}
        if answer.error is not None:
            status, headers = answer.error.status, error_envelope.headers(answer.error)
        after = None
        if answer.shadow is not None:
            # Starlette runs this once the response has gone. Without it no pixels are kept so long.
            after = BackgroundTask(generation.shadow, answer)
        return JSONBody(answer.body, status, headers, background=after)

    return router


def _refuse_headers(headers: Mapping[str, str]) -> None:
    """Raises InvalidValue for headers that ask for what this service does not do."""
    for name, instead in PROMISES.items():
        if name in headers:
            raise InvalidValue(instead, name)
    if "respond-async" in headers.get("prefer", "").lower():
        raise InvalidValue("respond-async is not supported", "Prefer")
