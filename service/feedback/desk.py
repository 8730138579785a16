"""The feedback desk: what people are asked next, and trainings on what they said.

Images are drawn as requests are, through the router. The first pages are random; later ones are
chosen by a reward that is refitted from what has been said so far.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

import numpy as np

from models.condition import Condition, Mix
from models.manifest import Inputs
from models.method import Method
from models.noise import MAX_SEED
from service.encode import from_png, to_png
from service.errors import (
    BackendUnavailable,
    BlobMissing,
    Conflict,
    InvalidValue,
    StoreUnavailable,
    WinnowError,
)
from service.feedback.example import LEAST
from service.inputs import NO_INPUTS, in_words, law, mix, of_model, to_json
from service.inputs import drawn as drawn_under
from service.policy import RUNS_ON, Overrides, Policy, resolve
from service.ports import Pixels, SamplingPlan
from service.router import Router
from service.store.datasets import Dataset, Label, Labelled, Shown
from service.store.rewards import SILENT_S, RewardVersion
from service.store.store import Store

log = logging.getLogger("winnow.feedback")

TENANT = "feedback"
"""All labelling shares one turn of the engine's: it never crowds out those who ask for images."""

UNCENSORED = "none"
"""What stands in the place of a policy, with version 0, where nothing was held back."""

BEAT_S = 10.0
RETRY_S = 1.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Subject:
    """A model, as the desk sees it.

    `plan` draws without censoring (its seed and condition are replaced), `shape` is [H, W, C] of
    its images, and `generator` loads a `models.generate.Generator` when a training needs one, whose
    seeds have the conditions that it is given. `inputs` is what the model takes.
    `features` finds the file of the bundle's features of that name, verified; it raises ValueError,
    or StoreUnavailable.
    """

    plan: SamplingPlan
    shape: tuple[int, int, int]
    generator: Callable[[Callable[[int], Condition]], Any]
    features: Callable[[str], Path]
    inputs: Inputs = NO_INPUTS


@dataclass(frozen=True)
class Drawn:
    """An image that may be shown."""

    pixels: Pixels
    seed: int
    draw: int
    condition: Condition


class Desk:
    """Shows images and trains rewards. `propose` belongs to one event loop; `train` blocks."""

    def __init__(
        self,
        store: Store,
        routers: Mapping[str, Router],
        subjects: Mapping[str, Subject],
        policy: Callable[[str], Policy],
        candidates: int,
        within: timedelta,
        deadline_s: float,
        training: Any = None,
        selection: Any = None,
    ) -> None:
        """`policy` finds one, switched off or not; `candidates` are drawn for each image that is
        chosen; a batch that nobody labelled is shown again `within` so long."""
        self.rewards = store.rewards
        self._store = store
        self._routers = routers
        self._subjects = subjects
        self._policy = policy
        self._candidates = candidates
        self._within = within
        self._deadline_s = deadline_s
        self._given = training, selection
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def prepare(self) -> None:
        """Load what learns, which takes seconds, before somebody waits for it."""
        self._training()
        self._selection()

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        besides: Sequence[str],
        policy: str | None = None,
    ) -> list[Shown]:
        """The images that this person is asked about next, at most `size`.

        A batch that was drawn for the person and has no label yet comes first, unless it is among
        `besides`. With a policy, images that it lets through. Raises PolicyNotFound, Conflict for a
        policy of another model, and what the router raises.
        """
        turn = self._turns.setdefault((dataset.name, annotator), asyncio.Lock())
        # Two calls of one person at once must not get the same batch.
        async with turn:
            found = await asyncio.to_thread(
                self._store.datasets.open_batch, dataset.name, annotator, besides, self._within
            )
            if found:
                return found
            plan, mixed = self._plan(dataset, policy)
            reward = None
            if strategy != "random":
                reward = await asyncio.to_thread(self._refit, dataset.name)
            rounds = 1 if reward is None else self._candidates
            drawn: list[Drawn] = []
            for _ in range(rounds):
                drawn += await self._draw(plan, mixed, size)
            if not drawn:
                raise BackendUnavailable("no image was ready in time to be shown")
            return await asyncio.to_thread(
                self._show, dataset, plan, drawn, size, reward, annotator
            )

    def train(self, reward: RewardVersion) -> None:
        """Run a training that was taken from the queue; whatever happens ends up in the store.

        A training that fails or is cancelled changes nothing else.
        """
        training = self._training()
        rewards = self._store.rewards
        try:
            weights, card = self._train(reward, training)
            _persistently(lambda: rewards.finish(reward.id, weights, card))
            log.info("reward %s is ready", reward.id)
        except training.Cancelled:
            rewards.cancelled(reward.id)
        except Conflict:
            # Cancelled after its last report.
            rewards.cancelled(reward.id)
        except Exception as error:
            log.warning("training %s failed", reward.id, exc_info=error)
            said = isinstance(error, WinnowError | ValueError) and str(error)
            rewards.fail(reward.id, said or f"{type(error).__name__}; the log holds its cause")

    def _train(self, reward: RewardVersion, training: Any) -> tuple[dict[str, str], dict[str, Any]]:
        started = time.monotonic()
        dataset = self._store.datasets.read(reward.dataset)
        subject = self._subjects[dataset.model]
        recipe = training.Recipe(**reward.recipe)
        if not dataset.trainable:
            raise ValueError(f"dataset {dataset.name!r} is a certificate's: it may train nothing")
        policy = self._policy(recipe.policy)
        spec = policy.settings
        # Thresholds are chosen on draws of what the labels are of, as hard guided as the policy is.
        mixed = self._mix(dataset, policy)
        labelled = self._labelled(dataset.name)
        before: Mapping[str, str] = {}
        if reward.parent is not None:
            before = self._store.rewards.read(reward.parent).weights or {}
        last, heard = -BEAT_S, started

        def report(stage: str, progress: float) -> None:
            nonlocal last, heard
            # The database need not hear of every iteration.
            now = time.monotonic()
            if now - last < 0.2 and progress < 1:
                return
            last = now
            try:
                wanted = self._store.rewards.report(reward.id, stage, progress)
            except StoreUnavailable as error:
                if now - heard > SILENT_S:  # it counts as dead by now
                    raise
                log.warning("training %s could not report: %s", reward.id, error)
                return
            heard = now
            if not wanted:
                raise training.Cancelled

        report("reads the labels", 0.0)
        examples = self._examples(labelled, training)
        trained = training.train(
            [example for _, example in examples],
            recipe,
            subject.generator(mixed.of),
            subject.shape,
            {steps: spec.method(steps) for steps in spec.num_inference_steps},
            report,
            {part: self._store.blobs.get(name) for part, name in before.items()} or None,
            None if recipe.features is None else subject.features(recipe.features),
        )
        weights = {
            part: _persistently(partial(self._store.blobs.put, file))
            for part, file in trained.files.items()
        }
        # What the draws were made with: a calibration holds for that alone.
        ran_on = {part: getattr(policy, part) for part in RUNS_ON} | {"law": law(mixed)}
        calibrations = {
            steps: entry | ran_on for steps, entry in trained.card["calibrations"].items()
        }
        learned = [one for one, _ in examples]
        image_of = {one.image.blob: one.image.id for one in learned}
        mistakes = [wrong | {"id": image_of[wrong["id"]]} for wrong in trained.card["mistakes"]]
        card = trained.card | {"calibrations": calibrations, "mistakes": mistakes}
        card |= _provenance(dataset, learned, reward, time.monotonic() - started)
        conditions = to_json(mixed)
        card |= {"inputs": {"conditions": conditions, "words": in_words(conditions)}}
        return weights, card | {"purged": len(labelled) - len(learned)}

    def _plan(self, dataset: Dataset, policy: str | None) -> tuple[SamplingPlan, Mix]:
        """How images are drawn, and under what."""
        if policy is None:
            return self._subjects[dataset.model].plan, self._mix(dataset, None)
        named = self._policy(policy)
        if named.settings.model != dataset.model:
            raise Conflict(f"policy {policy!r} is for another model than the dataset", "policy")
        return resolve(named, Overrides(), 0, admin=False), self._mix(dataset, named)

    def _mix(self, dataset: Dataset, policy: Policy | None) -> Mix:
        """The dataset's inputs, or what the policy or else the model draws where nothing is asked;
        one that names no guidance_scale takes the policy's default, or the model's.

        Raises InvalidValue for an input that the policy does not draw.
        """
        choices = of_model(dataset.model, self._subjects[dataset.model].inputs)
        if policy is not None:
            choices = replace(
                choices, guidance_scale=policy.guidance_scale, class_labels=policy.class_labels
            )
        return mix(dataset.inputs, choices)

    async def _draw(self, plan: SamplingPlan, mixed: Mix, n: int) -> list[Drawn]:
        """Up to n fresh images that this plan lets through, each under an input of its own."""
        # Numbers that nobody can foresee: an image must not be chosen before it is drawn.
        wanted = Counter(mixed.which(secrets.randbelow(MAX_SEED + 1)) for _ in range(n))
        calls = [
            asyncio.ensure_future(self._draw_under(plan, mixed, which, count))
            for which, count in wanted.items()
        ]
        try:
            drawn = [one for part in await asyncio.gather(*calls) for one in part]
        finally:
            for call in calls:
                call.cancel()
        if len(wanted) > 1:
            # Those of one input stand together, and a page is its first few.
            secrets.SystemRandom().shuffle(drawn)
        return drawn

    async def _draw_under(self, plan: SamplingPlan, mixed: Mix, which: int, n: int) -> list[Drawn]:
        condition, seed = mixed.conditions[which], secrets.randbelow(MAX_SEED - n + 2)
        plan = replace(plan, seed=seed, condition=condition)
        router = self._routers[plan.model]
        try:
            outcome = await router.generate(plan, n, self._deadline_s, TENANT)
        except InvalidValue as error:
            # Say which input it is, not what: this may end in a log.
            raise InvalidValue(error.message, f"inputs.{which}.{error.param}") from None
        return [
            Drawn(image.pixels, image.seed, image.draws - 1, condition)
            for image in outcome.images
            if image.pixels is not None
        ]

    def _refit(self, dataset: str) -> Callable[[Any], Any] | None:
        """A quick reward of what has been said, if that is enough to learn from."""
        training = self._training()
        try:
            examples = [one for _, one in self._examples(self._labelled(dataset), training)]
        except StoreUnavailable as error:
            log.warning("pages of dataset %r are chosen at random: %s", dataset, error)
            return None
        benign = sum(example.label == "benign" for example in examples)
        if min(benign, len(examples) - benign) < LEAST:
            return None
        reward: Callable[[Any], Any] = training.refit(examples)
        return reward

    def _show(
        self,
        dataset: Dataset,
        plan: SamplingPlan,
        drawn: Sequence[Drawn],
        size: int,
        reward: Callable[[Any], Any] | None,
        annotator: str,
    ) -> list[Shown]:
        """Choose, keep the chosen images, and note that they are shown."""
        scores = None if reward is None else reward(np.stack([one.pixels for one in drawn]))
        choices = self._selection().choose(
            scores,
            min(size, len(drawn)),
            "random" if scores is None else "mixed",
            np.random.default_rng(secrets.randbits(128)),
        )
        inputs = self._subjects[dataset.model].inputs
        batch, now = f"bat_{uuid4().hex}", datetime.now(UTC)
        shown = [
            Shown(
                id=f"shown_{uuid4().hex}",
                dataset=dataset.name,
                batch=batch,
                position=position,
                blob=self._store.blobs.put(to_png(drawn[choice.index].pixels)),
                seed=drawn[choice.index].seed,
                draw=drawn[choice.index].draw,
                policy=plan.policy,
                policy_version=plan.policy_version,
                backbone=plan.backbone,
                strategy=choice.strategy,
                inclusion=float(choice.inclusion),
                score=None if scores is None else float(scores[choice.index]),
                annotator=annotator,
                created=now,
                input=drawn_under(drawn[choice.index].condition, drawn[choice.index].seed, inputs),
            )
            for position, choice in enumerate(choices)
        ]
        self._store.datasets.show(shown)
        return shown

    def _labelled(self, dataset: str) -> list[Labelled]:
        """The labels of a dataset, one for each image: of equal pixels the last label counts."""
        return list(
            {one.image.blob: one for one in self._store.datasets.labelled(dataset)}.values()
        )

    def _examples(self, labelled: Sequence[Labelled], training: Any) -> list[tuple[Labelled, Any]]:
        """What a training learns from, each beside its label; what was purged teaches nothing.

        Pixels name an example, so that equal ones are on one side and in one fold. Raises
        StoreUnavailable for an image that cannot be read or was changed: its label must count.
        """
        examples = []
        for one in labelled:
            try:
                pixels = from_png(self._store.blobs.get(one.image.blob))
            except BlobMissing as error:
                log.warning("label of image %s is left out: %s", one.image.id, error)
                continue
            image = one.image
            example = training.Example(
                image.blob, pixels, one.label, image.inclusion, image.strategy
            )
            examples.append((one, example))
        return examples

    def _training(self) -> Any:
        # Loaded when first needed: it brings torch.
        return self._given[0] or importlib.import_module("service.feedback.training")

    def _selection(self) -> Any:
        return self._given[1] or importlib.import_module("service.feedback.selection")


def uncensored(model: str, backbone: str, method: Method) -> SamplingPlan:
    """A plan that draws by this method's sampler, and lets everything through."""
    return SamplingPlan(
        model=model,
        policy=UNCENSORED,
        policy_version=0,
        backbone=backbone,
        guide=None,
        clean_guide=None,
        probe=None,
        judge=None,
        method=Method(
            method.num_inference_steps,
            method.eta,
            method.sampler,
            method.timestep_spacing,
            classifier_scale=method.classifier_scale,
        ),
        probe_thresholds=(),
        threshold=None,
        max_draws=1,
        acceptance=1.0,
        seed=0,
    )


def _persistently(work: Callable[[], Result]) -> Result:
    """What `work` returns. A store that fails is asked again, as long as a training may be silent.

    Raises StoreUnavailable.
    """
    until = time.monotonic() + SILENT_S
    while True:
        try:
            return work()
        except StoreUnavailable as error:
            if time.monotonic() > until:
                raise
            log.warning("what was trained could not be kept yet: %s", error)
            time.sleep(RETRY_S)


def _provenance(
    dataset: Dataset, labelled: Sequence[Labelled], reward: RewardVersion, seconds: float
) -> dict[str, Any]:
    """What the card says of where its labels came from."""
    kinds: dict[Label, int] = {"benign": 0, "malign": 0, "unsure": 0}
    for one in labelled:
        kinds[one.label] += 1
    return {
        "dataset": {"name": dataset.name, "model": dataset.model, "question": dataset.question},
        "counts": kinds,
        "label_seconds": round(sum(one.elapsed_ms for one in labelled) / 1000, 1),
        "annotators": sorted({one.annotator for one in labelled}),
        "parent": reward.parent,
        "trained_seconds": round(seconds, 1),
    }
