"""`GET /v1/models` and `GET /v1/policies`: what there is to ask for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from service.api.auth import Caller
from service.api.context import Context
from service.certificates.certificate import asked
from service.errors import ModelNotFound
from service.policy import Policy


def routes(context: Context) -> APIRouter:
    """The listing routes."""
    router = APIRouter()

    @router.get("/v1/models", summary="The models that are served")
    def models(request: Request) -> dict[str, Any]:
        request.state.caller.require("generate")
        return {"object": "list", "data": [_model(context, name) for name in context.manifests]}

    @router.get("/v1/models/{name}", summary="One model")
    def model(name: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("generate")
        if name not in context.manifests:
            raise ModelNotFound(f"no model {name!r}", "model")
        return _model(context, name)

    @router.get("/v1/policies", summary="The policies, and which are switched off")
    def policies(request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("generate", "approve")
        return {
            "object": "list",
            "data": [_policy(context, policy, caller) for policy in context.live.listed.values()],
        }

    @router.get("/v1/policies/{name}", summary="One policy")
    def policy(name: str, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("generate", "approve")
        return _policy(context, context.live.known(name), caller)

    return router


def _model(context: Context, name: str) -> dict[str, Any]:
    manifest = context.manifests[name]
    backbone = manifest.backbone
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "winnow",
        "description": manifest.description,
        "sizes": [f"{backbone.width}x{backbone.height}"],
        "policies": [
            policy.name
            for policy in context.live.policies.values()
            if policy.settings.model == name
        ],
    }


def _policy(context: Context, policy: Policy, caller: Caller) -> dict[str, Any]:
    spec = policy.settings
    certificates = context.certified.steps(policy)
    described = {
        "id": policy.name,
        "object": "policy",
        "version": policy.version,
        "model": spec.model,
        "disabled": context.live.pointers[policy.name].disabled,
        "default": policy.name == context.settings.default_policy,
        "scope": "generate" if policy.censors else "admin",
        "censors": asked(policy, context.manifests[spec.model]) if policy.judge else None,
        "ready": not policy.waits,
        "reward": policy.reward,
        "guide": policy.guide,
        "judge": policy.judge,
        "certified": spec.num_inference_steps[0] in certificates,
        "certificates": {str(steps): one.id for steps, one in certificates.items()},
        "max_draws": spec.max_draws,
        **asdict(spec.method(spec.num_inference_steps[0])),
        "num_inference_steps": spec.num_inference_steps,
    }
    if caller.has("scores") or caller.has("approve"):
        described["thresholds"] = {
            str(steps): here.threshold for steps, here in policy.operating.items()
        }
        described["acceptance"] = {
            str(steps): here.acceptance for steps, here in policy.operating.items()
        }
        described["probe_thresholds"] = {
            str(steps): here.probe_thresholds for steps, here in policy.operating.items()
        }
    return described
