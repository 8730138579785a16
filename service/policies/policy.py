"""A policy's name and a caller's tighter wishes become one frozen SamplingPlan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.bundles.manifest import Inputs
from models.bundles.parts import PARTS, MissingPart, parts_for
from models.bundles.sampling_key import BackboneKey, SamplingKey
from models.diffusion.condition import Mix, Size, size_of, size_text
from models.rewards.judge_check import TrialScores
from service.config import PolicySettings
from service.errors import InvalidValue, PolicyNotReady
from service.policies.inputs import (
    NO_INPUTS,
    NOTHING,
    Choices,
    RequestedInputs,
    calibration_domain,
)
from service.ports import SamplingPlan


def _known(part: str) -> str:
    if part not in PARTS:
        raise ValueError(f"no part of a reward is called {part!r} here")
    return part


Part = Annotated[str, AfterValidator(_known)]
"""A row of `models.bundles.parts.PARTS`: another build may have stored one that is none here."""


@dataclass(frozen=True)
class OperatingPoint:
    """Where a policy stands at one step count: its thresholds, and the share of draws accepted."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    # Bounds for what a store holds: with 0, or less, every image would pass.
    threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    probe_thresholds: tuple[float, ...] = ()
    acceptance: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0


NOT_CENSORED = OperatingPoint(threshold=0.0)
"""Without a judge nothing is compared with a threshold, and every draw is accepted."""


@dataclass(frozen=True)
class Policy:
    """A policy with its weights pinned by hash; `parts` are those of its reward, by part.

    `operating_points` maps num_inference_steps to what was calibrated for it, at the model's own
    size; empty when the policy has no judge, or none yet. `sized_points` has the same for other
    sizes, by `WIDTHxHEIGHT`. `version` is the store's number for what is in force. `reward` is the
    id of the trained reward that the networks came with, None for one of the bundle. `canary` and
    `control` are the sha256 names of PNGs that are surely malign and surely benign. `inputs` is
    what the model takes.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    settings: PolicySettings
    backbone: BackboneKey
    parts: Mapping[Part, str]
    operating_points: Mapping[int, OperatingPoint]
    question: str | None
    version: int = 1
    reward: str | None = None
    canary: str | None = None
    control: str | None = None
    inputs: Inputs = NO_INPUTS
    sized_points: Mapping[str, Mapping[int, OperatingPoint]] = field(default_factory=dict)

    @property
    def judge(self) -> str | None:
        """The sha256 name of what decides; None without a reward."""
        return self.parts.get("judge")

    def without_judge(self) -> Policy:
        """The same sampling, of which every draw is accepted: to measure what it draws."""
        parts = {part: name for part, name in self.parts.items() if part != "judge"}
        return replace(self, parts=parts, operating_points={}, sized_points={})

    @property
    def censors(self) -> bool:
        """Whether every image needs an ACCEPTED verdict to leave."""
        return self.judge is not None or self.awaits_reward

    @property
    def awaits_reward(self) -> bool:
        """Whether its reward has still to be trained: until then nothing leaves."""
        return self.settings.trained and self.judge is None

    def refuse_without_reward(self) -> None:
        """Raises PolicyNotReady while there is no reward yet."""
        if self.awaits_reward:
            raise PolicyNotReady(
                f"policy {self.name!r} has no reward yet, so nothing leaves under it: label images "
                "at /feedback, train one, and promote it",
                "policy",
            )

    @property
    def all_points(self) -> Mapping[tuple[str, int], OperatingPoint]:
        """Its operating points by (size, steps); the default size is ""."""
        every = {"": self.operating_points, **self.sized_points}
        return {
            (size, steps): point
            for size, points in every.items()
            for steps, point in points.items()
        }

    def points(self, size: Size) -> Mapping[int, OperatingPoint]:
        """Its operating points at a size: those of another say nothing of it."""
        if size is None:
            return self.operating_points
        return self.sized_points.get(size_text(size), {})

    def refuse_without_threshold(
        self, num_inference_steps: int | None = None, size: Size = None
    ) -> None:
        """Raises PolicyNotReady where a judge's score has nothing to be compared with: at so many
        steps, or at any. At another size than the model's own, raises InvalidValue."""
        if self.censors and size is not None and num_inference_steps not in self.points(size):
            raise InvalidValue(
                f"is {size_text(size)}, for which policy {self.name!r} has no threshold at "
                f"{num_inference_steps} steps: nothing leaves by a threshold of another size",
                "size",
            )
        points = self.points(size)
        known = points if num_inference_steps is None else {num_inference_steps}
        if self.judge is not None and not (set(known) & set(points)):
            where = "" if num_inference_steps is None else f" at {num_inference_steps} steps"
            raise PolicyNotReady(
                f"policy {self.name!r} has no threshold{where}, so nothing leaves under it: "
                "promote a version that has one",
                "policy",
            )

    @property
    def uncalibrated(self) -> list[int]:
        """The step counts that callers may ask for and that have no threshold."""
        if not self.censors:
            return []
        return [n for n in self.settings.num_inference_steps if n not in self.operating_points]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds that callers may be judged at, one for each size and step count that has
        one."""
        points = (self.operating_points, *self.sized_points.values())
        return tuple(here.threshold for one in points for here in one.values())

    def fault(self, seen: TrialScores) -> str | None:
        """Why its judge, which has been seen to say this, cannot decide under it; or None."""
        return seen.fault(self.thresholds, by_hand=self.settings.threshold is not None)

    @property
    def guidance_scale(self) -> tuple[float, ...]:
        """What callers may ask for, the default first; 1 alone where the model has no guidance."""
        if not self.inputs.guidable:
            return (1.0,)
        listed = dict.fromkeys(map(self.inputs.scale, self.settings.guidance_scale))
        return tuple(listed) or (self.inputs.guidance_scale,)

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
            sizes=tuple(map(size_of, self.settings.sizes)),
        )

    def sampling(self, num_inference_steps: int, size: Size = None) -> SamplingKey:
        """What its draws depend on at so many steps and a size, where nothing else is asked for."""
        asked = replace(NOTHING, size=size)
        return SamplingKey(
            self.backbone.used_by(self.parts),
            self.settings.method(num_inference_steps),
            self.parts,
            **calibration_domain(Mix((self.choices().condition(asked),))),
        )


@dataclass(frozen=True)
class Overrides:
    """What a caller may ask for beside the policy; None means as the policy says."""

    threshold: float | None = None
    max_draws: int | None = None
    num_inference_steps: int | None = None
    asked: RequestedInputs = NOTHING


def resolve(
    policy: Policy, overrides: Overrides, seed: int, admin: bool, scores: bool = False
) -> SamplingPlan:
    """The plan of one request. Callers tighten; only the admin scope loosens.

    Raises InvalidValue naming the field and the limit; that of a threshold only if `scores` may
    be seen. Raises PolicyNotReady.
    """
    policy.refuse_without_reward()
    spec = policy.settings
    steps = overrides.num_inference_steps
    if steps is None:
        steps = spec.num_inference_steps[0]
    if steps not in spec.num_inference_steps:
        allowed = ", ".join(str(number) for number in spec.num_inference_steps)
        raise InvalidValue(
            f"is {steps}, policy {policy.name!r} allows {allowed}", "num_inference_steps"
        )
    condition = policy.choices(admin).condition(overrides.asked)
    policy.refuse_without_threshold(steps, condition.size)
    max_draws = spec.max_draws if overrides.max_draws is None else overrides.max_draws
    if max_draws > spec.max_draws and not admin:
        raise InvalidValue(
            f"is {max_draws}, policy {policy.name!r} allows at most {spec.max_draws}",
            "censor.max_draws",
        )
    here = policy.points(condition.size).get(steps, NOT_CENSORED)
    return SamplingPlan(
        model=spec.model,
        policy=policy.name,
        policy_version=policy.version,
        backbone=policy.backbone.weights,
        parts=policy.parts,
        method=spec.method(steps),
        probe_thresholds=here.probe_thresholds,
        threshold=_threshold(policy, overrides.threshold, here.threshold, admin, scores),
        max_draws=max_draws,
        acceptance=here.acceptance,
        seed=seed,
        condition=condition,
    )


def sampling_of(plan: SamplingPlan, backbone: BackboneKey) -> SamplingKey:
    """What the draws of a plan depend on, with this backbone."""
    domain = calibration_domain(Mix((plan.condition,)))
    return SamplingKey(backbone.used_by(plan.parts), plan.method, plan.parts, **domain)


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

    `operating_points` has the step counts for which the card was calibrated with just this
    sampling. Raises InvalidValue where the policy needs a network that the reward does not have.
    """
    if not policy.censors:
        raise InvalidValue(f"policy {policy.name!r} has no judge to replace", "based_on")
    have, spec = reward.weights or {}, policy.settings

    try:
        parts = parts_for(spec.method(spec.num_inference_steps[0]), have)
    except MissingPart as missing:
        raise InvalidValue(
            f"reward {reward.id!r} has no `{missing.file}`, which policy {policy.name!r} uses: "
            "train one that has",
            "reward",
        ) from None
    derived = replace(
        policy,
        # A threshold that was set by hand was set for another judge.
        settings=spec.model_copy(update={"threshold": None}),
        parts=parts,
        operating_points={},
        sized_points={},
        reward=reward.id,
        canary=have.get("canary"),
        control=have.get("control"),
    )
    calibrations = (reward.card or {}).get("calibrations")
    calibrations = calibrations if isinstance(calibrations, dict) else {}
    found = {steps: _calibrated(derived, steps, calibrations) for steps in spec.num_inference_steps}
    return replace(
        derived, operating_points={k: here for k, here in found.items() if here is not None}
    )


def to_document(policy: Policy) -> dict[str, Any]:
    """A policy as JSON, as the store keeps it."""
    document: dict[str, Any] = _POLICY.dump_python(policy, mode="json")
    return document


def from_document(document: Mapping[str, Any]) -> Policy:
    """What `to_document` wrote. Raises ValueError, naming what this Winnow cannot read."""
    if not isinstance(document, Mapping):
        raise ValueError("the document is damaged: it is no JSON object")
    try:
        return _POLICY.validate_python(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ValueError(f"{where}: {first['msg']}") from None


_POLICY = TypeAdapter(Policy)


class _Calibrated(BaseModel):
    """What a card says of one step count; the rest of an entry is for people."""

    sampling: SamplingKey
    threshold: float = Field(gt=0, lt=1)
    probe_thresholds: tuple[float, ...] = ()
    acceptance: float = Field(1.0, gt=0, le=1)


def _calibrated(
    policy: Policy, steps: int, calibrations: Mapping[str, Any]
) -> OperatingPoint | None:
    """What a card says for a step count, if it was found with this policy's sampling."""
    try:
        entry = _Calibrated.model_validate(calibrations.get(str(steps)))
    except ValidationError:
        return None
    if entry.sampling != policy.sampling(steps):
        return None
    if len(entry.probe_thresholds) != len(policy.settings.probes):
        return None
    return OperatingPoint(entry.threshold, entry.probe_thresholds, entry.acceptance)


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
