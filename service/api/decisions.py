"""`GET /v1/decisions` and `/v1/decisions/{id}`: why a request was answered as it was."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from service.api.context import Context
from service.api.routing import Route
from service.generation.explanation import explain
from service.generation.reports import document, read
from service.policies.inputs import NO_INPUTS
from service.store.schema import Row


def routes(context: Context) -> APIRouter:
    """The routes of decision records."""
    router = APIRouter(route_class=Route)

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
        found = context.store.decisions.rows(limit, having)
        return {"object": "list", "data": [_brief(row) for row in found]}

    @router.get("/v1/decisions/{decision_id}", summary="The record of one decision")
    def decision(decision_id: str, request: Request) -> dict[str, Any]:
        # Scores, thresholds and perhaps prompts stand there: not for those who only generate.
        request.state.caller.require("approve")
        return document(context.store, decision_id)

    @router.get("/v1/decisions/{decision_id}/explanation", summary="Why it was so decided")
    def explanation(decision_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        record = read(context.store, decision_id)
        manifest = context.manifests.get(record.plan.model)
        return explain(record, manifest.backbone.inputs if manifest else NO_INPUTS)

    return router


def _brief(row: Row) -> dict[str, Any]:
    """A line of the list, from a record of whichever version of Winnow; one that is damaged says
    so, and what the store knows of it beside the record."""
    document = row.document
    known = {
        "id": row.id,
        "object": "decision",
        "created": row.created.isoformat(),
        "request_id": row.request_id,
        "key": row.key_name,
        "outcome": row.outcome,
        "policy": row.policy,
    }
    try:
        plan, usage = document["plan"], document["usage"]
        return known | {
            "created": document["created"],
            "policy_version": plan["policy_version"],
            "images_requested": document["request"]["n"],
            "images_returned": usage.get("delivered", 0),
            "draws": usage.get("draws", 0),
        }
    except (AttributeError, KeyError, TypeError):
        return known | {"unreadable": "the record is damaged, or of another version of Winnow"}
