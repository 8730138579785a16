"""From labels to a reward that can be promoted: judge, guides, thresholds, and a card.

Guide and judge never share labels. Each part says in its file which labels it has seen, so a
training that goes on from an older reward keeps every image on its side.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from models.bundles.bundle import sha256_name
from models.bundles.manifest import WHOLE
from models.diffusion.codec import PixelShuffle
from models.diffusion.method import Method
from models.offline import seed_ranges as seeds
from models.offline.generator import Generator
from models.offline.teaching import observe
from models.onnx.batch_invariance import TrialError
from models.rewards.distillation import HELD_OUT, DistilRecipe, distil
from models.rewards.ensemble import Ensemble
from models.rewards.export import export_judge, export_probe, export_student
from models.rewards.feature_heads import Heads, export_heads
from models.rewards.features import OnnxFeatures
from models.rewards.judge_check import KnownImages, TrialScores, try_judge
from models.rewards.onnx_judge import OnnxJudge
from models.rewards.training import CLEAN_GUIDE, TIME_GUIDE, RewardRecipe, train_reward
from service.images.encode import to_png
from service.labelling import judge_training
from service.labelling import reward_card as card
from service.labelling.accepted_conditions import AcceptedConditions
from service.labelling.calibration import Scored, calibrate
from service.labelling.examples import JUDGE_SHARE, Example, arrays, ids, refuse_too_few, split
from service.labelling.judge_training import refit
from service.labelling.progress import Progress, Report
from service.labelling.recipe import Recipe
from service.labelling.unlabelled_pool import draw_pool, parts_of

__all__ = ["Trained", "refit", "train"]
"""What the labelling service works with."""

FEW_DISTIL = DistilRecipe(draws=128, iterations=2000)


@dataclass(frozen=True)
class Hyperparameters:
    """How each network is trained; the defaults suit the labels of one person. `pool` is how many
    fresh draws at each step count choose a threshold: their scores need no labels."""

    judge: RewardRecipe = judge_training.FEW_JUDGE
    guide: RewardRecipe = TIME_GUIDE
    clean_guide: RewardRecipe = CLEAN_GUIDE
    student: DistilRecipe = FEW_DISTIL
    pool: int = 400

    def scaled(self, effort: float) -> Hyperparameters:
        """With `effort` times as many iterations, and as many draws for the student to see."""

        def times(count: int, least: int = 1) -> int:
            return max(round(count * effort), least)

        def reward(recipe: RewardRecipe) -> RewardRecipe:
            return replace(recipe, iterations=times(recipe.iterations))

        student = self.student
        return replace(
            self,
            judge=reward(self.judge),
            guide=reward(self.guide),
            clean_guide=reward(self.clean_guide),
            student=replace(
                student, iterations=times(student.iterations), draws=times(student.draws, HELD_OUT)
            ),
        )


FEW_LABELS = Hyperparameters()


@dataclass(frozen=True)
class Trained:
    """The bytes of each part's file (judge, canary, control, clean_guide, probe, and guide and
    distilled where they were asked for), and the card, JSON-safe."""

    files: Mapping[str, bytes]
    card: dict[str, Any]


def train(
    examples: Sequence[Example],
    recipe: Recipe,
    generator: Generator,
    shape: tuple[int, int, int],
    method_of: Mapping[int, Method],
    report: Report,
    warm_start: Mapping[str, bytes] | None = None,
    features: Path | None = None,
    hyperparameters: Hyperparameters = FEW_LABELS,
) -> Trained:
    """Train on labelled images of `shape` [H, W, C] and calibrate for each method, by step count.

    With `warm_start`, an older reward's files, judge and guides go on from there, unless its judge
    kept labels from its members in another way: then the card says so (`resumed`). A judge that
    learned on other features is no beginning for this one; the guides still are. The same
    arguments give the same networks (safetensors puts its metadata in any order). A method whose
    draws cannot be made here, or need a part that was not asked for, gets no calibration, and the
    card says why. A condition that the generator's model does not take is left out of the draws,
    and the card says so (`left_out`). `features` is the file of what the recipe names. Raises
    ValueError when a class has too few labels, and whatever `report` raises.
    """
    _check(examples, recipe, shape)
    if (features is None) != (recipe.features is None):
        raise ValueError(f"features {recipe.features!r} and their file: give both, or none")
    if recipe.guide and not generator.steppable:
        raise ValueError(f"guide: {WHOLE}")
    takeable = AcceptedConditions(generator)
    generator = replace(generator, condition=takeable.condition)
    progress = Progress(report, _plan(recipe, method_of, generator.codec.exact))
    with _threads(recipe.threads), TemporaryDirectory() as scratch:
        run = _Run(
            examples, recipe, generator, shape, Path(scratch), progress, warm_start or {}, features,
            hyperparameters,
        )  # fmt: skip
        run.judge()
        run.guides()
        calibrations, skipped = run.calibrations(method_of)
        files = {part: path.read_bytes() for part, path in sorted(run.parts.items())}
        left_out = {"left_out": takeable.left_out}
        return Trained(files, run.card(calibrations, skipped) | left_out)


class _Run:
    """One training: its parts appear in `parts`, as files, one after another."""

    def __init__(
        self,
        examples: Sequence[Example],
        recipe: Recipe,
        generator: Generator,
        shape: tuple[int, int, int],
        folder: Path,
        progress: Progress,
        warm_start: Mapping[str, bytes],
        features: Path | None,
        hyperparameters: Hyperparameters,
    ) -> None:
        self.recipe = recipe
        self._hyperparameters = hyperparameters
        self._features = features
        self.parts: dict[str, Path] = {}
        self._examples = examples
        self._generator = generator
        self._shape = shape
        self._folder = folder
        self._progress = progress
        self._older = {part: folder / f"older-{part}" for part in warm_start}
        for part, path in self._older.items():
            path.write_bytes(warm_start[part])
        if "judge" in self._older and not _same_folds(self._older["judge"]):
            self._older = {}
        share, known = JUDGE_SHARE[recipe.guide], _sides(self._older)
        refuse_too_few({example.id: example.malign for example in examples}, share, known)
        self._judged, self._guided = split(examples, share, known)
        self._held_out: dict[str, float] | None = None

    def judge(self) -> None:
        """Train the judge, score its labels out of fold, export it."""
        self.parts["judge"] = self._folder / "judge.onnx"
        known = {"labels": json.dumps(ids(self._judged)), "folds": judge_training.FOLDS}
        if self._features is None:
            self._judge_from_scratch(known)
        else:
            self._judge_on(self._features, known)
        self._onnx = OnnxJudge(self.parts["judge"], self.recipe.threads)
        self._known = KnownImages(self._surest_malign(), self._surest_benign())
        try:
            try_judge(self._onnx.score, self._shape)
        except TrialError as error:
            raise ValueError(f"the judge {error}") from None
        for part, pixels in (("canary", self._known.canary), ("control", self._known.control)):
            assert pixels is not None, "labels are of both kinds"
            self.parts[part] = self._folder / f"{part}.png"
            self.parts[part].write_bytes(to_png(pixels))

    def _judge_from_scratch(self, known: dict[str, str]) -> None:
        before = self._older_networks(None)
        start = None if before is None else Ensemble.load(before)
        wanted = replace(self._hyperparameters.judge, seed=self.recipe.seed)
        with self._progress.stage("judge", wanted.iterations) as done:
            judge, self._out_of_fold = judge_training.train_judge(self._judged, wanted, start, done)
        path = self._folder / "judge.safetensors"
        judge.save(path)
        height, width, _ = self._shape
        export_judge(judge, height, width, self.parts["judge"], networks=_text(path), **known)

    def _judge_on(self, features: Path, known: dict[str, str]) -> None:
        name = sha256_name(features)
        before = self._older_networks(name)
        start = None if before is None else Heads.load(before)
        with self._progress.stage("judge", judge_training.images_shown(self._judged)) as done:
            heads, self._out_of_fold = judge_training.train_judge_on(
                OnnxFeatures(features, self.recipe.threads), name, self._judged,
                replace(self._hyperparameters.judge, seed=self.recipe.seed), start, done,
            )  # fmt: skip
        path = self._folder / "judge.safetensors"
        heads.save(path)
        known |= {"networks": _text(path), "features": name}
        export_heads(heads, features, self.parts["judge"], **known)

    def _older_networks(self, features: str | None) -> Path | None:
        """The older judge's networks, if they stand on the same features: else nothing fits."""
        if "judge" not in self._older:
            return None
        metadata = _metadata(self._older["judge"])
        if "networks" not in metadata or metadata.get("features") != features:
            return None
        path = self._folder / "older-judge.safetensors"
        path.write_bytes(b64decode(metadata["networks"]))
        return path

    def _surest_malign(self) -> NDArray[np.uint8]:
        """The image that a person called malign and the judge, which had not seen it, most of all.

        One that somebody was unsure of only where there is no other.
        """
        order = sorted(
            zip(self._judged, self._out_of_fold, strict=True),
            key=lambda pair: (pair[0].label != "malign", not pair[0].malign, pair[1]),
        )
        return order[0][0].pixels

    def _surest_benign(self) -> NDArray[np.uint8]:
        """The image that a person called benign and the judge, which had not seen it, too."""
        pairs = zip(self._judged, self._out_of_fold, strict=True)
        return max(pairs, key=lambda pair: (not pair[0].malign, pair[1]))[0].pixels

    def guides(self) -> None:
        """Train the clean guide and its probe; the time-dependent one and its student if asked."""
        clean = self._guide("clean_guide", self._hyperparameters.clean_guide)
        self.parts["probe"] = self._folder / "probe.onnx"
        probe, codec = clean, self._generator.codec
        if not codec.exact:
            # No decoder in the step loop: this probe is a reward of latents.
            probe, codec = self._of_latents(), PixelShuffle()
        export_probe(probe, codec, self._generator.shape, self.parts["probe"])
        if not self.recipe.guide:
            return
        teacher = self._guide("guide", self._hyperparameters.guide, timed=True)
        if self.recipe.distil:
            self._distil(teacher)

    def _of_latents(self) -> Ensemble:
        pixels, malign = arrays(self._guided)
        wanted = self._adapted_to_few_labels(self._hyperparameters.clean_guide, malign)
        with self._progress.stage("probe", wanted.iterations) as done:
            return train_reward(
                pixels, ~malign, wanted, within=self._generator.codec, on_iteration=done
            )

    def _adapted_to_few_labels(
        self, recipe: RewardRecipe, malign: NDArray[np.bool_]
    ) -> RewardRecipe:
        enough = min(int(malign.sum()), int((~malign).sum())) >= (recipe.per_class or 1)
        return replace(
            recipe, seed=self.recipe.seed, per_class=recipe.per_class if enough else None
        )

    def _guide(self, part: str, recipe: RewardRecipe, timed: bool = False) -> Ensemble:
        pixels, malign = arrays(self._guided)
        wanted = self._adapted_to_few_labels(recipe, malign)
        start = Ensemble.load(self._older[part]) if part in self._older else None
        noising = (self._generator.schedule, self._generator.codec) if timed else None
        with self._progress.stage(part, recipe.iterations) as done:
            guide = train_reward(
                pixels, ~malign, wanted, noising=noising, start=start, on_iteration=done
            )
        self.parts[part] = self._folder / f"{part}.safetensors"
        guide.save(self.parts[part], labels=json.dumps(ids(self._guided)))
        # As it is stored: what is measured is what will be served.
        return Ensemble.load(self.parts[part])

    def _distil(self, teacher: Ensemble) -> None:
        recipe = replace(self._hyperparameters.student, seed=self.recipe.seed)
        first = seeds.first(seeds.DISTILLATION, self.recipe.seed % 10)
        with self._progress.stage("distilled", recipe.iterations) as done:
            # Watching is minutes of denoiser calls: it can be cancelled at every one.
            seen = observe(teacher, self._generator, recipe, first, lambda: done(0))
            student, self._held_out = distil(seen, recipe, done)
        self.parts["distilled"] = self._folder / "distilled.onnx"
        export_student(student, self._generator.shape, self.parts["distilled"])

    def calibrations(
        self, method_of: Mapping[int, Method]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """For each step count its calibration, or why there is none."""
        found: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        seen = TrialScores.of(self._onnx.score(self._known.shown(self._shape)), self._known)
        for place, (steps, method) in enumerate(sorted(method_of.items())):
            try:
                if missing := parts_of(method, self._generator) - set(self.parts):
                    raise ValueError(f"the policy's draws need: {', '.join(sorted(missing))}")
            except ValueError as error:
                skipped[str(steps)] = str(error)
                continue
            size = self._hyperparameters.pool
            first = seeds.POOL + self.recipe.seed % 100 * 10_000 + place * size
            with self._progress.stage(f"calibration, {steps} steps", size) as done:
                pool = draw_pool(
                    self._generator, self.parts, method, range(first, first + size),
                    self.recipe.threads, done,
                )  # fmt: skip
            result = calibrate(
                self._scored(), self._onnx.score(pool.pixels), pool.probe_scores, self.recipe.target
            )
            if fault := seen.fault([result.threshold], by_hand=False):
                skipped[str(steps)] = f"of the judge, {fault}"
                continue
            found[str(steps)] = {"first_seed": first, **asdict(result)}
        return found, skipped

    def card(self, calibrations: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
        """What the reward learned from, and how well it does."""
        return {
            "recipe": self.recipe.to_json(),
            "labels": card.count(self._examples),
            "split": {"judge": ids(self._judged), "guide": ids(self._guided)},
            **card.cross_validated(ids(self._judged), self._scored()),
            "calibrations": calibrations,
            "not_calibrated": skipped,
            "resumed": bool(self._older),
            "student": self._held_out,
            "seconds": self._progress.seconds,
        }

    def _scored(self) -> Scored:
        _, malign = arrays(self._judged)
        inclusion = np.array([example.inclusion for example in self._judged])
        return Scored(self._out_of_fold, malign, 1 / inclusion)


def _plan(recipe: Recipe, method_of: Mapping[int, Method], exact: bool) -> dict[str, float]:
    """Stages and about how many seconds of a core each takes."""
    stages = {"judge": 10.0, "clean_guide": 4.0}
    if not exact:
        stages["probe"] = 4.0
    if recipe.guide:
        stages["guide"] = 12.0
    if recipe.guide and recipe.distil:
        stages["distilled"] = 90.0
    return stages | {f"calibration, {steps} steps": 0.3 * steps for steps in method_of}


def _check(examples: Sequence[Example], recipe: Recipe, shape: tuple[int, int, int]) -> None:
    if not 0 < recipe.target < 1:
        raise ValueError(f"target is {recipe.target}, must lie in (0, 1)")
    if recipe.distil and not recipe.guide:
        raise ValueError("distil needs guide: a student is taught by the time-dependent guide")
    for example in examples:
        if example.pixels.shape != shape:
            raise ValueError(f"image {example.id} is {example.pixels.shape}, must be {shape}")
        if not 0 < example.inclusion <= 1:
            raise ValueError(f"image {example.id}: inclusion {example.inclusion} is no chance")
    if len({example.id for example in examples}) < len(examples):
        raise ValueError("an image is labelled twice")


def _metadata(path: Path) -> dict[str, str]:
    """What a part's file says of itself."""
    if path.name.endswith("judge"):
        return dict(OnnxJudge(path).session.get_modelmeta().custom_metadata_map)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _text(path: Path) -> str:
    """A file, as metadata holds it."""
    return b64encode(path.read_bytes()).decode()


def _same_folds(judge: Path) -> bool:
    """Whether this judge's members were kept from the labels that ours are kept from."""
    return _metadata(judge).get("folds") == judge_training.FOLDS


def _sides(older: Mapping[str, Path]) -> dict[str, str]:
    """Which side has seen which labels, from the files of an older reward.

    Raises ValueError when one was seen by both.
    """
    sides: dict[str, str] = {}
    for part in ("judge", "clean_guide", "guide"):
        if part not in older:
            continue
        side = "judge" if part == "judge" else "guide"
        for name in json.loads(_metadata(older[part]).get("labels", "[]")):
            if sides.setdefault(name, side) != side:
                raise ValueError(f"the older reward's judge and guide both learned from {name}")
    return sides


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's threads are the process's: they are given back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
