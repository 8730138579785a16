"""The sizes of the images: multiples of what the networks need; the first is the default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from models.backbones.families.family import Family
from models.backbones.importing.source import CannotImport

BUCKETS = ((1024, 1024), (896, 1152), (1152, 896), (1024, 1536), (1536, 1024))
"""[H, W] that latent models of a megapixel are asked for."""


@dataclass(frozen=True)
class Geometry:
    """Height and width of the image are multiples of `multiple`; x_t's are 1/`factor` of them."""

    factor: int
    multiple: int

    def sizes(self, wanted: str | None, sample_size: Any, latent: bool) -> list[tuple[int, int]]:
        """[H, W] of each: as `wanted` says (`HxW`, with commas between several), else the
        denoiser's own, and for a `latent` model of 1024x1024 the usual ones beside it.

        Raises CannotImport.
        """
        if wanted is not None:
            found = [self.size(one.strip(), sample_size) for one in wanted.split(",")]
            for size in found:
                if found.count(size) > 1:
                    raise CannotImport(f"--size: {size[0]}x{size[1]} stands there twice")
            return found
        own = self.size(None, sample_size)
        if not latent or own != BUCKETS[0]:
            return [own]
        return [size for size in BUCKETS if not any(side % self.multiple for side in size)]

    def size(self, wanted: str | None, sample_size: Any) -> tuple[int, int]:
        """[H, W]: as `wanted` says (`HxW`), else as the denoiser's `sample_size`.

        Raises CannotImport.
        """
        if wanted is None:
            height, width = (
                side * self.factor for side in _pair(sample_size, "no sample_size: give --size HxW")
            )
            what = "the denoiser's own size"
        else:
            found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", wanted)
            if found is None:
                raise CannotImport(f"--size: {wanted!r} is not HxW, such as 512x768")
            height, width = int(found[1]), int(found[2])
            what = "--size"
        if not height or not width or height % self.multiple or width % self.multiple:
            near = (_nearest_multiple(side, self.multiple) for side in (height, width))
            raise CannotImport(
                f"{what}: {height}x{width}: this model needs multiples of {self.multiple}, such as "
                f"{'x'.join(str(side) for side in near)}"
            )
        return height, width


def geometry(
    denoiser: dict[str, Any],
    autoencoder: dict[str, Any] | None,
    pixel_shuffle: int,
    family: Family | None = None,
) -> Geometry:
    """What their configurations ask of a size."""
    if family is not None and autoencoder is not None:
        latents = family.latents(denoiser, autoencoder)
        return Geometry(latents.factor, latents.multiple)
    factor = pixel_shuffle
    if autoencoder is not None:
        # Each of its levels but the last halves the image.
        factor = 2 ** (len(autoencoder["block_out_channels"]) - 1)
    if "block_out_channels" in denoiser:
        halvings: int = 2 ** (len(denoiser["block_out_channels"]) - 1)
    else:
        halvings = int(denoiser["patch_size"])
    return Geometry(factor, factor * halvings)


def _pair(value: Any, otherwise: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, list) and len(value) == 2:
        return int(value[0]), int(value[1])
    raise CannotImport(otherwise)


def _nearest_multiple(side: int, multiple: int) -> int:
    return max(round(side / multiple), 1) * multiple
