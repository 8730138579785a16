"""Weights that are no model, by the names of their tensors: what they are, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from models.backbones.importing.file_format import Header
from models.backbones.importing.source import CannotImport

LORA = "import the model that it was made for, with `--lora {path}`"
ADAPTER = (
    "Winnow has no place for one: fuse it into its model where you trained it, or leave it out"
)
MODEL = "it is one part of a model, not a model: "

QUANTISED: Mapping[str, str] = {
    "bitsandbytes (nf4 or fp4)": r"quant_state\.bitsandbytes|\.absmax$|\.quant_map$",
    "bitsandbytes (int8)": r"\.SCB$|weight_format$",
    "SVDQuant (Nunchaku)": r"\.wscales$|\.smooth_factor$|\.proj_down$",
    "GPTQ or AWQ": r"\.qweight$|\.qzeros$|\.g_idx$",
    "fp8 with scales": r"\.(scale_weight|weight_scale|scale_input|comfy_quant)$|^scaled_fp8$",
    "HQQ": r"\.W_q$",
}
"""Ways of quantising, and the names that each leaves."""

LORA_NAMES = r"lora_(up|down|A|B|mid)\b|\.lora\.|_lora\.(up|down)\.|lora_linear_layer|\.dora_scale$"
LYCORIS = "a LyCORIS adapter (LoHa, LoKr, GLoRA or OFT)"
LYCORIS_NAMES = (
    r"\.hada_w|\.lokr_w|\.oft_(blocks|diag)|\.(a1|b1|a2|b2)\.weight$|^lora_\w+\.(diff|on_input)"
)
NOT_MODELS: tuple[tuple[str, str, str], ...] = (
    ("a LoRA", LORA_NAMES, LORA),
    (LYCORIS, LYCORIS_NAMES, ADAPTER),
    ("an IP-Adapter", r"^(ip_adapter|image_proj)\.", "images are no input here"),
    ("a ControlNet", r"control_model\.|controlnet_|input_hint_block\.|^control_(all_x|layers)",
     "it draws after a second image, which Winnow has no input for"),
    ("a T2I-Adapter", r"^(adapter\.)?body\.\d+\.(block\d|resnets)\b",
     "it draws after a second image, which Winnow has no input for"),
    ("a motion module", r"motion_modules\.", "Winnow draws single images"),
    ("a textual inversion", r"^(emb_params|clip_[lg]|string_to_\w+)$|^<.*>$",
     "Winnow has no place for one: import its model, and describe what it stands for in words"),
    ("an upscaler", r"^(conv_first|model\.0|upconv1|body\.0\.rdb1)\.",
     "Winnow serves models that draw"),
)  # fmt: skip
"""What a file is, the names that show it, and what to do."""

PARTS: tuple[tuple[str, str, str], ...] = (
    ("an autoencoder (VAE)",
     r"(first_stage_model\.|vae\.)?(encoder|decoder|quant_conv|post_quant_conv|loss)\.",
     "import the model's checkpoint"),
    ("a small autoencoder (TAESD)", r"(taesd_)?(encoder|decoder)(_layers)?\.(layers\.)?\d+\.",
     "import the model's checkpoint"),
    ("a text encoder", r"(text_model|text_projection|logit_scale|transformer\.text_model)\b",
     "import the model's checkpoint, and give a folder with the encoder as --base"),
    ("a text encoder", r"(shared|encoder\.(block|final_layer_norm|embed_tokens))\b",
     "import the model's checkpoint, and give a folder with the encoder as --base"),
    ("a language model", r"(model\.(layers|embed_tokens|norm)|lm_head)\b",
     "import the model that draws, and give a folder with the encoder as --base"),
)  # fmt: skip
"""Parts of a model, where every name begins so."""
DIFFUSERS = (
    r"^(down_blocks|mid_block|up_blocks|transformer_blocks|time_text_embed|all_x_embedder)\."
)


def refuse_quantised(where: object, header: Header) -> None:
    """Raise CannotImport where weights are quantised in a way that needs more than a cast."""
    for what, names in QUANTISED.items():
        if found := next((name for name in header if re.search(names, name)), None):
            raise CannotImport(
                f"{where}: its weights are quantised by {what}, as {found} shows: import the "
                "original in float16, bfloat16 or float32"
            )


def refuse_not_models(path: Path, header: Header) -> None:
    """Raise CannotImport where a file's tensors are no model's."""
    if not header:
        raise CannotImport(f"{path}: holds no tensors: fetch it again")
    refuse_quantised(path, header)
    for what, names, advice in NOT_MODELS:
        if any(re.search(names, name) for name in header):
            raise CannotImport(f"{path}: is {what}, not a model: {advice.format(path=path)}")
    if len(header) <= 2 and all(len(shape) <= 2 for _, shape in header.values()):
        what, advice = next((what, advice) for what, _, advice in NOT_MODELS if "textual" in what)
        raise CannotImport(f"{path}: is {what} (one embedding), not a model: {advice}")
    for what, names, advice in PARTS:
        if all(re.match(names, name) for name in header):
            raise CannotImport(f"{path}: is {what} alone, one part of a model: {advice}")
    if any(re.match(DIFFUSERS, name) for name in header):
        raise CannotImport(
            f"{path}: is one component in diffusers' format, not a whole model: import the folder "
            "that holds model_index.json"
        )
