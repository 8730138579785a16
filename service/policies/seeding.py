"""Configured policies, tied to the weights of their bundles: the first version of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from models.bundles.bundle import Bundle
from models.bundles.manifest import WHOLE, Inputs
from models.bundles.parts import PARTS, MissingPart, parts_for
from models.diffusion.condition import size_of, size_text
from service.config import BackboneSettings, ConfigError, PolicySettings, Settings
from service.policies.inputs import listed
from service.policies.policy import OperatingPoint, Policy


def configured_policies(
    settings: Settings, bundles: Mapping[str, Bundle], calibrated: bool = True
) -> dict[str, Policy]:
    """Tie every configured policy to the weights of its bundle.

    With `calibrated`, a censoring policy needs a threshold for each step count that it lists, from
    a calibration of exactly its sampling, or from the configuration.
    Raises ConfigError naming the policy and the remedy.
    """
    policies = {}
    for name, spec in settings.policies.items():
        bundle = bundles[spec.model]
        denoiser = settings.models[spec.model].backbone
        rewards = bundle.manifest.rewards
        if spec.reward is not None and spec.reward not in rewards:
            raise ConfigError(
                f"policies.{name}.reward: {spec.reward!r} is not in bundle "
                f"{bundle.manifest.name!r} (it has {', '.join(sorted(rewards))})"
            )
        if max(spec.num_inference_steps) > bundle.num_train_timesteps:
            raise ConfigError(
                f"policies.{name}.num_inference_steps: at most {bundle.num_train_timesteps} for "
                f"bundle {bundle.manifest.name!r}"
            )
        if bundle.manifest.backbone.kind == "pipeline":
            _check_pipeline(name, spec, denoiser, bundle)
        _check_inputs(name, spec, bundle)
        _check_sizes(name, spec, bundle, denoiser.runtime)
        reward = rewards[spec.reward] if spec.reward else None
        files = bundle.reward_sha256(spec.reward) if spec.reward else {}
        uncalibrated = Policy(
            name=name,
            settings=spec,
            backbone=bundle.backbone_key(
                denoiser.runtime, denoiser.dtype, denoiser.forward_guidance
            ),
            parts=_parts(name, spec, bundle, files),
            operating_points={},
            question=reward.question if reward else None,
            version=spec.version,
            canary=files.get("canary"),
            control=files.get("control"),
            inputs=bundle.manifest.backbone.inputs,
        )
        if any(PARTS[part].nfe for part in uncalibrated.parts) and not denoiser.forward_guidance:
            raise ConfigError(
                f"policies.{name}.guidance: {spec.guidance} needs "
                f"models.{spec.model}.backbone.forward_guidance: true"
            )
        policies[name] = _calibrated(uncalibrated, bundle) if calibrated else uncalibrated
    return policies


def _parts(
    name: str, spec: PolicySettings, bundle: Bundle, files: Mapping[str, str]
) -> dict[str, str]:
    """The sha256 name of each part of the reward that this policy uses."""
    if spec.reward is None:
        return {}
    try:
        return parts_for(spec.method(spec.num_inference_steps[0]), files)
    except MissingPart as missing:
        lacks = f"bundle {bundle.manifest.name!r} has no `{missing.file}` of reward {spec.reward!r}"
        if not {"guide", "clean_guide"} <= set(files):
            raise ConfigError(
                f"policies.{name}: {lacks}: that reward is a judge alone, which can neither "
                "steer nor stop a draw. Leave out censor_scale, backward_steps and probes, or "
                "train a reward with a guide from labels"
            ) from None
        raise ConfigError(
            f"policies.{name}: {lacks}: train a reward from labels with `distil`, or make the "
            "bundle's again with `winnow train rewards`"
        ) from None


def _check_pipeline(
    name: str, spec: PolicySettings, backbone: BackboneSettings, bundle: Bundle
) -> None:
    """Raises ConfigError where a policy, or the backbone's settings, ask of a whole pipeline what
    its own code does."""
    if beside := spec.method(spec.num_inference_steps[0]).beside_steps:
        raise ConfigError(f"policies.{name}.{beside[0]}: {WHOLE}")
    where = f"models.{spec.model}.backbone"
    if backbone.max_batch > 1:
        raise ConfigError(
            f"{where}.max_batch: must be 1: bundle {bundle.manifest.name!r} is a whole pipeline, "
            "which draws one image at a time; more replicas draw more"
        )
    for option in ("compile_mode", "forward_guidance"):
        if getattr(backbone, option):
            raise ConfigError(
                f"{where}.{option}: bundle {bundle.manifest.name!r} is a whole pipeline, whose "
                "denoiser is called by its own code: leave it out"
            )


def _unguided(inputs: Inputs) -> str:
    """Why a model takes no guidance scale."""
    if inputs.guidance == "none":
        return "was distilled to need none"
    return "takes no input" if inputs.kind == "none" else "has no null_class"


def _check_inputs(name: str, spec: PolicySettings, bundle: Bundle) -> None:
    """Raises ConfigError where a policy lists what its model cannot draw."""
    inputs, called = bundle.manifest.backbone.inputs, f"bundle {bundle.manifest.name!r}"
    if inputs.kind == "class" and not inputs.class_names:
        raise ConfigError(f"models.{spec.model}.bundle: {called} has classes and no class_names")
    if spec.guidance_scale and not inputs.guidable:
        raise ConfigError(
            f"policies.{name}.guidance_scale: {called} cannot be guided, as it "
            f"{_unguided(inputs)}: leave it out"
        )
    for scale in spec.guidance_scale:
        if not inputs.has_scale(inputs.scale(scale)):
            raise ConfigError(
                f"policies.{name}.guidance_scale: {scale:g} must be {inputs.scales} for {called}"
            )
    if spec.classifier_scale and (
        inputs.kind != "class" or not bundle.manifest.backbone.classifier
    ):
        raise ConfigError(
            f"policies.{name}.classifier_scale: {called} has no "
            f"{'classes' if inputs.kind != 'class' else 'classifier'} to steer by: leave it out"
        )
    repeated = [one for one in spec.class_labels if spec.class_labels.count(one) > 1]
    known = inputs.drawn_classes if inputs.kind == "class" else ()
    if spec.class_labels and not known:
        raise ConfigError(f"policies.{name}.class_labels: {called} has no classes: leave it out")
    if repeated:
        raise ConfigError(f"policies.{name}.class_labels: {repeated[0]} stands there twice")
    if unknown := [one for one in spec.class_labels if one not in known]:
        raise ConfigError(
            f"policies.{name}.class_labels: {unknown[0]} is not among those of {called}: "
            f"{listed(known, inputs.class_names)}"
        )


def _check_sizes(
    name: str, spec: PolicySettings, bundle: Bundle, runtime: Literal["onnx", "torch"]
) -> None:
    """Raises ConfigError where a policy lists a size that its model does not draw."""
    backbone = bundle.manifest.backbone
    known = [size_text(size) for size in backbone.other_sizes]
    for size in spec.sizes:
        if size not in known:
            own = size_text((backbone.height, backbone.width))
            raise ConfigError(
                f"policies.{name}.sizes: bundle {bundle.manifest.name!r} draws no {size}; beside "
                f"its own {own}, which every policy serves, it has {', '.join(known) or 'none'}"
            )
    if spec.sizes and runtime == "onnx":
        raise ConfigError(
            f"policies.{name}.sizes: a graph draws one size alone: set "
            f"models.{spec.model}.backbone.runtime: torch, or leave sizes out"
        )


def _calibrated(policy: Policy, bundle: Bundle) -> Policy:
    """The policy with what its bundle has been calibrated for, at each of its sizes."""
    sized = {size: _operating_points(policy, bundle, size) for size in policy.settings.sizes}
    return replace(
        policy,
        operating_points=_operating_points(policy, bundle),
        sized_points={size: points for size, points in sized.items() if points},
    )


def _operating_points(
    policy: Policy, bundle: Bundle, size: str | None = None
) -> dict[int, OperatingPoint]:
    if policy.judge is None:
        return {}
    spec = policy.settings
    if spec.threshold is not None:
        return dict.fromkeys(spec.num_inference_steps, OperatingPoint(spec.threshold))
    at = None if size is None else size_of(size)
    found = {
        entry.sampling.method.num_inference_steps: OperatingPoint(
            entry.threshold, entry.probe_thresholds, entry.delivered / entry.labelled
        )
        for entry in bundle.manifest.calibrations.get(policy.name, [])
        if entry.sampling == policy.sampling(entry.sampling.method.num_inference_steps, at)
    }
    for steps in spec.num_inference_steps:
        if steps not in found:
            raise ConfigError(
                f"policies.{policy.name}: bundle {bundle.manifest.name!r} holds no calibration of "
                f"this policy's sampling at {steps} steps{'' if size is None else f' and {size}'}. "
                f"Run `winnow calibrate {policy.name}`, or "
                + (f"set policies.{policy.name}.threshold" if size is None else "leave it out")
            )
    return {steps: found[steps] for steps in spec.num_inference_steps}
