"""LoRA files of random weights for tiny pipelines, as the trainers of each format write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 3, 2.0


@dataclass(frozen=True)
class Delta:
    """A and B of one layer of a component, and alpha."""

    component: str
    layer: str
    down: Tensor
    up: Tensor
    alpha: float

    def product(self, scale: float) -> Tensor:
        """scale · alpha/rank · B A, [out, in · height · width]."""
        return scale * self.alpha / len(self.down) * self.up.flatten(1) @ self.down.flatten(1)


def deltas(pipeline: Any, components: tuple[str, ...] = ("unet", "text_encoder")) -> list[Delta]:
    """For every linear and convolution layer of the denoiser, and every one of a text encoder's
    blocks; ranks and alphas differ."""
    torch.manual_seed(11)
    found = []
    for component in components:
        for name, module in getattr(pipeline, component).named_modules():
            linear = isinstance(module, torch.nn.Linear)
            if not linear and not isinstance(module, torch.nn.Conv2d):
                continue
            if component.startswith("text_encoder") and ".layers." not in name:
                continue
            weight = module.weight
            rank = RANK + len(found) % 2
            down = 0.1 * torch.randn(rank, *weight.shape[1:])
            up = torch.randn(len(weight), rank, *(() if linear else (1, 1)))
            found.append(Delta(component, name, down, up, ALPHA + len(found) % 3))
    return found


def kohya(found: list[Delta], path: Path) -> Path:
    """As sd-scripts: `lora_unet_…`, `lora_te_…` or `lora_te1_…` and `lora_te2_…`, with alphas. The
    U-Net of SD XL has the names of Stability's own code there."""
    xl = any(one.component == "text_encoder_2" for one in found)
    before = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if xl else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    tensors = {}
    for one in found:
        layer = one.layer
        if one.component == "unet":
            layer = _sgm(layer) if xl else layer
        elif not layer.startswith("text_model."):
            layer = f"text_model.{layer}"
        name = before[one.component] + layer.replace(".", "_")
        tensors |= {
            f"{name}.lora_down.weight": one.down,
            f"{name}.lora_up.weight": one.up,
            f"{name}.alpha": torch.tensor(one.alpha),
        }
    return _save(tensors, path)


def _sgm(layer: str) -> str:
    """What Stability's code calls a layer of a U-Net with one layer a block."""
    for theirs, ours in (
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ):
        layer = layer.replace(theirs, ours)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.?(.*)", layer):
        side, block, what, number, rest = found.groups()
        number = 1 if "samplers" in what else int(number)
        place = int(block) * 2 + number + (side == "down")
        inner = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}[what]
        rest = "op" if what == "downsamplers" else rest
        layer = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{inner}.{rest}"
    for theirs, ours in (
        ("conv1", "in_layers.2"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        layer = layer.replace(theirs, ours)
    return layer


def diffusers(found: list[Delta], path: Path) -> Path:
    """As diffusers' training scripts: `unet.….lora_A.weight`, and alphas in the metadata."""
    tensors, said = {}, {}
    for one in found:
        name = f"{one.component}.{one.layer}"
        tensors |= {f"{name}.lora_A.weight": one.down, f"{name}.lora_B.weight": one.up}
    for component in {one.component for one in found}:
        mine = [one for one in found if one.component == component]
        said |= {
            f"{component}.r": RANK,
            f"{component}.lora_alpha": ALPHA,
            f"{component}.rank_pattern": {one.layer: len(one.down) for one in mine},
            f"{component}.alpha_pattern": {one.layer: one.alpha for one in mine},
            f"{component}.target_modules": [one.layer for one in mine],
        }
    return _save(tensors, path, {"lora_adapter_metadata": json.dumps(said)})


def peft(found: list[Delta], path: Path) -> Path:
    """As peft saves one network's: adapter_model.safetensors, and adapter_config.json beside."""
    tensors = {}
    for one in found:
        name = f"base_model.model.{one.layer}"
        tensors |= {f"{name}.lora_A.weight": one.down, f"{name}.lora_B.weight": one.up}
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "alpha_pattern": {one.layer: one.alpha for one in found},
        "rank_pattern": {one.layer: len(one.down) for one in found},
        "target_modules": [one.layer for one in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    return _save(tensors, path)


def _save(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Contiguous, as a file has it.
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, path, {"format": "pt"} | (metadata or {})
    )
    return path
