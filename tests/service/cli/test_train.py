"""`winnow train`: every step at toy size, in the order in which `make zoo` takes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import zeros
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.rewards.onnx_judge import OnnxJudge
from models.zoo.evaluation.referees import load_referee
from models.zoo.evaluation.viewed import load_viewed
from models.zoo.questions import QUESTIONS
from models.zoo.work_folder import Build, write_record
from service.cli.main import app
from tests.models.zoo.test_mnist import idx

SHIPPED = bundles.find("mnist-sevens")


def winnow(*command: str | Path) -> str:
    result = CliRunner().invoke(app, ["train", *map(str, command)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def work(tmp_path: Path) -> Build:
    """A work folder with the shipped backbone and referees, and no rewards yet."""
    work = Build(tmp_path / "build")
    shutil.copytree(SHIPPED / "backbone", work.backbone, ignore=shutil.ignore_patterns("*.onnx"))
    shutil.copyfile(SHIPPED / "backbone/unet.int8.onnx", work.int8)
    write_record(work.int8.with_suffix(".json"), {"command": "winnow train export"})
    shutil.copytree(SHIPPED / "evaluation", work.evaluation)
    write_record(work.evaluation / "referees.json", {"command": "winnow train referees"})
    metadata = {"step": "5", "recipe": '{"steps": 9}'}
    save_file({"a": zeros(1)}, work.checkpoint, metadata=metadata)
    return work


def test_a_backbone_is_trained_goes_on_and_is_exported(tmp_path: Path) -> None:
    work = Build(tmp_path)
    winnow("backbone", "--build", tmp_path, "--steps", "1", "--threads", "1")
    assert work.backbone_training()["steps_done"] == 1
    winnow("backbone", "--build", tmp_path, "--steps", "1", "--threads", "1")
    assert "another recipe" in _refused("backbone", "--build", tmp_path, "--steps", "2")
    said = winnow("export", "--build", tmp_path, "--samples", "32")
    assert "relative error" in said
    record = json.loads(work.int8.with_suffix(".json").read_text())
    assert record["calibration_inputs"] == 32
    assert record["relative_error"]["fp32"] < 1e-3 < record["relative_error"]["int8"] < 0.5


def test_referees_and_features_learn_real_digits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (130, 28, 28), dtype=np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        labels = np.arange(130, dtype=np.uint8) % 10
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    winnow("referees", "--digits", tmp_path, "--build", tmp_path / "b", "--iterations", "60")
    made = Build(tmp_path / "b").evaluation
    record = json.loads((made / "referees.json").read_text())
    assert record["recipe"]["iterations"] == 60
    # Real sevens are easy: 60 steps are better than calling none of them crossed.
    assert max(record[name]["error"] for name in ("annotator", "oracle")) < 0.13
    assert load_referee(made / "oracle.safetensors").ensemble.config.members == 2


def test_a_reward_is_drawn_labelled_trained_and_packed(work: Build, tmp_path: Path) -> None:
    few = ("--viewed", "80", "--effort", "0.01", "--num-inference-steps", "4")
    said = winnow("rewards", "--build", work.folder, "--reward", "no-crossbar", *few)
    assert "looked at 80 images" in said
    pack = ("pack", "--build", work.folder, "--out", tmp_path / "mnist-sevens")
    assert "winnow train rewards --reward only-crossbar" in _refused(*pack)
    # The other one, as it ships: it was drawn and labelled by the same networks.
    shipped = bundles.load("mnist-sevens").manifest.rewards["only-crossbar"]
    folder = work.reward("only-crossbar")
    write_record(folder / "reward.json", shipped.model_dump(mode="json"))
    for file in shipped.parts.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SHIPPED / file, folder / file)

    winnow(*pack)
    packed = bundles.load(str(tmp_path / "mnist-sevens"))
    reward = packed.manifest.rewards["no-crossbar"]
    assert set(reward.parts) == {
        "judge", "guide", "clean_guide", "distilled", "probe", "canary", "control",
    }  # fmt: skip
    assert reward.question == QUESTIONS["no-crossbar"].text
    assert reward.judge_labels is not None
    assert reward.guide_labels is not None
    assert reward.judge_labels.viewed + reward.guide_labels.viewed == 80
    assert min(reward.judge_labels.malign, reward.guide_labels.benign) > 0
    assert reward.training["denoiser"] == bundles.sha256_name(work.int8)
    judge = OnnxJudge(packed.path(reward.parts["judge"]))
    assert judge.score(np.zeros((1, 28, 28, 1), dtype=np.uint8)).shape == (1,)


def test_sheets_are_drawn_and_a_persons_answers_taken_in(work: Build, tmp_path: Path) -> None:
    build = ("--build", work.folder)
    said = winnow("viewed", *build, "--n", "12", "--num-inference-steps", "2")
    assert (work.viewed_images.parent / "sheet-0.png").is_file()
    named = said.partition('"images_sha256": "')[2].partition('"')[0]
    assert "\n" not in named, "what is to be copied is not wrapped"
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"images_sha256": named, "crossed": [3], "unsure": [5]}))
    winnow("viewed", *build, "--labels", answers)
    viewed = load_viewed(work.evaluation / "viewed.safetensors")
    assert viewed.answers.tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0]
    answers.write_text(json.dumps({"images_sha256": "another", "crossed": []}))
    assert "other images" in _refused("viewed", *build, "--labels", answers)


def test_a_step_without_the_one_before_says_which(tmp_path: Path) -> None:
    for step, before in (
        ("export", "winnow train backbone"),
        ("rewards", "winnow train referees"),
        ("viewed", "winnow train export"),
        ("pack", "winnow train"),
    ):
        assert before in _refused(step, "--build", tmp_path / "nothing")


def _refused(*command: str | Path) -> str:
    result = CliRunner().invoke(app, ["train", *map(str, command)])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())
