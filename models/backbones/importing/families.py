"""Whether a pipeline has the components of a family that has an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.backbones.families.family import Family
from models.backbones.importing.source import CannotImport, Source

LEFT_OUT = ("image_encoder", "feature_extractor", "safety_checker")


def text_components(
    source: Source, family: Family, found: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """The text encoders of a pipeline and their tokenizers, by name. Raises CannotImport."""
    texts: dict[str, tuple[str, str]] = {}
    tokenizers: dict[str, tuple[str, str]] = {}
    for name, classes in family.text.items():
        tokenizer = name.replace("text_encoder", "tokenizer")
        if name not in found and name in family.optional:
            continue
        for one in (name, tokenizer):
            if one not in found:
                raise CannotImport(f"{source.name}: {family.name} needs {one}, which is not there")
            library = found[one][0]
            if library != "transformers":
                raise CannotImport(f"{source.name}: {one} is a class of {library!r}: Winnow runs "
                                   "those of transformers alone")  # fmt: skip
        if found[name][1] not in classes:
            raise CannotImport(
                f"{name}: {found[name][1]} is not supported: {family.name} is run with "
                f"{' or '.join(classes)}"
            )
        if "Tokenizer" not in found[tokenizer][1]:
            raise CannotImport(f"{tokenizer}: {found[tokenizer][1]} is no tokenizer")
        texts[name], tokenizers[tokenizer] = found[name], found[tokenizer]
    unused = {one.replace("text_encoder", "tokenizer") for one in family.optional}
    known = {"scheduler", "transformer", "vae", *LEFT_OUT, *texts, *tokenizers, *unused}
    if more := sorted(set(found) - known):
        raise CannotImport(
            f"{source.name}: component {more[0]} ({found[more[0]][1]}) is none of {family.name}'s"
        )
    if found.get("vae", ("", ""))[1] != family.autoencoder:
        there = found["vae"][1] if "vae" in found else "none"
        raise CannotImport(f"vae: is {there}: {family.name} has {family.autoencoder}")
    return texts, tokenizers


def channels_fit(
    family: Family, denoiser: Mapping[str, Any], autoencoder: Mapping[str, Any]
) -> None:
    """Raises CannotImport where denoiser and autoencoder do not belong together."""
    wanted = family.latents(denoiser, autoencoder).channels
    given = autoencoder.get("latent_channels", autoencoder.get("z_dim"))
    if family.autoencoder == "AutoencoderKLFlux2" and given is not None:
        high, wide = autoencoder.get("patch_size", (2, 2))
        given = int(given) * int(high) * int(wide)
    if given is not None and int(given) != wanted:
        raise CannotImport(
            f"transformer/config.json: it draws {wanted} channels, and vae has {given}: they are "
            "not of one model, or it draws after another image, which Winnow has no input for"
        )
