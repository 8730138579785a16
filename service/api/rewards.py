"""`/v1/rewards`: train a reward from a dataset's labels, watch it, and read its card."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from models.diffusion.noise import MAX_SEED
from service.api.context import Context
from service.api.routing import Route
from service.api.text import RequestBody, Text
from service.config import Caller, Name
from service.errors import RewardNotFound
from service.labelling.training_order import TrainingOrder, TrainingOrders
from service.store.rewards import RewardVersion


class TrainRequest(RequestBody):
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
    router = APIRouter(route_class=Route)
    rewards, settings = context.store.rewards, context.settings
    orders = TrainingOrders(
        context.store,
        context.policy_registry,
        context.manifests,
        settings.default_policy,
        settings.feedback.threads,
    )

    @router.post("/v1/rewards", status_code=202, summary="Train a reward from a dataset's labels")
    def train(body: TrainRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        order = TrainingOrder(by=request.state.annotator, **body.model_dump())
        return _reward(orders.queue(order), request.state.caller)

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
    try:
        for calibration in card.get("calibrations", {}).values():
            for name in ("threshold", "probe_thresholds"):
                calibration.pop(name, None)
        for mistake in card.get("mistakes", []):
            mistake.pop("logit_score", None)
    except (AttributeError, TypeError):  # a card of another Winnow: who knows where it has scores
        card.clear()
