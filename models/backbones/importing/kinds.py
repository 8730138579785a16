"""Which kind of model a pipeline is, from its components and their configurations.

Not from the pipeline's name: many pipelines run the same networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.backbones.families.family import Family
from models.backbones.families.table import FAMILIES
from models.backbones.importing.families import channels_fit, text_components
from models.backbones.importing.flow import is_flow, spell_out_flow
from models.backbones.importing.sampling import Sampling, suggest
from models.backbones.importing.scheduler import FILE, spell_out
from models.backbones.importing.source import CannotImport, Source, reading

Kind = Literal["pixels", "latents", "text", "text-xl", "dit", "family"]
NAMES: Mapping[str, str] = {
    "pixels": "U-Net on pixels",
    "latents": "U-Net on an autoencoder's latents",
    "text": "Stable Diffusion",
    "text-xl": "Stable Diffusion XL",
    "dit": "DiT",
}
AUTOENCODERS = ("vae", "vqvae", "movq")
LEFT_OUT = {
    "safety_checker": "Winnow's judge takes its place (`winnow judge import` can bring one)",
    "feature_extractor": "it belongs to the safety checker",
    "image_encoder": "images are no input here",
}
TEXT = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
TOKENIZERS: tuple[str, ...] = ("tokenizer", "tokenizer_2")
OLD_DIT = "Transformer2DModel"
WANTED = (
    "Winnow imports UNet2DModel on pixels or latents, Stable Diffusion 1, 2 and XL, DiT, and "
    f"{', '.join(family.name for family in FAMILIES.values())} (docs/models.md)"
)


@dataclass(frozen=True)
class Recognised:
    """A pipeline that can be served. `networks` are the components with weights: library and class.

    `scheduler` is spelled out. `notes` are sentences on what was left out or changed.
    """

    kind: Kind
    denoiser: Literal["unet", "transformer"]
    autoencoder: Literal["vae", "vqvae", "movq"] | None
    networks: dict[str, tuple[str, str]]
    tokenizers: tuple[str, ...]
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    notes: list[str]
    sampling: Sampling
    family: Family | None = None

    @property
    def name(self) -> str:
        """What the kind is called."""
        return NAMES[self.kind] if self.family is None else self.family.name


def recognise(source: Source) -> Recognised:
    """The kind of a pipeline. Raises CannotImport with what stands against it."""
    found = source.components
    if "scheduler" not in found:
        raise CannotImport(f"{source.name}: no scheduler in model_index.json: {WANTED}")
    schedule = source.config("scheduler", FILE)
    schedule.setdefault("_class_name", found["scheduler"][1])
    if (family := FAMILIES.get(found.get("transformer", ("", ""))[1])) is not None:
        return _family(source, family, schedule)
    # First of all: of what other processes there are, this is the sentence that helps.
    with reading(f"scheduler/{FILE}"):
        spell_out(schedule, latent=False, stable_diffusion=False)
    notes = [f"{name}: left out: {why}" for name, why in LEFT_OUT.items() if name in found]
    parts = {name: value for name, value in found.items() if name not in LEFT_OUT}
    denoiser = _denoiser(source, parts)
    networks = {denoiser: parts.pop(denoiser)}
    autoencoder = next((name for name in AUTOENCODERS if name in parts), None)
    if autoencoder is not None:
        networks[autoencoder] = parts.pop(autoencoder)
    texts = {name: parts.pop(name) for name in TEXT if name in parts}
    tokenizers = {name: parts.pop(name) for name in TOKENIZERS if name in parts}
    parts.pop("scheduler")
    if parts:
        name, (_, what) = next(iter(parts.items()))
        raise CannotImport(f"{source.name}: component {name} ({what}) is not supported. {WANTED}")
    configs = {name: source.config(name) for name in networks | texts}
    for name, (_, stated) in networks.items():
        said = str(configs[name].get("_class_name", stated))
        if said != stated:
            raise CannotImport(
                f"{name}/config.json: is for a {said}, and model_index.json says {stated}"
            )
    what = networks[denoiser][1]
    kind = _kind(source, what, autoencoder, texts, tokenizers, configs)
    if what == OLD_DIT:
        # What diffusers 0.30 called it; the weights have the same names.
        networks[denoiser] = ("diffusers", "DiTTransformer2DModel")
    if autoencoder is not None:
        _fits(denoiser, autoencoder, networks[autoencoder][1], configs)
    channels, out = configs[denoiser]["in_channels"], configs[denoiser].get("out_channels")
    if out not in (None, channels, 2 * channels):
        raise CannotImport(
            f"{denoiser}/config.json: {out} out_channels for {channels} in_channels: must be as "
            "many, or twice as many with a learned variance"
        )
    config, changed = spell_out(schedule, autoencoder is not None, kind == "text")
    networks |= texts
    return Recognised(
        kind,
        "unet" if denoiser == "unet" else "transformer",
        autoencoder,  # type: ignore[arg-type]  # one of AUTOENCODERS
        networks,
        tuple(tokenizers),
        configs,
        config,
        [*notes, *changed],
        suggest(source.name, schedule, None),
    )


def _family(source: Source, family: Family, schedule: Mapping[str, Any]) -> Recognised:
    """A transformer that has an adapter."""
    found = source.components
    texts, tokenizers = text_components(source, family, found)
    networks = {"transformer": found["transformer"], "vae": found["vae"]}
    configs = {name: source.config(name) for name in networks | texts}
    if why := family.unfit(configs["transformer"]):
        raise CannotImport(
            f"transformer/config.json: this is no {family.name}: {why}: not supported"
        )
    channels_fit(family, configs["transformer"], configs["vae"])
    with reading(f"scheduler/{FILE}"):
        if is_flow(schedule):
            patch = family.latents(configs["transformer"], configs["vae"]).patch
            config, notes = spell_out_flow(schedule, dict(family.spacing) | {"patch": patch})
        else:
            config, notes = spell_out(schedule, latent=True, stable_diffusion=False)
    notes += [f"{name}: left out: {why}" for name, why in LEFT_OUT.items() if name in found]
    return Recognised(
        "family",
        "transformer",
        "vae",
        networks | texts,
        tuple(tokenizers),
        configs,
        config,
        notes,
        suggest(source.name, schedule, family),
        family,
    )


def _denoiser(source: Source, parts: Mapping[str, tuple[str, str]]) -> str:
    for name, (_, what) in parts.items():
        if "controlnet" in name or "ControlNet" in what:
            raise CannotImport(
                f"{source.name}: {name} ({what}): a ControlNet draws after a second image, which "
                "Winnow has no input for"
            )
    for name in ("unet", "transformer"):
        if name in parts:
            return name
    held = ", ".join(parts) or "no component"
    raise CannotImport(f"{source.name}: neither unet nor transformer (it has {held}). {WANTED}")


def _kind(
    source: Source,
    what: str,
    autoencoder: str | None,
    texts: Mapping[str, tuple[str, str]],
    tokenizers: Mapping[str, tuple[str, str]],
    configs: Mapping[str, dict[str, Any]],
) -> Kind:
    denoiser = "unet" if "unet" in configs else "transformer"
    config, where = configs[denoiser], f"{denoiser}/config.json"
    if what == "UNet2DModel":
        if texts:
            raise CannotImport(
                f"{source.name}: a UNet2DModel takes no prompt, and {' and '.join(texts)} is "
                f"there. {WANTED}"
            )
        if config.get("time_embedding_type") == "fourier":
            raise CannotImport(f"{where}: time_embedding_type fourier: a variance-exploding "
                               "process is not supported")  # fmt: skip
        return "pixels" if autoencoder is None else "latents"
    if autoencoder is None:
        raise CannotImport(f"{source.name}: {what} without an autoencoder (vae). {WANTED}")
    old = what == OLD_DIT and config.get("norm_type") == "ada_norm_zero"
    if what == "DiTTransformer2DModel" or old:
        if config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
            raise CannotImport(f"{where}: norm_type {config['norm_type']} is not DiT's")
        if texts:
            raise CannotImport(
                f"{source.name}: DiT takes a class, and {' and '.join(texts)} is there"
            )
        return "dit"
    if what != "UNet2DConditionModel":
        raise CannotImport(f"{denoiser}: {what} is not a denoiser that Winnow runs. {WANTED}")
    return _stable_diffusion(source, config, texts, tokenizers, configs)


def _stable_diffusion(
    source: Source,
    unet: Mapping[str, Any],
    texts: Mapping[str, tuple[str, str]],
    tokenizers: Mapping[str, tuple[str, str]],
    configs: Mapping[str, dict[str, Any]],
) -> Kind:
    for name, (_, what) in texts.items():
        said = str((configs[name].get("architectures") or [what])[0])
        if what != TEXT[name] or said != TEXT[name]:
            raise CannotImport(
                f"{name}: {said if said != TEXT[name] else what} is not supported: Winnow runs "
                f"CLIP's ({TEXT[name]})"
            )
    added, where = unet.get("addition_embed_type"), "unet/config.json"
    if added == "text_time" and set(texts) == {"text_encoder_2"}:
        raise CannotImport(
            f"{source.name}: Stable Diffusion XL's refiner goes on from another model's image, "
            "and is not supported: import the base model"
        )
    if not texts or len(tokenizers) != len(texts):
        raise CannotImport(
            f"{source.name}: a text encoder and its tokenizer must be there (it has "
            f"{', '.join([*texts, *tokenizers]) or 'neither'})"
        )
    if added not in (None, "text_time") or (added is None) != ("text_encoder_2" not in texts):
        raise CannotImport(
            f"{where}: addition_embed_type {added!r} with {' and '.join(texts)}: Winnow knows none "
            "with one text encoder, and text_time with two"
        )
    for key, default in (
        ("class_embed_type", None), ("num_class_embeds", None), ("encoder_hid_dim_type", None),
        ("dual_cross_attention", False),
    ):  # fmt: skip
        if unet.get(key, default) != default:
            raise CannotImport(f"{where}: {key} {unet[key]!r}: this condition is not supported")
    tokenizer = next((f"{n} ({w})" for n, (_, w) in tokenizers.items() if "CLIP" not in w), None)
    if tokenizer is not None:
        raise CannotImport(f"{tokenizer} is not supported: Winnow runs CLIP's")
    _widths(unet, texts, configs)
    return "text" if added is None else "text-xl"


def _widths(
    unet: Mapping[str, Any],
    texts: Mapping[str, tuple[str, str]],
    configs: Mapping[str, dict[str, Any]],
) -> None:
    given = sum(int(configs[name]["hidden_size"]) for name in texts)
    wanted = unet["cross_attention_dim"]
    if any(one != given for one in (wanted if isinstance(wanted, list) else [wanted])):
        raise CannotImport(
            f"unet/config.json: cross_attention_dim is {wanted}, and {' and '.join(texts)} give "
            f"{given}"
        )
    if "text_encoder_2" not in texts:
        return
    pooled = int(configs["text_encoder_2"]["projection_dim"])
    size = pooled + 6 * int(unet["addition_time_embed_dim"])
    if unet["projection_class_embeddings_input_dim"] != size:
        raise CannotImport(
            "unet/config.json: projection_class_embeddings_input_dim is "
            f"{unet['projection_class_embeddings_input_dim']}, the base model of Stable Diffusion "
            f"XL has {size} (the refiner, which has another, is not supported)"
        )


def _fits(
    denoiser: str, autoencoder: str, what: str, configs: Mapping[str, dict[str, Any]]
) -> None:
    if what not in ("AutoencoderKL", "VQModel"):
        raise CannotImport(f"{autoencoder}: {what} is not supported: AutoencoderKL and VQModel are")
    wanted, latent = configs[denoiser]["in_channels"], configs[autoencoder]["latent_channels"]
    if wanted == latent:
        return
    hint = {2 * latent + 1: "an inpainting model, which draws into a given image and mask",
            2 * latent: "a model that edits a given image"}.get(wanted)  # fmt: skip
    raise CannotImport(
        f"{denoiser}/config.json: in_channels is {wanted}, and {autoencoder} has {latent} channels"
        + (f": it looks like {hint}: Winnow has no such input" if hint else "")
    )
