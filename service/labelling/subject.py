"""A model, as labelling and training see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition
from models.diffusion.method import Method
from service.errors import Conflict
from service.labelling.drawable_inputs import DrawableInputs
from service.policies.inputs import NO_INPUTS, of_model
from service.policies.policy import Policy
from service.ports import SamplingPlan
from service.store.datasets import Dataset

UNCENSORED = "none"
"""What stands in the place of a policy, with version 0, where nothing was held back."""


@dataclass(frozen=True)
class Subject:
    """A model, as labelling and training see it.

    `plan` draws without censoring (its seed and condition are replaced), `shape` is [H, W, C] of
    its images, and `generator` loads a `models.offline.generator.Generator` when a training needs
    one, whose seeds have the conditions that it is given. `inputs` is what the model takes.
    `features` finds the file of the bundle's features of that name, verified; it raises ValueError,
    or StoreUnavailable.
    """

    plan: SamplingPlan
    shape: tuple[int, int, int]
    generator: Callable[[Callable[[int], Condition]], Any]
    features: Callable[[str], Path]
    inputs: Inputs = NO_INPUTS

    def drawable(self, dataset: Dataset, policy: Policy | None) -> DrawableInputs:
        """The dataset's inputs, or what the policy or else the model draws where nothing is asked;
        one that names no guidance_scale takes the policy's default, or the model's.

        Raises InvalidValue where the policy draws none of them.
        """
        choices = of_model(dataset.model, self.inputs)
        if policy is not None:
            choices = replace(
                choices, guidance_scale=policy.guidance_scale, class_labels=policy.class_labels
            )
        return DrawableInputs(dataset.inputs, choices)


def subject_of(dataset: Dataset, subjects: Mapping[str, Subject]) -> Subject:
    """The dataset's model. Raises Conflict where it is not served here."""
    if dataset.model not in subjects:
        raise Conflict(
            f"dataset {dataset.name!r} is of model {dataset.model!r}, which is not served here"
        )
    return subjects[dataset.model]


def uncensored(model: str, backbone: str, method: Method) -> SamplingPlan:
    """A plan that draws by this method's sampler, and lets everything through."""
    return SamplingPlan(
        model=model,
        policy=UNCENSORED,
        policy_version=0,
        backbone=backbone,
        parts={},
        method=method.uncensored,
        probe_thresholds=(),
        threshold=None,
        max_draws=1,
        acceptance=1.0,
        seed=0,
    )
