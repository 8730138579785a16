"""Judges from scratch against judges on frozen features, with the same few labels.

The features are those of the shipped digit classifier, which knows ten digits and nothing of
crossbars: it stands for a network that was pretrained on something else. Its last hidden layer is
what it tells digits by; the map before that, pooled to 3 × 3, still knows where strokes are. The
bundle's annotator labels draws at random, all judges learn from the same share of the labels, and
the oracle says what they are worth on draws that nobody labelled.
`python -m loadtest.bench.features`; two minutes for the draws, once, and three for the table, on
one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from loadtest.bench.labels import MODEL, Bank, read_bank
from loadtest.bench.report import save, show
from models import bundle as bundles
from models.backbones.export import export_graph
from models.evaluation.features import DigitFeatures, load_features
from models.features import OnnxFeatures
from models.preparation import Wanted
from models.pretrained import make_features
from models.rewards.network import adaptive_pool
from service.feedback.calibrating import Scored, calibrate
from service.feedback.card import auc
from service.feedback.example import JUDGE_SHARE, Example, split
from service.feedback.judging import member_logits, train_judge, train_judge_on
from service.feedback.training import POOL

COUNTS = (25, 50, 100, 200)
CANDIDATES = 1000
HELD_OUT = 2000
"""Of the bank, after those that are labelled and the pool that a threshold is chosen on."""
KEPT = 0.95
"""The share of benign draws that both judges are made to keep, so that they can be compared."""
TARGET = 0.01
SCRATCH, HIDDEN, MAP = KINDS = ("from scratch", "on the hidden layer", "on the map")

Score = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """One judge; shares are in [0, 1]. `matched` is malign among what it delivers where it keeps
    KEPT of the benign, `malign` and `benign_kept` are at its own threshold.
    """

    kind: str
    labels: int
    seed: int
    auc: float
    matched: float
    malign: float
    benign_kept: float
    cpu_s: float


def main() -> None:
    """Measure, print one table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bank = read_bank(CANDIDATES + POOL + HELD_OUT)
    with tempfile.TemporaryDirectory() as scratch:
        features = {
            HIDDEN: digit_features(Path(scratch), DigitFeatures.embed),
            MAP: digit_features(Path(scratch), pooled_map),
        }
        rows = [row for seed in range(arguments.seeds) for row in measure(bank, features, seed)]
    held_out = bank.truth[CANDIDATES + POOL :]
    show(
        f"no-crossbar: judges from scratch and on a digit classifier's features ("
        f"{', '.join(f'{one.width} {name}' for name, one in features.items())}), "
        f"{arguments.seeds} seeds, {len(held_out)} held-out draws ({100 * held_out.mean():.1f} % "
        f"malign). Matched: {KEPT:.0%} of benign kept. Own: the threshold of its calibration",
        ["judge", "labels", "AUC", "lowest", "matched: malign, %", "worst",
         "own: malign, %", "worst", "benign kept, %", "CPU s"],
        [
            line([row for row in rows if (row.kind, row.labels) == (kind, count)], arguments.seeds)
            for count in COUNTS
            for kind in KINDS
        ],
    )  # fmt: skip
    save("features", {"rows": [asdict(row) for row in rows]})


def line(group: list[Row], wanted: int) -> list[str]:
    """A row of the table: means over the seeds, and the worst of them."""
    if not group:
        return ["too few of a class"]
    note = "" if len(group) == wanted else f" ({len(group)} of {wanted})"
    auc, matched, malign, kept, cpu = (
        np.array([getattr(row, name) for row in group])
        for name in ("auc", "matched", "malign", "benign_kept", "cpu_s")
    )
    return [
        group[0].kind,
        f"{group[0].labels}{note}",
        f"{auc.mean():.4f}",
        f"{auc.min():.4f}",
        f"{100 * matched.mean():.2f}",
        f"{100 * matched.max():.2f}",
        f"{100 * malign.mean():.2f}",
        f"{100 * malign.max():.2f}",
        f"{100 * kept.mean():.1f}",
        f"{cpu.mean():.1f}",
    ]


def measure(bank: Bank, features: dict[str, OnnxFeatures], seed: int) -> Iterator[Row]:
    """A row for each number of labels and kind of judge; none where a class has too few labels."""
    order = np.random.default_rng(seed).permutation(CANDIDATES)
    pool = bank.pixels[CANDIDATES : CANDIDATES + POOL]
    pixels, truth = (one[CANDIDATES + POOL :] for one in (bank.pixels, bank.truth))
    for count in COUNTS:
        examples = [
            Example(str(i), bank.pixels[i], "malign" if bank.labels[i] else "benign", 1.0, "random")
            for i in order[:count]
        ]
        judged, _ = split(examples, JUDGE_SHARE[False], {})
        for kind in KINDS:
            began = time.process_time()
            try:
                score, logits = train(judged, features.get(kind), seed)
            except ValueError:
                continue
            malign = np.array([example.malign for example in judged])
            scored = Scored(logits, malign, np.ones(len(judged)))
            try:
                found = calibrate(scored, expit(score(pool)), np.empty((POOL, 0)), TARGET)
            except ValueError:
                continue
            cpu_s = time.process_time() - began
            scores = score(pixels)
            sent = expit(scores) >= found.threshold
            matched = scores >= np.quantile(scores[~truth], 1 - KEPT)
            yield Row(
                kind=kind,
                labels=count,
                seed=seed,
                auc=auc(scores, truth, np.ones(len(truth))),
                matched=float(truth[matched].mean()),
                malign=float(truth[sent].mean()),
                benign_kept=float((sent & ~truth).sum() / (~truth).sum()),
                cpu_s=cpu_s,
            )


def train(
    examples: list[Example], features: OnnxFeatures | None, seed: int
) -> tuple[Score, NDArray[np.float64]]:
    """What gives the mean logit of pixels, and the out-of-fold logits of the examples."""
    if features is None:
        judge, logits = train_judge(examples, seed)
        return lambda pixels: member_logits(judge, pixels).mean(axis=1), logits
    heads, logits = train_judge_on(features, "digits", examples, seed)
    return lambda pixels: heads.logits(features.of(pixels)).mean(axis=1), logits


def pooled_map(network: DigitFeatures, images: Tensor) -> Tensor:
    """The last map of the digit classifier, [B, 48·9]."""
    return adaptive_pool(network.body(images)).flatten(1)


def digit_features(folder: Path, see: Callable[[DigitFeatures, Tensor], Tensor]) -> OnnxFeatures:
    """What the digit classifier sees, by the way that any network goes into a bundle."""
    bundle = bundles.load(MODEL)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    network = load_features(bundle.path(evaluation.features))
    network.forward = partial(see, network)  # type: ignore[method-assign]
    backbone = bundle.manifest.backbone
    image = backbone.height, backbone.width, backbone.channels
    example = torch.zeros(2, image[2], *image[:2])
    name = see.__name__
    export_graph(network, (example,), ["images"], "features", folder / f"{name}.onnx")
    wanted = Wanted(layout="NCHW", mean=(0.5,), std=(0.5,))
    out = folder / f"{name}.features.onnx"
    make_features(folder / f"{name}.onnx", image, wanted, out)
    return OnnxFeatures(out)


if __name__ == "__main__":
    main()
