"""PixArt-Σ (Chen et al. 2024): T5 by cross-attention, on a variance-preserving schedule."""

from __future__ import annotations

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

TOKENS = 300


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    factor, patch = halvings(autoencoder), int(denoiser["patch_size"])
    return Latents(int(denoiser["in_channels"]), factor, factor * patch, patch)


def _unfit(denoiser: Config) -> str | None:
    extra = denoiser.get("use_additional_conditions")
    if extra or (extra is None and denoiser.get("sample_size", 128) == 128):
        return "it takes the image's size and shape as inputs, as PixArt-α does"
    return None


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    hidden, mask, _, _ = pipeline.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        device=pipeline.device,
        max_sequence_length=TOKENS,
    )
    return rows({"encoder_hidden_states": hidden, "encoder_attention_mask": mask})


def _tokens(pipeline: Any, prompt: str) -> int:
    return count(pipeline.tokenizer, prompt.lower().strip())


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    output: Tensor = network(
        x_t,
        timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
        **inputs,
    )[0]
    # What is beyond x_t's channels is a learned variance.
    return output[:, : x_t.shape[1]]


FAMILY = Family(
    name="PixArt-Σ",
    pipeline="PixArtSigmaPipeline",
    autoencoder="AutoencoderKL",
    text={"text_encoder": ("T5EncoderModel",)},
    guidance=classifier_free,
    guidance_scale=4.5,
    steps=20,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: TOKENS,
    denoise=_denoise,
    unfit=_unfit,
)
