"""What a caller asks for, checked against the limits and the policy in force: an order."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.bundles.manifest import Backbone, Manifest
from models.diffusion.condition import Size, size_text
from models.diffusion.noise import MAX_SEED
from service.config import Caller, Settings
from service.errors import InvalidValue, ModelNotFound, PolicyNotAllowed, shown
from service.policies.inputs import check_length
from service.policies.policy import Overrides, Policy, resolve
from service.policies.registry import PolicyRegistry
from service.ports import SamplingPlan

OnFiltered = Literal["error_if_all", "error_if_any", "never"]


@dataclass(frozen=True)
class Wanted:
    """What a caller asked for, as yet unchecked; None is the default.

    `ignored` names what was sent and changes nothing.
    """

    overrides: Overrides
    policy: str | None = None
    model: str | None = None
    n: int = 1
    size: str = "auto"
    seed: int | None = None
    deadline_s: float | None = None
    on_filtered: OnFiltered = "error_if_all"
    ignored: Sequence[str] = ()


@dataclass(frozen=True)
class Order:
    """A valid request: what to make, how, for whom, and until when.

    `received` is when its first byte came, and `deadline` its end, both by `time.monotonic()`.
    """

    policy: Policy
    plan: SamplingPlan
    n: int
    deadline_s: float
    on_filtered: OnFiltered
    seed_is_ours: bool
    ignored: Sequence[str]
    caller: Caller
    request_id: str
    received: float

    @property
    def deadline(self) -> float:
        """When it ends, by `time.monotonic()`: nobody waits longer because it came slowly."""
        return self.received + self.deadline_s


def read(
    settings: Settings,
    manifests: Mapping[str, Manifest],
    policy_registry: PolicyRegistry,
    wanted: Wanted,
    caller: Caller,
    request_id: str,
    received: float,
) -> Order:
    """The order of what is wanted. Raises a WinnowError that names the field."""
    limits, n = settings.limits, wanted.n
    name = settings.default_policy if wanted.policy is None else wanted.policy
    policy = policy_registry.get(name)
    model = policy.settings.model
    if wanted.model is not None and model_named(settings, wanted.model) != model:
        raise InvalidValue(f"policy {name!r} is for model {model!r}", "policy")
    admin = caller.has("admin")
    if not policy.censors and not admin:
        raise PolicyNotAllowed(
            f"policy {name!r} censors nothing: that needs a key with the 'admin' scope", "policy"
        )
    if n > limits.n:
        raise InvalidValue(f"n: is {n}, must be 1 to {limits.n}", "n")
    check_length(wanted.overrides.asked, limits.prompt_chars)
    backbone = manifests[model].backbone
    asked = replace(wanted.overrides.asked, size=_size(wanted.size, model, backbone, policy))
    overrides = replace(wanted.overrides, asked=asked)
    deadline_s = wanted.deadline_s or limits.deadline_s
    if deadline_s > limits.max_deadline_s:
        raise InvalidValue(
            f"censor.deadline_s: is {deadline_s:g}, the limit is {limits.max_deadline_s:g} s",
            "censor.deadline_s",
        )
    seed = secrets.randbelow(MAX_SEED - n + 2) if wanted.seed is None else wanted.seed
    if seed + n - 1 > MAX_SEED:
        raise InvalidValue(f"seed: seed + n - 1 must be at most {MAX_SEED}", "seed")
    return Order(
        policy=policy,
        plan=resolve(policy, overrides, seed, admin=admin, scores=caller.has("scores")),
        n=n,
        deadline_s=deadline_s,
        on_filtered=wanted.on_filtered,
        seed_is_ours=wanted.seed is None,
        ignored=wanted.ignored,
        caller=caller,
        request_id=request_id,
        received=received,
    )


def _size(wanted: str, model: str, backbone: Backbone, policy: Policy) -> Size:
    """The size of this name. Raises InvalidValue, naming those that there are."""
    own = size_text((backbone.height, backbone.width))
    if wanted in ("auto", own):
        return None
    others = {size_text(size): size for size in backbone.other_sizes}
    if wanted not in others:
        known = ", ".join(["auto", own, *others])
        raise InvalidValue(
            f"size: {shown(wanted)} is not among those of model {model!r}: {known}", "size"
        )
    if wanted not in policy.settings.sizes:
        served = ", ".join(["auto", own, *policy.settings.sizes])
        raise InvalidValue(
            f"size: {wanted} is not among those that policy {policy.name!r} serves: {served}",
            "size",
        )
    return others[wanted]


def model_named(settings: Settings, called: str) -> str:
    """The model of this name or alias. Raises ModelNotFound, naming those that there are."""
    found = settings.model_named(called)
    if found is None:
        aliases = (alias for model in settings.models.values() for alias in model.aliases)
        known = ", ".join([*settings.models, *aliases])
        raise ModelNotFound(f"no model {shown(called)} (there are {known})", "model")
    return found
