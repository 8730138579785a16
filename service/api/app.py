"""The FastAPI application: routes, authentication, limits and errors put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service.api import (
    catalogue,
    certificates,
    datasets,
    decisions,
    exception_handlers,
    health,
    images,
    moderations,
    openapi,
    policies,
    reports,
    rewards,
    sessions,
)
from service.api.auth import Authenticator
from service.api.body_limits import body_limit
from service.api.context import Context
from service.api.middleware import BodyLimit, RequestId, SingletonFields
from service.api.routing import Head
from service.api.web import pages
from service.http.disconnect import CancelOnDisconnect
from service.http.gate import GateMiddleware
from service.jobs.runner import JobRunner

MODULES = (images, moderations, catalogue, decisions, policies, certificates, reports)


def create_app(context: Context) -> FastAPI:
    """The whole REST face over a context."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        canaries = asyncio.create_task(context.canaries.run())
        drawing = context.certificates.drawing(asyncio.get_running_loop())
        jobs = JobRunner(context.store.jobs, [drawing])
        yield
        await asyncio.to_thread(jobs.close)
        canaries.cancel()

    # Not `redirect_slashes`: it would send a caller, key and all, to whatever `Host` says.
    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    settings = context.settings
    authenticator = Authenticator(settings.auth, context.keys)
    caller_resolver = sessions.Sessions(
        authenticator, context.keys, settings.feedback.session_hours
    )
    exception_handlers.install(app)
    routers = [
        *(module.routes(context) for module in MODULES),
        health.routes(context),
        sessions.routes(caller_resolver),
        pages.routes(labelling=context.labelling is not None),
    ]
    if context.labelling is not None:
        routers += [datasets.routes(context, context.labelling), rewards.routes(context)]
    routes = [route for router in routers for route in router.routes]
    routers.append(openapi.routes())
    for router in routers:
        app.include_router(router)
    app.state.caller_resolver = caller_resolver
    app.state.routes = [*routes, *routers[-1].routes]
    app.state.description = openapi.describe(app.state.routes, settings.auth.anonymous)

    # The last one added is the outermost: an id on everything, then whether it may come in at all.
    limit = body_limit(settings.limits, context.manifests.values())
    app.add_middleware(BodyLimit, limit=limit)
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(Head)
    app.add_middleware(exception_handlers.Unexpected)
    app.add_middleware(GateMiddleware, gate=context.gate)
    app.add_middleware(SingletonFields)
    app.add_middleware(RequestId)
    return app
