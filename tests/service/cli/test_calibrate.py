"""`winnow calibrate`: real draws, the bundle's annotator, and what then stands in the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO
from models.offline import seed_ranges
from service.cli.main import app
from service.config.serve_file import read
from service.policies.seeding import configured_policies

STEPS = 4


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A copy of the shipped bundle, without calibrations, and a policy that asks for four steps."""
    folder = tmp_path / "mnist-sevens"
    shutil.copytree(ZOO / "mnist-sevens", folder)
    bundles.update_manifest(folder, lambda now: now.model_copy(update={"calibrations": {}}))
    policy = {"model": "sevens", "num_inference_steps": [STEPS]}
    settings = {
        "default_policy": "quick",
        "models": {"sevens": {"bundle": str(folder), "backbone": {"max_batch": 16}}},
        "policies": {
            "none": policy,
            "quick": policy | {"reward": "no-crossbar", "probes": [0.75], "max_draws": 4},
        },
        "auth": {"anonymous": True},
    }
    path = tmp_path / "local.yaml"
    application = {"name": "winnow", "import_path": "service.app:build", "args": settings}
    path.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": [application]})
    )
    return path


def test_a_policy_is_calibrated_on_its_own_draws_and_can_then_be_served(
    configuration: Path,
) -> None:
    command = ["calibrate", "quick", "--config", str(configuration), "--n", "300"]
    command += ["--target", "0.1", "--probe-loss", "0.05"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "threshold" in result.output
    bundle = bundles.load(str(configuration.parent / "mnist-sevens"))
    [entry] = bundle.manifest.calibrations["quick"]
    assert entry.labelled == 300
    assert entry.first_seed == seed_ranges.first(seed_ranges.CALIBRATION, 1)
    assert entry.annotator == bundle.sha256("evaluation/annotator.safetensors")
    assert entry.sampling.method.num_inference_steps == STEPS
    assert entry.malign_delivered <= 0.1 * entry.delivered <= 30
    assert entry.upper_bound <= 0.1
    assert len(entry.probe_thresholds) == 1

    settings = read(configuration).settings
    policy = configured_policies(settings, {"sevens": bundle})["quick"]
    assert policy.operating_points[STEPS].threshold == entry.threshold


def test_what_the_labels_cannot_show_is_recorded_nowhere(configuration: Path) -> None:
    command = ["calibrate", "quick", "--config", str(configuration), "--n", "300"]
    result = CliRunner().invoke(app, [*command, "--target", "0.001", "--probe-loss", "0.05"])
    assert result.exit_code == 1
    assert "label more draws" in " ".join(result.output.split())
    bundle = bundles.load(str(configuration.parent / "mnist-sevens"))
    assert bundle.manifest.calibrations == {}
