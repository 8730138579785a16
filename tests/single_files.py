"""Tiny checkpoints in one file, in the layouts that trainers write: diffusers' names, backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import pipelines

States = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def ldm_unet(unet: Any) -> States:
    """A `UNet2DConditionModel` as latent-diffusion has it."""
    layers, depth = unet.config.layers_per_block, len(unet.config.block_out_channels)
    crossed = ["CrossAttn" in one for one in unet.config.up_block_types]
    found = {}
    for name, value in unet.state_dict().items():
        module, _, rest = name.rpartition(".")
        if module in WHOLE:
            key = f"{WHOLE[module]}.{rest}"
        elif match := re.match(r"down_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            level, what, place = int(match[1]), match[2], int(match[3])
            index = level * (layers + 1) + 1 + (layers if what == "downsamplers" else place)
            key = f"input_blocks.{index}.{_slot(what, 'op')}.{_of(what, match[4])}"
        elif match := re.match(r"up_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            level, what, place = int(match[1]), match[2], int(match[3])
            index = level * (layers + 1) + (layers if what == "upsamplers" else place)
            slot = str(1 + crossed[level]) if what == "upsamplers" else _slot(what, "")
            key = f"output_blocks.{index}.{slot}.{_of(what, match[4])}"
        else:
            match = re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", name)
            assert match is not None, name
            slot = "1" if match[1] == "attentions" else str(2 * int(match[2]))
            key = f"middle_block.{slot}.{_of(match[1], match[3])}"
        found[f"model.diffusion_model.{key}"] = value
    assert len(found) == len(unet.state_dict())
    assert depth > 1
    return found


def _slot(what: str, down: str) -> str:
    return {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[what]


def _of(what: str, rest: str) -> str:
    if what == "downsamplers":
        return rest.removeprefix("conv.")
    if what == "resnets":
        module, _, leaf = rest.partition(".")
        return f"{RESNET[module]}.{leaf}"
    return rest


def ldm_vae(vae: Any, prefix: str = "first_stage_model.") -> States:
    """An `AutoencoderKL` as latent-diffusion has it: attention is a convolution there."""
    levels = len(vae.config.block_out_channels)
    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    found = {}
    for name, given in vae.state_dict().items():
        value = given
        key = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda match: (
                f"up.{levels - 1 - int(match[1])}."
                + {"resnets": "block", "upsamplers.0": "upsample"}[match[2]]
            ),
            key,
        )
        key = re.sub(
            r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key
        )
        if "mid_block.attentions.0." in key:
            head, _, tail = key.partition("mid_block.attentions.0.")
            module, _, leaf = tail.rpartition(".")
            key = f"{head}mid.attn_1.{attention[module]}.{leaf}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[prefix + key] = value
    assert len(found) == len(vae.state_dict())
    return found


def clip_l(encoder: Any, prefix: str) -> States:
    """CLIP-L, by transformers' names."""
    found = {_wrapped(name): value for name, value in encoder.state_dict().items()}
    places = torch.arange(pipelines.TOKENS)[None]
    found["text_model.embeddings.position_ids"] = places
    return {prefix + name: value for name, value in found.items()}


def _wrapped(name: str) -> str:
    own = ("text_model.", "text_projection.")
    return name if name.startswith(own) else f"text_model.{name}"


OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", ".fc1.": ".c_fc.", ".fc2.": ".c_proj.", ".self_attn.": ".attn.",
    "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def open_clip(encoder: Any, prefix: str) -> States:
    """A text encoder by OpenCLIP's names: q, k and v are one matrix there."""
    states = {_wrapped(name): value for name, value in encoder.state_dict().items()}
    found: States = {}
    for name, value in states.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T.contiguous()
            continue
        if ".q_proj." in name:
            rows = [states[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            value = torch.cat(rows)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        key = name
        for new, old in OPEN_CLIP.items():
            key = key.replace(new, old)
        key = key.replace("q_proj.", "in_proj_")
        found[prefix + key] = value
    found[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return found


def tiny_file(
    kind: str,
    folder: Path,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    change: Callable[[States], States] = lambda states: states,
) -> Any:
    """Write a pipeline of `sd`, `sd2` or `sdxl` to `folder`, and as one file; returns it."""
    pipeline = {
        "sd": pipelines.tiny_sd, "sd2": pipelines.tiny_sd, "sdxl": pipelines.tiny_sdxl,
    }[kind](folder)  # fmt: skip
    states = ldm_unet(pipeline.unet) | ldm_vae(pipeline.vae)
    if kind == "sd":
        states |= clip_l(pipeline.text_encoder, "cond_stage_model.transformer.")
    elif kind == "sd2":
        states |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        states |= clip_l(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        states |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    states["alphas_cumprod"] = pipeline.scheduler.alphas_cumprod.clone()
    states = {name: value.contiguous().clone() for name, value in change(states).items()}
    save_file(states, path, dict(metadata or {}) | {"format": "pt"})
    return pipeline


def _renamed(states: States, names: Mapping[str, Any], prefix: str) -> States:
    """Each name with these parts replaced, in turn."""
    found = {}
    for name, value in states.items():
        key = name
        for theirs, own in names.items():
            key = re.sub(theirs, own, key)
        found[prefix + key] = value
    return found


def _swapped(states: States, layer: str) -> States:
    """Scale and shift the other way round, as these layers have them."""
    halves = {name: states[name].chunk(2) for name in states if name.startswith(layer)}
    return states | {name: torch.cat([shift, scale]) for name, (scale, shift) in halves.items()}


def _fused(states: States, parts: Mapping[str, str]) -> States:
    """Matrices in one: `parts` has the names of the first, with q, and what the whole is called."""
    found = dict(states)
    for name in states:
        for first, whole in parts.items():
            if match := re.fullmatch(first, name):
                rows = [found.pop(name.replace(match["q"], one)) for one in _rest(match["q"])]
                found[match.expand(whole)] = torch.cat(rows)
    return found


def _rest(query: str) -> list[str]:
    return [query, query.replace("q", "k"), query.replace("q", "v")]


def original_sd3(transformer: Any, prefix: str = "model.diffusion_model.") -> States:
    """An `SD3Transformer2DModel` as Stability has it."""
    last = f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context"
    states = _swapped(_swapped(transformer.state_dict(), "norm_out.linear"), last)
    block = r"transformer_blocks\.(\d+)\."
    states = _fused(states, {
        block + r"attn\.(?P<q>to_q)\.(\w+)": r"joint_blocks.\1.x_block.attn.qkv.\3",
        block + r"attn2\.(?P<q>to_q)\.(\w+)": r"joint_blocks.\1.x_block.attn2.qkv.\3",
        block + r"attn\.(?P<q>add_q_proj)\.(\w+)": r"joint_blocks.\1.context_block.attn.qkv.\3",
    })  # fmt: skip
    return _renamed(states, {
        r"pos_embed\.pos_embed": "pos_embed", r"pos_embed\.proj": "x_embedder.proj",
        r"time_text_embed\.(t)\w+_embedder\.linear_(\d)":
            lambda m: f"{'y' if 'text_embedder' in m[0] else 't'}_embedder.mlp.{2 * int(m[2]) - 2}",
        block + r"(attn2?)\.norm_(q|k)\.": r"joint_blocks.\1.x_block.\2.ln_\3.",
        block + r"attn\.norm_added_(q|k)\.": r"joint_blocks.\1.context_block.attn.ln_\2.",
        block + r"(attn2?)\.to_out\.0": r"joint_blocks.\1.x_block.\2.proj",
        block + r"attn\.to_add_out": r"joint_blocks.\1.context_block.attn.proj",
        block + r"norm1\.linear": r"joint_blocks.\1.x_block.adaLN_modulation.1",
        block + r"norm1_context\.linear": r"joint_blocks.\1.context_block.adaLN_modulation.1",
        block + r"ff\.net\.0\.proj": r"joint_blocks.\1.x_block.mlp.fc1",
        block + r"ff\.net\.2": r"joint_blocks.\1.x_block.mlp.fc2",
        block + r"ff_context\.net\.0\.proj": r"joint_blocks.\1.context_block.mlp.fc1",
        block + r"ff_context\.net\.2": r"joint_blocks.\1.context_block.mlp.fc2",
        r"^proj_out": "final_layer.linear", r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    }, prefix)  # fmt: skip


def original_flux(transformer: Any, prefix: str = "model.diffusion_model.") -> States:
    """A `FluxTransformer2DModel` as Black Forest Labs have it."""
    states = _swapped(transformer.state_dict(), "norm_out.linear")
    double, single = r"^transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
    found = dict(states)
    for name in states:
        if match := re.fullmatch(single + r"attn\.to_q\.(\w+)", name):
            parts = [name, *(name.replace("to_q", one) for one in ("to_k", "to_v"))]
            parts.append(name.replace("attn.to_q", "proj_mlp"))
            whole = torch.cat([found.pop(one) for one in parts])
            found[f"single_blocks.{match[1]}.linear1.{match[2]}"] = whole
    states = _fused(found, {
        double[1:] + r"attn\.(?P<q>to_q)\.(\w+)": r"double_blocks.\1.img_attn.qkv.\3",
        double[1:] + r"attn\.(?P<q>add_q_proj)\.(\w+)": r"double_blocks.\1.txt_attn.qkv.\3",
    })  # fmt: skip
    query = {"q": "query", "k": "key"}
    embedders = {"timestep": "time_in", "text": "vector_in", "guidance": "guidance_in"}
    return _renamed(states, {
        r"time_text_embed\.(\w+)_embedder\.linear_(\d)":
            lambda m: f"{embedders[m[1]]}.{'in' if m[2] == '1' else 'out'}_layer",
        r"context_embedder": "txt_in", r"^x_embedder": "img_in",
        single + r"norm\.linear": r"single_blocks.\1.modulation.lin",
        single + r"attn\.norm_(q|k)\.weight":
            lambda m: f"single_blocks.{m[1]}.norm.{query[m[2]]}_norm.scale",
        single + r"proj_out": r"single_blocks.\1.linear2",
        double + r"norm1\.linear": r"double_blocks.\1.img_mod.lin",
        double + r"norm1_context\.linear": r"double_blocks.\1.txt_mod.lin",
        double + r"attn\.norm_(q|k)\.weight":
            lambda m: f"double_blocks.{m[1]}.img_attn.norm.{query[m[2]]}_norm.scale",
        double + r"attn\.norm_added_(q|k)\.weight":
            lambda m: f"double_blocks.{m[1]}.txt_attn.norm.{query[m[2]]}_norm.scale",
        double + r"attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
        double + r"attn\.to_add_out": r"double_blocks.\1.txt_attn.proj",
        double + r"ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
        double + r"ff\.net\.2": r"double_blocks.\1.img_mlp.2",
        double + r"ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.0",
        double + r"ff_context\.net\.2": r"double_blocks.\1.txt_mlp.2",
        r"^proj_out": "final_layer.linear", r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    }, prefix)  # fmt: skip


def original_z_image(transformer: Any, prefix: str = "model.diffusion_model.") -> States:
    """A `ZImageTransformer2DModel` as ComfyUI's files have it."""
    states = _fused(transformer.state_dict(), {
        r"(.*)attention\.(?P<q>to_q)\.weight": r"\1attention.qkv.weight",
    })  # fmt: skip
    return _renamed(states, {
        r"all_final_layer\.2-1": "final_layer", r"all_x_embedder\.2-1": "x_embedder",
        r"attention\.to_out\.0": "attention.out", r"attention\.norm_(q|k)": r"attention.\1_norm",
    }, prefix)  # fmt: skip
