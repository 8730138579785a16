"""Sana (Xie et al. 2024): linear attention on deeply compressed latents, prompted by Gemma."""

from __future__ import annotations

import inspect
from functools import cache
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
READ = TOKENS - 2
"""Beside the instruction, as its pipeline cuts."""


@cache
def _instruction() -> tuple[str, ...]:
    """What the pipeline puts before every prompt."""
    from diffusers import SanaPipeline

    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
    return tuple(default.default)


def _latents(denoiser: Config, autoencoder: Config) -> Latents:
    factor = halvings(autoencoder, "encoder_block_out_channels")
    patch = int(denoiser.get("patch_size", 1))
    return Latents(int(denoiser["in_channels"]), factor, factor * patch, patch)


def _embed(pipeline: Any, prompt: str, negative: bool) -> Named:
    # What guidance compares with is encoded without the instruction.
    hidden, mask, _, _ = pipeline.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        device=pipeline.device,
        max_sequence_length=TOKENS,
        complex_human_instruction=None if negative else list(_instruction()),
    )
    return rows({"encoder_hidden_states": hidden, "encoder_attention_mask": mask})


def _tokens(pipeline: Any, prompt: str) -> int:
    return count(pipeline.tokenizer, prompt.lower().strip())


def _denoise(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    output: Tensor = network(
        x_t,
        timestep=timestep * network.config.timestep_scale,
        return_dict=False,
        **inputs,
    )[0]
    return output[:, : x_t.shape[1]]


FAMILY = Family(
    name="Sana",
    pipeline="SanaPipeline",
    autoencoder="AutoencoderDC",
    text={"text_encoder": ("Gemma2Model", "Gemma2ForCausalLM")},
    guidance=classifier_free,
    guidance_scale=4.5,
    steps=20,
    latents=_latents,
    embed=_embed,
    tokens=_tokens,
    max_tokens=lambda components: READ,
    denoise=_denoise,
)
