"""`GET /v1/decisions/{id}`: why a request was answered as it was."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request

from service.api.context import Context
from service.errors import DecisionNotFound

ID = re.compile(r"img_[0-9a-f]{32}")


def routes(context: Context) -> APIRouter:
    """The route of decision records."""
    router = APIRouter()

    # Not async: FastAPI gives it a thread, and a read of the store blocks.
    @router.get("/v1/decisions/{decision_id}", summary="The record of one decision")
    def decision(decision_id: str, request: Request) -> dict[str, Any]:
        # Scores, thresholds and perhaps prompts stand there: not for those who only generate.
        request.state.caller.require("approve")
        found = None
        if ID.fullmatch(decision_id):
            found = context.store.decisions.read(decision_id)
        if found is None:
            raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
        return found

    return router
