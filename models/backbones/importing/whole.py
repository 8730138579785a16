"""A text-to-image pipeline of diffusers' as a whole: for one whose denoiser has no adapter here.

Its components are copied as they are, if each is a class of diffusers or transformers. What it
takes, its own call says.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import diffusers

from models.backbones.families.table import FAMILIES
from models.backbones.importing.bundle_folder import (
    BACKBONE,
    DEFAULT_SIDE,
    MEGA,
    Made,
    Options,
    Start,
    refuse_full,
    write_json,
)
from models.backbones.importing.geometry import Geometry
from models.backbones.importing.inputs import MOST_SCALE
from models.backbones.importing.kinds import OLD_DIT
from models.backbones.importing.licence import NOT_STATED, licence, licence_file
from models.backbones.importing.sampling import DISTILLED, STEPS, Sampling, suggest
from models.backbones.importing.scheduler import FILE
from models.backbones.importing.source import INDEX, CannotImport, Source
from models.backbones.importing.tokenizers import write_tokenizer
from models.backbones.importing.weight_checks import check_weights
from models.backbones.importing.weights import Weights, find_weights
from models.backbones.pipeline import (
    CALLBACKS,
    OLD_CALLBACK,
    component_class,
    parameters,
    pipeline_class,
)
from models.backbones.runtime import DENOISERS
from models.bundles.bundle import sha256_name, write_manifest
from models.bundles.manifest import SCHEMA_VERSION, Backbone, Inputs, Manifest

Role = Literal["network", "tokenizer", "scheduler", "other"]
AFTER_IMAGES = re.compile(
    r"ControlNet|Control|Inpaint|Img2Img|Image2Image|Edit|Kontext|Upscale|Adapter|Video|Audio", re.I
)
"""In the names of pipelines that draw after an image, or draw no image."""
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
NEEDED = ("prompt", "generator", "output_type", "num_inference_steps")
TEXT_FILES = (".json", ".txt")
STEPPED = (*DENOISERS, *FAMILIES, OLD_DIT)
"""Denoisers that Winnow steps itself."""


def is_whole(source: Source) -> bool:
    """Whether it is a text-to-image pipeline of diffusers' whose denoiser Winnow cannot step."""
    found = source.components
    denoiser = next((found[name][1] for name in ("transformer", "unet") if name in found), "")
    return denoiser not in ("", *STEPPED) and _fault(source) is None


def _fault(source: Source) -> str | None:
    """Why a folder is none that can be run as a whole, or None."""
    try:
        takes = parameters(cls := pipeline_class(source.index.get("_class_name")))
    except ValueError as error:
        return str(error)
    name = cls.__name__
    if missing := [one for one in NEEDED if one not in takes]:
        return f"{INDEX}: {name} takes no {missing[0]}: it draws no image from a prompt"
    if AFTER_IMAGES.search(name):
        return f"{INDEX}: {name} draws after another image, or no image: Winnow asks by a prompt"
    if not any(one in takes for one in (*CALLBACKS, OLD_CALLBACK)):
        return f"{INDEX}: {name} calls nobody between its steps, so it could never be stopped"
    return None


def make_whole(source: Source, folder: Path, options: Options, start: Start) -> Made:
    """Write `folder`, which must be new. Raises CannotImport; `folder` is then worth nothing."""
    if (fault := _fault(source)) is not None:
        raise CannotImport(fault)
    _refuse_options(options)
    name = str(source.index["_class_name"])
    takes = parameters(pipeline_class(name))
    roles = {part: _role(part, *value) for part, value in _components(source).items()}
    networks = {one: _components(source)[one] for one in roles if roles[one] == "network"}
    weights = {
        part: source.converted.get(part)
        or find_weights(source.folder / part, library, source.variant)
        for part, (library, _) in networks.items()
    }
    sizes = _sizes(source, takes, options)
    height, width = sizes[0]
    inputs = _inputs(source, takes, options)
    sampling = _sampling(source, takes)
    notes = [
        *source.said,
        f"runs as a whole, as {name} of diffusers has it, one image at a time: rejection censors "
        "it, and no policy can steer it or look into its steps",
        *(f"{one}: left out" for one in LEFT_OUT if one in source.components),
        *(f"{one}: not copied, since it can run code" for one in source.left_out),
        *(part.note for part in weights.values() if part.note is not None),
    ]
    said = options.licence or licence(source.folder)
    if said == NOT_STATED:
        notes.append("licence: not stated in a model card or a LICENSE file: give --licence")
    _copy(source, folder / BACKBONE, roles, weights, start)
    if (text := licence_file(source.folder)) is not None:
        shutil.copyfile(text, folder / "LICENSE.txt")
    checked = start("load the weights", len(weights))
    for part, (library, class_name) in networks.items():
        check_weights(folder / BACKBONE / part, library, class_name, weights[part].dtype)
        checked(1)
    record = {
        "imported_from": source.name,
        "revision": source.revision,
        "variant": source.variant,
        "kind": name,
        "sampling": asdict(sampling),
        INDEX: source.index,
        "notes": notes,
        "components": {
            part: {
                "class": networks[part][1],
                "parameters": one.parameters,
                "dtype": one.dtype,
                "bytes": one.bytes,
                "files": {path.name: sha256_name(path) for path in one.files},
            }
            for part, one in weights.items()
        },
        "diffusers": diffusers.__version__,
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=options.name,
        description=options.description or f"{name}, imported from {source.name}",
        licence=said,
        backbone=Backbone(
            folder=BACKBONE,
            kind="pipeline",
            inputs=inputs,
            height=height,
            width=width,
            sizes=tuple(sizes) if len(sizes) > 1 else (),
            channels=3,
            training=record,
        ),
        rewards={},
        files={},
    )
    write_manifest(folder, manifest)
    return Made(manifest, name, weights, sampling, notes)


def _components(source: Source) -> dict[str, tuple[str, str]]:
    return {name: one for name, one in source.components.items() if name not in LEFT_OUT}


def _role(name: str, library: str, class_name: str) -> Role:
    """What a component is. Raises CannotImport where its class is nobody's we run."""
    import transformers

    try:
        cls = component_class(name, library, class_name)
    except ValueError as error:
        raise CannotImport(str(error)) from None
    if issubclass(cls, diffusers.ModelMixin | transformers.PreTrainedModel):
        return "network"
    if issubclass(cls, transformers.PreTrainedTokenizerBase):
        return "tokenizer"
    return "scheduler" if issubclass(cls, diffusers.SchedulerMixin) else "other"


def _copy(
    source: Source,
    target: Path,
    roles: Mapping[str, Role],
    weights: Mapping[str, Weights],
    start: Start,
) -> None:
    """Copy what each component is made of; nothing that is not safetensors, JSON or text."""
    total = sum(part.bytes for part in weights.values())
    refuse_full(target.parent.parent, total)
    advance = start("copy the weights, MB", -(-total // MEGA))
    copied = 0

    def on_bytes(count: int) -> None:
        nonlocal copied
        before, copied = -(-copied // MEGA), copied + count
        advance(-(-copied // MEGA) - before)

    for name, role in roles.items():
        if role == "tokenizer":
            write_tokenizer(source, name, target / name)
        elif role == "scheduler":
            write_json(target / name / FILE, dict(source.config(name, FILE)))
        elif role == "network":
            weights[name].write(target / name, on_bytes)
            config = dict(source.config(name))
            for key in ("_name_or_path", "auto_map"):
                config.pop(key, None)
            if source.components[name][0] == "transformers":
                config["architectures"] = [source.components[name][1]]
            write_json(target / name / "config.json", config)
        else:
            (target / name).mkdir(parents=True)
            for path in sorted((source.folder / name).iterdir()):
                if path.suffix in TEXT_FILES:
                    shutil.copyfile(path, target / name / path.name)
    kept = {
        key: value
        for key, value in source.index.items()
        if key in roles or (not key.startswith("_") and not isinstance(value, list | dict))
    }
    absent = {
        name
        for name, value in source.index.items()
        if isinstance(value, list) and name not in roles and not name.startswith("_")
    }
    # Older files leave out what a model lacks, and its class asks for it.
    made_of = inspect.signature(pipeline_class(source.index["_class_name"])).parameters
    absent |= {name for name, one in made_of.items() if one.default is one.empty} - set(kept)
    index = {"_class_name": source.index["_class_name"], **kept}
    write_json(target / INDEX, index | {name: [None, None] for name in sorted(absent)})


def _sizes(source: Source, takes: Mapping[str, Any], options: Options) -> list[tuple[int, int]]:
    """[H, W] of each: as asked, else of the call's defaults or the networks' configurations.

    Whether they come out, the check's images show.
    """
    if options.size is not None:
        return Geometry(1, 1).sizes(options.size, None, latent=False)
    height, width = takes.get("height"), takes.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return [(height, width)]
    side, levels = _denoiser(source).get("sample_size"), []
    if "vae" in source.components:
        levels = source.config("vae").get("block_out_channels", [])
    known = DEFAULT_SIDE if not (isinstance(side, int) and levels) else side * 2 ** len(levels) // 2
    return [(known, known)]


def _denoiser(source: Source) -> Mapping[str, Any]:
    """The configuration of its denoiser, where it goes by a usual name."""
    name = next((one for one in ("transformer", "unet") if one in source.components), None)
    return source.config(name) if name else {}


def _inputs(source: Source, takes: Mapping[str, Any], options: Options) -> Inputs:
    """A prompt, and the guidance that the call takes."""
    asked = options.inputs.guidance_scale
    guidance: Literal["classifier-free", "embedded", "none"] = "none"
    if "guidance_scale" in takes:
        embedded = _denoiser(source).get("guidance_embeds")
        guidance = "embedded" if embedded else "classifier-free"
    elif asked not in (None, 0, 1):
        raise CannotImport("--guidance-scale: this model's pipeline takes none: leave it out")
    default = takes.get("guidance_scale")
    distilled = guidance == "classifier-free" and DISTILLED.search(source.name)
    scale = float(default) if isinstance(default, int | float) and not distilled else 1.0
    found = Inputs(kind="text", guidance=guidance)
    scale = found.scale(scale if asked is None else asked)
    if not found.has_scale(scale) or scale > MOST_SCALE:
        raise CannotImport(f"--guidance-scale: is {scale:g}, must be {found.scales}, at most 50")
    return found.model_copy(update={"guidance_scale": scale})


def _sampling(source: Source, takes: Mapping[str, Any]) -> Sampling:
    """Its own scheduler's, in as many steps as the call's default, fewer where it is distilled."""
    named = suggest(source.name, source.config("scheduler", FILE), None)
    default = takes.get("num_inference_steps")
    steps, why = default if isinstance(default, int) else STEPS, "its pipeline's default"
    if DISTILLED.search(source.name):
        steps, why = named.num_inference_steps, named.why
    return Sampling("ddim", steps, named.guided, why)


def _refuse_options(options: Options) -> None:
    given = {
        "--pixel-shuffle": options.pixel_shuffle != 1,
        "--class-names": options.inputs.class_names is not None,
        "--null-class": options.inputs.null_class is not None,
        "--lora": bool(options.loras),
    }
    for option, said in given.items():
        if said:
            raise CannotImport(f"{option}: is not for a model that runs as a whole: leave it out")
