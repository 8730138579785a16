"""Stable Diffusion 3 and 3.5 (Esser et al. 2024), with T5 or without."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from models.backbones.families.family import (
    Config,
    Family,
    Latents,
    classifier_free,
    count,
    halvings,
    rows,
)
from models.diffusion.conditioning import Named

T5_TOKENS, CLIP_TOKENS = 256, 77


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    factor, patch = halvings(autoencoder), int(denoiser["patch_size"])
    return Latents(int(denoiser["in_channels"]), factor, factor * patch, patch)


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompt, None, None, pipeline.device, do_classifier_free_guidance=False
    )
    return rows({"encoder_hidden_states": hidden, "pooled_projections": pooled})


def _tokens(pipeline: Any, prompt: str) -> int:
    """T5's, which reads on where CLIP's have ended; without it CLIP's."""
    if pipeline.tokenizer_3 is not None:
        return count(pipeline.tokenizer_3, prompt)
    return max(count(one, prompt) for one in (pipeline.tokenizer, pipeline.tokenizer_2))


def _max_tokens(components: Collection[str]) -> int:
    return T5_TOKENS if "text_encoder_3" in components else CLIP_TOKENS


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    output: Tensor = network(hidden_states=x_t, timestep=timestep, return_dict=False, **inputs)[0]
    return output


FAMILY = Family(
    name="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    autoencoder="AutoencoderKL",
    text={
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    },
    optional=frozenset({"text_encoder_3"}),
    guidance=classifier_free,
    guidance_scale=7.0,
    steps=28,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=_max_tokens,
    denoise=_denoise,
    spacing={"mu": "linear"},
)
