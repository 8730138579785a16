"""Tiny random pipelines in diffusers' own format, written by its own `save_pretrained`.

Each function writes `folder` and returns the pipeline. Weights are fixed; a forward pass of the
denoiser takes milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLASSES = 3
"""Of `tiny_class`; the null class comes after them."""
DIT_CLASSES = 1000
"""diffusers' pipeline for DiT takes this label for the null class, whatever the model has."""
HIDDEN = 32
TOKENS = 77
# Random weights predict no noise, so x̂_0 is about x_t/√ᾱ: with milder betas than DDPM's own it, and
# the rounding errors of float32 with it, do not grow a hundredfold.
MILD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
STABLE: dict[str, Any] = MILD | {
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
"""The schedule of every Stable Diffusion, as its files have it."""


def tiny_ddpm(folder: Path) -> DDPMPipeline:
    """Unconditional: x_t is the image, 16 × 16 × 3."""
    torch.manual_seed(1)
    return _save(DDPMPipeline(_unet(16), DDPMScheduler(clip_sample_range=1.5, **MILD)), folder)


def tiny_class(folder: Path) -> DDPMPipeline:
    """The same with `CLASSES` classes, and the null class after them."""
    torch.manual_seed(2)
    unet = _unet(16, num_class_embeds=CLASSES + 1)
    return _save(DDPMPipeline(unet, DDPMScheduler(clip_sample=False, **MILD)), folder)


def tiny_ldm(folder: Path, vq: bool) -> LDMPipeline:
    """Unconditional in the latents, 16 × 16, of an image of 32 × 32 × 3."""
    torch.manual_seed(3)
    autoencoder: Any = _vae(3)
    if vq:
        autoencoder = VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=64,
            norm_num_groups=4,
        )
        torch.nn.init.normal_(autoencoder.quantize.embedding.weight)
    scheduler = DDIMScheduler(clip_sample=False, **MILD)
    return _save(LDMPipeline(autoencoder, _unet(16), scheduler), folder)


def tiny_sd(folder: Path, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Stable Diffusion: latents 16 × 16 × 4 of an image of 32 × 32 × 3."""
    torch.manual_seed(4)
    words = tokenizer(folder / "tokenizer", END)
    config = _text(words)
    scheduler = PNDMScheduler.from_config(
        STABLE | {"skip_prk_steps": True, "prediction_type": prediction_type}
    )
    return _save(
        StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=CLIPTextModel(config),
            tokenizer=words,
            unet=_unet_text(HIDDEN),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def tiny_sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders; latents 16 × 16 × 4 of an image of 32 × 32 × 3."""
    torch.manual_seed(5)
    first = tokenizer(folder / "tokenizer", END)
    second = tokenizer(folder / "tokenizer_2", "!")
    size = 8
    return _save(
        StableDiffusionXLPipeline(
            vae=_vae(4),
            text_encoder=CLIPTextModel(_text(first)),
            text_encoder_2=CLIPTextModelWithProjection(_text(second, hidden_act="gelu")),
            tokenizer=first,
            tokenizer_2=second,
            unet=_unet_text(
                2 * HIDDEN,
                addition_embed_type="text_time",
                addition_time_embed_dim=size,
                projection_class_embeddings_input_dim=HIDDEN + 6 * size,
            ),
            scheduler=EulerDiscreteScheduler.from_config(STABLE | {"timestep_spacing": "leading"}),
            add_watermarker=False,
        ),
        folder,
    )


def tiny_dit(folder: Path) -> DiTPipeline:
    """DiT with learned variance: latents 8 × 8 × 4 of an image of 16 × 16 × 3."""
    torch.manual_seed(6)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=DIT_CLASSES,
    )
    scheduler = DDIMScheduler(clip_sample=False, **MILD)
    names = {str(label): f"thing {label}" for label in range(DIT_CLASSES)}
    pipeline = DiTPipeline(transformer, _vae(4), scheduler, names)
    pipeline.register_to_config(id2label=names)  # as the file on the hub has it
    return _save(pipeline, folder)


def _save(pipeline: Any, folder: Path) -> Any:
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    saved: DiffusionPipeline = pipeline
    saved.save_pretrained(folder, safe_serialization=True)
    # As on the hub, where tokenizers are vocab.json and merges.txt.
    for path in folder.glob("tokenizer*/tokenizer.json"):
        path.unlink()
    return pipeline


def _unet(size: int, **more: Any) -> UNet2DModel:
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **more,
    )


def _unet_text(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=width,
        **more,
    )


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
    )


def _text(tokenizer: CLIPTokenizer, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        projection_dim=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        eos_token_id=2,  # as the files of Stable Diffusion: the end is then the highest id
        **more,
    )


def tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """CLIP's with an alphabet and few words: "cat" and "dog" are one token each, "owl" is three."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *words, BEGIN, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS})
    )
    return CLIPTokenizer.from_pretrained(folder)
