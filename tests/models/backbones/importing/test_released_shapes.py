"""The released models' shapes, without their numbers: the configuration is read off them, whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers

from models.backbones.importing.single_file import flow, stable_diffusion
from tests.single_files import (
    States,
    clip_l,
    ldm_unet,
    ldm_vae,
    open_clip,
    original_flux,
    original_sd3,
    original_z_image,
)

CROSS, DOWN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D"
SD1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
                       "use_linear_projection": True}  # fmt: skip
XL: dict[str, Any] = {
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": [DOWN, CROSS, CROSS],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", UP],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
DEEP_MIDDLE: dict[str, Any] = SD1 | {
    "block_out_channels": [320, 640], "transformer_layers_per_block": [1, 2],
    "down_block_types": [CROSS, DOWN], "up_block_types": [UP, "CrossAttnUpBlock2D"],
}  # fmt: skip
PRUNED: dict[str, Any] = XL | {
    "transformer_layers_per_block": [[0, 0], [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], [0, 0, 0]],
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
VAE_16 = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
FLUX: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True}
SD35: dict[str, Any] = {"num_attention_heads": 24, "num_layers": 3, "caption_projection_dim": 1536,
                        "pos_embed_max_size": 384, "qk_norm": "rms_norm",
                        "dual_attention_layers": [0, 1]}  # fmt: skip

RELEASED: dict[str, tuple[str, dict[str, Any], Callable[[Any], States], Callable[[Any], Any]]] = {
    "SD 1.5": ("UNet2DConditionModel", SD1, ldm_unet, stable_diffusion.unet),
    "SD 2.1": ("UNet2DConditionModel", SD2, ldm_unet, stable_diffusion.unet),
    "SD XL": ("UNet2DConditionModel", XL, ldm_unet, stable_diffusion.unet),
    "a middle deeper than its level": (
        "UNet2DConditionModel", DEEP_MIDDLE, ldm_unet, stable_diffusion.unet),
    "pruned as SSD-1B": ("UNet2DConditionModel", PRUNED, ldm_unet, stable_diffusion.unet),
    "autoencoder": ("AutoencoderKL", VAE, ldm_vae, stable_diffusion.autoencoder),
    "autoencoder of 16": ("AutoencoderKL", VAE_16, ldm_vae, stable_diffusion.autoencoder),
    "SD 3": ("SD3Transformer2DModel", {"num_layers": 3, "num_attention_heads": 24,
             "caption_projection_dim": 1536, "pos_embed_max_size": 192}, original_sd3,
             flow.sd3_transformer),
    "SD 3.5": ("SD3Transformer2DModel", SD35, original_sd3, flow.sd3_transformer),
    "FLUX": ("FluxTransformer2DModel", FLUX, original_flux, flow.flux_transformer),
    "Z-Image": ("ZImageTransformer2DModel", {"n_layers": 2}, original_z_image,
                flow.z_image_transformer),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_network_is_read_off_its_shapes(name: str) -> None:
    class_name, asked, original, convert = RELEASED[name]
    cls = getattr(diffusers, class_name)
    with torch.device("meta"):
        network = cls(**asked)
    config, states = convert(original(network))
    wanted = dict(network.config)
    for key, value in config.items():
        theirs = wanted[key]
        if key == "transformer_layers_per_block" and isinstance(theirs, int):
            theirs = [theirs] * len(value)
        plain = list(theirs) if isinstance(theirs, tuple) else theirs
        assert value == plain, key
    with torch.device("meta"):
        again = cls(**config)
    shapes = {key: value.shape for key, value in again.state_dict().items()}
    assert {key: value.shape for key, value in states.items()} == shapes


@pytest.mark.parametrize(
    ("width", "layers", "heads", "activation", "original", "convert"),
    [
        (768, 12, 12, "quick_gelu",
         lambda one: clip_l(one, "cond_stage_model.transformer."), stable_diffusion.clip),
        (1024, 23, 16, "gelu",
         lambda one: open_clip(one, "cond_stage_model.model."), stable_diffusion.clip_h),
        (1280, 32, 20, "gelu",
         lambda one: open_clip(one, "conditioner.embedders.1.model."), stable_diffusion.clip_g),
    ],
)  # fmt: skip
def test_a_text_encoder_is_read_off_its_shapes(
    width: int, layers: int, heads: int, activation: str, original: Any, convert: Any
) -> None:
    said = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * width, "hidden_act": activation, "projection_dim": width,
            "vocab_size": 49408, "max_position_embeddings": 77}  # fmt: skip
    with torch.device("meta"):
        network = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**said))
    config, states = convert(original(network))
    assert {key: config[key] for key in said} == said
    assert {key: value.shape for key, value in states.items() if "projection" not in key} == {
        key: value.shape for key, value in network.state_dict().items() if "projection" not in key
    }
