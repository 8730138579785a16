"""Tiny random pipelines of diffusers' that run as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.families import LETTERS, WIDTH, t5_encoder, t5_tokenizer

SIDE = 32
TOKENS = 256
"""What its pipeline reads at once, its own system prompt included."""


def tiny_lumina2(folder: Path) -> Any:
    """Lumina 2: latents 4 × 4 × 4 of an image of 32 × 32 × 3. Its prompts are letters."""
    torch.manual_seed(18)
    letters = dict.fromkeys(["<pad>", *LETTERS, " ", "▁", "Ġ"])
    vocabulary = {one: place for place, one in enumerate(letters)}
    names = dict.fromkeys(("unk_token", "eos_token", "pad_token", "bos_token"), "<pad>")
    words = transformers.GemmaTokenizer(
        vocab=vocabulary, merges=[], model_max_length=2048, **names
    )  # fmt: skip
    config = transformers.Gemma2Config(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    blocks = 4
    pipeline = diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
            num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
            axes_dim_rope=(4, 4, 4), axes_lens=(300, 32, 32), cap_feat_dim=WIDTH,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8,) * blocks,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
            shift_factor=0.1,
        ),
        text_encoder=transformers.Gemma2Model(config),
        tokenizer=words,
    )  # fmt: skip
    return _save(pipeline, folder)


def tiny_if(folder: Path) -> Any:
    """DeepFloyd IF: in pixels, 32 × 32 × 3, with the older callback."""
    torch.manual_seed(19)
    pipeline = diffusers.IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(WIDTH),
        unet=diffusers.UNet2DConditionModel(
            sample_size=SIDE, in_channels=3, out_channels=6, block_out_channels=(8, 16),
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=4, addition_embed_type="text",
            addition_embed_type_num_heads=2, cross_attention_dim=16, encoder_hid_dim=WIDTH,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
        ),
        safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return _save(pipeline, folder)


def _save(pipeline: Any, folder: Path) -> Any:
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline
