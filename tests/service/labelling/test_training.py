"""A whole training on a toy problem: parts, card, sides, warm start, cancelling."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from models.bundles.bundle import sha256_name
from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Named
from models.diffusion.method import Method
from models.offline.generator import Generator
from models.onnx.export import export_graph
from models.onnx.preprocessing import PreparationOptions
from models.rewards.onnx_judge import OnnxJudge
from models.rewards.platt import fold
from models.rewards.pretrained_features import make_features
from service.labelling import judge_training, progress
from service.labelling.examples import JUDGE_SHARE, MEMBERS, Example, refuse_too_few, sides, split
from service.labelling.judge_training import FEW_JUDGE, refit
from service.labelling.recipe import Recipe
from service.labelling.reward_card import auc
from service.labelling.training import Hyperparameters, Trained, train
from service.store.jobs import Cancelled
from tests.engines import make_schedule
from tests.trainings import quick

SIZE = 12
METHOD = Method(num_inference_steps=4, probes=(0.5,))
STEERED = Method(num_inference_steps=3, censor_scale=1.0)


def denoise(x_t: Tensor, timestep: Tensor, inputs: Named | None = None) -> Tensor:
    """A backbone that takes most of what it sees for noise: its draws are grey."""
    return 0.9 * x_t


GENERATOR = Generator(
    denoise, make_schedule(clip_sample=True), PixelShuffle(2), (4, SIZE // 2, SIZE // 2)
)


def images(n: int, seed: int = 0, start: int = 0) -> list[Example]:
    """Bright bars, upright (benign) or level (malign, every third)."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(start, start + n):
        pixels = rng.integers(0, 60, (SIZE, SIZE, 1)).astype(np.uint8)
        at = rng.integers(3, 8)
        malign = i % 3 == 0
        if malign:
            pixels[at : at + 2, 1:-1] = 255
        else:
            pixels[1:-1, at : at + 2] = 255
        found.append(Example(f"image-{i}", pixels, "malign" if malign else "benign", 1.0, "random"))
    return found


QUICK = quick(judge=25, guide=5, pool=20)


def run(
    examples: list[Example],
    recipe: Recipe | None = None,
    methods: Mapping[int, Method] | None = None,
    warm_start: Mapping[str, bytes] | None = None,
    features: Path | None = None,
    hyperparameters: Hyperparameters = QUICK,
) -> Trained:
    return train(
        examples, recipe or Recipe("p"), GENERATOR, (SIZE, SIZE, 1), methods or {4: METHOD},
        lambda stage, fraction: None, warm_start, features, hyperparameters,
    )  # fmt: skip


@pytest.fixture(scope="module")
def forty() -> Callable[[], Trained]:
    """The reward of `images(40)`, trained once: exports take seconds."""
    return functools.cache(lambda: run(images(40)))


@pytest.mark.slow
def test_a_training_gives_parts_that_run_and_a_card_that_is_json(
    forty: Callable[[], Trained], tmp_path: Path
) -> None:
    found = forty()
    assert set(found.files) == {"judge", "canary", "control", "clean_guide", "probe"}
    (tmp_path / "judge").write_bytes(found.files["judge"])
    fresh = images(40, seed=9)
    scores = OnnxJudge(tmp_path / "judge").score(np.stack([e.pixels for e in fresh]))
    malign = np.array([e.malign for e in fresh])
    assert scores[~malign].min() > scores[malign].max()
    card = json.loads(json.dumps(found.card))
    assert card["labels"] == {"benign": 26, "malign": 14, "unsure": 0}
    assert set(card["split"]["judge"]).isdisjoint(card["split"]["guide"])
    assert len(card["split"]["judge"]) + len(card["split"]["guide"]) == 40
    assert card["auc"] > 0.9
    entry = card["calibrations"]["4"]
    assert len(entry["probe_thresholds"]) == 1
    assert 0 < entry["threshold"] < 1
    assert set(card["seconds"]) == {"judge", "clean_guide", "calibration, 4 steps"}


@pytest.mark.slow
def test_the_same_labels_and_seed_give_the_same_networks_and_another_seed_others(
    forty: Callable[[], Trained],
) -> None:
    first, again = forty(), run(images(40))
    assert first.files["judge"] == again.files["judge"]
    weights, others = (load(made.files["clean_guide"]) for made in (first, again))
    assert weights.keys() == others.keys()
    assert all(bool((weights[name] == others[name]).all()) for name in weights)
    assert first.card["calibrations"] == again.card["calibrations"]
    assert run(images(40), Recipe("p", seed=1)).files["judge"] != first.files["judge"]


@pytest.mark.slow
def test_guide_and_judge_share_no_label_and_keep_their_sides_when_going_on(
    forty: Callable[[], Trained],
) -> None:
    before = forty()
    later = run(images(40) + images(35, seed=2, start=40), warm_start=before.files)
    for side in ("judge", "guide"):
        assert set(before.card["split"][side]) <= set(later.card["split"][side])
    # Without what the files say, some would have changed sides: the test could fail.
    fresh = run(images(40) + images(35, seed=2, start=40))
    assert not set(before.card["split"]["judge"]) <= set(fresh.card["split"]["judge"])


@pytest.mark.slow
def test_going_on_starts_from_the_older_weights(forty: Callable[[], Trained]) -> None:
    before = forty()
    still = replace(QUICK, judge=replace(QUICK.judge, learning_rate=0.0))
    gone_on = run(images(40), warm_start=before.files, hyperparameters=still)
    assert gone_on.card["auc"] > 0.9
    fresh = run(images(40), hyperparameters=still)
    assert fresh.card["auc"] < 0.9, "weights that never moved know nothing"


@pytest.mark.slow
def test_a_judge_that_goes_on_is_measured_on_labels_that_it_never_saw() -> None:
    # Labels that mean nothing: whoever scores them well has seen them.
    few = replace(FEW_JUDGE, iterations=150, widths=(8, 8, 16, 16),
                  rotation_degrees=0, shift=0, scale=0)  # fmt: skip
    rng = np.random.default_rng(3)
    labels = [
        replace(e, pixels=rng.integers(0, 256, (SIZE, SIZE, 1)).astype(np.uint8))
        for e in images(180)
    ]
    malign = np.array([e.malign for e in labels])
    started, first = judge_training.train_judge(labels[61:], few)
    _, resumed = judge_training.train_judge(labels, few, started)
    assert 0.38 < auc(first, malign[61:], np.ones(119)) < 0.62
    found = auc(resumed, malign, np.ones(180))
    assert found < 0.62


@pytest.mark.slow
def test_a_judge_with_other_folds_is_not_gone_on_from(
    forty: Callable[[], Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = forty()
    assert before.card["resumed"] is False
    assert run(images(40), warm_start=before.files).card["resumed"] is True
    monkeypatch.setattr(judge_training, "FOLDS", "as the labels lie")
    later = run(images(40), warm_start=before.files)
    assert later.card["resumed"] is False


def test_both_sides_get_their_share_of_each_class() -> None:
    judged, guided = split(images(60), 0.75, {})
    assert (sum(e.malign for e in judged), len(judged)) == (15, 45)
    assert (sum(e.malign for e in guided), len(guided)) == (5, 15)


def _named(folds: Sequence[int], count: int) -> list[str]:
    """So many ids whose labels are kept from these members alone."""
    fitting = (name for i in range(10_000) if fold(name := f"blob-{i}", MEMBERS) in folds)
    return list(itertools.islice(fitting, count))


def test_what_would_leave_the_judges_labels_in_one_fold_is_parted_otherwise() -> None:
    benign = dict.fromkeys(_named((1, 2, 3), 40), False)
    for seed in range(20):
        # Five malign ones, four of them in one fold: the judge of a guided reward gets two.
        names = [*_named((0,), 4 + seed)[seed:], _named((4,), 1)[0]]
        malign = benign | dict.fromkeys(names, True)
        for share in JUDGE_SHARE.values():
            refuse_too_few(malign, share, {})
            side = sides(malign, share, {})
            assert len({fold(name, MEMBERS) for name in names if side[name] == "judge"}) == 2


@pytest.mark.parametrize(
    ("names", "known", "lacks"),
    [
        (
            _named(range(5), 3),
            {},
            "3 malign images are labelled: label at least 2 more malign",
        ),
        (_named((2,), 6), {}, "label at least 1 more malign"),
        (_named(range(5), 6), dict.fromkeys(_named(range(5), 6), "guide"), "least 2 more malign"),
        (_named(range(5), 6), dict.fromkeys(_named(range(5), 6), "judge"), "least 1 more malign"),
    ],
)
def test_too_few_labels_are_refused_with_how_many_more(
    names: list[str], known: dict[str, str], lacks: str
) -> None:
    benign = [name for name in _named(range(5), 60) if name not in names]
    malign = dict.fromkeys(benign, False) | dict.fromkeys(names, True)
    for share in JUDGE_SHARE.values():
        with pytest.raises(ValueError, match=lacks):
            refuse_too_few(malign, share, known)


def test_a_training_refuses_them_too() -> None:
    few = [e for e in images(40) if not e.malign] + [e for e in images(40) if e.malign][:4]
    with pytest.raises(ValueError, match="label at least 1 more malign ones"):
        run(few)


@pytest.mark.slow
def test_a_steered_policy_needs_its_guide_and_is_calibrated_on_its_own_draws() -> None:
    methods = {3: STEERED, 4: METHOD}
    without = run(images(40), methods=methods)
    assert set(without.card["calibrations"]) == {"4"}
    assert "guide" in without.card["not_calibrated"]["3"]
    with_guide = run(images(40), Recipe("p", guide=True), methods)
    assert set(with_guide.card["calibrations"]) == {"3", "4"}
    assert "guide" in with_guide.files


class Rows(nn.Module):
    """Features that know where an image is bright, and nothing else of use."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 2·SIZE]."""
        return torch.cat([images.mean(dim=(1, 2)), images.mean(dim=(1, 3))], dim=1)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    export_graph(Rows(), (torch.zeros(2, 1, SIZE, SIZE),), ["x"], "y", folder / "rows.onnx")
    wanted = PreparationOptions(layout="NCHW")
    make_features(folder / "rows.onnx", (SIZE, SIZE, 1), wanted, folder / "features.onnx")
    return folder / "features.onnx"


@pytest.mark.slow
def test_a_judge_on_features_is_a_judge_like_any_other(seen: Path, tmp_path: Path) -> None:
    recipe = Recipe("p", features="rows")
    found = run(images(40), recipe, features=seen)
    assert set(found.files) == {"judge", "canary", "control", "clean_guide", "probe"}
    (tmp_path / "judge").write_bytes(found.files["judge"])
    judge = OnnxJudge(tmp_path / "judge")
    fresh = images(40, seed=9)
    malign = np.array([e.malign for e in fresh])
    scores = judge.score(np.stack([e.pixels for e in fresh]))
    assert auc(scores, malign, np.ones(40)) > 0.97
    assert found.card["auc"] > 0.9
    assert found.card["recipe"]["features"] == "rows"
    metadata = judge.session.get_modelmeta().custom_metadata_map
    assert metadata["features"] == sha256_name(seen)
    assert metadata["folds"] == judge_training.FOLDS
    assert json.loads(metadata["labels"]) == found.card["split"]["judge"]
    assert found.card["calibrations"]["4"]["threshold"] > 0

    # More labels: every image stays on its side, whatever the judge learns on.
    more = run(images(60), recipe, warm_start=found.files, features=seen)
    assert more.card["resumed"]
    assert set(found.card["split"]["judge"]) <= set(more.card["split"]["judge"])
    scratch = run(images(60), warm_start=found.files)
    assert scratch.card["split"] == more.card["split"]


def test_features_and_their_file_belong_together(seen: Path) -> None:
    for recipe, file in ((Recipe("p"), seen), (Recipe("p", features="rows"), None)):
        with pytest.raises(ValueError, match="give both, or none"):
            run(images(40), recipe, features=file)


@pytest.mark.slow
def test_unsure_counts_as_malign_and_too_few_of_a_class_are_refused() -> None:
    labels = [replace(e, label="unsure") if e.malign else e for e in images(40)]
    assert run(labels).card["labels"]["unsure"] == 14
    with pytest.raises(ValueError, match="4 malign images are labelled: label at least 1 more"):
        run(images(12))


def test_bad_examples_are_refused_by_name() -> None:
    labels = images(30)
    with pytest.raises(ValueError, match="labelled twice"):
        run([*labels, labels[0]])
    with pytest.raises(ValueError, match="image-0: inclusion 0"):
        run([replace(labels[0], inclusion=0.0), *labels[1:]])
    with pytest.raises(ValueError, match="image-0 is"):
        run([replace(labels[0], pixels=labels[0].pixels[:6]), *labels[1:]])


@pytest.mark.slow
def test_progress_rises_to_one_and_cancelling_stops_and_gives_threads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[float] = []
    before = torch.get_num_threads()
    threads = 1 if before > 1 else 2
    recipe = Recipe("p", threads=threads)

    def listen(stage: str, fraction: float) -> None:
        assert torch.get_num_threads() == threads
        heard.append(fraction)
        if limit is not None and len(heard) == limit:
            raise Cancelled

    monkeypatch.setattr(progress, "REPORT_S", 0.0)
    limit, shape = None, (SIZE, SIZE, 1)
    train(images(30), recipe, GENERATOR, shape, {4: METHOD}, listen, hyperparameters=QUICK)
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1)
    heard.clear()
    limit = 7
    with pytest.raises(Cancelled):
        train(images(30), recipe, GENERATOR, shape, {4: METHOD}, listen, hyperparameters=QUICK)
    assert torch.get_num_threads() == before


def test_a_recipe_is_json_and_refuses_unknown_keys() -> None:
    recipe = Recipe("p", target=0.02, guide=True, seed=3)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(ValueError, match="colour"):
        Recipe.from_json(recipe.to_json() | {"colour": "red"})


def test_a_refitted_reward_tells_benign_from_malign() -> None:
    score = refit(images(40))
    fresh = images(30, seed=5)
    found = score(np.stack([e.pixels for e in fresh]))
    malign = np.array([e.malign for e in fresh])
    assert ((found > 0) & (found < 1)).all()
    assert found[~malign].mean() > found[malign].mean() + 0.3
