"""Assemble the bundle `mnist-sevens` from a work folder: copy the files, write the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.backbones.unet import PIXEL_SHUFFLE
from models.bundles import bundle
from models.bundles.manifest import (
    SCHEMA_VERSION,
    Backbone,
    Calibration,
    Evaluation,
    Manifest,
    Reward,
)
from models.zoo.evaluation.referees import load_referee
from models.zoo.evaluation.viewed import load_viewed
from models.zoo.questions import QUESTIONS
from models.zoo.work_folder import Build, image_shape, needed, read_record, weights

LICENCE = "Apache-2.0; the training images are MNIST's (LeCun, Cortes, Burges), CC BY-SA 3.0"
DESCRIPTION = (
    "Draws handwritten sevens. Malign to `no-crossbar` is a seven with a crossbar, to "
    "`only-crossbar` a seven without one."
)
_EVALUATION = ("annotator", "oracle", "features", "viewed")


def pack(build: Build, out: Path) -> Manifest:
    """Write the bundle folder `out` and return its manifest.

    Calibrations and the evaluation table of a manifest that stands in `out` are kept only where
    the files that they rest on are still the same. Raises FileNotFoundError naming the command
    that makes a missing file, or ValueError when rewards belong to another backbone.
    """
    rewards = {name: _reward(build, name) for name in QUESTIONS}
    files = _copies(build, rewards)
    old = _old_manifest(out)
    # Made beside the old one, which stays until the new one is whole.
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for target, source in files.items():
        (fresh / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, fresh / target)
    height, width, channels = image_shape()
    hashes = bundle.hash_files(fresh)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=out.name,
        description=DESCRIPTION,
        licence=LICENCE,
        backbone=Backbone(
            folder="backbone",
            onnx="backbone/unet.int8.onnx",
            pixel_shuffle=PIXEL_SHUFFLE,
            height=height,
            width=width,
            channels=1 if channels == 1 else 3,
            training=build.backbone_training()
            | {"export": read_record(build.int8.with_suffix(".json"), "winnow train export")},
        ),
        rewards=rewards,
        calibrations=_kept_calibrations(old, {f"sha256:{f.sha256}" for f in hashes.values()}),
        evaluation=Evaluation(
            **{name: f"evaluation/{name}.safetensors" for name in _EVALUATION},
            oracle_error=_referee_errors(build),
            table=old.evaluation.table
            if old is not None and old.evaluation is not None and old.files == hashes
            else [],
        ),
        files=hashes,
    )
    bundle.write_manifest(fresh, manifest)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
    return manifest


def _copies(build: Build, rewards: Mapping[str, Reward]) -> dict[str, Path]:
    """Each file of the bundle, by its name there, and where the work folder has it."""
    files: dict[str, Path] = {}
    needed(weights(build.backbone), "winnow train backbone")
    for path in sorted(build.backbone.rglob("*")):
        if path.is_file():
            files[f"backbone/{path.relative_to(build.backbone)}"] = path
    files["backbone/unet.int8.onnx"] = needed(build.int8, "winnow train export")
    for name, reward in rewards.items():
        for file in reward.parts.values():
            files[file] = needed(build.reward(name) / file, f"winnow train rewards --reward {name}")
    for name in _EVALUATION:
        command = "winnow train viewed" if name == "viewed" else "winnow train referees"
        path = build.evaluation / f"{name}.safetensors"
        files[f"evaluation/{name}.safetensors"] = needed(path, command)
    return files


def _reward(build: Build, name: str) -> Reward:
    command = f"winnow train rewards --reward {name}"
    record = read_record(build.reward(name) / "reward.json", command)
    drawn_by = record["training"]["denoiser"]
    annotator = record["guide_labels"]["annotator"]
    for what, stated, path in (
        ("the images came from another denoiser", drawn_by, build.int8),
        (
            "the labels came from another annotator",
            annotator,
            build.evaluation / "annotator.safetensors",
        ),
    ):
        if stated != bundle.sha256_name(path):
            raise ValueError(f"{build.reward(name)}: {what} than {path}: run `{command}` again")
    return Reward(**record)


def _referee_errors(build: Build) -> dict[str, Any]:
    """Both referees against a person on generated images, against each other, and on real ones."""
    viewed = load_viewed(build.evaluation / "viewed.safetensors")
    crossed = {
        name: load_referee(build.evaluation / f"{name}.safetensors").crossed(viewed.pixels)
        for name in ("annotator", "oracle")
    }
    return {
        "images": viewed.source,
        "generated": {name: viewed.error(answer) for name, answer in crossed.items()},
        "disagreements": int((crossed["annotator"] != crossed["oracle"]).sum()),
        "training": read_record(build.evaluation / "referees.json", "winnow train referees"),
    }


def _old_manifest(out: Path) -> Manifest | None:
    if not (out / bundle.MANIFEST).exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds files but no {bundle.MANIFEST}: it is no bundle, so it "
                             "is not replaced")  # fmt: skip
        return None
    try:
        return bundle.read_manifest(out)
    except (bundle.BundleError, json.JSONDecodeError):
        return None


def _kept_calibrations(old: Manifest | None, known: set[str]) -> dict[str, list[Calibration]]:
    """Calibrations whose backbone, networks and annotator are all still in the bundle."""
    if old is None:
        return {}
    kept = {
        policy: [
            entry
            for entry in entries
            if {
                entry.sampling.backbone.weights, entry.sampling.backbone.schedule,
                *entry.sampling.parts.values(), entry.annotator,
            } <= known
        ]
        for policy, entries in old.calibrations.items()
    }  # fmt: skip
    return {policy: entries for policy, entries in kept.items() if entries}
