"""The adapters of families, by the class of diffusers that their denoiser is."""

from __future__ import annotations

from collections.abc import Mapping

from models.backbones.families import flux, flux2, pixart, qwen_image, sana, sd3, z_image
from models.backbones.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "SD3Transformer2DModel": sd3.FAMILY,
    "FluxTransformer2DModel": flux.FAMILY,
    "Flux2Transformer2DModel": flux2.FAMILY,
    "PixArtTransformer2DModel": pixart.FAMILY,
    "SanaTransformer2DModel": sana.FAMILY,
    "ZImageTransformer2DModel": z_image.FAMILY,
    "QwenImageTransformer2DModel": qwen_image.FAMILY,
}
