"""`GET /v1/models` and `GET /v1/policies`: what there is to ask for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from models.manifest import Inputs
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
    policies = context.live.policies.values()
    ours = [policy for policy in policies if policy.settings.model == name]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "winnow",
        "description": manifest.description,
        "sizes": [f"{backbone.width}x{backbone.height}"],
        "inputs": _inputs(backbone.inputs),
        "policies": [policy.name for policy in ours],
        "num_inference_steps": {
            policy.name: policy.settings.num_inference_steps for policy in ours
        },
    }


def _inputs(inputs: Inputs) -> dict[str, Any]:
    """What a model takes; what belongs to another kind is left out."""
    described: dict[str, Any] = {"kind": inputs.kind}
    if inputs.kind == "class":
        described["classes"] = [
            {"class_label": label, "class_name": inputs.class_names[label]}
            for label in inputs.drawn_classes
        ]
    if inputs.kind == "text":
        described["max_tokens"] = inputs.max_tokens
    if inputs.guidable:
        described["guidance_scale"] = inputs.guidance_scale
    return described


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
        # What callers may ask for, the default first; of classes, one is drawn where none is asked.
        "guidance_scale": list(policy.guidance_scale) if policy.inputs.guidable else [],
        "class_labels": list(policy.class_labels),
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
