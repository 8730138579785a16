"""Make a bundle's folder of a pipeline: its files under standard names, and the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers

from models.backbones.importing.geometry import geometry
from models.backbones.importing.inputs import NOTHING, InputOptions, find_inputs
from models.backbones.importing.kinds import OLD_DIT, Recognised, recognise
from models.backbones.importing.licence import NOT_STATED, licence, licence_file
from models.backbones.importing.lora import Asked, fuse
from models.backbones.importing.lora_file import open_lora
from models.backbones.importing.sampling import Sampling
from models.backbones.importing.source import INDEX, CannotImport, Source, read_json, reading
from models.backbones.importing.tokenizers import write_tokenizer
from models.backbones.importing.weight_checks import check_tokenizer, check_weights
from models.backbones.importing.weights import Weights, find_weights
from models.bundles.bundle import sha256_name, write_manifest
from models.bundles.manifest import SCHEMA_VERSION, Backbone, Inputs, Manifest

BACKBONE = "backbone"
TOKENIZER_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "tokenizer.json", "added_tokens.json",
)  # fmt: skip
MEGA = 10**6
INDEX_KEYS = ("force_zeros_for_empty_prompt", "is_distilled")
DEFAULT_SIDE = 1024
"""Of the images of a family whose denoiser says no size."""

Start = Callable[[str, int], Callable[..., None]]
"""`start(stage, total)` returns a function, to be called with what was done since its last call."""


@dataclass(frozen=True)
class Options:
    """What the operator asked for; None means as the pipeline's files say. `size` is HxW, or
    several with commas between, the default first.

    `steps` are the counts of steps that it must be able to draw in, by the option that says so;
    `loras` are fused into the weights. `whole` runs its pipeline as it is, where Winnow could step
    its denoiser.
    """

    name: str
    size: str | None = None
    pixel_shuffle: int = 1
    inputs: InputOptions = NOTHING
    licence: str | None = None
    description: str | None = None
    steps: Mapping[str, int] = field(default_factory=dict)
    loras: tuple[Asked, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Made:
    """A folder with its manifest; `weights` by component, and `notes` for people."""

    manifest: Manifest
    kind: str
    weights: dict[str, Weights]
    sampling: Sampling
    notes: list[str] = field(default_factory=list)


def _find_all(source: Source, model: Recognised) -> dict[str, Weights]:
    """The weights of every component. Raises CannotImport, of all that are missing at once."""
    weights, missing = {}, []
    for name, (library, _) in model.networks.items():
        if name in source.converted:
            weights[name] = source.converted[name]
            continue
        try:
            weights[name] = find_weights(source.folder / name, library, source.variant)
        except CannotImport as error:
            missing.append(str(error))
    if missing:
        raise CannotImport("\n".join(missing))
    return weights


def make(source: Source, folder: Path, options: Options, start: Start) -> Made:
    """Write `folder`, which must be new. Raises CannotImport; `folder` is then worth nothing."""
    # It imports this module.
    from models.backbones.importing.whole import is_whole, make_whole

    with reading(f"{source.name}: a component's config.json"):
        if options.whole or is_whole(source):
            return make_whole(source, folder, options, start)
        model = recognise(source)
        _refuse_steps(model, options.steps)
        _refuse_shuffle(model, options.pixel_shuffle)
        auto = None if model.autoencoder is None else model.configs[model.autoencoder]
        denoiser = model.configs[model.denoiser]
        sizes = geometry(denoiser, auto, options.pixel_shuffle, model.family)
        side = denoiser.get("sample_size")
        if model.family is not None and side is None:
            side = DEFAULT_SIDE // sizes.factor
        every = sizes.sizes(options.size, side, latent=auto is not None)
        height, width = every[0]
        channels = _channels(model, options.pixel_shuffle)
        inputs = find_inputs(source, model, options.inputs)
        weights = _find_all(source, model)
    loras = [open_lora(asked, source, model) for asked in options.loras]
    notes = [*source.said, *model.notes, _sampled(model, inputs), *(lora.note for lora in loras)]
    notes += [part.note for part in weights.values() if part.note is not None]
    said = options.licence or licence(source.folder)
    if said == NOT_STATED:
        notes.append("licence: not stated in a model card or a LICENSE file: give --licence")
    notes += [f"{name}: not copied, since it can run code" for name in source.left_out]
    backbone = folder / BACKBONE
    total = sum(part.bytes for part in weights.values())
    refuse_full(folder.parent, total)
    advance = start("copy the weights, MB", -(-total // MEGA))
    copied = 0

    def on_bytes(count: int) -> None:
        nonlocal copied
        before, copied = -(-copied // MEGA), copied + count
        advance(-(-copied // MEGA) - before)

    for name in model.tokenizers:
        if model.family is not None:
            write_tokenizer(source, name, backbone / name)
            continue
        _copy_tokenizer(source.folder / name, backbone / name, inputs.max_tokens or 0)
        check_tokenizer(backbone / name)
    for name, part in weights.items():
        part.write(backbone / name, on_bytes)
        write_json(backbone / name / "config.json", _config(model, name))
    if loras:
        fuse({name: backbone / name / part.name for name, part in weights.items()}, loras)
    write_json(backbone / "scheduler" / "scheduler_config.json", model.scheduler)
    write_json(backbone / INDEX, _index(source, model))
    if (text := licence_file(source.folder)) is not None:
        shutil.copyfile(text, folder / "LICENSE.txt")
    checked = start("load the weights", len(weights))
    for name, (library, class_name) in model.networks.items():
        check_weights(backbone / name, library, class_name, weights[name].dtype)
        checked(1)
    hashed = cache(sha256_name)  # one file may hold several components
    record = {
        "imported_from": source.name,
        "revision": source.revision,
        "variant": source.variant,
        "kind": model.kind if model.family is None else model.family.name,
        "sampling": asdict(model.sampling),
        INDEX: source.index,
        "scheduler": read_json(source.folder / "scheduler" / "scheduler_config.json"),
        "scheduler_changes": dict(source.changes),
        "notes": notes,
        "components": {
            name: {
                "class": model.networks[name][1],
                "parameters": part.parameters,
                "dtype": part.dtype,
                "bytes": part.bytes,
                "files": {path.name: hashed(path) for path in part.files},
            }
            for name, part in weights.items()
        },
        "loras": [lora.record for lora in loras],
        "diffusers": diffusers.__version__,
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=options.name,
        description=options.description or f"{model.name}, imported from {source.name}",
        licence=said,
        backbone=Backbone(
            folder=BACKBONE,
            denoiser=model.denoiser,
            autoencoder=model.autoencoder,
            latents=_latents(model),
            inputs=inputs,
            pixel_shuffle=options.pixel_shuffle,
            height=height,
            width=width,
            sizes=tuple(every) if len(every) > 1 else (),
            channels=channels,
            training=record,
        ),
        rewards={},
        files={},
    )
    write_manifest(folder, manifest)
    return Made(manifest, model.name, weights, model.sampling, notes)


def refuse_full(folder: Path, needed: int) -> None:
    """Raises CannotImport where there is no room for so many bytes."""
    if (free := shutil.disk_usage(folder).free) < needed + 10 * MEGA:
        raise CannotImport(
            f"{folder}: {free // MEGA} MB are free, and the weights take {needed // MEGA}"
        )


def _refuse_steps(model: Recognised, asked: Mapping[str, int]) -> None:
    most = model.scheduler["num_train_timesteps"]
    for option, steps in asked.items():
        if steps > most:
            raise CannotImport(
                f"{option}: is {steps}, and the model was trained with num_train_timesteps {most}: "
                f"give {option} {most} or less"
            )


def _refuse_shuffle(model: Recognised, factor: int) -> None:
    if factor == 1:
        return
    if model.kind != "pixels":
        raise CannotImport(f"--pixel-shuffle: is for a U-Net on pixels, this is {model.name}")
    if model.configs["unet"]["in_channels"] % factor**2:
        raise CannotImport(
            f"--pixel-shuffle: {factor} folds {factor**2} pixels into channels, and the U-Net has "
            f"{model.configs['unet']['in_channels']}"
        )


def _channels(model: Recognised, pixel_shuffle: int) -> Any:
    if model.family is not None:
        # Films and deep compression call it otherwise.
        config = model.configs["vae"]
        count = int(config.get("out_channels", config.get("input_channels", 3)))
    elif model.autoencoder is not None:
        count = int(model.configs[model.autoencoder].get("out_channels", 3))
    else:
        count = int(model.configs["unet"]["in_channels"]) // pixel_shuffle**2
    if count not in (1, 3):
        hint = "" if model.kind != "pixels" or count % 4 else ": --pixel-shuffle 2, perhaps?"
        raise CannotImport(f"its images have {count} channels: must be 1 or 3{hint}")
    return count


def _latents(model: Recognised) -> tuple[int, int] | None:
    if model.family is None:
        return None
    found = model.family.latents(model.configs["transformer"], model.configs["vae"])
    return found.channels, found.factor


def _sampled(model: Recognised, inputs: Inputs) -> str:
    """What was chosen of steps and guidance, and why."""
    found = model.sampling
    scale = f", guidance_scale {inputs.guidance_scale:g}" if inputs.guidable else ""
    return (
        f"sampler {found.sampler}, {found.num_inference_steps} steps{scale}: {found.why}; "
        "--steps, --guidance-scale and the policies say otherwise"
    )


def _config(model: Recognised, name: str) -> dict[str, Any]:
    """A component's configuration for the class that runs it, without its maker's paths."""
    config = {key: value for key, value in model.configs[name].items() if key != "_name_or_path"}
    library, class_name = model.networks[name]
    if library == "transformers":
        return config | {"architectures": [class_name]}
    if config.get("_class_name") == OLD_DIT:
        import inspect

        known = inspect.signature(diffusers.DiTTransformer2DModel.__init__).parameters
        config = {key: value for key, value in config.items() if key in known}
    return config | {"_class_name": class_name}


def _index(source: Source, model: Recognised) -> dict[str, Any]:
    parts: dict[str, Any] = {name: list(value) for name, value in model.networks.items()}
    parts |= {name: ["transformers", "CLIPTokenizer"] for name in model.tokenizers}
    name = source.index.get("_class_name", "DiffusionPipeline")
    if model.family is not None:
        name = model.family.pipeline
        parts |= {one: list(source.components[one]) for one in model.tokenizers}
        absent = set(model.family.text) - set(model.networks)
        parts |= {one: [None, None] for one in absent}
        parts |= {one.replace("text_encoder", "tokenizer"): [None, None] for one in absent}
    kept: dict[str, Any] = {key: source.index[key] for key in INDEX_KEYS
            if key in source.index}  # fmt: skip
    return {
        "_class_name": name,
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        **parts,
        **kept,
    }


def _copy_tokenizer(source: Path, target: Path, limit: int) -> None:
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not any((target / name).exists() for name in ("vocab.json", "tokenizer.json")):
        raise CannotImport(f"{source}: holds no tokenizer (vocab.json and merges.txt)")
    path = target / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    config["model_max_length"] = limit
    config.pop("name_or_path", None)
    config.pop("auto_map", None)
    write_json(path, config)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write it, and the folders that it stands in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
