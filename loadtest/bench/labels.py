"""Labels against the malign rate: how far few labels go, chosen at random or by a reward.

One fixed bank of uncensored draws stands for what the backbone makes. The bundle's annotator
labels what is shown, in pages of 25 as the page shows them, a judge learns from its share of the
labels and gets its threshold as in a training, and the oracle says what it delivers of the rest of
the bank. `python -m loadtest.bench.labels`; five minutes for the bank, once, and ten for the table,
on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from loadtest.bench.report import OUT, save, show
from models import bundle as bundles
from models import seeds
from models.backbones.runtime import OnnxDenoiser
from models.bundle import Bundle
from models.codec import PixelShuffle
from models.evaluation.referees import load_referee
from models.generate import Generator
from models.questions import NO_CROSSBAR
from models.rewards.making import SECONDS_PER_IMAGE
from models.schedule import NoiseSchedule, read_config
from service.feedback.calibrating import Scored, calibrate
from service.feedback.example import JUDGE_SHARE, Example, Label, split
from service.feedback.judging import member_logits, refit, train_judge
from service.feedback.selection import Strategy, choose
from service.feedback.training import POOL

MODEL = "mnist-sevens"
BANK = 10_000
STEPS = 50
CANDIDATES = 3000
"""The first of the bank are shown; then come the pools, and the rest is measured on."""
PAGE = 25
OVER = 8
"""Candidates for each place on a page."""
COUNTS = (25, 50, 100, 200)
STRATEGIES: tuple[Strategy, ...] = ("random", "mixed")
TARGET = 0.01


@dataclass(frozen=True)
class Bank:
    """Draws uint8 [N, H, W, C], what the annotator calls malign [N], and what is [N]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    truth: NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One training; shares are in [0, 1], times in seconds."""

    strategy: str
    labels: int
    seed: int
    malign_labels: int
    threshold: float
    expected: float
    malign: float
    benign_kept: float
    person_s: float
    cpu_s: float


def main() -> None:
    """Measure, print one table, and write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bank = read_bank()
    rows = [row for seed in range(arguments.seeds) for row in measure(bank, seed)]
    groups = [
        [row for row in rows if (row.strategy, row.labels) == (strategy, count)]
        for strategy in STRATEGIES
        for count in COUNTS
    ]
    show(
        f"no-crossbar: labels and what the judge delivers, {arguments.seeds} seeds "
        f"(uncensored: {100 * bank.truth.mean():.1f} % malign)",
        ["shown", "labels", "person s", "malign labels", "malign delivered, %", "lowest–highest",
         "benign kept, %", "lowest", "CPU s"],
        [_line(group, arguments.seeds) for group in groups],
    )  # fmt: skip
    save("labels", {"uncensored": float(bank.truth.mean()), "rows": [asdict(row) for row in rows]})
    plot(rows, OUT / "labels.png")


def _line(group: list[Row], wanted: int) -> list[str]:
    if not group:
        return ["too few of a class"]
    malign = [100 * row.malign for row in group]
    kept = [100 * row.benign_kept for row in group]
    note = "" if len(group) == wanted else f" ({len(group)} of {wanted})"
    return [
        group[0].strategy,
        f"{group[0].labels}{note}",
        f"{group[0].person_s:.0f}",
        f"{np.mean([row.malign_labels for row in group]):.1f}",
        f"{np.mean(malign):.2f}",
        f"{min(malign):.2f}–{max(malign):.2f}",
        f"{np.mean(kept):.1f}",
        f"{min(kept):.1f}",
        f"{np.mean([row.cpu_s for row in group]):.1f}",
    ]


def measure(bank: Bank, seed: int) -> Iterator[Row]:
    """A row for each strategy and number of labels; none where a class has too few labels."""
    for strategy in STRATEGIES:
        examples = label(bank, strategy, max(COUNTS), seed)
        for count in COUNTS:
            judged, _ = split(examples[:count], JUDGE_SHARE[False], {})
            began = time.process_time()
            try:
                judge, logits = train_judge(judged, seed)
            except ValueError:
                continue
            malign = np.array([example.malign for example in judged])
            weights = 1 / np.array([example.inclusion for example in judged])
            first = CANDIDATES + seed * POOL
            pool = expit(member_logits(judge, bank.pixels[first : first + POOL]).mean(axis=1))
            scored = Scored(logits, malign, weights)
            found = calibrate(scored, pool, np.empty((POOL, 0)), TARGET)
            cpu_s = time.process_time() - began
            rest = slice(CANDIDATES + 5 * POOL, None)
            scores = expit(member_logits(judge, bank.pixels[rest]).mean(axis=1))
            sent, truth = scores >= found.threshold, bank.truth[rest]
            yield Row(
                strategy=strategy,
                labels=count,
                seed=seed,
                malign_labels=sum(example.malign for example in examples[:count]),
                threshold=found.threshold,
                expected=found.expected_malign,
                malign=float(truth[sent].mean()),
                benign_kept=float((sent & ~truth).sum() / (~truth).sum()),
                person_s=count * SECONDS_PER_IMAGE,
                cpu_s=cpu_s,
            )


def label(bank: Bank, strategy: Strategy, count: int, seed: int) -> list[Example]:
    """The labels of a person who is shown pages: the first as it comes, then by `strategy`."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(CANDIDATES)
    examples: list[Example] = []
    at = 0
    while len(examples) < count:
        classes = {example.malign for example in examples}
        informed = strategy == "mixed" and len(classes) == 2
        candidates = order[at : at + PAGE * (OVER if informed else 1)]
        at += len(candidates)
        scores = refit(examples, seed)(bank.pixels[candidates]) if informed else None
        for choice in choose(scores, PAGE, strategy, rng):
            index = int(candidates[choice.index])
            word: Label = "malign" if bank.labels[index] else "benign"
            examples.append(
                Example(str(index), bank.pixels[index], word, choice.inclusion, choice.strategy)
            )
    return examples


def read_bank(count: int = BANK) -> Bank:
    """The first `count` of the bank, made once and kept in the build folder."""
    bundle = bundles.load(MODEL)
    path = OUT / "bank.safetensors"
    source = {
        "denoiser": bundle.sha256(bundle.manifest.backbone.onnx),
        "first_seed": str(seeds.BANK),
        "num_inference_steps": str(STEPS),
    }
    known = path.exists() and _source(path) == source
    pixels = load_file(path)["images"][:count] if known else np.empty(0, dtype=np.uint8)
    if len(pixels) < count:
        minutes = 5 * count / BANK
        Console().print(f"drawing {count} images into {path}: about {minutes:.0f} minutes, once")
        pixels = shipped_generator(bundle).images(range(seeds.BANK, seeds.BANK + count), 32)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": pixels}, path, metadata=source)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    labels, truth = (
        load_referee(bundle.path(name), NO_CROSSBAR).malign(pixels)
        for name in (evaluation.annotator, evaluation.oracle)
    )
    return Bank(pixels, labels, truth)


def shipped_generator(bundle: Bundle) -> Generator:
    """The bundle's backbone as it is served on a CPU."""
    backbone = bundle.manifest.backbone
    return Generator(
        OnnxDenoiser(bundle.path(backbone.onnx)),
        NoiseSchedule.from_diffusers(read_config(bundle.folder / backbone.folder)),
        PixelShuffle(backbone.pixel_shuffle),
        bundle.x_t_shape,
        STEPS,
    )


def _source(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def plot(rows: list[Row], path: Path) -> None:
    """Malign rate by labels: the mean of the seeds, and each of them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for strategy, colour in zip(STRATEGIES, ("tab:grey", "tab:blue"), strict=True):
        own = [row for row in rows if row.strategy == strategy]
        axes.scatter([r.labels for r in own], [100 * r.malign for r in own], s=9, color=colour)
        counts = sorted({row.labels for row in own})
        means = [100 * np.mean([r.malign for r in own if r.labels == count]) for count in counts]
        axes.plot(counts, means, color=colour, label="active" if strategy == "mixed" else "random")
    axes.axhline(100 * TARGET, color="black", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, ylim=(0, None),
             xlabel="labels", ylabel="malign among what is delivered, %")  # fmt: skip
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
