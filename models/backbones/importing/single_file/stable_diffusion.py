"""U-Net, autoencoder and CLIP in the layout of latent-diffusion (LDM): configurations and weights.

Each function takes a component's tensors by the names in the file, and gives diffusers' own
configuration, read off their shapes, and the tensors by diffusers' own names, which its conversions
make. What shapes do not say (heads, activations) is as in the released models.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils as diffusers

from models.backbones.importing.single_file.checkpoint import DENOISER, Tensors

Converted = tuple[dict[str, Any], Tensors]
HEAD = 64
"""Channels of a head of SD 2's and XL's U-Nets, and of every CLIP."""
HEADS_OF_SD1 = 8


def unet(tensors: Tensors) -> Converted:
    """A `UNet2DConditionModel`: of SD 1, SD 2 or XL, whole or with blocks left out."""
    shapes = {name.removeprefix(DENOISER): tuple(tensor.shape) for name, tensor in tensors.items()}
    inputs = _blocks(shapes, "input_blocks")
    ends = [index for index in range(1, inputs) if f"input_blocks.{index}.0.op.weight" in shapes]
    layers = ends[0] - 1 if ends else inputs - 1
    levels = [range(first, first + layers) for first in range(1, inputs, layers + 1)]
    channels = [shapes[f"input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    depths = [[_depth(shapes, f"input_blocks.{index}.1") for index in level] for level in levels]
    ups = _blocks(shapes, "output_blocks")
    reversed_depths = [
        [_depth(shapes, f"output_blocks.{index}.1") for index in range(first, first + layers + 1)]
        for first in range(0, ups, layers + 1)
    ]
    linear = any(
        name.endswith("proj_in.weight") and len(shape) == 2 for name, shape in shapes.items()
    )
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [_type(depth, "DownBlock2D") for depth in depths],
        "up_block_types": [_type(depth, "UpBlock2D") for depth in reversed_depths],
        "cross_attention_dim": _width(shapes),
        "use_linear_projection": linear,
        "attention_head_dim": [count // HEAD for count in channels] if linear else HEADS_OF_SD1,
    }
    middle = _depth(shapes, "middle_block.1")
    config |= _transformers(depths, reversed_depths, middle)
    if not middle:
        config["mid_block_type"] = "UNetMidBlock2D" if _blocks(shapes, "middle_block") else None
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    found: Tensors = diffusers.convert_ldm_unet_checkpoint(dict(tensors), config)
    placed = {id(value) for value in found.values()}  # each has another name, and is the same
    if stray := sorted(name for name, value in tensors.items() if id(value) not in placed):
        raise ValueError(f"{stray[0]} has no place in a U-Net ({len(stray)} in all have none)")
    return config, found


def _transformers(down: list[list[int]], up: list[list[int]], middle: int) -> dict[str, Any]:
    """How many transformer layers each attention has: a number a level where they are alike."""
    alike = all(len(set(level)) == 1 for level in [*down, *up])
    mirrored = [level[0] for level in reversed(up)] == [level[0] for level in down]
    if alike and mirrored and (middle in (0, down[-1][0]) or not down[-1][0]):
        # Where the last level has none the middle's are said in its place.
        numbers = [max(level[0], 1) for level in down]
        numbers[-1] = middle or numbers[-1]
        found: dict[str, Any] = {"transformer_layers_per_block": numbers}
    else:
        found = {
            "transformer_layers_per_block": down,
            "reverse_transformer_layers_per_block": up,
        }
    return found


def _type(depths: list[int], plain: str) -> str:
    return f"CrossAttn{plain}" if any(depths) else plain


def _blocks(shapes: dict[str, Any], name: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{name}.")})


def _depth(shapes: dict[str, Any], attention: str) -> int:
    pattern = re.compile(rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.")
    return len({found[1] for name in shapes if (found := pattern.match(name))})


def _width(shapes: dict[str, Any]) -> int:
    keys = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return int(next(keys)[1])


def autoencoder(tensors: Tensors) -> Converted:
    """An `AutoencoderKL`, without its scaling of latents."""
    shapes = {_in_vae(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    layers = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
    config = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [
            shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": len(layers),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    return config, diffusers.convert_ldm_vae_checkpoint(dict(tensors), config)


def _in_vae(name: str) -> str:
    return name.removeprefix("first_stage_model.")


def clip(tensors: Tensors) -> Converted:
    """OpenAI's CLIP-L, under the names that transformers has for it."""
    found = diffusers.convert_ldm_clip_checkpoint(tensors, "text_encoders.clip_l.transformer.")
    return _clip(found, "quick_gelu")


def clip_of_sd3(tensors: Tensors) -> Converted:
    """The same with a projection of ones, as SD 3's files leave it out."""
    config, found = clip(tensors)
    width = int(config["hidden_size"])
    like = found["text_model.final_layer_norm.weight"]
    if "text_projection.weight" not in found:
        found["text_projection.weight"] = torch.eye(width, dtype=like.dtype, device=like.device)
    return config, found


def clip_h(tensors: Tensors) -> Converted:
    """OpenCLIP's ViT-H, of SD 2: without its last layer, which these models do not use."""
    return _clip(_open_clip(tensors, "cond_stage_model.model."), "gelu")


def clip_g(tensors: Tensors) -> Converted:
    """OpenCLIP's ViT-bigG, of XL."""
    return _clip(_open_clip(tensors, "conditioner.embedders.1.model."), "gelu")


def clip_g_of_sd3(tensors: Tensors) -> Converted:
    """The same under transformers' names."""
    prefix = "text_encoders.clip_g.transformer."
    return _clip(diffusers.convert_ldm_clip_checkpoint(tensors, prefix), "gelu")


def _open_clip(tensors: Tensors, prefix: str) -> Tensors:
    width = int(tensors[f"{prefix}token_embedding.weight"].shape[1])
    outline = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    found: Tensors = diffusers.convert_open_clip_checkpoint(outline, tensors, prefix=prefix)
    return found


def _clip(tensors: Tensors, activation: str) -> Converted:
    # Places are numbered by the network itself; merged files have wrong ones.
    found = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    # Some files leave this part of the names out.
    found = {
        name
        if name.startswith(("text_model.", "text_projection."))
        else f"text_model.{name}": value
        for name, value in found.items()
    }
    vocabulary, width = found["text_model.embeddings.token_embedding.weight"].shape
    layers = {name.split(".")[3] for name in found if ".encoder.layers." in name}
    projection = found.get("text_projection.weight")
    config = {
        "model_type": "clip_text_model",
        "vocab_size": int(vocabulary),
        "hidden_size": int(width),
        "intermediate_size": int(found["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]),
        "max_position_embeddings": int(
            found["text_model.embeddings.position_embedding.weight"].shape[0]
        ),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(int(width) // HEAD, 1),
        "projection_dim": int(width if projection is None else projection.shape[0]),
        "hidden_act": activation,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as the released files have it: the end is then the highest id
        "pad_token_id": 1,
    }
    return config, found
