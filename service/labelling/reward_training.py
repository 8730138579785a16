"""Trainings as jobs: from a dataset's labels to a reward in the store."""

from __future__ import annotations

import importlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from models.bundles.parts import parts_for
from models.bundles.sampling_key import SamplingKey
from service.errors import BlobUnreadable, Conflict, DatasetNotFound, RewardNotFound
from service.jobs.kind import Kind
from service.jobs.lease import Lease
from service.labelling.recipe import Recipe
from service.labelling.stored_examples import as_counted, labelled_once, stored_examples
from service.labelling.subject import Subject, subject_of
from service.policies.inputs import calibration_domain, in_words, to_json
from service.policies.policy import Policy
from service.store.datasets import Dataset, Label, LabelledImage
from service.store.rewards import TRAINING, RewardVersion
from service.store.store import Store

log = logging.getLogger("winnow.labelling")


class RewardTraining:
    """Trains rewards from the labels of the store."""

    def __init__(
        self,
        store: Store,
        subjects: Mapping[str, Subject],
        policy: Callable[[str], Policy],
        training: Any = None,
    ) -> None:
        """`policy` finds one, switched off or not; `training` stands for the module."""
        self._store = store
        self._subjects = subjects
        self._policy = policy
        self._given = training

    @property
    def kind(self) -> Kind:
        """The kind of job that trains a reward. One whose process died has changed nothing."""

        def fail(lease: Lease, why: str) -> None:
            self._store.jobs.end(lease.job, "failed", why)

        cut_off = "was cut off by a restart: train again"
        return Kind(TRAINING, self.run, fail, cut_off, gives_way=True, refuses=self._refusal)

    def prepare(self) -> Any:
        """Load what learns, which brings torch and takes seconds, before somebody waits for it."""
        return self._given or importlib.import_module("service.labelling.training")

    def run(self, lease: Lease) -> None:
        """Train, and keep what came of it. Raises what stops it."""
        weights, card = self._train(self._store.rewards.read(lease.job.subject), lease)
        lease.retry(lambda: self._store.rewards.finish(lease.job, weights, card))

    def _refusal(self, reward_id: str) -> str | None:
        """Why this process cannot train a reward; None where it can, or nobody could."""
        try:
            reward = self._store.rewards.read(reward_id)
            subject_of(self._store.datasets.read(reward.dataset), self._subjects)
        except Conflict as error:
            return str(error)
        except (DatasetNotFound, RewardNotFound):
            return None
        return None

    def _train(self, reward: RewardVersion, lease: Lease) -> tuple[dict[str, str], dict[str, Any]]:
        started = time.monotonic()
        dataset = self._store.datasets.read(reward.dataset)
        subject = subject_of(dataset, self._subjects)
        try:
            recipe = Recipe(**reward.recipe)
        except TypeError as error:  # it may be another Winnow's
            raise ValueError(f"its recipe cannot be read: {error}") from None
        if not dataset.trainable:
            raise ValueError(f"dataset {dataset.name!r} is a certificate's: it may train nothing")
        policy = self._policy(recipe.policy)
        spec = policy.settings
        # Thresholds are chosen on draws of what the labels are of, as hard guided as the policy is.
        drawable = subject.drawable(dataset, policy)
        mixed = drawable.mix
        labelled = labelled_once(self._store, dataset.name)
        before = self._before(reward)
        lease.report("reads the labels", 0.0)
        examples, lost = stored_examples(self._store, labelled, subject.shape)
        trained = self.prepare().train(
            [example for _, example in examples],
            recipe,
            subject.generator(mixed.of),
            subject.shape,
            {steps: spec.method(steps) for steps in spec.num_inference_steps},
            lease.report,
            before,
            None if recipe.features is None else subject.features(recipe.features),
        )
        weights = {
            part: lease.retry(partial(self._store.blobs.put, file))
            for part, file in trained.files.items()
        }
        domain = calibration_domain(mixed)
        calibrations = {}
        for steps, entry in trained.card["calibrations"].items():
            method = spec.method(int(steps))
            parts = parts_for(method, weights)
            key = SamplingKey(policy.backbone.used_by(parts), method, parts, **domain)
            calibrations[steps] = entry | {"sampling": key.document()}
        learned = [one for one, _ in examples]
        image_of = {one.image.blob: one.image.id for one in learned}
        mistakes = [wrong | {"id": image_of[wrong["id"]]} for wrong in trained.card["mistakes"]]
        card = trained.card | {"calibrations": calibrations, "mistakes": mistakes}
        card |= _provenance(dataset, learned, reward, time.monotonic() - started)
        conditions = to_json(mixed)
        left_out = list(drawable.left_out.values()) + trained.card.get("left_out", [])
        said = {"conditions": conditions, "words": in_words(conditions), "left_out": left_out}
        return weights, card | {"inputs": said} | lost

    def _before(self, reward: RewardVersion) -> dict[str, bytes] | None:
        """The files of the reward that this training goes on from. None without one, or where a
        part cannot be read: judge and guide may only go on together, so both begin afresh."""
        if reward.parent is None:
            return None
        try:
            named = self._store.rewards.read(reward.parent).weights or {}
            return {part: self._store.blobs.get(name) for part, name in named.items()} or None
        except (BlobUnreadable, RewardNotFound) as error:
            log.warning("training %s begins afresh: %s", reward.id, error)
            return None


def _provenance(
    dataset: Dataset, labelled: Sequence[LabelledImage], reward: RewardVersion, seconds: float
) -> dict[str, Any]:
    """What the card says of where its labels came from."""
    kinds = Counter(as_counted(one.label) for one in labelled)
    return {
        "dataset": {"name": dataset.name, "model": dataset.model, "question": dataset.question},
        "counts": {word: kinds[word] for word in get_args(Label)},
        "label_seconds": round(sum(one.elapsed_ms for one in labelled) / 1000, 1),
        "annotators": sorted({one.annotator for one in labelled}),
        "parent": reward.parent,
        "trained_seconds": round(seconds, 1),
    }
