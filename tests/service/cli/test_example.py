from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.zoo.mnist import DIGITS_COMMAND, FASHION_COMMAND
from service.cli.main import app
from tests.models.zoo.test_mnist import idx

RNG = np.random.default_rng(0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "t10k"):
        images = RNG.integers(0, 256, (130, 28, 28), dtype=np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        labels = np.arange(130, dtype=np.uint8) % 10
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option", "more"),
    [("digits", "--digits", ()), ("fashion", "--images", ("--autoencoder-steps", "1"))],
)
def test_an_example_is_made_and_is_finished_when_asked_again(
    data: Path, name: str, option: str, more: tuple[str, ...]
) -> None:
    out = data / "out"
    command = ["example", name, option, str(data), "--out", str(out), "--steps", "1", *more]
    command += ["--threads", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (out / "model" / "model_index.json").is_file()
    assert json.loads((out / "referee.json").read_text())["tested_on"] == 130
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert out / "referee.safetensors" in stamps
    assert CliRunner().invoke(app, command).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == stamps

    command[command.index("--steps") + 1] = "2"
    other = CliRunner().invoke(app, command)
    assert other.exit_code == 1
    assert "another recipe" in other.output


@pytest.mark.parametrize(
    ("name", "option", "fetch"),
    [("digits", "--digits", DIGITS_COMMAND), ("fashion", "--images", FASHION_COMMAND)],
)
def test_missing_data_is_a_sentence_that_says_how_to_get_it(
    tmp_path: Path, name: str, option: str, fetch: str
) -> None:
    command = ["example", name, option, str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert fetch in result.output
    assert not (tmp_path / "out").exists()
