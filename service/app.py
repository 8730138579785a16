"""Winnow as a Ray Serve application: the only file that binds deployments together."""

from __future__ import annotations

from collections.abc import Callable

from ray import serve
from ray.serve import Application

from service.config import Replicas, Settings
from service.deployments.backbone import Backbone
from service.deployments.elsewhere import Elsewhere
from service.deployments.feedback import Feedback
from service.deployments.ingress import Ingress
from service.deployments.reward_model import RewardModel


def build(args: Settings) -> Application:
    """The application for `applications[].import_path: service.app:build`.

    Serve validates `args` against Settings, so a wrong key stops the start.
    """
    backbones, judges = {}, {}
    for name, model in args.models.items():
        backbone = _deploy(Backbone, f"Backbone-{name}", model.backbone.replicas).options(
            request_router_config={"request_router_class": Elsewhere}
        )
        backbones[name] = backbone.bind(name, model, args.store)
        judges[name] = _deploy(RewardModel, f"RewardModel-{name}", model.judge.replicas).bind(
            name, model, args.store
        )
    feedback = None
    if args.feedback.enabled:
        feedback = _deploy(Feedback, "Feedback", args.feedback.replicas).bind(
            args, backbones, judges
        )
    return _deploy(Ingress, "Ingress", args.ingress).bind(args, backbones, judges, feedback)


def _deploy(shell: type, name: str, replicas: Replicas) -> serve.Deployment:
    decorate: Callable[[type], serve.Deployment] = serve.deployment(
        name=name, **replicas.model_dump()
    )
    return decorate(shell)
