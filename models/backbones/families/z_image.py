"""Z-Image and Z-Image-Turbo: one stream of caption and image, prompted by Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.backbones.families.family import (
    Config,
    Family,
    Latents,
    chat,
    classifier_free,
    count,
    halvings,
)
from models.diffusion.conditioning import Named

TOKENS = 512
CAPTION, MASK = "cap_feats", "cap_mask"


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    factor, patch = halvings(autoencoder), int(denoiser["all_patch_size"][0])
    return Latents(int(denoiser["in_channels"]), factor, factor * patch, patch)


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    (caption,), _ = pipeline.encode_prompt(
        [prompt],  # a list of its own: the pipeline writes into it
        device=pipeline.device,
        do_classifier_free_guidance=False,
        max_sequence_length=TOKENS,
    )
    return {CAPTION: caption}


def _tokens(pipeline: Any, prompt: str) -> int:
    return count(pipeline.tokenizer, chat(pipeline.tokenizer, prompt, thinking=True))


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    captions = list(inputs[CAPTION])
    if MASK in inputs:
        captions = [one[mask] for one, mask in zip(captions, inputs[MASK], strict=True)]
    output = network(list(x_t.unsqueeze(2)), 1 - timestep / 1000, captions, return_dict=False)[0]
    # Its velocity points from noise to image.
    return -torch.stack(list(output)).squeeze(2)


FAMILY = Family(
    name="Z-Image",
    pipeline="ZImagePipeline",
    autoencoder="AutoencoderKL",
    text={"text_encoder": ("Qwen3Model", "Qwen3ForCausalLM")},
    guidance=classifier_free,
    guidance_scale=5.0,
    steps=50,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: TOKENS,
    denoise=_denoise,
    masks={CAPTION: MASK},
    spacing={"sigmas": "linspace", "mu": "linear"},
    # Its pipeline adds scale × the difference to the output with the prompt.
    offset=1.0,
)
