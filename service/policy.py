"""A policy's name and a caller's tighter wishes become one frozen SamplingPlan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle import Bundle, Sampling
from service.config import ConfigError, PolicySettings, Settings
from service.errors import InvalidValue
from service.ports import SamplingPlan


@dataclass(frozen=True)
class Policy:
    """A policy with its weights pinned by hash.

    `thresholds` maps num_inference_steps to the threshold calibrated for it; empty when the policy
    has no judge.
    """

    name: str
    settings: PolicySettings
    backbone: str
    schedule: str
    dtype: str
    guide: str | None
    judge: str | None
    thresholds: Mapping[int, float]
    question: str | None

    @property
    def censors(self) -> bool:
        """Whether every image needs an ACCEPTED verdict to leave."""
        return self.judge is not None

    def sampling(self, num_inference_steps: int) -> Sampling:
        """What this policy's draws depend on: the key that a calibration must match."""
        assert self.judge is not None, "only a policy with a judge is calibrated"
        return Sampling(
            backbone=self.backbone,
            schedule=self.schedule,
            dtype=self.dtype,
            guide=self.guide,
            judge=self.judge,
            censor_scale=self.settings.censor_scale,
            guide_interval=self.settings.guide_interval,
            num_inference_steps=num_inference_steps,
            eta=self.settings.eta,
        )


@dataclass(frozen=True)
class Overrides:
    """What a caller may ask for beside the policy; None means as the policy says."""

    threshold: float | None = None
    max_draws: int | None = None
    num_inference_steps: int | None = None


def pin(
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
        reward = rewards[spec.reward] if spec.reward else None
        uncalibrated = Policy(
            name=name,
            settings=spec,
            backbone=bundle.denoiser_sha256(denoiser.runtime),
            schedule=bundle.schedule_sha256,
            dtype=denoiser.dtype,
            guide=bundle.sha256(reward.guide) if reward and spec.censor_scale > 0 else None,
            judge=bundle.sha256(reward.judge) if reward else None,
            thresholds={},
            question=reward.question if reward else None,
        )
        thresholds = _thresholds(uncalibrated, bundle) if calibrated else {}
        policies[name] = Policy(**(vars(uncalibrated) | {"thresholds": thresholds}))
    return policies


def resolve(policy: Policy, overrides: Overrides, seed: int, admin: bool) -> SamplingPlan:
    """The plan of one request. Callers tighten; only the admin scope loosens.

    Raises InvalidValue naming the field and the limit.
    """
    spec = policy.settings
    steps = overrides.num_inference_steps
    if steps is None:
        steps = spec.num_inference_steps[0]
    if steps not in spec.num_inference_steps:
        allowed = ", ".join(str(number) for number in spec.num_inference_steps)
        raise InvalidValue(
            f"is {steps}, policy {policy.name!r} allows {allowed}", "num_inference_steps"
        )
    max_draws = spec.max_draws if overrides.max_draws is None else overrides.max_draws
    if max_draws > spec.max_draws and not admin:
        raise InvalidValue(
            f"is {max_draws}, policy {policy.name!r} allows at most {spec.max_draws}",
            "censor.max_draws",
        )
    return SamplingPlan(
        model=spec.model,
        policy=policy.name,
        policy_version=spec.version,
        backbone=policy.backbone,
        guide=policy.guide,
        judge=policy.judge,
        censor_scale=spec.censor_scale,
        guide_interval=spec.guide_interval,
        threshold=_threshold(policy, overrides.threshold, steps, admin),
        max_draws=max_draws,
        num_inference_steps=steps,
        eta=spec.eta,
        seed=seed,
    )


def _threshold(
    policy: Policy, wanted: float | None, num_inference_steps: int, admin: bool
) -> float | None:
    if not policy.censors:
        if wanted is not None:
            raise InvalidValue(f"policy {policy.name!r} has no judge", "censor.threshold")
        return None
    least = policy.thresholds[num_inference_steps]
    if wanted is None:
        return least
    if wanted < least and not admin:
        raise InvalidValue(
            f"is below the threshold of policy {policy.name!r}: callers may raise it, not lower it",
            "censor.threshold",
        )
    return wanted


def _thresholds(policy: Policy, bundle: Bundle) -> dict[int, float]:
    if not policy.censors:
        return {}
    spec = policy.settings
    if spec.threshold is not None:
        return dict.fromkeys(spec.num_inference_steps, spec.threshold)
    found = {
        entry.sampling.num_inference_steps: entry.threshold
        for entry in bundle.manifest.calibrations.get(policy.name, [])
        if entry.sampling == policy.sampling(entry.sampling.num_inference_steps)
    }
    for steps in spec.num_inference_steps:
        if steps not in found:
            raise ConfigError(
                f"policies.{policy.name}: bundle {bundle.manifest.name!r} holds no calibration of "
                f"this policy's sampling at {steps} steps. Run `winnow calibrate {policy.name}`, "
                "or set policies." + policy.name + ".threshold"
            )
    return {steps: found[steps] for steps in spec.num_inference_steps}
