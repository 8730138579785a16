"""A tiny random pipeline of diffusers' whose denoiser has no adapter: it runs as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.families import LETTERS, WIDTH

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
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline
