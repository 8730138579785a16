"""`GET /v1/models` and `GET /v1/policies`: what there is to ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from models.bundles.bundle import MANIFEST, find
from models.bundles.manifest import Backbone, Inputs
from models.bundles.parts import Stage, at
from models.diffusion.condition import size_text
from service.api.context import Context
from service.api.routing import Route
from service.certificates.certificate import asked
from service.config import BackboneSettings, Caller
from service.generation.order import model_named
from service.policies.policy import Policy


def routes(context: Context) -> APIRouter:
    """The listing routes."""
    router = APIRouter(route_class=Route)
    served = context.settings.models
    # Nothing in a bundle changes after its manifest was written.
    made = {name: int((find(it.bundle) / MANIFEST).stat().st_mtime) for name, it in served.items()}

    def described(called: str) -> dict[str, Any]:
        """A model by its name or an alias; each has its own entry, as clients look for one id."""
        name = model_named(context.settings, called)
        alias_of = None if called == name else name
        return _model(context, name) | {"id": called, "created": made[name], "alias_of": alias_of}

    @router.get("/v1/models", summary="The models that are served")
    def models(request: Request) -> dict[str, Any]:
        request.state.caller.require("generate")
        called = [*served, *(alias for it in served.values() for alias in it.aliases)]
        return {"object": "list", "data": [described(name) for name in called]}

    @router.get("/v1/models/{name}", summary="One model")
    def model(name: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("generate")
        return described(name)

    @router.get("/v1/policies", summary="The policies, and which are switched off")
    def policies(request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("generate", "approve")
        return {
            "object": "list",
            "data": [
                _policy(context, policy, caller)
                for policy in context.policy_registry.listed.values()
            ],
            "unreadable": [
                {"id": name, "why": why} for name, why in context.policy_registry.unreadable.items()
            ],
        }

    @router.get("/v1/policies/{name}", summary="One policy")
    def policy(name: str, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("generate", "approve")
        return _policy(context, context.policy_registry.known(name), caller)

    return router


def _model(context: Context, name: str) -> dict[str, Any]:
    manifest = context.manifests[name]
    backbone = manifest.backbone
    policies = context.policy_registry.policies.values()
    ours = [policy for policy in policies if policy.settings.model == name]
    return {
        "object": "model",
        "owned_by": "winnow",
        "description": manifest.description,
        # The default first.
        "sizes": _sizes(backbone, map(size_text, backbone.other_sizes)),
        "inputs": _inputs(backbone.inputs, context.settings.models[name].backbone),
        "policies": [policy.name for policy in ours],
        "num_inference_steps": {
            policy.name: policy.settings.num_inference_steps for policy in ours
        },
    }


def _sizes(backbone: Backbone, others: Iterable[str]) -> list[str]:
    return [size_text((backbone.height, backbone.width)), *others]


def _inputs(inputs: Inputs, settings: BackboneSettings) -> dict[str, Any]:
    """What a model takes; what belongs to another kind is left out."""
    described: dict[str, Any] = {"kind": inputs.kind}
    if inputs.kind == "class":
        described["classes"] = [
            {"class_label": label, "class_name": inputs.class_names[label]}
            for label in inputs.drawn_classes
        ]
    if inputs.kind == "text":
        described["max_tokens"] = inputs.tokens(settings.most_prompt_chunks)
    if inputs.guidable:
        described["guidance_scale"] = inputs.guidance_scale
    return described


def _policy(context: Context, policy: Policy, caller: Caller) -> dict[str, Any]:
    spec = policy.settings
    certificates = context.certified.steps(policy)
    verdict = context.canaries.verdict(policy)
    described = {
        "id": policy.name,
        "object": "policy",
        "version": policy.version,
        "model": spec.model,
        "disabled": context.policy_registry.pointers[policy.name].disabled,
        "default": policy.name == context.settings.default_policy,
        "scope": "generate" if policy.censors else "admin",
        "censors": asked(policy, context.manifests[spec.model]) if policy.judge else None,
        "ready": not policy.awaits_reward,
        "reward": policy.reward,
        "guide": at(Stage.STEERS, policy.parts),
        "judge": policy.judge,
        # A judge without one is told apart: nobody would notice that it fails open.
        "canary": policy.canary,
        "canary_verdict": verdict.value if verdict is not None else None,
        "certified": spec.num_inference_steps[0] in certificates,
        "certificates": {str(steps): one.id for steps, one in certificates.items()},
        "max_draws": spec.max_draws,
        **asdict(spec.method(spec.num_inference_steps[0])),
        "num_inference_steps": spec.num_inference_steps,
        # What callers may ask for, the default first; of classes, one is drawn where none is asked.
        "guidance_scale": list(policy.guidance_scale) if policy.inputs.guidable else [],
        "class_labels": list(policy.class_labels),
        "sizes": _sizes(context.manifests[spec.model].backbone, spec.sizes),
    }
    if caller.has("scores") or caller.has("approve"):
        described["thresholds"] = {
            str(steps): here.threshold for steps, here in policy.operating_points.items()
        }
        described["acceptance"] = {
            str(steps): here.acceptance for steps, here in policy.operating_points.items()
        }
        described["probe_thresholds"] = {
            str(steps): here.probe_thresholds for steps, here in policy.operating_points.items()
        }
    return described
