"""The shipped backbone: a small diffusers `UNet2DModel`, saved in diffusers' folder format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DModel

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 14,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (48, 96),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
PIXEL_SHUFFLE = 2


def save_pipeline(
    unet: UNet2DModel, folder: Path, scheduler: Mapping[str, Any] = SCHEDULER_CONFIG
) -> None:
    """Write `unet/`, `scheduler/` and `model_index.json`, as diffusers' DDIMPipeline does."""
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
