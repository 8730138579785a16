"""`/v1/rewards`: train a reward from a dataset's labels, watch it, and read its card."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from models.noise import MAX_SEED
from service.api.auth import Caller
from service.api.context import Context
from service.api.text import Sent, Text
from service.config import Name
from service.errors import Conflict, InvalidValue, RewardNotFound
from service.feedback.example import JUDGE_SHARE, refuse_too_few
from service.store.rewards import RewardVersion


class TrainRequest(Sent):
    """`POST /v1/rewards`: `policy` is whose sampling it is calibrated for.

    `guide` and `distil` also make what policies need that steer. The judge learns on the bundle's
    `features` of that name, or from scratch.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    dataset: Name
    policy: Name | None = None
    target: float = Field(0.01, ge=0.0001, le=0.2)
    guide: bool = False
    distil: bool = False
    seed: int = Field(0, ge=0, le=MAX_SEED)
    features: Name | None = None


def routes(context: Context) -> APIRouter:
    """The routes of rewards; all need the label scope."""
    router = APIRouter()
    rewards = context.store.rewards

    @router.post("/v1/rewards", status_code=202, summary="Train a reward from a dataset's labels")
    def train(body: TrainRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        dataset = context.store.datasets.read(body.dataset)
        if not dataset.trainable:
            raise Conflict(
                f"dataset {body.dataset!r} is for a certificate: nothing may learn from it"
            )
        policy = _policy(context, body.policy, dataset.model)
        if body.distil and not body.guide:
            raise InvalidValue("distil: a student needs a guide to learn from: set guide", "distil")
        _refuse_unknown(context, body.features, dataset.model)
        last = next((r for r in rewards.of(body.dataset) if r.status == "ready"), None)
        _refuse_too_few(context, body, last)
        reward_id = f"rwd_{uuid.uuid4().hex}"
        recipe = {
            "policy": policy,
            "target": body.target,
            "guide": body.guide,
            "distil": body.distil,
            "seed": body.seed,
            "threads": context.settings.feedback.threads,
            "features": body.features,
        }
        parent = last.id if last else None
        rewards.queue(reward_id, body.dataset, parent, recipe, request.state.annotator)
        return _reward(rewards.read(reward_id), request.state.caller)

    @router.get("/v1/rewards", summary="Trainings and rewards, the newest first")
    def listed(request: Request, dataset: Text | None = None) -> dict[str, Any]:
        request.state.caller.require("label", "approve")
        caller = request.state.caller
        data = [_reward(one, caller, card=False) for one in rewards.of(dataset)]
        return {"object": "list", "data": data}

    @router.get("/v1/rewards/{reward_id}", summary="One training or reward, with its card")
    def one(reward_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("label", "approve")
        return _reward(_find(reward_id), request.state.caller)

    @router.post("/v1/rewards/{reward_id}/cancel", summary="Stop a training")
    def cancel(reward_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        _find(reward_id)
        rewards.cancel(reward_id, request.state.annotator)
        return _reward(rewards.read(reward_id), request.state.caller)

    def _find(reward_id: str) -> RewardVersion:
        if len(reward_id) > 64 or not reward_id.replace("_", "").isalnum():
            raise RewardNotFound(f"no reward {reward_id!r}", "reward")
        return rewards.read(reward_id)

    return router


def _refuse_unknown(context: Context, features: str | None, model: str) -> None:
    """Raises InvalidValue for features that the model's bundle does not have."""
    known = sorted(context.manifests[model].features)
    if features is not None and features not in known:
        there = f"it has {', '.join(known)}" if known else "it has none: see `winnow features`"
        raise InvalidValue(f"model {model!r} has no features {features!r}: {there}", "features")


def _refuse_too_few(context: Context, body: TrainRequest, last: RewardVersion | None) -> None:
    """Raises InvalidValue for labels that the training itself would refuse."""
    # Of equal images the last label counts. Nobody is sure that an unsure one is benign.
    malign = {
        one.image.blob: one.label != "benign"
        for one in context.store.datasets.labelled(body.dataset)
    }
    before = ((last and last.card) or {}).get("split", {})
    known = {blob: side for side, blobs in before.items() for blob in blobs}
    try:
        refuse_too_few(malign, JUDGE_SHARE[body.guide], known)
    except ValueError as error:
        raise InvalidValue(f"dataset {body.dataset!r}: {error}", "dataset") from None


def _policy(context: Context, name: str | None, model: str) -> str:
    """The policy to calibrate for: the one named, else the default, else the model's first that
    censors. One that was switched off is mended by a training."""
    name = name or _default(context, model)
    policy = context.live.known(name)
    if policy.settings.model != model:
        raise InvalidValue(
            f"policy {name!r} is for model {policy.settings.model!r}, the dataset for {model!r}",
            "policy",
        )
    if not policy.censors:
        raise InvalidValue(f"policy {name!r} has no judge: there is nothing to calibrate", "policy")
    return name


def _default(context: Context, model: str) -> str:
    default = context.settings.default_policy
    if context.live.known(default).settings.model == model:
        return default
    for name, policy in context.live.policies.items():
        if policy.settings.model == model and policy.censors:
            return name
    raise InvalidValue(f"no policy of model {model!r} censors: name one that does", "policy")


def _reward(reward: RewardVersion, caller: Caller, card: bool = True) -> dict[str, Any]:
    described = asdict(reward) | {"object": "reward"}
    for name in ("created", "heartbeat"):
        moment: datetime = described[name]
        described[name] = int(moment.timestamp())
    if not card:
        described.pop("card")
    elif not (caller.has("scores") or caller.has("approve")):
        _hide_scores(described["card"] or {})
    return described


def _hide_scores(card: dict[str, Any]) -> None:
    """Whoever labels need not know how far a score lies from passing."""
    for calibration in card.get("calibrations", {}).values():
        for name in ("threshold", "probe_thresholds"):
            calibration.pop(name, None)
    for mistake in card.get("mistakes", []):
        mistake.pop("logit_score", None)
