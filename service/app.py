"""Winnow as a Ray Serve application: the only file that binds deployments together."""

# No `from __future__ import annotations` here: Serve looks at the annotation of `args` itself, and
# passes a plain dict, unchecked, where that is a string.

from collections.abc import Callable

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.config import Autoscaling, Replicas, Settings
from service.serving.backbone import Backbone
from service.serving.ingress import Ingress
from service.serving.labelling import Labelling
from service.serving.reward_model import RewardModel


def build(args: Settings) -> Application:
    """The application for `applications[].import_path: service.app:build`.

    Serve validates `args` against Settings, so a wrong key stops the start.
    """
    backbones, judges = {}, {}
    for name, model in args.models.items():
        backbones[name] = _deploy(Backbone, f"Backbone-{name}", model.backbone.replicas).bind(
            name, model, args.store, args.metrics_ports
        )
        judges[name] = _deploy(RewardModel, f"RewardModel-{name}", model.judge.replicas).bind(
            name, model, args.store, args.metrics_ports
        )
    feedback = None
    if args.feedback.enabled:
        feedback = _deploy(Labelling, "Labelling", args.feedback.replicas).bind(
            args, backbones, judges
        )
    return _deploy(Ingress, "Ingress", args.ingress).bind(args, backbones, judges, feedback)


def _deploy(shell: type, name: str, replicas: Replicas) -> serve.Deployment:
    options = replicas.model_dump(exclude={"autoscaling", "ray_actor_options"})
    options["ray_actor_options"] = replicas.ray_actor_options.as_ray()
    autoscaling = getattr(replicas, "autoscaling", None)
    if autoscaling is not None:
        options |= {"num_replicas": None, "autoscaling_config": by_nfe(autoscaling)}
    decorate: Callable[[type], serve.Deployment] = serve.deployment(name=name, **options)
    return decorate(shell)


def by_nfe(autoscaling: Autoscaling) -> AutoscalingConfig:
    """Serve's own configuration of it, with `service.serving.autoscaling` to decide."""
    return AutoscalingConfig(
        min_replicas=autoscaling.min_replicas,
        max_replicas=autoscaling.max_replicas,
        upscale_delay_s=autoscaling.upscale_delay_s,
        downscale_delay_s=autoscaling.downscale_delay_s,
        look_back_period_s=autoscaling.look_back_s,
        metrics_interval_s=min(autoscaling.look_back_s / 3, 10),
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function="service.serving.autoscaling:ByNfe",
            policy_kwargs={"utilization": autoscaling.utilization},
        ),
    )
