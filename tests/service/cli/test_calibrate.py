"""`winnow calibrate`: real draws, the bundle's annotator, and what then stands in the manifest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO
from models.bundles.manifest import Manifest
from models.offline import seed_ranges
from service.cli.main import app
from service.config import ConfigError
from service.config.serve_file import read
from service.policies.judge_trial import require_discriminating_judges
from service.policies.policy import Policy
from service.policies.seeding import configured_policies
from tests.brightness import write_judge

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


def test_a_policy_of_several_sizes_is_calibrated_at_each(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sevens at 28 × 36 too, in torch, with a judge that takes any size, and labels that it
    agrees with: the third of the draws with the most ink is malign."""

    class Ink:
        def malign(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
            ink = pixels.mean((1, 2, 3))
            return np.asarray(ink > np.quantile(ink, 2 / 3))

    monkeypatch.setattr("models.zoo.evaluation.referees.load_referee", lambda *given: Ink())
    folder = configuration.parent / "mnist-sevens"

    def change(manifest: Manifest) -> Manifest:
        backbone = manifest.backbone.model_copy(update={"sizes": ((28, 28), (28, 36))})
        reward = manifest.rewards["no-crossbar"]
        parts = {"judge": "any.onnx"}
        rewards = {"no-crossbar": reward.model_copy(update={"parts": parts})}
        return manifest.model_copy(update={"backbone": backbone, "rewards": rewards})

    judge = write_judge(tmp_path / "any.onnx", middle=0.12, slope=-60.0)
    bundles.add_files(folder, {"any.onnx": judge}, change)
    document = yaml.safe_load(configuration.read_text())
    arguments = document["applications"][0]["args"]
    arguments["models"]["sevens"]["backbone"] |= {"runtime": "torch"}
    quick = arguments["policies"]["quick"]
    quick |= {"sizes": ["36x28"], "probes": []}
    configuration.write_text(yaml.safe_dump(document))

    def run(*more: str) -> Result:
        command = ["calibrate", "quick", "--config", str(configuration), "--n", "300"]
        return CliRunner().invoke(app, [*command, "--target", "0.5", *more])

    def served() -> Policy:
        bundle = bundles.load(str(folder))
        return configured_policies(read(configuration).settings, {"sevens": bundle})["quick"]

    refused = run("--size", "64x64")
    assert refused.exit_code == 1
    assert "--size: 64x64 is not among the policy's: 28x28, 36x28" in refused.output
    result = run("--size", "36x28")
    assert result.exit_code == 0, result.output
    # Half of it is no policy that can be served.
    with pytest.raises(ConfigError, match=r"at 4 steps\. Run `winnow calibrate quick`"):
        served()
    result = run("--size", "28x28")
    assert result.exit_code == 0, result.output
    wide, own = bundles.load(str(folder)).manifest.calibrations["quick"]
    assert (wide.sampling.size, own.sampling.size) == ((28, 36), None)
    assert wide.first_seed == own.first_seed + 300
    policy = served()
    assert policy.operating_points[STEPS].threshold == own.threshold
    assert policy.sized_points["36x28"][STEPS].threshold == wide.threshold
    bundle = bundles.load(str(folder))
    require_discriminating_judges({"quick": replace(policy, canary=None)}, {"sevens": bundle})


def test_a_judge_stands_its_trial_at_each_size_of_its_policy(
    configuration: Path, tmp_path: Path
) -> None:
    """The judge of the sevens sees other sizes at its own; one that then sees nothing is none."""
    folder = configuration.parent / "mnist-sevens"
    bundle = bundles.load(str(folder))
    policy = configured_policies(read(configuration).settings, {"sevens": bundle}, False)["quick"]
    settings = policy.settings.model_copy(update={"sizes": ["36x28", "64x64"]})
    wide = {"quick": replace(policy, settings=settings)}
    require_discriminating_judges(wide, {"sevens": bundle})

    def change(manifest: Manifest) -> Manifest:
        reward = manifest.rewards["no-crossbar"].model_copy(update={"parts": {"judge": "odd.onnx"}})
        return manifest.model_copy(update={"rewards": {"no-crossbar": reward}})

    odd = write_judge(tmp_path / "odd.onnx", blind_from=50)
    bundles.add_files(folder, {"odd.onnx": odd}, change)
    with pytest.raises(ConfigError, match=r"policies.quick.reward: .* at 64x64 scores every image"):
        require_discriminating_judges(wide, {"sevens": bundles.load(str(folder))})
