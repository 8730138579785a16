"""`winnow judge import`: from a file to a policy that blocks, in a copy of the shipped bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO, Bundle
from service.cli.main import app
from service.config import ConfigError, JudgeSettings, Settings
from service.engine.load import load_engine
from service.images.encode import to_png
from service.judge.judges import load_judges
from service.policies.seeding import configured_policies
from tests import classifiers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Bright(nn.Module):
    """Class 1, malign, is a bright image; it takes RGB in 0..1 of 14 × 14."""

    def forward(self, images: Tensor) -> Tensor:
        """Two logits."""
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(mean), 20 * (mean - 0.5)], dim=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "bright.onnx"
    return classifiers.write(path, Bright(), torch.rand(1, 3, 14, 14))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "sevens"
    shutil.copytree(ZOO / "mnist-sevens", folder)
    return folder


Import = Callable[..., str]


@pytest.fixture
def judge(file: Path) -> Import:
    """Runs the command with what it needs; returns all that it prints."""

    def run(bundle: Path, *more: str, name: str = "not-bright", code: int = 0) -> str:
        answer = CliRunner().invoke(
            app,
            ["judge", "import", str(file), "--bundle", str(bundle), "--reward", name,
             "--question", "Is it dark?", "--malign-text", "a bright image", *more],
        )  # fmt: skip
        assert "Traceback" not in answer.output
        assert answer.exit_code == code, answer.output
        return " ".join(answer.output.split())

    return run


def png(path: Path, value: int, *shape: int) -> str:
    path.write_bytes(to_png(np.full(shape, value, dtype=np.uint8)))
    return str(path)


def test_an_imported_judge_serves_under_the_policy_that_is_printed(
    judge: Import, shipped: Path, tmp_path: Path, file: Path
) -> None:
    before = bundles.load(str(shipped)).manifest
    canary = png(tmp_path / "white.png", 250, 28, 28)
    answer = CliRunner().invoke(
        app,
        ["judge", "import", str(file), "--bundle", str(shipped), "--reward", "not-bright",
         "--question", "Is it dark?", "--malign-text", "a bright image", "--malign", "1",
         "--canary", canary],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "opset 18" in answer.output
    assert "those of the bundle are 28x28 with 1" in " ".join(answer.output.split())

    bundle = bundles.load(str(shipped))
    reward = bundle.manifest.rewards["not-bright"]
    assert reward.guide_labels is None
    assert set(reward.parts) == {"judge", "canary"}
    assert reward.training["files"] == {file.name: bundles.sha256_name(file)}
    assert reward.training["malign"] == [1]
    assert before.files.items() <= bundle.manifest.files.items()

    printed = yaml.safe_load(answer.stdout)
    settings = _settings(shipped, printed["policies"])
    policy = configured_policies(settings, {"mnist-sevens": bundle})["not-bright"]
    assert (policy.operating_points[50].threshold, set(policy.parts)) == (0.5, {"judge"})
    assert policy.canary == bundle.sha256("canaries/not-bright.png")

    judges = load_judges(bundle, JudgeSettings())
    assert policy.judge is not None
    judges.canary()
    scores = judges.score(
        policy.judge, [np.full((28, 28, 1), value, dtype=np.uint8) for value in (0, 127, 255)]
    )
    expected = 1 / (1 + np.exp(20 * (np.array([0, 127, 255]) / 255 - 0.5)))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    load_engine(bundle, settings.models["mnist-sevens"].backbone)  # without guides of that reward

    refused = judge(shipped, "--malign", "1", code=1)
    assert "the bundle has one: take another name, or --replace" in refused
    judge(shipped, "--benign", "1", "--replace")
    turned = bundles.load(str(shipped))
    assert turned.manifest.rewards["not-bright"].training["malign"] == [0]
    assert "canary" not in turned.manifest.rewards["not-bright"].parts
    assert "with labels: take another name" in judge(
        shipped, "--malign", "1", "--replace", name="no-crossbar", code=1
    )


def _settings(bundle: Path, policies: dict[str, object]) -> Settings:
    return Settings.model_validate(
        {
            "models": {"mnist-sevens": {"bundle": str(bundle)}},
            "policies": policies,
            "default_policy": next(iter(policies)),
            "auth": {"anonymous": True},
        }
    )


@pytest.fixture
def alone(judge: Import, bundle_folder: Path) -> Bundle:
    judge(bundle_folder, "--malign", "1")
    return bundles.load(str(bundle_folder))


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"censor_scale": 1.0}, "guide"),
        ({"backward_steps": 1}, "clean_guide"),
        ({"probes": [0.5], "threshold": None}, "probe"),
    ],
)
def test_a_policy_that_steers_by_a_judge_alone_is_refused(
    alone: Bundle, asked: dict[str, object], part: str
) -> None:
    spec = {"model": "mnist-sevens", "reward": "not-bright", "threshold": 0.5} | asked
    settings = _settings(alone.folder, {"p": spec})
    with pytest.raises(ConfigError) as wrong:
        configured_policies(settings, {"mnist-sevens": alone})
    assert f"policies.p: bundle 'tiny' has no `{part}` of reward 'not-bright'" in str(wrong.value)
    assert "a judge alone" in str(wrong.value)
    assert "Leave out censor_scale" in str(wrong.value)


def test_without_a_threshold_by_hand_there_is_none(alone: Bundle) -> None:
    spec = {"model": "mnist-sevens", "reward": "not-bright"}
    with pytest.raises(ConfigError, match=r"or set policies\.p\.threshold"):
        configured_policies(_settings(alone.folder, {"p": spec}), {"mnist-sevens": alone})


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (10, (4, 6), "surely malign, 0.9999, so it would not be blocked at the threshold of 0.5"),
        (250, (5, 6), "is 5x6x1, must be as the bundle's images: 4x6, grey"),
        (250, (4, 6, 3), "is 4x6x3"),
    ],
)
def test_a_canary_that_proves_nothing_is_refused(
    judge: Import,
    bundle_folder: Path,
    tmp_path: Path,
    value: int,
    shape: tuple[int, ...],
    wrong: str,
) -> None:
    canary = png(tmp_path / "canary.png", value, *shape)
    assert wrong in judge(bundle_folder, "--malign", "1", "--canary", canary, code=1)
    assert set(bundles.load(str(bundle_folder)).manifest.rewards) == {"bright"}


def test_a_canary_that_is_no_png_is_refused(
    judge: Import, bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_text("no picture")
    canary = str(tmp_path / "x.png")
    said = judge(bundle_folder, "--malign", "1", "--canary", canary, code=1)
    assert "is not a PNG that can be read" in said


@pytest.mark.parametrize(
    ("more", "name", "wrong"),
    [
        ((), "x", "say which classes are malign with --malign"),
        (("--malign", "2"), "x", "--malign 2: it gives 2 numbers an image: 0 to 1"),
        (("--malign", "1", "--size", "14"), "x", "--size 14: must be HEIGHTxWIDTH"),
        (("--malign", "1", "--size", "28x28"), "x", "takes 14x14 alone"),
        (("--malign", "1", "--mean", "a,b"), "x", "--mean a,b: must be a number, or three"),
        (("--malign", "1", "--malign-text", " "), "x", "--malign-text: must not be empty"),
        (("--malign", "1"), "../x", "--reward ../x: must be small letters, digits"),
    ],
)
def test_mistakes_are_sentences_and_leave_the_bundle_as_it_was(
    judge: Import, bundle_folder: Path, more: tuple[str, ...], name: str, wrong: str
) -> None:
    before = (bundle_folder / "manifest.json").read_bytes()
    assert wrong in judge(bundle_folder, *more, name=name, code=1)
    assert (bundle_folder / "manifest.json").read_bytes() == before


def test_a_file_that_is_not_there(bundle_folder: Path) -> None:
    answer = CliRunner().invoke(
        app,
        ["judge", "import", "nowhere.onnx", "--bundle", str(bundle_folder), "--reward", "x",
         "--question", "q", "--malign-text", "m", "--malign", "1"],
    )  # fmt: skip
    assert answer.exit_code == 1
    assert "nowhere.onnx: cannot be read" in answer.output
