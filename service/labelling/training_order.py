"""An order for a training, checked before it is queued: what the training would refuse, at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from models.bundles.manifest import Manifest
from service.errors import Conflict, InvalidValue
from service.labelling.examples import JUDGE_SHARE, refuse_too_few
from service.labelling.recipe import Recipe
from service.policies.registry import PolicyRegistry
from service.store.datasets import Dataset
from service.store.rewards import RewardVersion
from service.store.store import Store


@dataclass(frozen=True)
class TrainingOrder:
    """What somebody wants trained, as `POST /v1/rewards`; `policy` None means the default."""

    dataset: str
    policy: str | None
    target: float
    guide: bool
    distil: bool
    seed: int
    features: str | None
    by: str


@dataclass(frozen=True)
class TrainingOrders:
    """Takes orders. `default_policy` is the service's, `threads` what a training may use."""

    store: Store
    policy_registry: PolicyRegistry
    manifests: Mapping[str, Manifest]
    default_policy: str
    threads: int

    def queue(self, order: TrainingOrder) -> RewardVersion:
        """Queue a training, which goes on from the dataset's last reward.

        Raises DatasetNotFound, PolicyNotFound, Conflict for a certificate's dataset, and
        InvalidValue naming the field.
        """
        dataset = self.store.datasets.read(order.dataset)
        if not dataset.trainable:
            raise Conflict(
                f"dataset {order.dataset!r} is for a certificate: nothing may learn from it"
            )
        policy = self.policy_of(order.policy, dataset.model)
        if order.distil and not order.guide:
            raise InvalidValue("distil: a student needs a guide to learn from: set guide", "distil")
        self._refuse_unknown(order.features, dataset.model)
        ready = (one for one in self.store.rewards.of(order.dataset) if one.status == "ready")
        last = next(ready, None)
        self._refuse_too_few(dataset, order.guide, last)
        recipe = Recipe(
            policy, order.target, order.guide, order.distil, order.seed, self.threads,
            order.features,
        )  # fmt: skip
        name, parent = f"rwd_{uuid4().hex}", last.id if last else None
        self.store.rewards.queue(name, order.dataset, parent, recipe.to_json(), order.by)
        return self.store.rewards.read(name)

    def policy_of(self, name: str | None, model: str) -> str:
        """The policy to calibrate for: the one named, else the default, else the model's first
        that censors. One that was switched off is mended by a training. Raises as `queue`."""
        name = name or self._default(model)
        policy = self.policy_registry.known(name)
        if policy.settings.model != model:
            raise InvalidValue(
                f"policy {name!r} is for model {policy.settings.model!r}, the dataset for "
                f"{model!r}",
                "policy",
            )
        if not policy.censors:
            raise InvalidValue(
                f"policy {name!r} has no judge: there is nothing to calibrate", "policy"
            )
        return name

    def _default(self, model: str) -> str:
        if self.policy_registry.known(self.default_policy).settings.model == model:
            return self.default_policy
        for name, policy in self.policy_registry.policies.items():
            if policy.settings.model == model and policy.censors:
                return name
        raise InvalidValue(f"no policy of model {model!r} censors: name one that does", "policy")

    def _refuse_unknown(self, features: str | None, model: str) -> None:
        known = sorted(self.manifests[model].features)
        if features is not None and features not in known:
            there = f"it has {', '.join(known)}" if known else "it has none: see `winnow features`"
            raise InvalidValue(f"model {model!r} has no features {features!r}: {there}", "features")

    def _refuse_too_few(self, dataset: Dataset, guide: bool, last: RewardVersion | None) -> None:
        # Of equal images the last label counts. Nobody is sure that an unsure one is benign.
        labelled = self.store.datasets.labelled(dataset.name)
        malign = {one.image.blob: one.label != "benign" for one in labelled}
        before = ((last and last.card) or {}).get("split", {})
        try:
            known = {blob: side for side, blobs in before.items() for blob in blobs}
        except (AttributeError, TypeError):  # the card is damaged: the training will tell
            known = {}
        try:
            refuse_too_few(malign, JUDGE_SHARE[guide], known)
        except ValueError as error:
            raise InvalidValue(f"dataset {dataset.name!r}: {error}", "dataset") from None
