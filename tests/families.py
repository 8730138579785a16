"""Tiny random pipelines of the families that have an adapter, in diffusers' own format.

Real classes of tokenizers and text encoders, built here; a forward pass takes milliseconds.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL

from tests.pipelines import END, STABLE, tokenizer

WIDTH = 16
WORDS = ("a", "cat", "dog", "owl", "no")
LETTERS = tuple(string.ascii_letters + string.digits + string.punctuation)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if enable_thinking %}?{% endif %}"
)


def tiny_sd3(folder: Path, t5: bool = True) -> Any:
    """Latents 8 × 8 × 16 of an image of 16 × 16 × 3; `t5` False is without the third encoder."""
    torch.manual_seed(11)
    first, second = (tokenizer(folder / f"tokenizer{n}", END) for n in ("", "_2"))
    return _save(
        diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
                pooled_projection_dim=2 * WIDTH, out_channels=16, pos_embed_max_size=16,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(shift_factor=0.1),
            text_encoder=_clip(first, projected=True),
            tokenizer=first,
            text_encoder_2=_clip(second, projected=True),
            tokenizer_2=second,
            text_encoder_3=t5_encoder(2 * WIDTH) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        ),
        folder,
    )  # fmt: skip


def tiny_flux(folder: Path, dev: bool = True) -> Any:
    """FLUX.1 dev or schnell: latents 8 × 8 × 16 of an image of 16 × 16 × 3."""
    torch.manual_seed(12)
    words = tokenizer(folder / "tokenizer", END)
    return _save(
        diffusers.FluxPipeline(
            transformer=diffusers.FluxTransformer2DModel(
                in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
                guidance_embeds=dev, axes_dims_rope=(4, 4, 8),
            ),
            scheduler=_dynamic() if dev else diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=_vae(shift_factor=0.1),
            text_encoder=_clip(words),
            tokenizer=words,
            text_encoder_2=t5_encoder(WIDTH),
            tokenizer_2=t5_tokenizer(),
        ),
        folder,
    )  # fmt: skip


def tiny_flux2(folder: Path, distilled: bool = False) -> Any:
    """FLUX.2 klein: patchified latents 4 × 4 × 64 of an image of 16 × 16 × 3."""
    torch.manual_seed(13)
    words = _qwen_tokenizer()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=4,
        layers_per_block=1,
    )
    vae.bn.running_mean += 0.1
    vae.bn.running_var *= 0.5
    return _save(
        diffusers.Flux2KleinPipeline(
            transformer=diffusers.Flux2Transformer2DModel(
                in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4),
                timestep_guidance_channels=16, guidance_embeds=False,
            ),
            scheduler=_dynamic(),
            vae=vae,
            # Its pipeline reads hidden states 9, 18 and 27.
            text_encoder=transformers.Qwen3ForCausalLM(_qwen3(words, layers=28)),
            tokenizer=words,
            is_distilled=distilled,
        ),
        folder,
    )  # fmt: skip


def tiny_pixart(folder: Path) -> Any:
    """PixArt-Σ: latents 8 × 8 × 4 of an image of 16 × 16 × 3."""
    torch.manual_seed(14)
    return _save(
        diffusers.PixArtSigmaPipeline(
            transformer=diffusers.PixArtTransformer2DModel(
                sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
                num_attention_heads=2, caption_channels=WIDTH, in_channels=4,
                cross_attention_dim=16, out_channels=8, norm_num_groups=4,
                use_additional_conditions=False,
            ),
            scheduler=diffusers.DPMSolverMultistepScheduler.from_config(STABLE),
            vae=_vae(4),
            text_encoder=t5_encoder(WIDTH),
            tokenizer=t5_tokenizer(),
        ),
        folder,
    )  # fmt: skip


def tiny_sana(folder: Path) -> Any:
    """Sana: latents 8 × 8 × 4 of an image of 32 × 32 × 3."""
    torch.manual_seed(15)
    words = _qwen_tokenizer(transformers.GemmaTokenizer)
    config = transformers.Gemma2Config(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=words.pad_token_id,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    blocks = ("ResBlock",) * 3
    return _save(
        diffusers.SanaPipeline(
            transformer=diffusers.SanaTransformer2DModel(
                sample_size=8, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
                attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
                cross_attention_dim=16, caption_channels=WIDTH,
            ),
            scheduler=diffusers.DPMSolverMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction",
                num_train_timesteps=1000,
            ),
            vae=diffusers.AutoencoderDC(
                latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
                decoder_block_types=blocks, encoder_block_out_channels=(8, 8, 16),
                decoder_block_out_channels=(8, 8, 16), encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()), encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1), downsample_block_type="conv",
                upsample_block_type="interpolate", decoder_norm_types="rms_norm",
                decoder_act_fns="silu", scaling_factor=0.41,
            ),
            text_encoder=transformers.Gemma2Model(config),
            tokenizer=words,
        ),
        folder,
    )  # fmt: skip


def tiny_z_image(folder: Path) -> Any:
    """Z-Image: latents 8 × 8 × 16 of an image of 16 × 16 × 3."""
    torch.manual_seed(16)
    words = _qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[8, 4, 4],
        axes_lens=[600, 32, 32],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:
            parameter.data.normal_(std=0.02)
    return _save(
        diffusers.ZImagePipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(shift_factor=0.1),
            text_encoder=transformers.Qwen3Model(_qwen3(words)),
            tokenizer=words,
        ),
        folder,
    )


def tiny_qwen_image(folder: Path) -> Any:
    """Qwen-Image: latents 8 × 8 × 16 of an image of 16 × 16 × 3, as a film of one frame."""
    torch.manual_seed(17)
    words = _qwen_tokenizer()
    text = {
        "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "rope_theta": 1e6,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": WIDTH,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return _save(
        diffusers.QwenImagePipeline(
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
            ),
            scheduler=_dynamic(),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1,
                temperal_downsample=[False],
            ),
            text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=words,
        ),
        folder,
    )  # fmt: skip


TINY: Mapping[str, Callable[[Path], Any]] = {
    "sd3": tiny_sd3,
    "sd3-clip": lambda folder: tiny_sd3(folder, t5=False),
    "flux": tiny_flux,
    "flux-schnell": lambda folder: tiny_flux(folder, dev=False),
    "flux2": tiny_flux2,
    "flux2-distilled": lambda folder: tiny_flux2(folder, distilled=True),
    "pixart": tiny_pixart,
    "sana": tiny_sana,
    "z-image": tiny_z_image,
    "qwen-image": tiny_qwen_image,
}
"""How a pipeline of each family is made."""

SIZES = dict.fromkeys(TINY, "16x16") | {"sana": "32x32"}
"""Of the images: transformers have none of their own."""


def _dynamic() -> Any:
    """Spaced by the size of the image."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192
    )


def _vae(channels: int = 16, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def _clip(words: Any, projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, eos_token_id=2,
    )  # fmt: skip
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return getattr(transformers, name)(config)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(one, -5.0) for one in LETTERS]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def t5_encoder(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def _qwen_tokenizer(cls: Any = transformers.Qwen2Tokenizer) -> Any:
    """Letters alone, no merges; spaces as the class writes them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*LETTERS, "Ġ", "▁", " ", "Ċ", "\\n"]
    vocabulary = {one: place for place, one in enumerate(dict.fromkeys([*special, *letters]))}
    names = dict.fromkeys(("unk_token", "eos_token", "pad_token", "bos_token"), special[0])
    return cls(vocab=vocabulary, merges=[], chat_template=CHAT, model_max_length=2048, **names)


def _qwen3(words: Any, layers: int = 2) -> Any:
    return transformers.Qwen3Config(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip


def _save(pipeline: Any, folder: Path) -> Any:
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline
