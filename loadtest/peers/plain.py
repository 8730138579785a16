"""The first peer: FastAPI around a diffusers model and scheduler, with a judge and a retry loop.

One request at a time, as a pipeline is used: `python -m loadtest.peers.plain --port 8001`.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence

import numpy as np
import torch
import uvicorn
from diffusers import DDIMScheduler, UNet2DModel
from fastapi import FastAPI
from numpy.typing import NDArray

from loadtest.peers.images import STEPS, Ask, Judged
from models.bundles import bundle as bundles
from models.diffusion.codec import PixelShuffle


class Pipeline:
    """Noise to images by diffusers' own U-Net and DDIM, in torch."""

    def __init__(self) -> None:
        bundle = bundles.load("mnist-sevens")
        folder = bundle.folder / bundle.manifest.backbone.folder
        self.unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True).eval()
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.codec = PixelShuffle(bundle.manifest.backbone.pixel_shuffle)
        self.shape = bundle.x_t_shape

    @torch.inference_mode()
    def __call__(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images uint8 [N, H, W, C], one generator a seed."""
        noise = [torch.randn(self.shape, generator=_generator(seed)) for seed in seeds]
        x_t = torch.stack(noise)
        self.scheduler.set_timesteps(STEPS)
        for timestep in self.scheduler.timesteps:
            output = self.unet(x_t, timestep, return_dict=False)[0]
            x_t = self.scheduler.step(output, timestep, x_t, return_dict=False)[0]
        return self.codec.to_uint8(x_t)[0]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=2, help="torch's; two were the fastest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    judged, lock = Judged(Pipeline()), threading.Lock()
    app = FastAPI()

    @app.post("/images")
    def images(ask: Ask) -> dict[str, str | None]:
        with lock:
            return {"b64_json": judged([ask.seed])[0]}

    judged([0])
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
