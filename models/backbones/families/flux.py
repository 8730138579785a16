"""FLUX.1: dev, whose guidance is an input, and schnell, which needs none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.backbones.families.family import (
    Config,
    Family,
    Latents,
    count,
    embedded,
    halvings,
    rows,
)
from models.diffusion.conditioning import Named

T5_TOKENS = 512
PACKED = 2
"""A position holds so many latents each way."""


def latents(denoiser: Config, autoencoder: Config) -> Latents:
    """Of all that pack 2 × 2 latents into a position's channels."""
    factor = halvings(autoencoder)
    return Latents(int(denoiser["in_channels"]) // PACKED**2, factor, factor * PACKED, PACKED)


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    hidden, pooled, _ = pipeline.encode_prompt(
        prompt, device=pipeline.device, max_sequence_length=T5_TOKENS
    )
    return rows({"encoder_hidden_states": hidden, "pooled_projections": pooled})


def _tokens(pipeline: Any, prompt: str) -> int:
    """T5's: CLIP gives a summary of the beginning alone, as in the pipeline."""
    return count(pipeline.tokenizer_2, prompt)


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    from diffusers import FluxPipeline

    rows, channels, height, width = x_t.shape
    device, dtype = x_t.device, x_t.dtype
    text = inputs["encoder_hidden_states"]
    places = FluxPipeline._prepare_latent_image_ids(
        rows, height // PACKED, width // PACKED, device, dtype
    )
    output: Tensor = network(
        hidden_states=FluxPipeline._pack_latents(x_t.contiguous(), rows, channels, height, width),
        timestep=timestep / 1000,
        img_ids=places,
        txt_ids=torch.zeros(text.shape[1], 3, device=device, dtype=dtype),
        return_dict=False,
        **inputs,
    )[0]
    # In pixels of an autoencoder that does not reduce: the size of the latents themselves.
    unpacked: Tensor = FluxPipeline._unpack_latents(output, height, width, 1)
    return unpacked


FAMILY = Family(
    name="FLUX.1",
    pipeline="FluxPipeline",
    autoencoder="AutoencoderKL",
    text={"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("T5EncoderModel",)},
    guidance=embedded,
    guidance_scale=3.5,
    steps=28,
    latents=latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: T5_TOKENS,
    denoise=_denoise,
    spacing={"sigmas": "linspace", "mu": "linear"},
)
