"""A bundle small enough to write in a test. Its weights are stand-ins: nothing loads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.bundles.bundle import SCHEDULER, WEIGHTS, Bundle, hash_files, write_manifest
from models.bundles.manifest import (
    SCHEMA_VERSION,
    Backbone,
    Calibration,
    Features,
    Inputs,
    Labels,
    Manifest,
    Reward,
)
from models.bundles.sampling_key import BackboneKey, SamplingKey
from models.diffusion.method import Method

HEIGHT, WIDTH = 4, 6
THRESHOLD = {50: 0.5, 20: 0.6}
"""The calibrated threshold of policy `bright` at each number of steps."""

_FILES = [
    f"backbone/unet/{WEIGHTS}",
    "backbone/denoiser.onnx",
    "rewards/bright/guide.safetensors",
    "rewards/bright/clean.safetensors",
    "rewards/bright/judge.onnx",
    "features/seen.onnx",
]


def write_bundle(folder: Path, model: str = "tiny") -> Path:
    """Write a bundle with one reward, `bright`, calibrated for a policy of that name, and features
    `seen`."""
    for name in _FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"stand-in for {name}".encode())
    (folder / "backbone/scheduler").mkdir()
    (folder / "backbone" / SCHEDULER).write_text('{"num_train_timesteps": 1000}')
    hashes = {name: f"sha256:{file.sha256}" for name, file in hash_files(folder).items()}
    labels = Labels(annotator="test", first_seed=0, viewed=1, benign=1, malign=0, seconds=1)
    calibrations = [
        Calibration(
            sampling=SamplingKey(
                BackboneKey(hashes[_FILES[1]], hashes[f"backbone/{SCHEDULER}"]),
                Method(num_inference_steps=steps),
                {"judge": hashes[_FILES[4]]},
            ),
            threshold=threshold,
            target=0.01,
            confidence=0.95,
            annotator="test",
            first_seed=0,
            labelled=600,
            delivered=500,
            malign_delivered=0,
            upper_bound=0.006,
            benign_kept=0.98,
        )
        for steps, threshold in THRESHOLD.items()
    ]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=model,
        description="A bundle for tests.",
        licence="Apache-2.0",
        backbone=Backbone(
            folder="backbone",
            onnx=_FILES[1],
            pixel_shuffle=2,
            height=HEIGHT,
            width=WIDTH,
            channels=1,
            training={},
        ),
        rewards={
            "bright": Reward(
                question="Is the first pixel bright?",
                malign="a dark first pixel",
                parts={"guide": _FILES[2], "clean_guide": _FILES[3], "judge": _FILES[4]},
                guide_labels=labels,
                judge_labels=labels,
                training={},
            )
        },
        features={
            "seen": Features(
                file=_FILES[5],
                width=8,
                size=(4, 6),
                mean=(0.0,),
                std=(1.0,),
                source="a stand-in",
                source_sha256=hashes[_FILES[5]],
            )
        },
        calibrations={"bright": calibrations},
        files={},
    )
    write_manifest(folder, manifest)
    return folder


def asking(bundle: Bundle, **inputs: Any) -> Bundle:
    """The bundle, as if its backbone took these inputs."""
    backbone = bundle.manifest.backbone.model_copy(update={"inputs": Inputs(**inputs)})
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"backbone": backbone}))


def sized(bundle: Bundle, *sizes: tuple[int, int]) -> Bundle:
    """The bundle, as if its backbone drew these sizes too; without calibrations."""
    every = ((HEIGHT, WIDTH), *sizes)
    backbone = bundle.manifest.backbone.model_copy(update={"sizes": every})
    update = {"backbone": backbone, "calibrations": {}}
    return Bundle(bundle.folder, bundle.manifest.model_copy(update=update))


def calibrated(bundle: Bundle, thresholds: Iterable[tuple[SamplingKey, float]]) -> Bundle:
    """The bundle with policy `bright` calibrated to these thresholds."""
    entries = [
        Calibration(
            sampling=sampling, threshold=threshold, target=0.01, confidence=0.95, annotator="test",
            first_seed=0, labelled=600, delivered=500, malign_delivered=0, upper_bound=0.006,
            benign_kept=0.98,
        )
        for sampling, threshold in thresholds
    ]  # fmt: skip
    update = {"calibrations": {"bright": entries}}
    return Bundle(bundle.folder, bundle.manifest.model_copy(update=update))


def settings(bundle: str, **changes: Any) -> dict[str, Any]:
    """A configuration over that bundle, as it would stand in a file; `changes` replace parts."""
    return {
        "models": {"tiny": {"bundle": bundle}},
        "policies": {
            "none": {"model": "tiny", "num_inference_steps": [50, 20]},
            "bright": {
                "model": "tiny",
                "reward": "bright",
                "max_draws": 8,
                "num_inference_steps": [50, 20],
            },
        },
        "default_policy": "bright",
        "auth": {"anonymous": True, "anonymous_scopes": ["generate", "scores"]},
    } | changes
