"""The transformers of SD 3, FLUX and Z-Image, which match flows: configurations and weights.

As in `stable_diffusion`: shapes say the configuration, and diffusers' conversions name the tensors.
"""

from __future__ import annotations

from typing import Any

from diffusers.loaders import single_file_utils as diffusers

from models.backbones.importing.single_file.checkpoint import Tensors
from models.backbones.importing.single_file.stable_diffusion import Converted

RELEASED_ROWS = 7 * 3072
"""Of q, k, v and the first layer of the MLP, in one matrix."""
HEAD_OF_SD3, HEAD_OF_FLUX, HEAD_OF_Z_IMAGE = 64, 128, 128


def sd3_transformer(tensors: Tensors) -> Converted:
    """An `SD3Transformer2DModel`: SD 3 medium, SD 3.5 medium and large."""
    found = diffusers.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    width, channels, patch, _ = found["pos_embed.proj.weight"].shape
    layers = _count(found, "transformer_blocks")
    dual = sorted({int(name.split(".")[1]) for name in found if ".attn2." in name})
    config: dict[str, Any] = {
        "sample_size": 128,
        "patch_size": int(patch),
        "in_channels": int(channels),
        "out_channels": int(found["proj_out.weight"].shape[0]) // int(patch) ** 2,
        "num_layers": layers,
        "attention_head_dim": HEAD_OF_SD3,
        "num_attention_heads": int(width) // HEAD_OF_SD3,
        "joint_attention_dim": int(found["context_embedder.weight"].shape[1]),
        "caption_projection_dim": int(found["context_embedder.weight"].shape[0]),
        "pooled_projection_dim": int(
            found["time_text_embed.text_embedder.linear_1.weight"].shape[1]
        ),
        "pos_embed_max_size": round(int(found["pos_embed.pos_embed"].shape[1]) ** 0.5),
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in found else None,
    }
    return config, found


def flux_transformer(tensors: Tensors) -> Converted:
    """A `FluxTransformer2DModel`: FLUX.1 dev and schnell, and their like with fewer blocks."""
    given = dict(tensors)
    fused = {name: given[name] for name in given if ".linear1." in name}
    for name, value in fused.items():
        # diffusers splits these by the width of the released models alone.
        given[name] = value.new_empty((RELEASED_ROWS, *(1 for _ in value.shape[1:])))
    found = diffusers.convert_flux_transformer_checkpoint_to_diffusers(given)
    width, channels = (int(side) for side in found["x_embedder.weight"].shape)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": _count(found, "transformer_blocks"),
        "num_single_layers": _count(found, "single_transformer_blocks"),
        "attention_head_dim": HEAD_OF_FLUX,
        "num_attention_heads": width // HEAD_OF_FLUX,
        "joint_attention_dim": int(found["context_embedder.weight"].shape[1]),
        "pooled_projection_dim": int(
            found["time_text_embed.text_embedder.linear_1.weight"].shape[1]
        ),
        "guidance_embeds": any(".guidance_embedder." in name for name in found),
        "axes_dims_rope": [16, 56, 56],
    }
    for name, value in fused.items():
        block, _, leaf = name.rpartition(".linear1.")
        theirs = f"single_transformer_blocks.{block.rpartition('.')[2]}"
        parts = value.split((width, width, width, len(value) - 3 * width))
        places = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        for place, part in zip(places, parts, strict=True):
            found[f"{theirs}.{place}.{leaf}"] = part.clone()
    return config, found


def z_image_transformer(tensors: Tensors) -> Converted:
    """A `ZImageTransformer2DModel`."""
    found = diffusers.convert_z_image_transformer_checkpoint_to_diffusers(dict(tensors))
    # Its chunks of a fused matrix share one storage, which a file cannot hold.
    split = (".to_q.weight", ".to_k.weight", ".to_v.weight")
    found = {name: value.clone() if name.endswith(split) else value
             for name, value in found.items()}  # fmt: skip
    width, patches = (int(side) for side in found["all_x_embedder.2-1.weight"].shape)
    config: dict[str, Any] = {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": patches // 4,
        "dim": width,
        "n_layers": _count(found, "layers"),
        "n_refiner_layers": _count(found, "noise_refiner"),
        "n_heads": width // HEAD_OF_Z_IMAGE,
        "n_kv_heads": int(found["layers.0.attention.to_k.weight"].shape[0]) // HEAD_OF_Z_IMAGE,
        "cap_feat_dim": int(found["cap_embedder.1.weight"].shape[1]),
        "qk_norm": "layers.0.attention.norm_q.weight" in found,
        "axes_dims": [32, 48, 48],
    }
    return config, found


def t5(tensors: Tensors) -> Converted:
    """T5's encoder, as SD 3 and FLUX read it."""
    found = diffusers.convert_sd3_t5_checkpoint_to_diffusers(tensors)
    vocabulary, width = (int(side) for side in found["shared.weight"].shape)
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = int(found[f"{attention}.relative_attention_bias.weight"].shape[1])
    config: dict[str, Any] = {
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": int(found[f"{attention}.q.weight"].shape[0]) // heads,
        "d_ff": int(found["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1]),
        "num_heads": heads,
        "num_layers": _count({name.removeprefix("encoder."): 0 for name in found}, "block"),
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": int(
            found[f"{attention}.relative_attention_bias.weight"].shape[0]
        ),
    }
    return config, found


def _count(found: dict[str, Any], blocks: str) -> int:
    return len({name.split(".")[1] for name in found if name.startswith(f"{blocks}.")})
