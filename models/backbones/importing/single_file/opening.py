"""A checkpoint in one file as a `Source`: configurations in a folder, weights where they are.

What the file lacks (tokenizers always, text encoders often) comes from the folder of another
pipeline of the family, the base.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from models.backbones.importing.file_format import read_header
from models.backbones.importing.not_models import refuse_not_models
from models.backbones.importing.single_file.checkpoint import Checkpoint, Tensors
from models.backbones.importing.single_file.layouts import Component, Layout, find_layout
from models.backbones.importing.single_file.prediction import V_PRED, ZERO_SNR, find_prediction
from models.backbones.importing.source import INDEX, CannotImport, Source, read_json, short
from models.backbones.importing.weights import STEMS, Weights

FLOW = "matches flows, and predicts a velocity: leave it out"
SHOWN = 3
"""So many names of tensors in a message."""


def open_file(path: Path, folder: Path, base: Path | None, prediction_type: str | None) -> Source:
    """Write what a checkpoint's pipeline is made of into `folder`, an empty one.

    Raises CannotImport with what the file is, if it is no model, and with what is missing.
    """
    header, _ = read_header(path)
    refuse_not_models(path, header)
    checkpoint = Checkpoint.open(path)
    layout = find_layout(checkpoint)
    notes = [f"{path.name}: one file, in the layout of {layout.name}"]
    scheduler = dict(layout.scheduler)
    if layout.flow:
        if prediction_type is not None:
            raise CannotImport(f"--prediction-type: {layout.name} {FLOW}")
    else:
        found = find_prediction(checkpoint, prediction_type, layout.name == "Stable Diffusion 2")
        scheduler |= found.changes()
        notes.append(found.note())
    index: dict[str, Any] = {"_class_name": layout.pipeline}
    theirs = _index_of(base)
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    converted: dict[str, Weights] = {}
    missing, used = [], {V_PRED, ZERO_SNR}
    for name, component in layout.components.items():
        names = _names(checkpoint, component)
        if names:
            used |= set(names)
            config, weights = _converted(checkpoint, layout, name, component, names, base)
            _write(folder / name / "config.json", config)
            converted[name] = weights
        elif _linked(base, name, folder):
            notes.append(f"{name}: from {_called(base)}, since the file has none")
        elif name not in layout.optional:
            missing.append(name)
            continue
        else:
            notes.append(f"{name}: left out, since neither the file nor --base has one")
            continue
        index[name] = [component.library, component.class_name]
        if name not in converted:
            index[name] = theirs.get(name, index[name])
    for name, class_name in layout.tokenizers.items():
        if name in layout.optional and f"text_encoder{name.removeprefix('tokenizer')}" not in index:
            continue
        if _linked(base, name, folder):
            index[name] = theirs.get(name, ["transformers", class_name])
        else:
            missing.append(name)
    if missing:
        raise CannotImport(_lacks(path, layout, missing, base))
    if left := sorted(set(checkpoint.outlines) - used):
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        notes.append(f"left out of the file: {', '.join(left[:SHOWN])}{more}")
    if checkpoint.casts:
        notes.append(f"{', '.join(sorted(checkpoint.casts))} weights: cast to float16, exactly")
    if stated := checkpoint.metadata.get("modelspec.license"):
        front = yaml.safe_dump({"license": stated}, allow_unicode=True)
        (folder / "README.md").write_text(f"---\n{front}---\n")
    _write(folder / INDEX, index)
    return Source(path.name, folder, index, converted=converted, said=tuple(notes))


def _names(checkpoint: Checkpoint, component: Component) -> list[str]:
    for prefix in component.prefixes:
        if names := [name for name in checkpoint.outlines if name.startswith(prefix)]:
            return names
    return []


def _converted(
    checkpoint: Checkpoint,
    layout: Layout,
    name: str,
    component: Component,
    names: list[str],
    base: Path | None,
) -> tuple[dict[str, Any], Weights]:
    """A component's configuration, and its weights, which are converted when they are written."""
    convert = component.convert
    assert convert is not None, "a component without a conversion has no prefixes"
    what = f"{checkpoint.path}: {name}, in the layout of {layout.name}"
    try:
        # Without their numbers, so this costs nothing: what they become says the shapes.
        config, outlines = convert({one: checkpoint.outlines[one] for one in names})
    except (KeyError, IndexError, ValueError, RuntimeError, StopIteration) as error:
        raise CannotImport(f"{what}: cannot be read: {short(error)}") from error

    def load() -> Tensors:
        return convert(checkpoint.read(names))[1]

    config = _described(base, name, component, config)
    if size := _resolution(checkpoint.metadata, name, config):
        config["sample_size"] = size
    count: Counter[str] = Counter()
    for value in outlines.values():
        count[str(value.dtype).removeprefix("torch.")] += value.numel()
    return config, Weights(
        (checkpoint.path,),
        f"{STEMS[component.library]}.safetensors",
        sum(value.numel() * value.element_size() for value in outlines.values()),
        sum(count.values()),
        count.most_common(1)[0][0],
        load=load,
    )


def _described(
    base: Path | None, name: str, component: Component, shapes: dict[str, Any]
) -> dict[str, Any]:
    """A configuration: what shapes say, and the rest as the base has it, else as released.

    The base counts where its network has the same shapes; never for the scale of latents.
    """
    released = dict(component.says)
    path = None if base is None else base / name / "config.json"
    theirs = read_json(path) if path is not None and path.is_file() else {}
    if not theirs or any(theirs.get(key) != shapes.get(key) for key in component.alike):
        return released | shapes
    theirs = {key: value for key, value in theirs.items() if not key.startswith("_")}
    guessed = {key: theirs[key] for key in GUESSED if key in theirs}
    return theirs | shapes | released | guessed


GUESSED = (
    "attention_head_dim", "num_attention_heads", "addition_time_embed_dim", "hidden_act",
    "bos_token_id", "eos_token_id", "pad_token_id", "axes_dims_rope", "axes_dims", "n_heads",
    "n_kv_heads", "sample_size",
)  # fmt: skip
"""What the released models have, and shapes do not show."""


def _resolution(metadata: dict[str, str], name: str, config: dict[str, Any]) -> int | None:
    """The side of x_t by Stability's metadata, where the image is a square."""
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", ""))
    if found is None or found[1] != found[2] or name != "unet" or "sample_size" not in config:
        return None
    return int(found[1]) // 8 or None


def _linked(base: Path | None, name: str, folder: Path) -> bool:
    """Whether the base has that part, which `folder` then leads to."""
    if base is None or not (base / name).is_dir():
        return False
    (folder / name).symlink_to((base / name).resolve(), target_is_directory=True)
    return True


def _index_of(base: Path | None) -> dict[str, Any]:
    """What the base says of its parts, if it is a whole pipeline."""
    path = None if base is None else base / INDEX
    return read_json(path) if path is not None and path.is_file() else {}


def _called(base: Path | None) -> str:
    """Without the rest of its path, which would go out with the bundle."""
    return "" if base is None else base.resolve().name


def _lacks(path: Path, layout: Layout, missing: list[str], base: Path | None) -> str:
    parts = " and ".join(missing)
    wanted = f"a folder in diffusers' format of a {layout.name} model, which holds {parts}"
    if base is None:
        return f"{path}: a file of {layout.name} has no {parts} in it: give --base FOLDER, {wanted}"
    return f"--base: {base} has no {parts}, which {path} lacks: give {wanted}"


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
