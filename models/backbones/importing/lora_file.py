"""A LoRA's file, in whatever format: kohya's names, diffusers' old and new ones, peft's own.

diffusers turns all of them into its own names, by the class of the pipeline that they are for; how
much a layer counts (alpha, rank) is then found as peft does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones.importing.file_format import read_header
from models.backbones.importing.kinds import Kind, Recognised
from models.backbones.importing.lora import SHOWN, Asked, Layer, Lora, unfit
from models.backbones.importing.not_models import (
    DIFFUSERS,
    LORA_NAMES,
    LYCORIS,
    LYCORIS_NAMES,
    NOT_MODELS,
    PARTS,
    refuse_quantised,
)
from models.backbones.importing.source import CannotImport, Source, read_json, reading, short
from models.bundles.bundle import sha256_name

PIPELINES: Mapping[Kind, str] = {
    "text": "StableDiffusionPipeline",
    "text-xl": "StableDiffusionXLPipeline",
}
"""Which class of diffusers knows the names, where the pipeline's own does not."""
METADATA = "lora_adapter_metadata"
PEFT = "base_model.model."
"""What peft itself puts before the names of one network's layers."""
PEFT_CONFIG = "adapter_config.json"
ENDING = r"\.lora_[AB]\.weight(\.alpha)?$|\.alpha$"
"""What stands after the name of a layer."""
DORA = r"dora_scale|lora_magnitude_vector"
WHOLE = r"^(model\.diffusion_model|first_stage_model)\."
"""What the names in a checkpoint of a whole model begin with."""


def open_lora(asked: Asked, source: Source, model: Recognised) -> Lora:
    """The layers of a LoRA for this model. Raises CannotImport, saying what is wrong with it."""
    path = asked.path
    tensors, said = _read(path)
    if all(name.startswith(PEFT) for name in tensors):
        tensors, said = _of_peft(path, tensors, model.denoiser)
    _refuse_kin(path, tensors, said)
    named = _diffusers_names(path, tensors, source, model)
    layers: dict[str, dict[str, Layer]] = {}
    strange = [name for name in named if "." not in name]
    for component in dict.fromkeys([*model.networks, *(name.split(".")[0] for name in named)]):
        mine = _peft_names(_below(component, named), component)
        with reading(f"--lora: {path}: how much its layers count"):
            found, odd = _layers(mine, _below(component, said), asked.scale)
        if component not in model.networks:
            found, odd = {}, [*found, *odd]
        elif found:
            layers[component] = found
        strange += dict.fromkeys(f"{component}.{re.sub(ENDING, '', name)}" for name in odd)
    if strange:
        raise unfit(path, strange, len(strange) + sum(map(len, layers.values())))
    return Lora(asked, sha256_name(path), layers)


def _of_peft(
    path: Path, tensors: Mapping[str, Tensor], denoiser: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What peft saved of one network, as diffusers names it; what it says of it lies beside."""
    if not (beside := path.with_name(PEFT_CONFIG)).is_file():
        raise CannotImport(
            f"--lora: {path}: was saved by peft: put its {PEFT_CONFIG} beside it, which says how "
            "much it counts"
        )
    return (
        {f"{denoiser}.{name.removeprefix(PEFT)}": value for name, value in tensors.items()},
        {f"{denoiser}.{key}": value for key, value in read_json(beside).items()},
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors, and what it says of how much they count. Raises CannotImport."""
    if not path.exists() and not path.is_symlink():
        raise CannotImport(f"--lora: {path}: no such file")
    try:
        header, metadata = read_header(path)
        refuse_quantised(path, header)
    except CannotImport as error:
        raise CannotImport(f"--lora: {error}") from None
    _refuse_others(path, sorted(header))
    tensors, said = load_file(path), metadata.get(METADATA, "{}")
    try:
        return tensors, dict(json.loads(said))
    except (TypeError, ValueError, RecursionError):
        raise CannotImport(f"--lora: {path}: its metadata, {METADATA}, is no JSON object") from None


def _refuse_others(path: Path, names: Sequence[str]) -> None:
    """Raise CannotImport for a file that has no LoRA in it, saying what it is."""
    if any(re.search(f"{LORA_NAMES}|{LYCORIS_NAMES}|{DORA}", name) for name in names):
        return
    some = {"a whole model": WHOLE} | {what: pattern for what, pattern, _ in NOT_MODELS}
    whats = [what for what, it in some.items() if any(re.search(it, name) for name in names)]
    whats += [what for what, it, _ in PARTS if all(re.match(it, name) for name in names)]
    if any(re.match(DIFFUSERS, name) for name in names):
        whats.append("one component in diffusers' format")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    is_what = f" but {whats[0]}" if whats else f": its tensors are {', '.join(names[:SHOWN])}{more}"
    raise CannotImport(f"--lora: {path}: is no LoRA{is_what}")


def _refuse_kin(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Raise CannotImport for what has B A in it and other factors beside."""
    what = None
    if any(re.search(DORA, name) for name in tensors) or any(
        value for key, value in said.items() if key.endswith("use_dora")
    ):
        what = "a DoRA, which also has a length for each row"
    elif any(re.search(LYCORIS_NAMES, name) for name in tensors):
        what = LYCORIS
    if what is not None:
        raise CannotImport(
            f"--lora: {path}: is {what}: fuse it into its model where you trained it, and import "
            "the result"
        )


def _diffusers_names(
    path: Path, tensors: dict[str, Tensor], source: Source, model: Recognised
) -> dict[str, Tensor]:
    """The tensors, alphas included, by diffusers' names, each after its component's."""
    import diffusers

    pipeline = getattr(diffusers, str(source.index.get("_class_name")), None)
    if not hasattr(pipeline, "lora_state_dict"):
        pipeline = getattr(diffusers, PIPELINES.get(model.kind, ""), None)
    if pipeline is None:
        return tensors  # they have its own names, or none that fit
    config = SimpleNamespace(**model.configs[model.denoiser])
    try:
        found = pipeline.lora_state_dict(dict(tensors), unet_config=config, return_alphas=True)
    except Exception as error:  # whatever it makes of names that it does not know
        raise CannotImport(
            f"--lora: {path}: diffusers cannot make sense of its names: {short(error)}"
        ) from None
    named: dict[str, Tensor]
    named, alphas = found[:2] if isinstance(found, tuple) else (found, None)
    return named | {name: torch.tensor(value) for name, value in (alphas or {}).items()}


def _below(component: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a component, without its name."""
    before = f"{component}."
    return {key.removeprefix(before): it for key, it in named.items() if key.startswith(before)}


def _peft_names(tensors: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """With `.lora_A` and `.lora_B` after each layer's own name."""
    from diffusers.utils import state_dict_utils as known

    mapping = known.UNET_TO_DIFFUSERS
    if component.startswith("text_encoder"):
        mapping = known.DIFFUSERS_TO_PEFT | known.DIFFUSERS_OLD_TO_PEFT
    found: dict[str, Tensor] = known.convert_state_dict(tensors, mapping)
    return found


def _layers(
    tensors: Mapping[str, Tensor], said: Mapping[str, Any], scale: float
) -> tuple[dict[str, Layer], list[str]]:
    """The layers among the tensors of a component, and the names that belong to none."""
    alphas = {
        # Some stand beside a layer, others beside its A.
        name.removesuffix(".alpha").removesuffix(".weight").removesuffix(".lora_A"): name
        for name in tensors
        if name.endswith(".alpha") and tensors[name].numel() == 1
    }
    layers, used = {}, set()
    for name, down in tensors.items():
        layer = name.removesuffix(".lora_A.weight")
        up = tensors.get(f"{layer}.lora_B.weight")
        if layer == name or up is None or not (_is_matrix(down) and _is_matrix(up)):
            continue
        rank, beside = len(down), alphas.get(layer)
        alpha = _alpha(layer, said, rank) if beside is None else float(tensors[beside])
        root = math.sqrt(rank) if said.get("use_rslora") else rank
        layers[layer] = Layer(down, up, scale * alpha / root)
        used |= {name, f"{layer}.lora_B.weight", beside}
    return layers, sorted(set(tensors) - used)


def _is_matrix(tensor: Tensor) -> bool:
    """Of a linear or a convolution layer, with a rank above 0."""
    return tensor.ndim >= 2 and tensor.numel() > 0 and tensor.is_floating_point()


def _alpha(layer: str, said: Mapping[str, Any], rank: int) -> float:
    """As peft finds it; where nothing is said, B A counts as it is."""
    for pattern, alpha in (said.get("alpha_pattern") or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                return float(alpha)
        except re.error as error:
            raise ValueError(f"alpha_pattern: {pattern!r}: {error}") from None
    return float(said.get("lora_alpha", rank))
