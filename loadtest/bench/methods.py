"""Every way to censor, side by side: what it costs, what it lets through, how faithful it stays.

All methods of a question have the judge and the threshold of the policy that ships for it, and the
oracle looks at what the judge lets through. The paper's single and union rewards are guides trained
here from the same labels as the shipped one: one network on the labels of one bootstrap, and one on
as many as all five have (Yoon et al. 2023, section 5).
`python -m loadtest.bench.methods [--n 1000]`; a quarter of an hour on one core.
All rows of a question have one threshold, that of the shipped judge at 50 steps.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np

from loadtest.bench.report import OUT, save, show
from models import bundle as bundles
from models import seeds
from models.backbones.runtime import OnnxDenoiser
from models.bundle import Bundle
from models.codec import PixelShuffle
from models.data import sevens
from models.evaluation.features import load_features
from models.evaluation.frechet import frechet_distance
from models.evaluation.referees import Referee, load_referee
from models.generate import Generator
from models.manifest import Manifest
from models.questions import QUESTIONS
from models.rewards.calibration import clopper_pearson_interval
from models.rewards.making import view
from models.rewards.training import TIME_GUIDE, train_reward
from models.schedule import NoiseSchedule, read_config
from service.cli.common import DEFAULT_CONFIG, read_settings
from service.config import Settings
from service.evaluation.survey import Survey, survey
from service.local import LocalService

MODEL = "mnist-sevens"
TO_850: dict[str, Any] = {"guide_interval": (0, 850)}
TO_900: dict[str, Any] = {"guide_interval": (0, 900)}
DISTILLED: dict[str, Any] = {"guidance": "distilled", "censor_scale": 1.0}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rejection alone": ("no-crossbar", {}),
    "ensemble, scale 1, t < 850": ("no-crossbar", TO_850 | {"censor_scale": 1.0}),
    "distilled, scale 1, t < 850": ("no-crossbar", TO_850 | DISTILLED),
    "paper's ensemble, scale 1, all t": ("no-crossbar", {"censor_scale": 1.0}),
    "paper's single, scale 1, all t": ("no-crossbar-single", {"censor_scale": 1.0}),
    "paper's union, scale 1, all t": ("no-crossbar-union", {"censor_scale": 1.0}),
    "forward, scale 1, t < 850, 20 steps": (
        "no-crossbar",
        TO_850 | {"guidance": "forward", "censor_scale": 1.0, "num_inference_steps": [20]}),
    "rejection alone ": ("only-crossbar", {}),
    "distilled, scale 1": ("only-crossbar", TO_900 | DISTILLED),
    "distilled, scale 2": ("only-crossbar", TO_900 | DISTILLED | {"censor_scale": 2.0}),
    "ensemble, scale 1": ("only-crossbar", TO_900 | {"censor_scale": 1.0}),
    "distilled, scale 1, 20 steps": (
        "only-crossbar", TO_900 | DISTILLED | {"num_inference_steps": [20]}),
    "distilled, scale 1, recurrence 2, 20 steps": (
        "only-crossbar", TO_900 | DISTILLED | {"recurrences": 2, "num_inference_steps": [20]}),
    "distilled, scale 1, DPM-Solver++, 20 steps": (
        "only-crossbar",
        TO_900 | DISTILLED | {"sampler": "dpmsolver++", "num_inference_steps": [20]}),
    "distilled, scale 1, 2 backward steps": (
        "only-crossbar", TO_900 | DISTILLED | {"backward_steps": 2}),
    "forward, scale 1, 20 steps": (
        "only-crossbar",
        TO_900 | {"guidance": "forward", "censor_scale": 1.0, "num_inference_steps": [20]}),
    "paper's ensemble, scale 1, all t ": ("only-crossbar", {"censor_scale": 1.0}),
    "paper's single, scale 1, all t ": ("only-crossbar-single", {"censor_scale": 1.0}),
    "paper's union, scale 1, all t ": ("only-crossbar-union", {"censor_scale": 1.0}),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One method, each figure for an image that leaves; shares are in [0, 1]."""

    method: str
    question: str
    accepted: float
    malign_drawn: float
    malign: float
    malign_high: float
    nfe: float
    cpu_s: float
    frechet: float


def main() -> None:
    """Measure, print one table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="draws of each method")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / MODEL
        shutil.copytree(bundles.find(MODEL), folder)
        chosen = {name: m for name, m in METHODS.items() if arguments.only in name}
        if any("paper" in name for name in chosen):
            _train_the_papers(bundles.load(str(folder)))
        found = list(_measure(folder, chosen, arguments.n))
    show(
        "Every method under the shipped judge and threshold, per image that leaves",
        ["method", "question", "accepted", "drawn malign", "malign (upper bound)", "NFE", "CPU s",
         "Fréchet"],
        [
            [one.method, one.question, f"{100 * one.accepted:.1f} %",
             f"{100 * one.malign_drawn:.1f} %",
             f"{100 * one.malign:.1f} % ({100 * one.malign_high:.1f})", f"{one.nfe:.1f}",
             f"{one.cpu_s:.3f}", f"{one.frechet:.2f}"]
            for one in found
        ],
    )  # fmt: skip
    save("methods", {"n": arguments.n, "methods": [asdict(one) for one in found]})
    _plot(found)


def _plot(found: list[Found]) -> None:
    """Fidelity against cost, a panel a question; lower left is better."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 6.4), layout="constrained")
    for axes, question in zip(panels, QUESTIONS, strict=True):
        for number, one in enumerate((o for o in found if o.question == question), start=1):
            x, y = 1000 * one.cpu_s, one.frechet
            axes.plot(x, y, "o", color="#1b7f5c", label=f"{number}  {one.method}")
            axes.annotate(str(number), (x, y), xytext=(5, 4), textcoords="offset points")
        axes.set(xscale="log", yscale="log", title=question)
        axes.set(xlabel="CPU ms per image that leaves", ylabel="Fréchet distance")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False,
            handlelength=0, ncols=2,
        )  # fmt: skip
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(OUT / "methods.png", dpi=150)


def _measure(
    folder: Path, methods: dict[str, tuple[str, dict[str, Any]]], n: int
) -> Iterator[Found]:
    document = read_settings(DEFAULT_CONFIG).model_dump()
    document["models"][MODEL]["bundle"] = str(folder)
    document["models"][MODEL]["backbone"]["forward_guidance"] = True
    names = {f"m{number}": name for number, name in enumerate(methods)}
    document["policies"] |= {
        key: {"model": MODEL, "reward": methods[name][0], "max_draws": 1, **methods[name][1]}
        for key, name in names.items()
    }
    data = sevens()
    with LocalService(Settings.model_validate(document), MODEL, calibrated=False) as service:
        evaluation = service.bundle.manifest.evaluation
        assert evaluation is not None
        features = load_features(service.bundle.path(evaluation.features)).features
        for key, name in names.items():
            policy = service.policies[key]
            asked = QUESTIONS[methods[name][0].removesuffix("-single").removesuffix("-union")]
            oracle = load_referee(service.bundle.path(evaluation.oracle), asked)
            shipped = service.bundle.manifest.calibrations[asked.name][0].threshold
            free = replace(policy, judge=None, operating={})
            drawn = survey(service, free, n, seeds.first(seeds.EVALUATION))
            assert policy.judge is not None
            scores = np.array(service.backends.judges.score(policy.judge, list(drawn.pixels)))
            real = features(data.images[~asked.is_malign(data.labels == 1)][..., None])
            yield _row(name, asked.name, drawn, scores >= shipped, oracle, features, real)


def _row(
    name: str, question: str, drawn: Survey, sent: Any, oracle: Referee, features: Any, real: Any
) -> Found:
    malign = oracle.malign(drawn.pixels)
    bad, count = int(malign[sent].sum()), int(sent.sum())
    accepted = count / len(sent)
    return Found(
        method=name.strip(),
        question=question,
        accepted=accepted,
        malign_drawn=float(malign.mean()),
        malign=bad / count,
        malign_high=clopper_pearson_interval(bad, count)[1],
        nfe=drawn.nfe / len(drawn.pixels) / accepted,
        cpu_s=drawn.cpu_s / len(drawn.pixels) / accepted,
        frechet=frechet_distance(features(drawn.pixels[sent]), real),
    )


def _train_the_papers(bundle: Bundle) -> None:
    """Add rewards whose guides are the paper's single and union networks."""
    for question in QUESTIONS:
        _train_the_papers_for(bundle, question)


def _train_the_papers_for(bundle: Bundle, question: str) -> None:
    reward = bundle.manifest.rewards[question]
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    backbone = bundle.manifest.backbone
    generator = Generator(
        OnnxDenoiser(bundle.path(backbone.onnx)),
        NoiseSchedule.from_diffusers(read_config(bundle.folder / backbone.folder)),
        PixelShuffle(backbone.pixel_shuffle),
        bundle.x_t_shape,
    )
    referee = load_referee(bundle.path(evaluation.annotator), QUESTIONS[question])
    labels = reward.guide_labels
    data = view(generator, referee, labels.first_seed, labels.viewed, lambda _: None)
    rarer = min(int(data.benign.sum()), int((~data.benign).sum()))
    for name, per_class in (("single", 10), ("union", min(50, rarer))):
        recipe = replace(TIME_GUIDE, members=1, per_class=per_class)
        noising = (generator.schedule, generator.codec)
        path = bundle.folder.parent / f"{question}-{name}.safetensors"
        train_reward(data.pixels, data.benign, recipe, noising=noising).save(path)
        file = f"guides/{question}-{name}.time.safetensors"
        one = reward.model_copy(update={"guide": file, "distilled": None})

        def add(manifest: Manifest, name: str = name, one: Any = one) -> Manifest:
            rewards = {**manifest.rewards, f"{question}-{name}": one}
            return manifest.model_copy(update={"rewards": rewards})

        bundles.add_files(bundle.folder, {file: path}, add)


if __name__ == "__main__":
    main()
