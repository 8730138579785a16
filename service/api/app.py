"""The FastAPI application: routes, authentication, limits and errors put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api import (
    catalogue,
    certificates,
    datasets,
    decisions,
    faults,
    feedback,
    health,
    images,
    moderations,
    policies,
    reports,
    rewards,
    sessions,
)
from service.api.auth import Authenticator
from service.api.context import Context
from service.api.limits import BodyLimit, RequestId

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="An API key")),
]


def create_app(context: Context, stamp_request_id: bool = True) -> FastAPI:
    """The whole REST face over a context; behind Serve's proxy the id is stamped already."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        canaries = asyncio.create_task(context.canaries.run())
        yield
        canaries.cancel()

    app = FastAPI(
        lifespan=lifespan,
        title="Winnow",
        summary="Images from a diffusion model, with the bad ones kept from leaving.",
        docs_url=None,
        redoc_url=None,
    )
    authenticator = Authenticator(context.settings.auth, context.keys)
    visitors = sessions.Sessions(
        authenticator, context.keys, context.settings.feedback.session_hours
    )

    def authenticate(request: Request, credentials: Credentials) -> None:
        visitors.identify(request, credentials.credentials if credentials else None)

    # The last one added is the outermost: first an id, then the limit.
    app.add_middleware(BodyLimit, limit=context.settings.limits.body_bytes)
    app.add_middleware(RequestId, stamp=stamp_request_id)
    faults.install(app)
    for module in (images, moderations, catalogue, decisions, policies, certificates, reports):
        app.include_router(module.routes(context), dependencies=[Depends(authenticate)])
    app.include_router(health.routes(context))
    app.include_router(sessions.routes(visitors))
    app.include_router(feedback.routes(labelling=context.desk is not None))
    if context.desk is not None:
        for labelling in (
            datasets.routes(context, context.desk),
            rewards.routes(context),
        ):
            app.include_router(labelling, dependencies=[Depends(authenticate)])

    return app
