"""The work folder in which a bundle is made: where each step leaves its files for the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from models.backbones.runtime import OnnxDenoiser
from models.backbones.unet import PIXEL_SHUFFLE, UNET_CONFIG
from models.bundles.bundle import WEIGHTS
from models.diffusion.codec import PixelShuffle
from models.diffusion.noise_schedule import NoiseSchedule, read_config
from models.offline.generator import Generator


@dataclass(frozen=True)
class Build:
    """A work folder, `build/<name>`. Its properties are paths, whether or not they exist yet."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """What `winnow train backbone` resumes from; not part of the bundle."""
        return self.folder / "checkpoint.safetensors"

    @property
    def backbone(self) -> Path:
        """The backbone in diffusers' format."""
        return self.folder / "backbone"

    @property
    def fp32(self) -> Path:
        """The exported denoiser before quantisation; not part of the bundle."""
        return self.folder / "unet.fp32.onnx"

    @property
    def int8(self) -> Path:
        """The quantised denoiser."""
        return self.folder / "unet.int8.onnx"

    @property
    def evaluation(self) -> Path:
        """Folder of annotator, oracle, features and viewed images, with a record of each."""
        return self.folder / "evaluation"

    @property
    def viewed_images(self) -> Path:
        """The images shown to a person, before the person's labels."""
        return self.folder / "viewed" / "images.safetensors"

    def reward(self, name: str) -> Path:
        """Folder of one reward: its parts, as the bundle calls them, and `reward.json`."""
        return self.folder / "rewards" / name

    def backbone_training(self) -> dict[str, Any]:
        """How the backbone was trained, read from its checkpoint."""
        with safe_open(needed(self.checkpoint, "winnow train backbone"), framework="pt") as file:
            metadata = file.metadata()
        return {
            "command": "winnow train backbone",
            "steps_done": int(metadata["step"]),
            "recipe": json.loads(metadata["recipe"]),
        }

    def generator(self, num_inference_steps: int, threads: int = 1) -> Generator:
        """The backbone as it is served on a CPU. Raises FileNotFoundError before the export."""
        return Generator(
            denoiser=OnnxDenoiser(needed(self.int8, "winnow train export"), threads),
            schedule=NoiseSchedule.from_diffusers(read_config(self.backbone)),
            codec=PixelShuffle(PIXEL_SHUFFLE),
            shape=x_t_shape(),
            num_inference_steps=num_inference_steps,
        )


def x_t_shape() -> tuple[int, int, int]:
    """[C, H, W] of x_t in the shipped backbone's space."""
    size = int(UNET_CONFIG["sample_size"])
    return int(UNET_CONFIG["in_channels"]), size, size


def image_shape() -> tuple[int, int, int]:
    """[H, W, C] of the images that the shipped backbone draws."""
    channels, height, width = x_t_shape()
    return height * PIXEL_SHUFFLE, width * PIXEL_SHUFFLE, channels // PIXEL_SHUFFLE**2


def weights(backbone: Path) -> Path:
    """The full-precision weights of a diffusers folder."""
    return backbone / "unet" / WEIGHTS


def needed(path: Path, command: str) -> Path:
    """The path. Raises FileNotFoundError naming the command that makes it when it is missing."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `{command}` first")
    return path


def read_record(path: Path, command: str) -> dict[str, Any]:
    """A JSON record that a step left. Raises FileNotFoundError like `needed`."""
    record: dict[str, Any] = json.loads(needed(path, command).read_text())
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON record for the steps that follow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
