"""Whose layout a checkpoint has. A layout is a row of a table; the first that fits counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers.loaders.single_file_utils import infer_diffusers_model_type

from models.backbones.importing.single_file import flow, stable_diffusion
from models.backbones.importing.single_file.checkpoint import DENOISER, Checkpoint
from models.backbones.importing.single_file.stable_diffusion import Converted
from models.backbones.importing.source import CannotImport


@dataclass(frozen=True)
class Component:
    """A network: where its tensors stand in the file, and how they become diffusers' own.

    `says` is added to its configuration; `alike` are the keys by which another model's has the
    same shape, so that it can say what shapes do not.
    """

    library: str
    class_name: str
    prefixes: tuple[str, ...]
    convert: Callable[[dict[str, Any]], Converted] | None
    alike: tuple[str, ...] = ()
    says: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a pipeline of diffusers' needs, whether from the file or from another folder.

    `marks` are names that all stand in such a file, and `without` names that do not.
    """

    name: str
    pipeline: str
    marks: tuple[str, ...]
    without: tuple[str, ...]
    scheduler: Mapping[str, Any]
    components: Mapping[str, Component]
    tokenizers: Mapping[str, str]
    optional: tuple[str, ...] = ()

    @property
    def flow(self) -> bool:
        """Whether it matches flows, and so predicts a velocity and nothing else."""
        return str(self.scheduler["_class_name"]).startswith("FlowMatch")


STABLE: Mapping[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False, "timestep_spacing": "leading",
}  # fmt: skip
"""The noise of SD 1, SD 2 and XL."""
VAE = ("first_stage_model.",)
TEXT = ("block_out_channels", "cross_attention_dim")
HIDDEN = ("hidden_size", "num_hidden_layers")


def _unet(sample_size: int) -> Component:
    return Component(
        "diffusers", "UNet2DConditionModel", (DENOISER,), stable_diffusion.unet, TEXT,
        {"sample_size": sample_size},
    )  # fmt: skip


def _vae(**says: Any) -> Component:
    return Component(
        "diffusers", "AutoencoderKL", VAE, stable_diffusion.autoencoder, ("block_out_channels",),
        says,
    )  # fmt: skip


def _clip(class_name: str, convert: Callable[[Any], Converted], *prefixes: str) -> Component:
    return Component("transformers", class_name, prefixes, convert, HIDDEN)


def _transformer(class_name: str, convert: Callable[[Any], Converted], *alike: str) -> Component:
    return Component("diffusers", class_name, (DENOISER,), convert, alike)


def _flow(**says: Any) -> Mapping[str, Any]:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000} | says


PROJECTED, T5 = "CLIPTextModelWithProjection", "T5EncoderModel"
CLIP_L, CLIP_G, T5_XXL = (f"text_encoders.{name}." for name in ("clip_l", "clip_g", "t5xxl"))
UNET_MARK = f"{DENOISER}input_blocks.0.0.weight"
ADDED = f"{DENOISER}label_emb.0.0.weight"
FLUX_MARK = f"{DENOISER}double_blocks.0.img_attn.norm.key_norm.scale"
FLUX_COMPONENTS: Mapping[str, Component] = {
    "transformer": _transformer(
        "FluxTransformer2DModel", flow.flux_transformer, "num_layers", "joint_attention_dim"
    ),
    "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159, sample_size=1024),
    "text_encoder": _clip("CLIPTextModel", stable_diffusion.clip, CLIP_L),
    "text_encoder_2": Component("transformers", T5, (T5_XXL,), flow.t5, ("d_model", "num_layers")),
}
CLIP_AND_T5: Mapping[str, str] = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "Stable Diffusion XL", "StableDiffusionXLPipeline", (UNET_MARK, ADDED), (),
        dict(STABLE) | {"_class_name": "EulerDiscreteScheduler"},
        {
            "unet": _unet(128),
            "vae": _vae(scaling_factor=0.13025, force_upcast=True, sample_size=1024),
            "text_encoder": _clip(
                "CLIPTextModel", stable_diffusion.clip, "conditioner.embedders.0.transformer."
            ),
            "text_encoder_2": _clip(
                PROJECTED, stable_diffusion.clip_g, "conditioner.embedders.1.model."
            ),
        },
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
    ),
    Layout(
        "Stable Diffusion 2", "StableDiffusionPipeline",
        (UNET_MARK, "cond_stage_model.model.token_embedding.weight"), (ADDED,),
        dict(STABLE) | {"_class_name": "DDIMScheduler"},
        {
            "unet": _unet(64),
            "vae": _vae(scaling_factor=0.18215, sample_size=768),
            "text_encoder": _clip(
                "CLIPTextModel", stable_diffusion.clip_h, "cond_stage_model.model."
            ),
        },
        {"tokenizer": "CLIPTokenizer"},
    ),
    Layout(
        "Stable Diffusion 1", "StableDiffusionPipeline", (UNET_MARK,), (ADDED,),
        dict(STABLE) | {"_class_name": "DDIMScheduler"},
        {
            "unet": _unet(64),
            "vae": _vae(scaling_factor=0.18215, sample_size=512),
            "text_encoder": _clip(
                "CLIPTextModel", stable_diffusion.clip, "cond_stage_model.transformer."
            ),
        },
        {"tokenizer": "CLIPTokenizer"},
    ),
    Layout(
        "Stable Diffusion 3", "StableDiffusion3Pipeline",
        (f"{DENOISER}joint_blocks.0.context_block.adaLN_modulation.1.bias",), (),
        _flow(shift=3.0),
        {
            "transformer": _transformer(
                "SD3Transformer2DModel", flow.sd3_transformer, "num_layers", "joint_attention_dim"
            ),
            "vae": _vae(scaling_factor=1.5305, shift_factor=0.0609, sample_size=1024),
            "text_encoder": _clip(PROJECTED, stable_diffusion.clip_of_sd3, CLIP_L),
            "text_encoder_2": _clip(PROJECTED, stable_diffusion.clip_g_of_sd3, CLIP_G),
            "text_encoder_3": Component(
                "transformers", T5, (T5_XXL,), flow.t5, ("d_model", "num_layers")
            ),
        },
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer",
         "tokenizer_3": "T5TokenizerFast"},
        ("text_encoder_3", "tokenizer_3"),
    ),
    Layout(
        "FLUX.1 dev", "FluxPipeline",
        (FLUX_MARK, f"{DENOISER}guidance_in.in_layer.bias"), (),
        _flow(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
              base_image_seq_len=256, max_image_seq_len=4096),
        FLUX_COMPONENTS, CLIP_AND_T5,
    ),
    Layout(
        "FLUX.1 schnell", "FluxPipeline", (FLUX_MARK,), (), _flow(shift=1.0),
        FLUX_COMPONENTS, CLIP_AND_T5,
    ),
    Layout(
        "Z-Image", "ZImagePipeline", (f"{DENOISER}layers.0.adaLN_modulation.0.weight",), (),
        _flow(shift=3.0),
        {
            "transformer": _transformer(
                "ZImageTransformer2DModel", flow.z_image_transformer, "n_layers", "dim"
            ),
            "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159, sample_size=1024),
            "text_encoder": Component("transformers", "Qwen3Model", (), None),
        },
        {"tokenizer": "Qwen2Tokenizer"},
    ),
)  # fmt: skip

SECOND_IMAGE = "it draws after another image, which Winnow has no input for"
REFUSED: Mapping[str, str] = {
    "inpainting": f"an inpainting model: {SECOND_IMAGE}",
    "xl_inpaint": f"an inpainting model: {SECOND_IMAGE}",
    "instruct-pix2pix": f"a model that edits a given image: {SECOND_IMAGE}",
    "flux-fill": f"FLUX Fill, an inpainting model: {SECOND_IMAGE}",
    "flux-depth": f"FLUX Depth or Canny: {SECOND_IMAGE}",
    "xl_refiner": "Stable Diffusion XL's refiner, which goes on from another model's image: import "
    "the base model",
    "upscale": f"an upscaler: {SECOND_IMAGE}",
    "stable_cascade": "a stage of Stable Cascade, which is not supported",
    "wan": "Wan, which draws films: Winnow draws single images",
    "ltx": "LTX, which draws films: Winnow draws single images",
    "mochi": "Mochi, which draws films: Winnow draws single images",
    "hunyuan-video": "Hunyuan Video: Winnow draws single images",
    "cosmos": "Cosmos, which draws films: Winnow draws single images",
    "animatediff": "a motion module of AnimateDiff: Winnow draws single images",
    "autoencoder-dc": "an autoencoder (DC-AE) alone, one part of a model",
}
"""diffusers' names of what it recognises, by their beginnings, and what stands against it."""


def find_layout(checkpoint: Checkpoint) -> Layout:
    """The row of a checkpoint. Raises CannotImport, naming what it is where that is known."""
    outlines, path = checkpoint.outlines, checkpoint.path
    kind = _by_diffusers(outlines)
    if said := next((words for name, words in REFUSED.items() if kind.startswith(name)), None):
        raise CannotImport(f"{path}: is {said}")
    for layout in LAYOUTS:
        if all(mark in outlines for mark in layout.marks) and not any(
            mark in outlines for mark in layout.without
        ):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    if kind != "v1":  # which diffusers says of all that it does not know
        raise CannotImport(
            f"{path}: has the layout of {kind}, which is not read from one file: import its folder "
            f"in diffusers' format (of single files Winnow reads {known})"
        )
    names = ", ".join(sorted(checkpoint.own)[:3])
    raise CannotImport(
        f"{path}: its {len(outlines)} tensors ({names}, …) are of no layout that Winnow reads from "
        f"one file: {known}"
    )


def _by_diffusers(outlines: dict[str, Any]) -> str:
    # Its rules are for whole files of the released sizes, and may stumble over others.
    try:
        return str(infer_diffusers_model_type(outlines))
    except (KeyError, IndexError, UnboundLocalError, ValueError, RuntimeError):
        return "v1"
