"""Tiny checkpoints in one file, in the layouts that trainers write: diffusers' names, backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import pipelines

States = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def ldm_unet(unet: Any) -> States:
    """A `UNet2DConditionModel` as latent-diffusion has it."""
    layers, depth = unet.config.layers_per_block, len(unet.config.block_out_channels)
    crossed = ["CrossAttn" in one for one in unet.config.up_block_types]
    found = {}
    for name, value in unet.state_dict().items():
        module, _, rest = name.rpartition(".")
        if module in WHOLE:
            key = f"{WHOLE[module]}.{rest}"
        elif match := re.match(r"down_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            level, what, place = int(match[1]), match[2], int(match[3])
            index = level * (layers + 1) + 1 + (layers if what == "downsamplers" else place)
            key = f"input_blocks.{index}.{_slot(what, 'op')}.{_of(what, match[4])}"
        elif match := re.match(r"up_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            level, what, place = int(match[1]), match[2], int(match[3])
            index = level * (layers + 1) + (layers if what == "upsamplers" else place)
            slot = str(1 + crossed[level]) if what == "upsamplers" else _slot(what, "")
            key = f"output_blocks.{index}.{slot}.{_of(what, match[4])}"
        else:
            match = re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", name)
            assert match is not None, name
            slot = "1" if match[1] == "attentions" else str(2 * int(match[2]))
            key = f"middle_block.{slot}.{_of(match[1], match[3])}"
        found[f"model.diffusion_model.{key}"] = value
    assert len(found) == len(unet.state_dict())
    assert depth > 1
    return found


def _slot(what: str, down: str) -> str:
    return {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[what]


def _of(what: str, rest: str) -> str:
    if what == "downsamplers":
        return rest.removeprefix("conv.")
    if what == "resnets":
        module, _, leaf = rest.partition(".")
        return f"{RESNET[module]}.{leaf}"
    return rest


def ldm_vae(vae: Any, prefix: str = "first_stage_model.") -> States:
    """An `AutoencoderKL` as latent-diffusion has it: attention is a convolution there."""
    levels = len(vae.config.block_out_channels)
    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    found = {}
    for name, given in vae.state_dict().items():
        value = given
        key = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda match: (
                f"up.{levels - 1 - int(match[1])}."
                + {"resnets": "block", "upsamplers.0": "upsample"}[match[2]]
            ),
            key,
        )
        key = re.sub(
            r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key
        )
        if "mid_block.attentions.0." in key:
            head, _, tail = key.partition("mid_block.attentions.0.")
            module, _, leaf = tail.rpartition(".")
            key = f"{head}mid.attn_1.{attention[module]}.{leaf}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[prefix + key] = value
    assert len(found) == len(vae.state_dict())
    return found


def clip_l(encoder: Any, prefix: str) -> States:
    """CLIP-L, by transformers' names."""
    found = {_wrapped(name): value for name, value in encoder.state_dict().items()}
    places = torch.arange(pipelines.TOKENS)[None]
    found["text_model.embeddings.position_ids"] = places
    return {prefix + name: value for name, value in found.items()}


def _wrapped(name: str) -> str:
    own = ("text_model.", "text_projection.")
    return name if name.startswith(own) else f"text_model.{name}"


OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", ".fc1.": ".c_fc.", ".fc2.": ".c_proj.", ".self_attn.": ".attn.",
    "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def open_clip(encoder: Any, prefix: str) -> States:
    """A text encoder by OpenCLIP's names: q, k and v are one matrix there."""
    states = {_wrapped(name): value for name, value in encoder.state_dict().items()}
    found: States = {}
    for name, value in states.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T.contiguous()
            continue
        if ".q_proj." in name:
            rows = [states[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            value = torch.cat(rows)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        key = name
        for new, old in OPEN_CLIP.items():
            key = key.replace(new, old)
        key = key.replace("q_proj.", "in_proj_")
        found[prefix + key] = value
    found[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return found


def tiny_file(
    kind: str,
    folder: Path,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    change: Callable[[States], States] = lambda states: states,
) -> Any:
    """Write a pipeline of `sd`, `sd2` or `sdxl` to `folder`, and as one file; returns it."""
    pipeline = {
        "sd": pipelines.tiny_sd, "sd2": pipelines.tiny_sd, "sdxl": pipelines.tiny_sdxl,
    }[kind](folder)  # fmt: skip
    states = ldm_unet(pipeline.unet) | ldm_vae(pipeline.vae)
    if kind == "sd":
        states |= clip_l(pipeline.text_encoder, "cond_stage_model.transformer.")
    elif kind == "sd2":
        states |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        states |= clip_l(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        states |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    states["alphas_cumprod"] = pipeline.scheduler.alphas_cumprod.clone()
    states = {name: value.contiguous().clone() for name, value in change(states).items()}
    save_file(states, path, dict(metadata or {}) | {"format": "pt"})
    return pipeline
