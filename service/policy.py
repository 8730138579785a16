"""A policy's name and a caller's tighter wishes become one frozen SamplingPlan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.condition import Mix
from models.manifest import Inputs, Sampling
from models.method import Guidance, Method
from service.config import PolicySettings
from service.errors import InvalidValue, PolicyNotReady
from service.inputs import NO_INPUTS, NOTHING, Asked, Choices, law, to_json
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
    law: dict[str, list[float]] | None = None


def _calibrated(policy: Policy, steps: int, calibrations: Mapping[str, Any]) -> Operating | None:
    """What a card says for a step count, if it was found with this policy's sampling."""
    try:
        entry = _Calibrated.model_validate(calibrations.get(str(steps)))
    except ValidationError:
        return None
    if any(getattr(entry, name) not in (None, getattr(policy, name)) for name in RUNS_ON):
        return None
    drawn = law(Mix((policy.choices().condition(NOTHING),)))
    # A card from before models were told anything says nothing of it.
    if entry.law != drawn and not (entry.law is None and policy.inputs.kind == "none"):
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
