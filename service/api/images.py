"""`POST /v1/images/generations`: from JSON to a plan, and from an outcome to JSON."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from models.noise import MAX_SEED
from service.api import faults, schemas
from service.api.auth import Caller
from service.api.context import Context
from service.decisions import Decision, kept, row, versions
from service.decisions import Request as Requested
from service.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InvalidValue,
    ModelNotFound,
    ModerationBlocked,
    Overloaded,
    PolicyNotAllowed,
    StoreUnavailable,
    WinnowError,
)
from service.inputs import Asked, check_length
from service.policy import Overrides, Policy, resolve
from service.ports import FinishReason, SamplingPlan
from service.router import Outcome
from service.shadow import Witness

log = logging.getLogger("winnow.requests")


@dataclass(frozen=True)
class Order:
    """A valid request: what to make, how, and until when."""

    policy: Policy
    plan: SamplingPlan
    n: int
    deadline_s: float
    on_filtered: schemas.OnFiltered
    seed_is_ours: bool


def routes(context: Context) -> APIRouter:
    """The generation route."""
    api = APIRouter()

    @api.post("/v1/images/generations", summary="Generate images under a policy")
    async def generate(body: schemas.GenerationRequest, request: Request) -> JSONResponse:
        caller: Caller = request.state.caller
        caller.require("generate")
        _refuse_headers(request.headers)
        try:
            order = read(context, body, caller)
        except (BackendUnavailable, StoreUnavailable) as error:
            _refused(context, body.policy or context.settings.default_policy, error)
            raise
        begun = context.live.pointers[order.policy.name]
        decision = _decision(context, order, caller, request.state.request_id)
        started = time.monotonic()
        shadow = context.live.shadow(order.policy.name)
        witness = None if shadow is None else Witness()
        outcome = Outcome.begin(order.plan, order.n, witness)
        code, answered = "cancelled", False
        try:
            router = context.routers[order.plan.model]
            # What is switched off meanwhile leaves nothing, whatever was accepted already.
            await context.live.guard(begun, router.fill(outcome, order.deadline_s, caller.name))
            certified = context.certified.covers(order.policy, order.plan, order.seed_is_ours)
            ending, response = _answer(order, outcome, decision.id, caller.has("scores"), certified)
            seconds = time.monotonic() - started
            await context.recorder.write(row(decision.record(ending, seconds, outcome)))
            # To record takes up to 5 s, and nothing is awaited after this last look.
            context.live.check(begun)
            context.metrics.outcome(outcome)
            if shadow is not None and witness is not None:
                # Starlette runs this once the response has gone.
                response.background = BackgroundTask(
                    context.shadows.offer, shadow, order.plan, witness
                )
            code, answered = ending, True
            return response
        except Overloaded as error:
            code = error.code
            raise
        except WinnowError as error:
            code = error.code
            return faults.response(error, {"id": decision.id})
        except Exception:
            code = "internal_error"
            raise
        finally:
            if not answered:
                outcome.withhold()
            seconds = time.monotonic() - started
            hurried = order.deadline_s < context.settings.limits.deadline_s
            context.metrics.request(
                order.plan.model, order.policy.name, code, seconds, hurried=hurried
            )
            _log(decision, order, code, seconds, outcome)
            # After a refusal nothing was drawn or decided, and to refuse must stay cheap.
            if not answered and code != Overloaded.code:
                # No image leaves, and whoever was cancelled cannot wait.
                context.recorder.note(row(decision.record(code, seconds, outcome)))

    return api


def read(context: Context, body: schemas.GenerationRequest, caller: Caller) -> Order:
    """Check a request against the policy and the limits. Raises a WinnowError naming the field."""
    settings = context.settings
    limits = settings.limits
    name = body.policy or settings.default_policy
    policy = context.live.get(name)
    model = body.model or policy.settings.model
    if model not in settings.models:
        known = ", ".join(settings.models)
        raise ModelNotFound(f"no model {model!r} (there are {known})", "model")
    if model != policy.settings.model:
        raise InvalidValue(f"policy {name!r} is for model {policy.settings.model!r}", "policy")
    if not policy.censors and not caller.has("admin"):
        raise PolicyNotAllowed(
            f"policy {name!r} censors nothing: that needs a key with the 'admin' scope", "policy"
        )
    n = 1 if body.n is None else body.n
    if n > limits.n:
        raise InvalidValue(f"n: is {n}, must be 1 to {limits.n}", "n")
    asked = Asked(body.prompt, body.negative_prompt or "", body.class_label, body.guidance_scale)
    check_length(asked, limits.prompt_chars)
    backbone = context.manifests[model].backbone
    size = f"{backbone.width}x{backbone.height}"
    if body.size not in (None, "auto", size):
        raise InvalidValue(
            f"size: {body.size!r} is not among those of model {model!r}: auto, {size}", "size"
        )
    deadline_s = body.censor.deadline_s or limits.deadline_s
    if deadline_s > limits.max_deadline_s:
        raise InvalidValue(
            f"censor.deadline_s: is {deadline_s:g}, the limit is {limits.max_deadline_s:g} s",
            "censor.deadline_s",
        )
    seed = secrets.randbelow(MAX_SEED - n + 2) if body.seed is None else body.seed
    if seed + n - 1 > MAX_SEED:
        raise InvalidValue(f"seed: seed + n - 1 must be at most {MAX_SEED}", "seed")
    overrides = Overrides(
        threshold=body.censor.threshold,
        max_draws=body.censor.max_draws,
        num_inference_steps=body.num_inference_steps,
        asked=asked,
    )
    plan = resolve(policy, overrides, seed, admin=caller.has("admin"), scores=caller.has("scores"))
    return Order(policy, plan, n, deadline_s, body.censor.on_filtered, body.seed is None)


def _refuse_headers(headers: Mapping[str, str]) -> None:
    """Headers that ask for what this service does not do. Raises InvalidValue.

    The last two are for Serve's proxy, which obeys them: it would watch for no disconnect, or for
    no time-out, and the work would go on for nobody.
    """
    if "idempotency-key" in headers:
        raise InvalidValue("not supported: give a seed to get the same images", "Idempotency-Key")
    if "respond-async" in headers.get("prefer", "").lower():
        raise InvalidValue("respond-async is not supported", "Prefer")
    if headers.get("x-request-disconnect-disabled", "?0") != "?0":
        raise InvalidValue("work stops when its caller leaves", "x-request-disconnect-disabled")
    if not _is_wait(headers.get("x-request-timeout-seconds", "1")):
        raise InvalidValue(
            "must be a number of seconds above 0; better, set censor.deadline_s",
            "x-request-timeout-seconds",
        )


def _is_wait(seconds: str) -> bool:
    try:
        return 0 < float(seconds) < math.inf
    except ValueError:
        return False


def _refused(context: Context, name: str, error: WinnowError) -> None:
    """Count and log what failed before there was a plan, such as an outage of the store."""
    if name in context.live.pointers:
        policy = context.live.policies.get(name)
        model = policy.settings.model if policy else "unknown"
        context.metrics.request(model, name, error.code, 0.0)
        line = {"event": "generation", "policy": name, "code": error.code, "why": str(error)}
        log.warning("generation", extra={"fields": line})


def _withhold(order: Order, outcome: Outcome) -> bool:
    """Whether the whole request counts as blocked; then images that were accepted stay here."""
    blocked = outcome.count(FinishReason.CONTENT_FILTERED)
    limit = {"error_if_any": 1, "error_if_all": order.n}.get(order.on_filtered)
    if limit is None or blocked < limit:
        return False
    outcome.withhold()
    return True


def _answer(
    order: Order, outcome: Outcome, decision_id: str, scores: bool, certified: bool
) -> tuple[str, JSONResponse]:
    """The code for log and record, and the response: a block is an answer, not a fault."""
    blocked = _withhold(order, outcome)
    payload = schemas.generation(decision_id, order.policy, outcome, scores, certified)
    if blocked:
        held = outcome.count(FinishReason.CONTENT_FILTERED)
        error: WinnowError = ModerationBlocked(
            f"policy {order.policy.name!r} held back {held} of {order.n} images"
        )
        return error.code, faults.response(error, payload)
    if not outcome.delivered and outcome.count(FinishReason.DEADLINE):
        error = DeadlineExceeded(f"no image was ready within {order.deadline_s:g} s")
    elif not outcome.delivered and outcome.count(FinishReason.ERROR):
        error = BackendUnavailable("the backbone made no valid image")
    else:
        return "ok", JSONResponse(payload)
    return error.code, faults.response(error, {"id": decision_id})


def _decision(context: Context, order: Order, caller: Caller, request_id: str) -> Decision:
    model = order.plan.model
    plan, prompt = kept(order.plan, context.settings.store.keep_prompts)
    return Decision(
        request_id=request_id,
        key=caller.name,
        request=Requested(
            n=order.n,
            deadline_s=order.deadline_s,
            on_filtered=order.on_filtered,
            prompt=prompt,
        ),
        plan=plan,
        versions=versions(context.settings.models[model], context.manifests[model], order.policy),
    )


def _log(decision: Decision, order: Order, code: str, seconds: float, outcome: Outcome) -> None:
    line = {
        "event": "generation",
        "id": decision.id,
        "request_id": decision.request_id,
        "key": decision.key,
        "model": order.plan.model,
        "policy": order.policy.name,
        "policy_version": order.plan.policy_version,
        "judge": order.plan.judge,
        "n": order.n,
        "code": code,
        "seconds": round(seconds, 4),
        "draws": outcome.draws,
        "nfe": outcome.nfe,
        "finish_reasons": [
            image.finish_reason.value if image.finish_reason else None for image in outcome.images
        ],
    }
    log.info("generation", extra={"fields": line})
