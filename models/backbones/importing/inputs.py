"""What a model is conditioned on: its classes and their names, or how long a prompt may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.backbones.families.family import Family
from models.backbones.importing.kinds import Kind, Recognised
from models.backbones.importing.source import CannotImport, Source, read_json
from models.bundles.manifest import Inputs

GUIDANCE: Mapping[Kind, float] = {"text": 7.5, "text-xl": 5.0, "dit": 4.0}
"""diffusers' own defaults; 1 elsewhere."""
LCM_GUIDANCE = 8.5
"""Of a latent consistency model, whose U-Net takes it as an input."""
LEAST_TOKENS = 3
MOST_SCALE = 50.0


@dataclass(frozen=True)
class InputOptions:
    """What the operator says of a model's inputs; None means as its files say."""

    class_names: tuple[str, ...] | None = None
    null_class: int | None = None
    guidance_scale: float | None = None


NOTHING = InputOptions()


def read_names(text: str) -> tuple[str, ...]:
    """Class names: of a file, one a line, or separated by commas. Raises CannotImport."""
    try:
        lines = Path(text).read_text().splitlines() if _is_file(text) else text.split(",")
    except UnicodeDecodeError:
        raise CannotImport(f"--class-names: {text} is not text in UTF-8") from None
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise CannotImport(f"--class-names: {text!r} has an empty name")
    return names


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file's name
        return False


def find_inputs(source: Source, model: Recognised, asked: InputOptions) -> Inputs:
    """The inputs of a model. Raises CannotImport, naming the option that is wrong."""
    if model.kind in ("text", "text-xl"):
        _refuse_classes(asked, "this model takes a prompt")
        limits = [_limit(source, model, name) for name in model.tokenizers]
        if model.configs["unet"].get("time_cond_proj_dim"):
            scale = _scale(asked, LCM_GUIDANCE)
            return Inputs(
                kind="text", max_tokens=min(limits), guidance_scale=scale, guidance="embedded"
            )
        default = GUIDANCE[model.kind] if model.sampling.guided else 1.0
        return Inputs(kind="text", max_tokens=min(limits), guidance_scale=_scale(asked, default))
    config = model.configs[model.denoiser]
    if model.family is not None:
        _refuse_classes(asked, "this model takes a prompt")
        return _prompt(source, model, model.family, asked)
    if model.kind == "dit":
        return _classes(source, asked, int(config["num_embeds_ada_norm"]), own_null=True)
    embedded, count = config.get("class_embed_type"), config.get("num_class_embeds")
    if embedded is None and count is None:
        _refuse_classes(asked, "this model has no classes")
        if asked.guidance_scale not in (None, 1):
            raise CannotImport("--guidance-scale: this model has nothing to be guided by: leave it")
        return Inputs()
    if embedded == "timestep":
        if asked.class_names is None:
            raise CannotImport(
                "unet/config.json: class_embed_type timestep does not say how many classes there "
                "are: give --class-names"
            )
        count = len(asked.class_names) + (asked.null_class == len(asked.class_names))
        return _classes(source, asked, count, own_null=False)
    if embedded is not None:
        raise CannotImport(
            f"unet/config.json: class_embed_type {embedded!r} is not supported: Winnow tells a "
            "model a class by its number (no class_embed_type, or timestep)"
        )
    return _classes(source, asked, int(count or 0), own_null=False)


def _prompt(source: Source, model: Recognised, family: Family, asked: InputOptions) -> Inputs:
    """Of a family, whose encoder counts tokens itself."""
    guidance = family.guidance(model.configs[model.denoiser], source.index)
    default = family.guidance_scale
    if guidance == "none" or (guidance == "classifier-free" and not model.sampling.guided):
        default = 1.0
    if guidance == "none" and asked.guidance_scale not in (None, 0, 1):
        raise CannotImport("--guidance-scale: this model was distilled to need none: leave it out")
    scale = default if asked.guidance_scale is None else asked.guidance_scale
    inputs = Inputs(kind="text", guidance=guidance)
    scale = inputs.scale(scale)
    if not inputs.has_scale(scale) or scale > MOST_SCALE:
        raise CannotImport(f"--guidance-scale: is {scale:g}, must be {inputs.scales}, at most 50")
    return Inputs(
        kind="text",
        max_tokens=family.max_tokens(model.networks),
        chunked=False,
        guidance=guidance,
        guidance_scale=scale,
    )


def _classes(source: Source, asked: InputOptions, count: int, own_null: bool) -> Inputs:
    """`count` rows of the table of classes; with `own_null` one more, which is the null class."""
    null = count if own_null else asked.null_class
    if own_null and asked.null_class not in (None, count):
        raise CannotImport(f"--null-class: is {asked.null_class}, DiT's is {count}")
    if null is not None and not 0 <= null < count + own_null:
        raise CannotImport(f"--null-class: is {null}, must be 0 to {count - 1}")
    names = asked.class_names or _named(source.index.get("id2label"))
    last = null == count - 1
    if names is None:
        names = tuple(str(label) for label in range(count - last))
    if not own_null and null is None and len(names) == count - 1:
        null = count - 1
    # The null class may have a name like any other, or be the one after the last.
    if len(names) not in ({count, count - 1} if null == count - 1 else {count}):
        raise CannotImport(
            f"--class-names: are {len(names)}, and the model has {count} classes"
            + ("" if own_null else " (one more than there are names is taken for the null class)")
        )
    scale = _scale(asked, GUIDANCE["dit"] if own_null else 1.0)
    if scale > 1 and null is None:
        raise CannotImport("--guidance-scale: above 1 needs a null class: give --null-class")
    return Inputs(kind="class", class_names=names, null_class=null, guidance_scale=scale)


def _scale(asked: InputOptions, default: float) -> float:
    scale = default if asked.guidance_scale is None else asked.guidance_scale or 1.0
    if not 1 <= scale <= MOST_SCALE:
        raise CannotImport(f"--guidance-scale: is {scale:g}, must be 0 or 1 (none), to 50")
    return scale


def _refuse_classes(asked: InputOptions, why: str) -> None:
    for option, value in (("--class-names", asked.class_names), ("--null-class", asked.null_class)):
        if value is not None:
            raise CannotImport(f"{option}: {why}: leave it out")


def _named(id2label: Any) -> tuple[str, ...] | None:
    if not isinstance(id2label, dict) or not id2label:
        return None
    try:
        by_label = {int(label): str(name) for label, name in id2label.items()}
    except ValueError:
        by_label = {}
    if sorted(by_label) != list(range(len(by_label))):
        raise CannotImport("model_index.json: id2label does not number its classes from 0")
    return tuple(by_label[label] for label in range(len(by_label)))


def _limit(source: Source, model: Recognised, tokenizer: str) -> int:
    """How many tokens both a tokenizer and its encoder take, as `PromptEncoder` has it."""
    encoder = model.configs[tokenizer.replace("tokenizer", "text_encoder")]
    places = int(encoder.get("max_position_embeddings", 77))
    path = source.folder / tokenizer / "tokenizer_config.json"
    said = read_json(path).get("model_max_length") if path.is_file() else None
    # One without a limit states none, or a number beyond all sense, which some write as a float.
    said = places if said is None else said
    if not isinstance(said, int | float) or not said >= LEAST_TOKENS:
        raise CannotImport(
            f"{tokenizer}/tokenizer_config.json: model_max_length is {said!r}, must be a number of "
            f"{LEAST_TOKENS} or more: a token between the marks of beginning and end"
        )
    return int(min(said, places))
