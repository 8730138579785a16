"""The autoencoder of a latent model: between images and the latents that the denoiser sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.codec import to_uint8

CLASSES = ("AutoencoderKL", "VQModel")


class LatentCodec:
    """diffusers' `AutoencoderKL` or `VQModel` as a `codec.Codec`."""

    exact = False

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Load `folder`, a component in diffusers' format. Raises ValueError for another class."""
        import diffusers

        config = json.loads((folder / "config.json").read_text())
        name = config["_class_name"]
        if name not in CLASSES:
            raise ValueError(f"{folder}: {name} is not one of {', '.join(CLASSES)}")
        # Stable Diffusion XL's overflows in float16, and says so.
        self.dtype = torch.float32 if config.get("force_upcast") else dtype
        self.device = torch.device(device)
        network = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=self.dtype, use_safetensors=True, local_files_only=True
        )
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        shape = (1, -1, 1, 1)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scaling = float(network.config.scaling_factor)
        self._scale: Tensor = torch.tensor(std or [1.0], device=device).view(shape) / scaling
        shift = config.get("shift_factor") or 0.0
        self._shift: Tensor = torch.tensor(mean or [shift], device=device).view(shape)

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] to latents [B, c, h, w], the mode of their distribution."""
        found = self.network.encode(image.to(self.device, self.dtype))
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        scaled: Tensor = (latents.float() - self._shift) / self._scale
        return scaled.to(image.device)

    def decode(self, x_0: Tensor) -> Tensor:
        """Latents [B, c, h, w] to an image [B, C, H, W], not clamped; differentiable."""
        latents = x_0.to(self.device).float() * self._scale + self._shift
        image: Tensor = self.network.decode(latents.to(self.dtype)).sample
        return image.to(x_0.device, torch.float32)

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `codec.Codec`."""
        return to_uint8(self.decode(x_0))
