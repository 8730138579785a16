"""`winnow evaluate` and `winnow calibrate` on the shipped bundle, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from models.bundles import bundle
from service.cli.main import app
from service.offline import evaluation_picture

LOCAL = Path(__file__).parents[3] / "deploy/local.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The local configuration over a copy of the shipped bundle."""
    copy = tmp_path / "mnist-sevens"
    shutil.copytree(bundle.find("mnist-sevens"), copy)
    path = tmp_path / "config.yaml"
    path.write_text(LOCAL.read_text().replace("bundle: mnist-sevens", f"bundle: {copy}"))
    return path


def test_evaluate_measures_draws_and_records(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "--config", str(config), "--n", "100", "--out", str(out), "--record"]
    answer = CliRunner().invoke(app, [*arguments, "--policy", "no-crossbar"])
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads((out / "table.json").read_text())
    assert row["sent"] == row["requested"] == 100
    assert row["malign"] <= 5
    assert 50 <= row["nfe"] < 50 * row["draws"], "probes stopped some draws early"
    assert row["malign_low"] <= row["malign_rate"] <= row["malign_high"]
    assert row["frechet"] > 0
    image = Image.open(out / "no-crossbar.png").convert("RGB")
    framed = sum(count for count, color in image.getcolors(1 << 16) or [] if color == RED)
    assert framed > 0, "uncensored sevens with a crossbar are framed"
    before = bundle.read_manifest(bundle.find("mnist-sevens"))
    after = bundle.load(str(tmp_path / "mnist-sevens")).manifest
    assert before.evaluation is not None
    assert after.evaluation is not None
    assert row in after.evaluation.table
    assert len(after.evaluation.table) == len(before.evaluation.table)
    assert after.calibrations == before.calibrations


def test_calibrate_refuses_what_the_labels_cannot_show(config: Path) -> None:
    arguments = ["calibrate", "--config", str(config), "no-crossbar", "--n", "300"]
    answer = CliRunner().invoke(app, [*arguments, "--target", "0.001"])
    assert answer.exit_code == 1
    assert "label more draws" in " ".join(answer.output.split())


def test_calibrate_wants_a_policy_with_a_judge(config: Path) -> None:
    answer = CliRunner().invoke(app, ["calibrate", "--config", str(config), "none"])
    assert answer.exit_code == 1
    assert "'none' is not a policy with a judge" in answer.output


RED = tuple(int(evaluation_picture.MALIGN[i : i + 2], 16) for i in (1, 3, 5))
