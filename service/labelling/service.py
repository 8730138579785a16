"""The labelling service: what people are asked next.

Images are drawn as requests are, through the sampling loop. The first pages are random; later ones
are chosen by a reward that is refitted from what has been said so far.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import numpy as np

from models.diffusion.condition import Condition
from models.diffusion.noise import MAX_SEED
from service.errors import BackendUnavailable, Conflict, InvalidValue
from service.generation.sampling_loop import SamplingLoop
from service.images.encode import to_png
from service.labelling import selection
from service.labelling.drawable_inputs import DrawableInputs
from service.labelling.examples import LEAST
from service.labelling.label_batch import LabelBatch
from service.labelling.stored_examples import labelled_once, stored_examples
from service.labelling.subject import Subject, subject_of
from service.policies.inputs import drawn as drawn_under
from service.policies.policy import Overrides, Policy, resolve
from service.ports import Pixels, SamplingPlan
from service.store.datasets import Dataset, ImageToLabel
from service.store.store import Store

log = logging.getLogger("winnow.labelling")

TENANT = "feedback"
"""All labelling shares one turn of the engine's: it never crowds out those who ask for images."""


@dataclass(frozen=True)
class Drawn:
    """An image that may be shown."""

    pixels: Pixels
    seed: int
    draw: int
    condition: Condition


class LabellingService:
    """Shows images to people. It belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        sampling_loops: Mapping[str, SamplingLoop],
        subjects: Mapping[str, Subject],
        policy: Callable[[str], Policy],
        candidates: int,
        within: timedelta,
        deadline_s: float,
        training: Any = None,
        choose: Callable[..., Sequence[selection.SelectedCandidate]] = selection.choose,
    ) -> None:
        """`policy` finds one, switched off or not; `candidates` are drawn for each image that is
        chosen; a batch that nobody labelled is shown again `within` so long. `training` stands for
        the module, and `choose` for `selection.choose`."""
        self._store = store
        self._sampling_loops = sampling_loops
        self._subjects = subjects
        self._policy = policy
        self._candidates = candidates
        self._within = within
        self._deadline_s = deadline_s
        self._training = training
        self._choose = choose
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        exclude_batches: Sequence[str],
        policy: str | None = None,
    ) -> LabelBatch:
        """The next images for this person to label, at most `size`.

        A batch that was drawn for the person and has no label yet comes first, unless it is among
        `exclude_batches`. With a policy, images that it lets through. An input that the model does
        not take is left out, and told. Raises PolicyNotFound, Conflict for a policy or a dataset of
        another model, InvalidValue where no input can be drawn, and what the sampling loop raises.
        """
        turn = self._turns.setdefault((dataset.name, annotator), asyncio.Lock())
        # Two calls of one person at once must not get the same batch.
        async with turn:
            found = await asyncio.to_thread(
                self._store.datasets.open_batch,
                dataset.name,
                annotator,
                exclude_batches,
                self._within,
            )
            if found:
                return LabelBatch(found)
            plan, drawable = self._plan(dataset, policy)
            reward = None
            if strategy != "random":
                reward = await asyncio.to_thread(self._refit, dataset)
            rounds = 1 if reward is None else self._candidates
            drawn: list[Drawn] = []
            for _ in range(rounds):
                drawn += await self._draw(plan, drawable, size)
            if not drawn:
                raise BackendUnavailable("no image was ready in time to be shown")
            shown = await asyncio.to_thread(
                self._show, dataset, plan, drawn, size, reward, annotator
            )
            return LabelBatch(shown, drawable.left_out)

    def _plan(self, dataset: Dataset, policy: str | None) -> tuple[SamplingPlan, DrawableInputs]:
        """How images are drawn, and under what."""
        subject = subject_of(dataset, self._subjects)
        if policy is None:
            return subject.plan, subject.drawable(dataset, None)
        named = self._policy(policy)
        if named.settings.model != dataset.model:
            raise Conflict(f"policy {policy!r} is for another model than the dataset", "policy")
        return resolve(named, Overrides(), 0, admin=False), subject.drawable(dataset, named)

    async def _draw(self, plan: SamplingPlan, drawable: DrawableInputs, n: int) -> list[Drawn]:
        """Up to n fresh images that this plan lets through, each under an input of its own.

        What the model turns out not to take is left out from then on, and others drawn instead.
        Raises InvalidValue if nothing is left.
        """
        drawn: list[Drawn] = []
        while n:
            # Numbers that nobody can foresee: an image must not be chosen before it is drawn.
            numbers = (secrets.randbelow(MAX_SEED + 1) for _ in range(n))
            wanted = Counter(map(drawable.mix.which, numbers))
            conditions = drawable.mix.conditions
            calls = [
                asyncio.ensure_future(self._draw_under(plan, conditions[which], count))
                for which, count in wanted.items()
            ]
            try:
                answers = await asyncio.gather(*calls)
            finally:
                for call in calls:
                    call.cancel()
            refused: dict[int, InvalidValue] = {}
            for which, answer in zip(wanted, answers, strict=True):
                if isinstance(answer, InvalidValue):
                    refused[which] = answer
                else:
                    drawn += answer
            # Say which input it is, not what: this may end in a log.
            drawable.leave_out(refused)
            n = sum(wanted[which] for which in refused)
        if len(drawable.mix.conditions) > 1:
            # Those of one input stand together, and a page is its first few.
            secrets.SystemRandom().shuffle(drawn)
        return drawn

    async def _draw_under(
        self, plan: SamplingPlan, condition: Condition, n: int
    ) -> list[Drawn] | InvalidValue:
        """Images under one condition, or why the model does not take it."""
        seed = secrets.randbelow(MAX_SEED - n + 2)
        plan = replace(plan, seed=seed, condition=condition)
        sampling_loop = self._sampling_loops[plan.model]
        try:
            outcome = await sampling_loop.generate(plan, n, self._deadline_s, TENANT)
        except InvalidValue as error:
            return error
        return [
            Drawn(image.pixels, image.seed, image.draws - 1, condition)
            for image in outcome.images
            if image.pixels is not None
        ]

    def _refit(self, dataset: Dataset) -> Callable[[Any], Any] | None:
        """A quick reward of what has been said, if that is enough to learn from."""
        try:
            # Loaded when first needed: it brings torch.
            training = self._training or importlib.import_module("service.labelling.training")
            labelled = labelled_once(self._store, dataset.name)
            shape = subject_of(dataset, self._subjects).shape
            found, _ = stored_examples(self._store, labelled, shape)
            examples = [one for _, one in found]
            benign = sum(example.label == "benign" for example in examples)
            if min(benign, len(examples) - benign) < LEAST:
                return None
            reward: Callable[[Any], Any] = training.refit(examples)
        except Exception as error:  # a page by chance is better than none
            log.warning("pages of %r are chosen at random: %s", dataset.name, error)
            return None
        return reward

    def _show(
        self,
        dataset: Dataset,
        plan: SamplingPlan,
        drawn: Sequence[Drawn],
        size: int,
        reward: Callable[[Any], Any] | None,
        annotator: str,
    ) -> list[ImageToLabel]:
        """Choose, keep the chosen images, and note that they are shown."""
        scores = None if reward is None else reward(np.stack([one.pixels for one in drawn]))
        choices = self._choose(
            scores,
            min(size, len(drawn)),
            "random" if scores is None else "mixed",
            np.random.default_rng(secrets.randbits(128)),
        )
        inputs = self._subjects[dataset.model].inputs
        batch, now = f"bat_{uuid4().hex}", datetime.now(UTC)
        shown = [
            ImageToLabel(
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
