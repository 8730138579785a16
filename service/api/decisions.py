"""`GET /v1/decisions/{id}`: why a request was answered as it was."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from service.api.context import Context
from service.decisions import Record
from service.errors import Conflict, DecisionNotFound
from service.explanation import explain

ID = re.compile(r"img_[0-9a-f]{32}")


def routes(context: Context) -> APIRouter:
    """The route of decision records."""
    router = APIRouter()

    # Not async: FastAPI gives it a thread, and a read of the store blocks.
    @router.get("/v1/decisions/{decision_id}", summary="The record of one decision")
    def decision(decision_id: str, request: Request) -> dict[str, Any]:
        # Scores, thresholds and perhaps prompts stand there: not for those who only generate.
        request.state.caller.require("approve")
        return _stored(context, decision_id)

    @router.get("/v1/decisions/{decision_id}/explanation", summary="Why it was so decided")
    def explanation(decision_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        return explain(read(context, decision_id))

    return router


def read(context: Context, decision_id: str) -> Record:
    """A decision's record. Raises DecisionNotFound, Conflict for one of another Winnow."""
    try:
        return Record.model_validate(_stored(context, decision_id))
    except ValidationError:
        raise Conflict("the record was written by another version of Winnow") from None


def _stored(context: Context, decision_id: str) -> dict[str, Any]:
    found = None
    if ID.fullmatch(decision_id):
        found = context.store.decisions.read(decision_id)
    if found is None:
        raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
    return found
