"""The second peer: Ray Serve's own batching around the same int8 denoiser as Winnow's.

A batch is taken when one is free, up to sixteen requests, and goes through all its steps together;
what the judge rejects is drawn again before anyone gets an answer.
`python -m loadtest.peers.batched --port 8002`.
"""

# No postponed annotations here: FastAPI reads the route's in another process.
import argparse
import asyncio
import threading
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from loadtest.peers.images import STEPS, Ask, Judged

MAX_BATCH = 16
app = FastAPI()


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Batched:
    """Whole trajectories in batches, in a thread, so that the next batch gathers meanwhile."""

    def __init__(self) -> None:
        import torch

        from models.backbones.runtime import OnnxDenoiser
        from models.bundles import bundle as bundles
        from models.diffusion.codec import PixelShuffle
        from models.diffusion.noise_schedule import NoiseSchedule, read_config
        from models.offline.generator import Generator

        torch.set_num_threads(1)
        bundle = bundles.load("mnist-sevens")
        backbone = bundle.manifest.backbone
        generator = Generator(
            OnnxDenoiser(bundle.path(backbone.onnx)),
            NoiseSchedule.from_diffusers(read_config(bundle.folder / backbone.folder)),
            PixelShuffle(backbone.pixel_shuffle),
            bundle.x_t_shape,
            STEPS,
        )
        self._judged = Judged(generator.images)
        self._judged([0])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0, max_concurrent_batches=1)
    async def _batch(self, seeds: list[int]) -> list[str | None]:
        return await asyncio.to_thread(self._judged, seeds)

    @app.post("/images")
    async def images(self, ask: Ask) -> dict[str, Any]:
        """One image."""
        return {"b64_json": await self._batch(ask.seed)}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8002)
    arguments = parser.parse_args()
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    serve.run(Batched.bind())
    threading.Event().wait()


if __name__ == "__main__":
    main()
