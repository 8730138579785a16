"""`/v1/policies/…`: new versions, and which of them is in force: all that is mutable here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api.auth import person
from service.api.context import Context
from service.api.routing import Route
from service.api.schemas import PolicyRequest, PromoteRequest, ShadowRequest
from service.api.text import Text
from service.config import Caller
from service.errors import PolicyNotFound
from service.policies.policy import Policy
from service.policies.registry import Unreadable, read
from service.store.policies import Pointer, Version


def routes(context: Context) -> APIRouter:
    """The routes that change what is in force, and tell what was."""
    router = APIRouter(route_class=Route)
    store, promotion = context.store.policies, context.promotion

    # Not async where nothing is awaited: FastAPI gives these a thread, and the store blocks.
    @router.post("/v1/policies", summary="A new version, not in force yet", status_code=201)
    def add(body: PolicyRequest, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("label", "approve")
        by = person(request)
        policy = promotion.add(body.name, body.based_on, body.reward, by)
        scores = caller.has("scores") or caller.has("approve")
        return _described(policy, scores) | {"created_by": by}

    @router.post("/v1/policies/{name}/promote", summary="Put a version in force")
    async def promote(name: Text, body: PromoteRequest, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("approve")
        return _pointer(await promotion.promote(name, body.version, caller, person(request)))

    @router.post("/v1/policies/{name}/rollback", summary="Put the version before in force again")
    async def rollback(name: Text, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("approve")
        return _pointer(await promotion.rollback(name, caller, person(request)))

    @router.post("/v1/policies/{name}/disable", summary="Switch a policy off everywhere")
    def disable(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        return _pointer(promotion.disable(name, person(request)))

    @router.post("/v1/policies/{name}/shadow", summary="Let a version score, and decide nothing")
    async def shadow(name: Text, body: ShadowRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        return _pointer(await promotion.shadow(name, body.version, person(request)))

    @router.get("/v1/policies/{name}/versions", summary="All versions, the newest first")
    def versions(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        found = store.versions(name)
        if not found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        now = store.pointers().get(name)
        return {
            "object": "list",
            "in_force": _pointer(now) if now else None,
            "data": [_version(version) for version in found],
        }

    @router.get("/v1/policies/{name}/history", summary="Who changed what, the newest first")
    def history(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        found = store.history(name)
        if not found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        return {"object": "list", "data": found}

    return router


def _pointer(pointer: Pointer) -> dict[str, Any]:
    return {"id": pointer.name, "object": "policy.pointer"} | {
        key: getattr(pointer, key) for key in ("version", "disabled", "shadow")
    }


def _described(policy: Policy, scores: bool) -> dict[str, Any]:
    described = {
        "id": policy.name,
        "object": "policy.version",
        "version": policy.version,
        "reward": policy.reward,
        "model": policy.settings.model,
        "question": policy.question,
        "networks": policy.parts,
        "canary": policy.canary,
        "uncalibrated": policy.uncalibrated,
    }
    if scores:
        described["thresholds"] = {
            str(steps): here.threshold for steps, here in policy.operating_points.items()
        }
    return described


def _version(version: Version) -> dict[str, Any]:
    policy = read(version)
    made = {"created": version.created, "created_by": version.created_by}
    if isinstance(policy, Unreadable):
        known = {"id": version.name, "object": "policy.version", "version": version.version}
        return known | made | {"unreadable": policy.why}
    return _described(policy, scores=True) | made
