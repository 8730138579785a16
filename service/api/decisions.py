"""`GET /v1/decisions` and `/v1/decisions/{id}`: why a request was answered as it was."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError

from service.api.context import Context
from service.decisions import Record
from service.errors import Conflict, DecisionNotFound
from service.explanation import explain
from service.inputs import NO_INPUTS

ID = re.compile(r"img_[0-9a-f]{32}")


def routes(context: Context) -> APIRouter:
    """The routes of decision records."""
    router = APIRouter()

    # Not async: FastAPI gives these a thread, and a read of the store blocks.
    @router.get("/v1/decisions", summary="The latest decisions, the newest first")
    def listed(
        request: Request,
        policy: str | None = None,
        outcome: str | None = None,
        request_id: str | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> dict[str, Any]:
        request.state.caller.require("approve")
        wanted = {"policy": policy, "outcome": outcome, "request_id": request_id}
        having = {name: value for name, value in wanted.items() if value is not None}
        found = context.store.decisions.recent(limit, having)
        return {"object": "list", "data": [_brief(document) for document in found]}

    @router.get("/v1/decisions/{decision_id}", summary="The record of one decision")
    def decision(decision_id: str, request: Request) -> dict[str, Any]:
        # Scores, thresholds and perhaps prompts stand there: not for those who only generate.
        request.state.caller.require("approve")
        return _stored(context, decision_id)

    @router.get("/v1/decisions/{decision_id}/explanation", summary="Why it was so decided")
    def explanation(decision_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        record = read(context, decision_id)
        manifest = context.manifests.get(record.plan.model)
        return explain(record, manifest.backbone.inputs if manifest else NO_INPUTS)

    return router


def read(context: Context, decision_id: str) -> Record:
    """A decision's record. Raises DecisionNotFound, Conflict for one of another Winnow."""
    try:
        return Record.model_validate(_stored(context, decision_id))
    except ValidationError:
        raise Conflict("the record was written by another version of Winnow") from None


def _brief(document: dict[str, Any]) -> dict[str, Any]:
    """A line of the list, from a record of whichever version of Winnow."""
    plan, usage = document["plan"], document["usage"]
    same = {name: document[name] for name in ("id", "created", "request_id", "key", "outcome")}
    return same | {
        "object": "decision",
        "policy": plan["policy"],
        "policy_version": plan["policy_version"],
        "images_requested": document["request"]["n"],
        "images_returned": usage.get("delivered", 0),
        "draws": usage.get("draws", 0),
    }


def _stored(context: Context, decision_id: str) -> dict[str, Any]:
    found = None
    if ID.fullmatch(decision_id):
        found = context.store.decisions.read(decision_id)
    if found is None:
        raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
    return found
