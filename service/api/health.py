"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from service.api.context import Context
from service.api.readiness import TOLD, Readiness
from service.api.routing import OpenRoute
from service.api.sessions import of_this_machine
from service.http.error_envelope import response
from service.metrics.exposition import CONTENT_TYPE


def routes(context: Context) -> APIRouter:
    """The routes that machines poll."""
    router = APIRouter(route_class=OpenRoute)
    readiness = Readiness(context)

    @router.get("/health/live", summary="This process answers")
    def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/-/healthz", summary="This process takes requests: KubeRay's readiness probe")
    def healthz() -> PlainTextResponse:
        # The probe looks for this word.
        return PlainTextResponse("success")

    @router.get("/health/ready", summary="A request could be answered, from drawing to its record")
    async def ready() -> Response:
        found = await readiness.look()
        parts = {name: "ready" if fault is None else str(fault) for name, fault in found.items()}
        for name, fault in found.items():
            if fault is not None and name not in TOLD:
                return response(fault, {"status": "not ready", "parts": parts})
        return JSONResponse({"status": "ready", "parts": parts})

    if context.settings.ingress_metrics:

        @router.get("/metrics", summary="Prometheus metrics of every replica")
        async def metrics(request: Request) -> Response:
            # Only on loopback is this page here, and a rebound name is not loopback.
            of_this_machine(request)
            return PlainTextResponse(await context.gather_metrics(), media_type=CONTENT_TYPE)

    return router
