"""`POST /v1/moderations`: score images that come from elsewhere, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api.context import Context
from service.api.routing import Route
from service.api.schemas import ModerationRequest
from service.generation.moderation import Moderated


def routes(context: Context) -> APIRouter:
    """The moderation route."""
    router = APIRouter(route_class=Route)

    @router.post("/v1/moderations", summary="Score images with a policy's judge")
    async def moderate(body: ModerationRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("scores")
        urls = [item.image_url.url for item in body.input]
        found = await context.moderation.moderate(body.model, urls)
        return {
            "id": f"modr_{request.state.request_id}",
            "model": found.policy,
            "judge": found.judge,
            "results": [_result(found, score) for score in found.scores],
        }

    return router


def _result(found: Moderated, score: float) -> dict[str, Any]:
    flagged = score < found.threshold
    return {
        "flagged": flagged,
        "categories": {found.policy: flagged},
        "category_scores": {found.policy: 1 - score},
        "category_applied_input_types": {found.policy: ["image"]},
    }
