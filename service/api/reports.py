"""`POST /v1/decisions/{id}/report`: what a verdict got wrong becomes a label for the next round."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.auth import person
from service.api.context import Context
from service.api.routing import Route
from service.api.schemas import DrawAgainRequest, ReportRequest


def routes(context: Context) -> APIRouter:
    """The routes of reports."""
    router, reports = APIRouter(route_class=Route), context.reports

    @router.post(
        "/v1/decisions/{decision_id}/report",
        status_code=201,
        summary="Report a wrong verdict into a dataset",
    )
    async def report(decision_id: str, body: ReportRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        by = person(request)
        kept = await reports.report(decision_id, body.index, body.label, body.dataset, by)
        named = {"image_id": kept.id, "dataset": kept.dataset}
        return named | {"label": body.label, "draw": kept.draw}

    @router.post("/v1/decisions/{decision_id}/draw", summary="Draw an entry again, to look at it")
    async def draw_again(
        decision_id: str, body: DrawAgainRequest, request: Request, response: Response
    ) -> dict[str, Any]:
        # The record is the reviewer's, and an image that nobody has screened the labeller's.
        request.state.caller.require("approve")
        request.state.caller.require("label")
        again = await reports.draw_again(decision_id, body.index)
        response.headers["Cache-Control"] = "private, no-store"
        said = {"index": body.index, "draw": again.draw, "identical": again.identical}
        return said | {"b64_json": b64encode(again.png).decode("ascii")}

    @router.get("/v1/decisions/{decision_id}/reports", summary="What was reported of it")
    def reported(decision_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        return {"object": "list", "data": reports.reported(decision_id)}

    return router
