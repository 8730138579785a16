"""A policy's name and a caller's tighter wishes become one frozen SamplingPlan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.bundle import Bundle, Inputs, Reward, Sampling
from models.condition import Mix
from models.method import Guidance, Method
from service.config import ConfigError, PolicySettings, Settings
from service.errors import InvalidValue, PolicyNotReady
from service.inputs import NO_INPUTS, NOTHING, Asked, Choices, listed, to_json
from service.ports import LOADED_AS, SamplingPlan

GUIDES: dict[Guidance, str] = {
    "time": "guide",
    "distilled": "distilled",
    "forward": "clean_guide",
}
"""Which network of a reward each kind of guidance takes its gradient from."""

RUNS_ON = ("backbone", "schedule", "dtype")
"""The fields of a policy that say what draws; with another, its thresholds mean nothing."""


@dataclass(frozen=True)
class Operating:
    """Where a policy stands at one step count: its thresholds, and the share of draws accepted."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    threshold: float
    probe_thresholds: tuple[float, ...] = ()
    acceptance: float = 1.0


NOT_CENSORED = Operating(threshold=0.0)
"""Without a judge nothing is compared with a threshold, and every draw is accepted."""


@dataclass(frozen=True)
class Policy:
    """A policy with its weights pinned by hash.

    `operating` maps num_inference_steps to what was calibrated for it; empty when the policy has
    no judge, or none yet. `version` is the store's number for what is in force. `reward` is the id
    of the trained reward that the networks came with, None for one of the bundle. `canary` is the
    sha256 name of a PNG that is surely malign. `inputs` is what the model takes.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    settings: PolicySettings
    backbone: str
    schedule: str
    dtype: str
    guide: str | None
    clean_guide: str | None
    probe: str | None
    judge: str | None
    operating: Mapping[int, Operating]
    question: str | None
    version: int = 1
    reward: str | None = None
    canary: str | None = None
    inputs: Inputs = NO_INPUTS

    @property
    def censors(self) -> bool:
        """Whether every image needs an ACCEPTED verdict to leave."""
        return self.judge is not None or self.waits

    @property
    def waits(self) -> bool:
        """Whether its reward has still to be trained: until then nothing leaves."""
        return self.settings.trained and self.judge is None

    def refuse_waiting(self) -> None:
        """Raises PolicyNotReady while there is no reward yet."""
        if self.waits:
            raise PolicyNotReady(
                f"policy {self.name!r} has no reward yet, so nothing leaves under it: label images "
                "at /feedback, train one, and promote it",
                "policy",
            )

    @property
    def networks(self) -> dict[str, str]:
        """The sha256 name of each network beside the denoiser, by what it is loaded as.

        Those are `guide`, `distilled` or `forward` by the kind of guidance, `clean_guide`, `probe`
        and `judge`.
        """
        steers = {LOADED_AS[self.settings.guidance]: self.guide}
        rest = {"clean_guide": self.clean_guide, "probe": self.probe, "judge": self.judge}
        return {part: name for part, name in (steers | rest).items() if name is not None}

    @property
    def uncalibrated(self) -> list[int]:
        """The step counts that callers may ask for and that have no threshold."""
        if not self.censors:
            return []
        return [n for n in self.settings.num_inference_steps if n not in self.operating]

    @property
    def guidance_scale(self) -> tuple[float, ...]:
        """What callers may ask for, the default first; 1 alone where the model has no guidance."""
        if not self.inputs.guidable:
            return (1.0,)
        return tuple(self.settings.guidance_scale) or (self.inputs.guidance_scale,)

    @property
    def class_labels(self) -> tuple[int, ...]:
        """The classes that may be asked for; empty for a model without classes."""
        if self.inputs.kind != "class":
            return ()
        return tuple(self.settings.class_labels) or self.inputs.drawn_classes

    def choices(self, admin: bool = False) -> Choices:
        """What callers may ask of the model; admins may ask for any guidance_scale."""
        return Choices(
            self.settings.model,
            f"policy {self.name!r}",
            self.inputs,
            self.guidance_scale,
            self.class_labels,
            any_scale=admin,
        )

    def sampling(self, num_inference_steps: int) -> Sampling:
        """What this policy's draws depend on: the key that a calibration must match."""
        assert self.judge is not None, "only a policy with a judge is calibrated"
        return Sampling(
            backbone=self.backbone,
            schedule=self.schedule,
            dtype=self.dtype,
            guide=self.guide,
            clean_guide=self.clean_guide,
            probe=self.probe,
            judge=self.judge,
            method=self.settings.method(num_inference_steps),
            inputs=tuple(to_json(Mix((self.choices().condition(NOTHING),)))),
        )


@dataclass(frozen=True)
class Overrides:
    """What a caller may ask for beside the policy; None means as the policy says."""

    threshold: float | None = None
    max_draws: int | None = None
    num_inference_steps: int | None = None
    asked: Asked = NOTHING


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
        _check_inputs(name, spec, bundle)
        reward = rewards[spec.reward] if spec.reward else None
        uncalibrated = Policy(
            name=name,
            settings=spec,
            backbone=bundle.backbone_sha256(denoiser.runtime),
            schedule=bundle.schedule_sha256,
            dtype=denoiser.dtype,
            **_weights(name, spec, bundle, reward),
            operating={},
            question=reward.question if reward else None,
            version=spec.version,
            canary=bundle.sha256(reward.canary) if reward and reward.canary else None,
            inputs=bundle.manifest.backbone.inputs,
        )
        if spec.guidance == "forward" and uncalibrated.guide and not denoiser.forward_guidance:
            raise ConfigError(
                f"policies.{name}.guidance: forward needs "
                f"models.{spec.model}.backbone.forward_guidance: true"
            )
        operating = _operating(uncalibrated, bundle) if calibrated else {}
        policies[name] = replace(uncalibrated, operating=operating)
    return policies


def resolve(
    policy: Policy, overrides: Overrides, seed: int, admin: bool, scores: bool = False
) -> SamplingPlan:
    """The plan of one request. Callers tighten; only the admin scope loosens.

    Raises InvalidValue naming the field and the limit; that of a threshold only if `scores` may
    be seen. Raises PolicyNotReady.
    """
    policy.refuse_waiting()
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
    here = policy.operating.get(steps, NOT_CENSORED)
    return SamplingPlan(
        model=spec.model,
        policy=policy.name,
        policy_version=policy.version,
        backbone=policy.backbone,
        guide=policy.guide,
        clean_guide=policy.clean_guide,
        probe=policy.probe,
        judge=policy.judge,
        method=spec.method(steps),
        probe_thresholds=here.probe_thresholds,
        threshold=_threshold(policy, overrides.threshold, here.threshold, admin, scores),
        max_draws=max_draws,
        acceptance=here.acceptance,
        seed=seed,
        condition=policy.choices(admin).condition(overrides.asked),
    )


class TrainedReward(Protocol):
    """What `derive` needs of a reward that the store holds, `store.rewards.RewardVersion`."""

    @property
    def id(self) -> str:
        """Its id in the store."""
        ...

    @property
    def weights(self) -> Mapping[str, str] | None:
        """The sha256 name of each of its networks, by part."""
        ...

    @property
    def card(self) -> Mapping[str, Any] | None:
        """What is known of it; `calibrations` by step count."""
        ...


def derive(policy: Policy, reward: TrainedReward) -> Policy:
    """A policy with the networks of a trained reward, and the thresholds of that reward's card.

    `operating` has the step counts for which the card was calibrated with exactly this sampling.
    Raises InvalidValue where the policy needs a network that the reward does not have.
    """
    if not policy.censors:
        raise InvalidValue(f"policy {policy.name!r} has no judge to replace", "based_on")
    have, spec = reward.weights or {}, policy.settings

    def sha256(part: str, wanted: bool) -> str | None:
        if wanted and part not in have:
            raise InvalidValue(
                f"reward {reward.id!r} has no `{part}`, which policy {policy.name!r} uses: train "
                "one that has",
                "reward",
            )
        return have[part] if wanted else None

    derived = replace(
        policy,
        # A threshold that was set by hand was set for another judge.
        settings=spec.model_copy(update={"threshold": None}),
        guide=sha256(GUIDES[spec.guidance], spec.censor_scale > 0),
        clean_guide=sha256("clean_guide", spec.backward_steps > 0),
        probe=sha256("probe", bool(spec.probes)),
        judge=sha256("judge", True),
        operating={},
        reward=reward.id,
        canary=have.get("canary"),
    )
    calibrations = (reward.card or {}).get("calibrations", {})
    found = {steps: _calibrated(derived, steps, calibrations) for steps in spec.num_inference_steps}
    return replace(derived, operating={k: here for k, here in found.items() if here is not None})


def to_document(policy: Policy) -> dict[str, Any]:
    """A policy as JSON, as the store keeps it."""
    document: dict[str, Any] = _POLICY.dump_python(policy, mode="json")
    return document


def from_document(document: Mapping[str, Any]) -> Policy:
    """What `to_document` wrote. Raises ValueError, naming what this Winnow cannot read."""
    try:
        return _POLICY.validate_python(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ValueError(f"{where}: {first['msg']}") from None


_POLICY = TypeAdapter(Policy)


class _Calibrated(BaseModel):
    """What a card says of one step count; the rest of an entry is for people."""

    method: Method
    threshold: float = Field(gt=0, lt=1)
    probe_thresholds: tuple[float, ...] = ()
    acceptance: float = Field(1.0, gt=0, le=1)
    # A card need not name what it ran on; one that does holds for that alone.
    backbone: str | None = None
    schedule: str | None = None
    dtype: str | None = None


def _calibrated(policy: Policy, steps: int, calibrations: Mapping[str, Any]) -> Operating | None:
    """What a card says for a step count, if it was found with this policy's sampling."""
    try:
        entry = _Calibrated.model_validate(calibrations.get(str(steps)))
    except ValidationError:
        return None
    if any(getattr(entry, name) not in (None, getattr(policy, name)) for name in RUNS_ON):
        return None
    if entry.method != policy.settings.method(steps):
        return None
    if len(entry.probe_thresholds) != len(policy.settings.probes):
        return None
    return Operating(entry.threshold, entry.probe_thresholds, entry.acceptance)


def _threshold(
    policy: Policy, wanted: float | None, least: float, admin: bool, scores: bool
) -> float | None:
    if not policy.censors:
        if wanted is not None:
            raise InvalidValue(
                f"policy {policy.name!r} has no judge to compare scores with: leave it out",
                "censor.threshold",
            )
        return None
    if wanted is None:
        return least
    if wanted < least and not admin:
        raise InvalidValue(
            f"is below the threshold of policy {policy.name!r}{f', {least:g}' if scores else ''}: "
            "callers may raise it, not lower it",
            "censor.threshold",
        )
    return wanted


def _weights(
    name: str, spec: PolicySettings, bundle: Bundle, reward: Reward | None
) -> dict[str, str | None]:
    """The sha256 name of each network of the reward that this policy uses."""

    def sha256(part: str, wanted: bool) -> str | None:
        if reward is None or not wanted:
            return None
        file: str | None = getattr(reward, part)
        if file is None:
            lacks = f"bundle {bundle.manifest.name!r} has no `{part}` of reward {spec.reward!r}"
            if reward.guide is None or reward.clean_guide is None:
                raise ConfigError(
                    f"policies.{name}: {lacks}: that reward is a judge alone, which can neither "
                    "steer nor stop a draw. Leave out censor_scale, backward_steps and probes, or "
                    "train a reward with a guide from labels"
                )
            raise ConfigError(
                f"policies.{name}: {lacks}: run `winnow train distil {bundle.folder}`"
            )
        return bundle.sha256(file)

    return {
        "guide": sha256(GUIDES[spec.guidance], spec.censor_scale > 0),
        "clean_guide": sha256("clean_guide", spec.backward_steps > 0),
        "probe": sha256("probe", bool(spec.probes)),
        "judge": sha256("judge", True),
    }


def _check_inputs(name: str, spec: PolicySettings, bundle: Bundle) -> None:
    """Raises ConfigError where a policy lists what its model cannot draw."""
    inputs, called = bundle.manifest.backbone.inputs, f"bundle {bundle.manifest.name!r}"
    if inputs.kind == "class" and not inputs.class_names:
        raise ConfigError(f"models.{spec.model}.bundle: {called} has classes and no class_names")
    if spec.guidance_scale and not inputs.guidable:
        raise ConfigError(
            f"policies.{name}.guidance_scale: {called} cannot be guided, as it "
            f"{'takes no input' if inputs.kind == 'none' else 'has no null_class'}: leave it out"
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


def _operating(policy: Policy, bundle: Bundle) -> dict[int, Operating]:
    if policy.judge is None:
        return {}
    spec = policy.settings
    if spec.threshold is not None:
        return dict.fromkeys(spec.num_inference_steps, Operating(spec.threshold))
    found = {
        entry.sampling.method.num_inference_steps: Operating(
            entry.threshold, entry.probe_thresholds, entry.delivered / entry.labelled
        )
        for entry in bundle.manifest.calibrations.get(policy.name, [])
        if entry.sampling == policy.sampling(entry.sampling.method.num_inference_steps)
    }
    for steps in spec.num_inference_steps:
        if steps not in found:
            raise ConfigError(
                f"policies.{policy.name}: bundle {bundle.manifest.name!r} holds no calibration of "
                f"this policy's sampling at {steps} steps. Run `winnow calibrate {policy.name}`, "
                "or set policies." + policy.name + ".threshold"
            )
    return {steps: found[steps] for steps in spec.num_inference_steps}
