"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from service.api.context import Context
from service.metrics.page import CONTENT_TYPE


def routes(context: Context) -> APIRouter:
    """The routes that machines poll."""
    router = APIRouter()

    @router.get("/health/live", summary="This process answers")
    def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready", summary="Backbone and judge have loaded and passed their canary")
    async def ready() -> dict[str, str]:
        await context.drawer.ready()
        await context.scorer.ready()
        return {"status": "ready"}

    if context.settings.ingress_metrics:

        @router.get("/metrics", summary="Prometheus metrics of every replica")
        async def metrics() -> Response:
            return PlainTextResponse(await context.gather_metrics(), media_type=CONTENT_TYPE)

    return router
