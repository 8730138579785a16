"""FLUX.2 [klein], distilled and base."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.backbones.families.family import (
    Config,
    Family,
    Guidance,
    Latents,
    chat,
    count,
    halvings,
    rows,
)
from models.diffusion.conditioning import Named

TOKENS = 512


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    """x_t is patchified and normalised before noise comes to it."""
    high, wide = autoencoder.get("patch_size", (2, 2))
    assert high == wide, "patches are squares"
    factor = halvings(autoencoder) * int(high)
    return Latents(int(denoiser["in_channels"]), factor, factor, 1)


def _guidance(denoiser: Config, index: Config) -> Guidance:
    return "none" if index.get("is_distilled") else "classifier-free"


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    hidden, _ = pipeline.encode_prompt(prompt, device=pipeline.device, max_sequence_length=TOKENS)
    return rows({"encoder_hidden_states": hidden})


def _tokens(pipeline: Any, prompt: str) -> int:
    return count(pipeline.tokenizer, chat(pipeline.tokenizer, prompt, thinking=False))


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    from diffusers import Flux2KleinPipeline as Pipeline

    text = inputs["encoder_hidden_states"]
    output: Tensor = network(
        hidden_states=Pipeline._pack_latents(x_t),
        timestep=timestep / 1000,
        guidance=None,
        encoder_hidden_states=text,
        txt_ids=Pipeline._prepare_text_ids(text).to(x_t.device),
        img_ids=Pipeline._prepare_latent_ids(x_t).to(x_t.device),
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(x_t.shape)


FAMILY = Family(
    name="FLUX.2 klein",
    pipeline="Flux2KleinPipeline",
    autoencoder="AutoencoderKLFlux2",
    text={"text_encoder": ("Qwen3ForCausalLM",)},
    guidance=_guidance,
    guidance_scale=4.0,
    steps=50,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: TOKENS,
    denoise=_denoise,
    spacing={"sigmas": "linspace", "mu": "flux2"},
)
