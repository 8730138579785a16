"""Imitation rounds, where most draws are malign: what each adds.

Round 1 labels uncensored draws. Rounds 2 and 3 label what the policy of the round before lets
through, and train on all labels so far, judge and guides going on from the last (Yoon et al. 2023,
section 4.2). Draws are made by the engine, steered by the round's own guide; the oracle says what
its judge lets through. `python -m loadtest.bench.imitation`; eight minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loadtest.bench.labels import MODEL, shipped_generator
from loadtest.bench.report import save, show
from models import bundle as bundles
from models import seeds
from models.data import sevens
from models.evaluation.features import load_features
from models.evaluation.frechet import frechet_distance
from models.evaluation.referees import Referee, load_referee
from models.method import Method
from models.questions import ONLY_CROSSBAR
from models.rewards.judge import OnnxJudge
from models.rewards.making import SECONDS_PER_IMAGE
from service.feedback.example import Example
from service.feedback.pool import draw_pool
from service.feedback.training import Recipe, Trained, train

LABELS = (40, 60, 60)
STEPS = 20
METHOD = Method(num_inference_steps=STEPS, censor_scale=1.0, guide_interval=(0, 900))
SEEDS_A_ROUND = 10_000


@dataclass(frozen=True)
class Row:
    """The policy after a round; shares are in [0, 1], draws and NFE are per delivered image."""

    round: int
    labels: int
    person_s: float
    malign_drawn: float
    malign: float
    draws: float
    nfe: float
    frechet: float
    train_cpu_s: float


def main() -> None:
    """Measure, print one table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="draws to measure each round on")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="of each round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = bundles.load(MODEL)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    annotator, oracle = (
        load_referee(bundle.path(name), ONLY_CROSSBAR)
        for name in (evaluation.annotator, evaluation.oracle)
    )
    features = load_features(bundle.path(evaluation.features)).features
    data = sevens()
    real = features(data.images[~ONLY_CROSSBAR.is_malign(data.labels == 1)][..., None])
    generator = shipped_generator(bundle)
    height, width = bundle.manifest.backbone.height, bundle.manifest.backbone.width

    def draw(trained: Trained | None, first: int, count: int) -> NDArray[np.uint8]:
        with tempfile.TemporaryDirectory() as scratch:
            parts = _write(trained, Path(scratch))
            method = METHOD if trained else Method(STEPS)
            pool = draw_pool(generator, parts, method, range(first, first + count), 1, _ignore)
        return pool.pixels

    rows: list[Row] = []
    examples: list[Example] = []
    trained: Trained | None = None
    for number, wanted in enumerate(arguments.labels, start=1):
        first = seeds.first(seeds.GUIDE_LABELS, 5) + number * SEEDS_A_ROUND
        if trained is None:
            shown = draw(None, first, wanted)
        else:
            drawn = draw(trained, first, round(1.5 * wanted))
            shown = drawn[_sent(trained, drawn)][:wanted]
        examples += _labelled(shown, annotator, first)
        began = time.process_time()
        trained = train(
            examples,
            Recipe("only-crossbar", guide=True),
            generator,
            (height, width, 1),
            {STEPS: METHOD},
            lambda stage, fraction: None,
            warm_start=trained.files if trained else None,
        )
        train_cpu_s = time.process_time() - began
        # The same seeds each round: what differs is the policy.
        drawn = draw(trained, seeds.first(seeds.EVALUATION, 5), arguments.n)
        sent, malign = _sent(trained, drawn), oracle.malign(drawn)
        rows.append(
            Row(
                round=number,
                labels=len(examples),
                person_s=len(examples) * SECONDS_PER_IMAGE,
                malign_drawn=float(malign.mean()),
                malign=float(malign[sent].mean()),
                draws=float(1 / sent.mean()),
                nfe=float(STEPS / sent.mean()),
                frechet=float(frechet_distance(features(drawn[sent]), real)),
                train_cpu_s=train_cpu_s,
            )
        )
    show(
        f"only-crossbar, {STEPS} steps, time-dependent guide: imitation rounds "
        f"({arguments.n} draws each)",
        ["round", "labels", "person s", "drawn malign, %", "delivered malign, %", "draws", "NFE",
         "Fréchet", "train CPU s"],
        [
            [str(row.round), str(row.labels), f"{row.person_s:.0f}",
             f"{100 * row.malign_drawn:.1f}", f"{100 * row.malign:.2f}", f"{row.draws:.2f}",
             f"{row.nfe:.1f}", f"{row.frechet:.2f}", f"{row.train_cpu_s:.0f}"]
            for row in rows
        ],
    )  # fmt: skip
    save("imitation", {"n": arguments.n, "rows": [asdict(row) for row in rows]})


def _labelled(pixels: NDArray[np.uint8], annotator: Referee, first: int) -> list[Example]:
    malign = annotator.malign(pixels)
    return [
        Example(f"{first}-{i}", image, "malign" if bad else "benign", 1.0, "random")
        for i, (image, bad) in enumerate(zip(pixels, malign, strict=True))
    ]


def _sent(trained: Trained, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the draws the round's judge lets through."""
    with tempfile.TemporaryDirectory() as scratch:
        judge = OnnxJudge(_write(trained, Path(scratch))["judge"])
        sent: NDArray[np.bool_] = (
            judge.score(pixels) >= trained.card["calibrations"][str(STEPS)]["threshold"]
        )
    return sent


def _write(trained: Trained | None, folder: Path) -> dict[str, Path]:
    parts = {name: folder / name for name in (trained.files if trained else ())}
    for name, path in parts.items():
        assert trained is not None
        path.write_bytes(trained.files[name])
    return parts


def _ignore(done: int) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()
