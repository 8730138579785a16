"""`POST /v1/moderations`: score images that come from elsewhere, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api.context import Context
from service.api.schemas import ModerationRequest
from service.encode import from_data_url
from service.errors import CensorUnavailable, InvalidValue, PolicyNotFound
from service.verdict import usable


def routes(context: Context) -> APIRouter:
    """The moderation route."""
    router = APIRouter()

    @router.post("/v1/moderations", summary="Score images with a policy's judge")
    async def moderate(body: ModerationRequest, request: Request) -> dict[str, Any]:
        # A free score is an oracle for getting past the judge.
        request.state.caller.require("scores")
        settings = context.settings
        name = body.model or settings.default_policy
        policy = context.live.get(name)
        policy.refuse_waiting()
        if policy.judge is None:
            known = ", ".join(p.name for p in context.live.policies.values() if p.censors)
            raise PolicyNotFound(f"policy {name!r} has no judge (there are {known})", "model")
        if len(body.input) > settings.limits.moderation_inputs:
            raise InvalidValue(
                f"input: has {len(body.input)} images, the limit is "
                f"{settings.limits.moderation_inputs}",
                "input",
            )
        model = policy.settings.model
        backbone = context.manifests[model].backbone
        pixels = [
            from_data_url(
                item.image_url.url,
                backbone.height,
                backbone.width,
                backbone.channels,
                f"input.{index}.image_url.url",
            )
            for index, item in enumerate(body.input)
        ]
        timeout_s = settings.models[model].judge.timeout_s
        scored = await context.scorer.score(model, policy.judge, pixels, timeout_s)
        if len(scored) != len(pixels):
            raise CensorUnavailable(
                f"the judge returned {len(scored)} scores for {len(pixels)} images"
            )
        scores = [usable(score) for score in scored]
        # An image does not say how many steps made it: the strictest threshold decides.
        threshold = max(here.threshold for here in policy.operating.values())
        return {
            "id": f"modr_{request.state.request_id}",
            "model": policy.name,
            "judge": policy.judge,
            "results": [
                {
                    "flagged": score < threshold,
                    "categories": {policy.name: score < threshold},
                    "category_scores": {policy.name: 1 - score},
                    "category_applied_input_types": {policy.name: ["image"]},
                }
                for score in scores
            ],
        }

    return router
