"""Qwen-Image: two streams, prompted by Qwen2.5-VL's language half."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.backbones.families.family import (
    Config,
    Family,
    Guidance,
    Latents,
    count,
    rows,
)
from models.backbones.families.flux import PACKED
from models.diffusion.conditioning import Named

TOKENS = 1024
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    factor = int(2 ** len(autoencoder["temperal_downsample"]))
    return Latents(int(denoiser["in_channels"]) // PACKED**2, factor, factor * PACKED, PACKED)


def _guidance(denoiser: Config, index: Config) -> Guidance:
    return "embedded" if denoiser.get("guidance_embeds") else "classifier-free"


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    # Its users' negative prompt, where they have none, is a blank.
    text = prompt or " " if negative else prompt
    hidden, _ = pipeline.encode_prompt(text, device=pipeline.device, max_sequence_length=TOKENS)
    return rows({TEXT: hidden})


def _tokens(pipeline: Any, prompt: str) -> int:
    text = pipeline.prompt_template_encode.format(prompt)
    return count(pipeline.tokenizer, text) - int(pipeline.prompt_template_encode_start_idx)


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    from diffusers import QwenImagePipeline as Pipeline

    rows, channels, height, width = x_t.shape
    output: Tensor = network(
        hidden_states=Pipeline._pack_latents(x_t.contiguous(), rows, channels, height, width),
        timestep=timestep / 1000,
        img_shapes=[[(1, height // PACKED, width // PACKED)]] * rows,
        return_dict=False,
        **inputs,
    )[0]
    unpacked: Tensor = Pipeline._unpack_latents(output, height, width, 1)
    return unpacked.squeeze(2)


FAMILY = Family(
    name="Qwen-Image",
    pipeline="QwenImagePipeline",
    autoencoder="AutoencoderKLQwenImage",
    text={"text_encoder": ("Qwen2_5_VLForConditionalGeneration",)},
    guidance=_guidance,
    guidance_scale=4.0,
    steps=50,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: TOKENS,
    denoise=_denoise,
    masks={TEXT: MASK},
    spacing={"sigmas": "linspace", "mu": "linear"},
    rescaled_patch=PACKED,
)
