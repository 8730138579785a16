"""What cannot say no becomes no judge: real files, through `winnow judge import` and the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO, hash_files
from models.bundles.parts import IMAGES
from models.rewards.onnx_judge import OnnxJudge
from service.cli.main import app
from service.config import JudgeSettings
from service.errors import CensorUnavailable
from service.images.encode import from_png, to_png
from service.judge.judges import load_judges
from tests import classifiers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZE = 14


class Net(nn.Module):
    """What it is given, made of each image's brightness [B], and of a convolution of the images."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 22, 3, padding=1)
        self.make = make

    def forward(self, images: Tensor) -> Tensor:
        """Whatever `make` gives."""
        return self.make(images.mean(dim=(1, 2, 3)), self.conv(images))


def two(logit: Tensor) -> Tensor:
    """Class 1, malign, has this logit."""
    return torch.stack([torch.zeros_like(logit), logit], dim=1)


def bright(mean: Tensor, seen: Tensor) -> Tensor:
    """Bright images are malign."""
    return two(20 * (mean - 0.5))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "sevens"
    shutil.copytree(ZOO / "mnist-sevens", folder)
    return folder


def winnow(*arguments: object, code: int = 0) -> str:
    answer = CliRunner().invoke(app, [str(one) for one in arguments])
    assert "Traceback" not in answer.output
    assert answer.exit_code == code, answer.output
    return " ".join(answer.output.split())


def import_(file: Path, bundle: Path, *more: object, code: int = 0, reward: str = "x") -> str:
    return winnow(
        "judge", "import", file, "--bundle", bundle, "--reward", reward,
        "--question", "Is it?", "--malign-text", "a thing", *more, code=code,
    )  # fmt: skip


def export(path: Path, make: Callable[[Tensor, Tensor], Tensor], **options: object) -> Path:
    return classifiers.write(path, Net(make), torch.rand(2, 3, SIZE, SIZE), **options)


def grey(path: Path, value: int) -> Path:
    path.write_bytes(to_png(np.full((28, 28, 1), value, dtype=np.uint8)))
    return path


SHAPES: list[tuple[str, Callable[[Tensor, Tensor], Tensor], str]] = [
    ("detector", lambda m, x: x.flatten(2), r"is [batch, 22, 196], of a detector"),
    ("tokens", lambda m, x: x.flatten(2).transpose(1, 2), "[batch, 196, 22], of a detector, which"),
    ("boxes", lambda m, x: x[:, :6].flatten(2)[:, :, :1], "is [batch, 6, 1], of a detector"),
    ("segmenter", lambda m, x: x, "is [batch, 22, 14, 14], of a segmenter"),
    ("rows", lambda m, x: x.mean(dim=3, keepdim=True), "is [batch, 22, 14, 1], of a segmenter"),
    ("five", lambda m, x: x[..., None], "is [batch, 22, 14, 14, 1], of no classifier"),
    (
        "turned",
        lambda m, x: bright(m, x).T,
        "must be [batch, ...], one row an image, and is [2, 1]",
    ),
    ("all", lambda m, x: bright(m, x).mean(dim=0, keepdim=True), "it must give one row an image"),
    ("scalar", lambda m, x: m.mean(), "must be [batch, ...], one row an image"),
    ("labels", lambda m, x: bright(m, x).argmax(dim=1), "gives int64, must give floating-point"),
    ("bools", lambda m, x: bright(m, x) > 0, "gives bool, must give floating-point"),
]


@pytest.mark.parametrize(("name", "make", "wrong"), SHAPES, ids=[one[0] for one in SHAPES])
def test_what_gives_no_row_of_class_numbers_is_refused_for_what_it_is(
    bundle: Path, tmp_path: Path, name: str, make: Callable[[Tensor, Tensor], Tensor], wrong: str
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    said = import_(export(tmp_path / f"{name}.onnx", make), bundle, "--malign", 0, code=1)
    assert wrong in said
    assert (bundle / "manifest.json").read_bytes() == before


SCORES: list[tuple[str, Callable[[Tensor, Tensor], Tensor], tuple[str, ...], str]] = [
    ("constant", lambda m, x: two(0 * m + 3), (), "images the same numbers, so it cannot judge"),
    ("nearly", lambda m, x: two(1e-9 * m - 3), (), "images the same numbers"),
    ("all-pass", lambda m, x: two(m - 40), (), "images 1 to 1: nothing shows that it tells malign"),
    ("all-fail", lambda m, x: two(m + 40), (), "nothing shows that it tells malign from benign"),
    ("a-hair", lambda m, x: two(0.01 * m - 3), (), "nothing shows that it tells malign from"),
    ("flat-detector", lambda m, x: x.flatten(1), (), "images 0.99"),
    ("embedding", lambda m, x: 0.3 * x.flatten(1)[:, :768], (), "nothing shows that it tells"),
    ("softmax", lambda m, x: two(m - 8).softmax(1), ("--activation", "probabilities"),
     "nothing shows that it tells malign from benign"),
    ("white-alone", lambda m, x: two(m - 40 * (m > 0.01)), (), "5 images 1 to 1: nothing shows"),
    ("hard", lambda m, x: two(200 * (m - 0.01)), (), "nothing shows that it tells malign"),
    ("but-black", lambda m, x: two(2 * (m - 0.5) - 4 * (m > 0.01)), (),
     "nothing shows that it can say no: what it was tried on scores 0.9"),
    ("never-no", lambda m, x: two(m - 3), (), "nothing shows that it can say no: what it was"),
    ("never-yes", lambda m, x: two(3 - m), (), "nothing shows that it can say yes"),
    ("nan", lambda m, x: two(m / (m - m)), (), "not finite"),
    ("nan-for-white", lambda m, x: two(20 * (m - 0.5) / (m < 0.99)), (), "not finite"),
    ("neighbours", lambda m, x: two(20 * (m - m.mean())), (), "with what else is in its batch"),
    ("last", lambda m, x: two(20 * (m - 0.5) + m[-1]), (), "with what else is in its batch"),
    ("place", lambda m, x: two(20 * (m - 0.5) + torch.cumsum(m * 0 + 1, 0)), (),
     "with what else is in its batch"),
    ("among-all", lambda m, x: two(20 * (m - 0.5)).softmax(0), (),
     "with what else is in its batch"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "more", "wrong"), SCORES, ids=[one[0] for one in SCORES])
def test_what_tells_no_image_apart_is_refused(
    bundle: Path,
    tmp_path: Path,
    name: str,
    make: Callable[[Tensor, Tensor], Tensor],
    more: tuple[str, ...],
    wrong: str,
) -> None:
    said = import_(export(tmp_path / f"{name}.onnx", make), bundle, "--malign", 1, *more, code=1)
    assert wrong in said
    assert "x" not in bundles.load(str(bundle)).manifest.rewards


def test_an_output_that_grows_with_what_is_found_is_a_detectors(
    bundle: Path, tmp_path: Path
) -> None:
    def found(mean: Tensor, seen: Tensor) -> Tensor:
        return seen.flatten(1)[:, (seen.flatten(1) > 0.5).any(dim=0)]

    path = export(tmp_path / "found.onnx", found)
    said = import_(path, bundle, "--malign", 0, code=1)
    assert "for another: a detector's, which finds now more, now less" in said


def test_what_is_a_judge_is_still_taken_in_each_form(bundle: Path, tmp_path: Path) -> None:
    for number, (make, more) in enumerate(
        [
            (bright, ()),
            (lambda m, x: bright(m, x)[:, :, None, None], ()),
            (lambda m, x: 20 * (m - 0.5), ()),
        ]
    ):
        malign = 1 if number < 2 else 0
        path = export(tmp_path / f"{number}.onnx", make)
        import_(path, bundle, "--malign", malign, *more, reward=f"form-{number}")
        judge = OnnxJudge(bundle / f"judges/form-{number}.onnx")
        scores = judge.score(np.stack([np.full((28, 28, 1), v, np.uint8) for v in (0, 255)]))
        np.testing.assert_allclose(scores, [1, 0], atol=1e-3)


def test_a_canary_shows_what_a_trial_does_not(bundle: Path, tmp_path: Path) -> None:
    """It rejects images of one brightness alone, and none of the trial has that."""

    def picky(mean: Tensor, seen: Tensor) -> Tensor:
        return two(10 - 400 * (mean - 0.3).abs())

    path = export(tmp_path / "picky.onnx", picky)
    said = import_(path, bundle, "--malign", 1, code=1, reward="picky")
    assert "--canary" in said
    canary = grey(tmp_path / "c.png", round(0.3 * 255))
    said = import_(path, bundle, "--malign", 1, "--canary", canary, reward="picky")
    assert "Its canary, which is surely malign, scores 0.000." in said
    assert "NO CANARY" not in said


def test_a_label_map_that_is_turned_round_is_found_by_a_canary_or_a_control(
    bundle: Path, tmp_path: Path
) -> None:
    path = export(tmp_path / "bright.onnx", bright)
    white, black = grey(tmp_path / "white.png", 255), grey(tmp_path / "black.png", 0)
    for option, image, wrong in (
        ("--canary", white, "it scores its canary, an image that is surely malign, 1"),
        ("--control", black, "it scores its control, an image that is surely benign, 4.54e-05"),
    ):
        said = import_(path, bundle, "--malign", 0, option, image, code=1, reward="turned")
        assert wrong in said
        assert "benign and malign may be turned round" in said
    said = import_(
        path, bundle, "--malign", 1, "--canary", white, "--control", black, "--threshold", 0.3,
        reward="turned",
    )  # fmt: skip
    assert "threshold: 0.3" in said
    reward = bundles.load(str(bundle)).manifest.rewards["turned"]
    images = {part: reward.parts.get(part) for part in IMAGES}
    assert images == {"canary": "canaries/turned.png", "control": "controls/turned.png"}


@pytest.fixture
def configured(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A configuration file with one policy, `p`, over a copy of the bundle."""
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)

    def write(reward: str, **policy: object) -> Path:
        config = yaml.safe_load(Path("deploy/local.yaml").read_text())
        spec = {"model": "m", "reward": reward, "threshold": 0.5, "max_draws": 4} | policy
        args = config["applications"][0]["args"]
        little = {"ray_actor_options": {"num_cpus": 0.1}}
        args |= {
            "models": {"m": {"bundle": str(folder), "judge": {"replicas": little}}},
            "policies": {"p": spec},
            "default_policy": "p",
        }
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def hand_made(folder: Path, judge: nn.Module, reward: str, **parts: str) -> None:
    """A judge in a bundle as somebody might write it there, with hashes that fit."""
    path = folder / f"judges/{reward}.onnx"
    torch.onnx.export(
        judge.eval(), (torch.zeros(2, 28, 28, 1, dtype=torch.uint8),), path, dynamo=False,
        input_names=["pixels"], output_names=["logit"],
        dynamic_axes={"pixels": {0: "n"}, "logit": {0: "n"}},
    )  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["rewards"][reward] = {
        "question": "?",
        "malign": "a thing",
        "parts": {"judge": f"judges/{reward}.onnx"} | parts,
        "training": {},
    }
    manifest["files"] = {name: file.model_dump() for name, file in hash_files(folder).items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


class ByHand(nn.Module):
    """A judge of pixels by a function of their brightness in 0..1."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, pixels: Tensor) -> Tensor:
        """The logit."""
        return self.make(pixels.float().mean(dim=(1, 2, 3)) / 255)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda m: 0 * m + 12, "scores every image of its trial 1: it tells nothing apart"),
        (lambda m: 60 + 9 * m, "scores every image of its trial 1: it tells nothing apart"),
        (lambda m: m - m.mean(), "change by"),
        (lambda m: m / (m - m), "not finite"),
        (lambda m: torch.stack([m, m], dim=1), "where one score in [0, 1] an image is due"),
        (lambda m: m.mean().reshape(1), "it must give one row an image"),
    ],
)
def test_a_bundle_that_was_written_by_hand_does_not_slip_past_the_start(
    configured: Callable[..., Path], tmp_path: Path, make: Callable[[Tensor], Tensor], wrong: str
) -> None:
    hand_made(tmp_path / "copy", ByHand(make), "by-hand")
    said = winnow("config", "check", configured("by-hand"), code=1)
    assert "policies.p.reward: judge 'by-hand' of bundle 'mnist-sevens'" in said
    assert wrong in said
    with pytest.raises(CensorUnavailable, match="judge 'by-hand' of bundle"):
        load_judges(bundles.load(str(tmp_path / "copy")), JudgeSettings())


@pytest.mark.parametrize(
    ("threshold", "wrong"),
    [
        (0.05, "nothing shows that it can say no: what it was tried on scores 0."),
        (1e-300, "nothing shows that it can say no"),
        (0.5, None),
        (0.999999, "nothing shows that it can say yes: what it was tried on scores 0.1192 to"),
    ],
)
def test_a_threshold_outside_the_range_of_the_scores_does_not_start(
    configured: Callable[..., Path], tmp_path: Path, threshold: float, wrong: str | None
) -> None:
    hand_made(tmp_path / "copy", ByHand(lambda m: 4 * m - 2), "by-hand")
    config = configured("by-hand", threshold=threshold)
    said = winnow("config", "check", config, code=0 if wrong is None else 1)
    assert (wrong or "fine") in said


def test_examples_that_contradict_the_judge_do_not_start(
    configured: Callable[..., Path], tmp_path: Path
) -> None:
    """As after a change of the judge's file beside a canary that stayed."""
    folder = tmp_path / "copy"
    (folder / "canaries").mkdir(exist_ok=True)
    grey(folder / "canaries/by-hand.png", 255)
    judge = ByHand(lambda m: 4 * m - 2)
    hand_made(folder, judge, "by-hand", canary="canaries/by-hand.png")
    said = winnow("config", "check", configured("by-hand"), code=1)
    assert "it scores its canary, an image that is surely malign, 0.8808" in said
    hand_made(folder, judge, "by-hand", control="canaries/by-hand.png")
    winnow("config", "check", configured("by-hand"))
    said = winnow("config", "check", configured("by-hand", threshold=0.9), code=1)
    assert "it scores its control, an image that is surely benign, 0.8808" in said


def test_a_canary_is_made_by_a_command_and_given_by_another(
    configured: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    path = export(tmp_path / "bright.onnx", bright)
    said = import_(path, folder, "--malign", 1, reward="late")
    assert "IT HAS NO CANARY" in said
    assert "winnow judge canary --bundle" in said
    wide = np.zeros((60, 90, 3), dtype=np.uint8)
    wide[:, 15:75] = [250, 255, 255]
    (tmp_path / "wide.png").write_bytes(to_png(wide))
    made = tmp_path / "made"
    winnow("judge", "images", "--bundle", folder, "--out", made, tmp_path / "wide.png",
           "--reward", "late")  # fmt: skip
    (fitted,) = made.glob("*.png")
    assert fitted.name.startswith("0.0000")
    assert (from_png(fitted.read_bytes())[:, 1:-1] >= 250).all()
    wrong = winnow(
        "judge", "canary", "--bundle", folder, "--reward", "late", "--control", fitted, code=1
    )
    assert "it scores its control" in wrong
    said = winnow("judge", "canary", "--bundle", folder, "--reward", "late", "--canary", fitted)
    assert "canaries/late.png: the judge scores it" in said
    reward = bundles.load(str(folder)).manifest.rewards["late"]
    assert reward.parts["canary"] == "canaries/late.png"
    assert "control" not in reward.parts
    winnow("config", "check", configured("late"))


def test_draws_of_the_bundles_own_model_are_sorted_by_score(bundle: Path, tmp_path: Path) -> None:
    made = tmp_path / "draws"
    winnow(
        "judge", "images", "--bundle", bundle, "--out", made, "--reward", "no-crossbar",
        "--n", 5, "--steps", 4,
    )  # fmt: skip
    names = sorted(path.name for path in made.iterdir())
    judge = OnnxJudge(bundle / "judges/no-crossbar.onnx")
    pixels = [from_png((made / name).read_bytes()) for name in names]
    scores = [float(name.partition("-")[0]) for name in names]
    np.testing.assert_allclose(judge.score(np.stack(pixels)), scores, atol=1e-6)
    assert len(scores) == 5
    for more, wrong in (
        (("--out", made), "is there already"),
        (("--out", tmp_path / "y", "--prompt", "a"), "takes none"),
        (("--out", tmp_path / "y", "--class-label", 1), "no such class"),
        (("--out", tmp_path / "y", "--reward", "z"), "--reward z: bundle 'mnist-sevens' has "),
    ):
        assert wrong in winnow("judge", "images", "--bundle", bundle, *more, code=1)


def test_features_that_are_the_same_for_every_image_are_refused(
    bundle: Path, tmp_path: Path
) -> None:
    path = export(tmp_path / "flat.onnx", lambda m, x: 0 * x.mean(dim=(2, 3)) + 1)
    onnx.checker.check_model(str(path))
    said = winnow("features", "import", path, "--bundle", bundle, "--name", "flat", code=1)
    assert "is the same for every image of a trial: there is nothing to learn on" in said
