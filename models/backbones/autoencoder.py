"""The autoencoder of a latent model: between images and the latents that the denoiser sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.diffusion.codec import to_uint8

CLASSES = (
    "AutoencoderKL",
    "VQModel",
    "AutoencoderDC",
    "AutoencoderKLQwenImage",
    "AutoencoderKLFlux2",
)
FRAMES = ("AutoencoderKLQwenImage",)
"""Those that code films, of which an image is one frame."""


class LatentCodec:
    """One of diffusers' autoencoders as a `codec.Codec`.

    x_0 is (latents − shift) / scale, by channel; with patches (FLUX.2's), `patch` × `patch` latents
    are folded into channels first.
    """

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
            folder, dtype=self.dtype, use_safetensors=True, local_files_only=True
        )
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self._frames = name in FRAMES
        self._patch = 1
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = mean or [config.get("shift_factor") or 0.0]
        scale = np.array(std or [1.0]) / float(network.config.get("scaling_factor", 1.0))
        if name == "AutoencoderKLFlux2":
            self._patch = int(network.config.patch_size[0])
            shift = network.bn.running_mean.float().cpu().numpy()
            variance = network.bn.running_var.float() + network.config.batch_norm_eps
            scale = variance.sqrt().cpu().numpy()
        self._scale, self._shift = (
            torch.tensor(np.asarray(values), dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (scale, shift)
        )

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] to latents [B, c, h, w], the mode of their distribution."""
        given = image.to(self.device, self.dtype)
        found = self.network.encode(given.unsqueeze(2) if self._frames else given)
        if hasattr(found, "latent_dist"):
            latents = found.latent_dist.mode()
        else:
            latents = found.latent if hasattr(found, "latent") else found.latents
        latents = latents.squeeze(2) if self._frames else latents
        latents = functional.pixel_unshuffle(latents.float(), self._patch)
        scaled: Tensor = (latents - self._shift) / self._scale
        return scaled.to(image.device)

    def decode(self, x_0: Tensor) -> Tensor:
        """Latents [B, c, h, w] to an image [B, C, H, W], not clamped; differentiable."""
        latents = x_0.to(self.device).float() * self._scale + self._shift
        latents = functional.pixel_shuffle(latents, self._patch).to(self.dtype)
        found = self.network.decode(latents.unsqueeze(2) if self._frames else latents)
        image: Tensor = found.sample.squeeze(2) if self._frames else found.sample
        return image.to(x_0.device, torch.float32)

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """See `codec.Codec`."""
        return to_uint8(self.decode(x_0))
