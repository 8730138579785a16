"""Packing: what a new bundle keeps of an older one, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from models.backbones.unet import UNET_CONFIG, save_pipeline
from models.bundles import bundle
from models.bundles.bundle import BundleError
from models.bundles.manifest import Calibration
from models.bundles.sampling_key import BackboneKey, SamplingKey
from models.diffusion.method import Method
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork
from models.zoo.evaluation.viewed import Viewed, save_viewed
from models.zoo.packing import pack
from models.zoo.questions import QUESTIONS
from models.zoo.work_folder import Build, write_record


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A work folder with files of the right kind and untrained weights."""
    build = Build(tmp_path / "build")
    build.folder.mkdir()
    small = UNET_CONFIG | {"block_out_channels": (8, 8), "norm_num_groups": 4}
    save_pipeline(UNet2DModel(**small | {"attention_head_dim": 8}), build.backbone)
    save_file(
        {"a": torch.zeros(1)}, build.checkpoint, metadata={"step": "5", "recipe": '{"steps": 9}'}
    )
    build.int8.write_bytes(b"denoiser")
    write_record(build.int8.with_suffix(".json"), {})
    referee = Ensemble(RewardNetwork(RewardConfig(members=1, widths=(4, 4, 4, 4))))
    for name in ("annotator", "oracle", "features"):
        referee.save(build.evaluation / f"{name}.safetensors")
    write_record(build.evaluation / "referees.json", {"oracle": {"error": 0.01}})
    images = np.zeros((4, 28, 28, 1), dtype=np.uint8)
    viewed = Viewed(images, np.zeros(4, dtype=np.uint8), {"first_seed": "3"})
    save_viewed(viewed, build.evaluation / "viewed.safetensors")
    for name in QUESTIONS:
        make_reward(build, name)
    return build


def make_reward(build: Build, name: str) -> None:
    folder = build.reward(name)
    labels = {
        "annotator": bundle.sha256_name(build.evaluation / "annotator.safetensors"),
        "first_seed": 1, "viewed": 2, "benign": 1, "malign": 1, "seconds": 0.6,
    }  # fmt: skip
    parts = {
        "guide": f"guides/{name}.time.safetensors",
        "clean_guide": f"guides/{name}.clean.safetensors",
        "judge": f"judges/{name}.onnx",
    }
    write_record(
        folder / "reward.json",
        {
            "question": "?", "malign": "m", "parts": parts,
            "guide_labels": labels, "judge_labels": labels,
            "training": {"denoiser": bundle.sha256_name(build.int8)},
        },
    )  # fmt: skip
    for file in parts.values():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(f"{name} {file}".encode())


def calibration(folder: Path, policy: str, **changes: Any) -> None:
    found = bundle.load(str(folder))
    reward = found.manifest.rewards["no-crossbar"]
    sampling = SamplingKey(
        BackboneKey(found.backbone_sha256("onnx"), found.schedule_sha256),
        Method(num_inference_steps=50),
        {"judge": found.sha256(reward.parts["judge"])},
    )
    entry = Calibration(
        sampling=replace(sampling, **changes), threshold=0.5, target=0.01, confidence=0.95,
        annotator=found.sha256("evaluation/annotator.safetensors"), first_seed=1, labelled=300,
        delivered=299, malign_delivered=0, upper_bound=0.01, benign_kept=1,
    )  # fmt: skip
    manifest = found.manifest
    assert manifest.evaluation is not None
    evaluation = manifest.evaluation.model_copy(update={"table": [{"policy": policy}]})
    bundle.write_manifest(
        folder,
        manifest.model_copy(
            update={
                "calibrations": manifest.calibrations | {policy: [entry]},
                "evaluation": evaluation,
            }
        ),
    )


def test_bundle_loads_and_states_where_it_comes_from(build: Build, tmp_path: Path) -> None:
    pack(build, tmp_path / "zoo")
    manifest = bundle.load(str(tmp_path / "zoo")).manifest
    assert manifest.backbone.training["steps_done"] == 5
    assert manifest.evaluation is not None
    assert manifest.evaluation.oracle_error["generated"]["oracle"]["viewed"] == 4


def test_evidence_stays_while_its_weights_do(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "zoo"
    pack(build, out)
    calibration(out, "p")
    again = pack(build, out)
    assert list(again.calibrations) == ["p"]
    assert again.evaluation is not None
    assert again.evaluation.table == [{"policy": "p"}]


@pytest.mark.parametrize(
    "changed", ["rewards/no-crossbar/judges/no-crossbar.onnx", "unet.int8.onnx"]
)
def test_evidence_falls_with_its_weights(build: Build, tmp_path: Path, changed: str) -> None:
    out = tmp_path / "zoo"
    pack(build, out)
    calibration(out, "p")
    (build.folder / changed).write_bytes(b"retrained")
    for name in QUESTIONS:
        record = json.loads((build.reward(name) / "reward.json").read_text())
        record["training"]["denoiser"] = bundle.sha256_name(build.int8)
        write_record(build.reward(name) / "reward.json", record)
    again = pack(build, out)
    assert again.calibrations == {}
    assert again.evaluation is not None
    assert again.evaluation.table == []


def test_rewards_of_another_denoiser_are_refused(build: Build, tmp_path: Path) -> None:
    build.int8.write_bytes(b"another")
    with pytest.raises(ValueError, match="came from another denoiser"):
        pack(build, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_missing_step_is_named(build: Build, tmp_path: Path) -> None:
    (build.reward("only-crossbar") / "judges/only-crossbar.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="winnow train rewards --reward only-crossbar"):
        pack(build, tmp_path / "zoo")


def test_folder_that_is_no_bundle_is_left_alone(build: Build, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="it is no bundle"):
        pack(build, tmp_path / "zoo")
    assert (tmp_path / "zoo" / "thesis.txt").exists()
    with pytest.raises(BundleError):
        bundle.load(str(tmp_path / "zoo"))


def test_a_pack_that_fails_leaves_the_old_bundle_whole(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "mnist-sevens"
    before = pack(build, out)
    build.int8.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="winnow train export"):
        pack(build, out)
    assert bundle.load(str(out)).manifest == before
