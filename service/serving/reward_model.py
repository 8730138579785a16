"""The RewardModel deployment: the judge on ONNX Runtime, in dynamic batches."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from models.bundles import bundle as bundles
from service import logs
from service.config import ModelSettings, StoreSettings, blobs_url
from service.judge.batching import JudgeBatcher
from service.judge.judges import load_judges
from service.metrics.exporter import export
from service.metrics.exposition import render
from service.metrics.judge import JudgeMetrics
from service.policies.weights import Weights
from service.ports import Pixels
from service.rpc.codec import ACCEPTING, NUMBERS, SCORES
from service.rpc.server import Address
from service.serving.replica import replica_server

log = logging.getLogger("winnow.reward_model")

REPORT_S = 1.0


class RewardModel:
    """What Serve runs: the judges, having scored a canary before the first request."""

    def __init__(
        self,
        model: str,
        settings: ModelSettings,
        store: StoreSettings,
        metrics_ports: tuple[int, int] | None = None,
    ) -> None:
        logs.set_up("reward_model")
        bundle = bundles.load(settings.bundle)
        self._weights = Weights(bundle, blobs_url(store, os.environ))
        self._judges = load_judges(bundle, settings.judge, self._weights.find)
        self._judges.canary()
        self._metrics = JudgeMetrics(model)
        export(self._metrics.registry, f"RewardModel-{model}", metrics_ports)
        self._loop = JudgeBatcher(
            self._judges, settings.judge.max_batch, self._metrics.duration.observe
        )
        self._taking = True
        self._server = replica_server(
            unary={"score": self._score, "ready": self._ready}, streams={"watch": self._watch}
        )
        log.info("judge of %s is ready", model)

    async def address(self) -> Address:
        """Where ingresses reach this replica."""
        return await self._server.address()

    async def score(
        self, judge: str, pixels: Sequence[Pixels], timeout_s: float = 10.0
    ) -> list[float]:
        """See `ports.JudgeClient`. A judge that is not here yet is brought in first."""
        await self.load({"judge": judge})
        return await self._loop.score(judge, pixels, timeout_s)

    async def load(self, weights: Mapping[str, str]) -> None:
        """Bring in the judge of these, by part and sha256 name, before it is used.

        Raises CensorUnavailable when it cannot be had, verified or tried.
        """
        judge = weights.get("judge")
        if judge is not None and not self._judges.has(judge):
            await asyncio.to_thread(self._judges.load, judge)

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        await asyncio.to_thread(self._judges.canary)

    async def metrics(self) -> str:
        """This replica's metrics as Prometheus text."""
        return render(self._metrics.registry)

    async def _score(self, request: bytes) -> bytes:
        arrived = time.monotonic()
        call, images = SCORES.unpack(request)
        pixels = [image for image in images if image is not None]
        await self.load({"judge": call.judge})
        left = call.timeout_s - (time.monotonic() - arrived)
        return NUMBERS.pack(await self._loop.score(call.judge, pixels, left))

    async def _ready(self, _: bytes) -> bytes:
        """Answer only if every judge scores its canary."""
        await asyncio.to_thread(self._judges.canary)
        return b""

    async def _watch(self, _: bytes) -> AsyncGenerator[bytes, None]:
        """Whether this replica takes new calls, as often as it takes to be known to live."""
        while True:
            taking = self._taking
            yield ACCEPTING.pack(taking)
            for _tenth in range(10):
                if self._taking is taking:
                    await asyncio.sleep(REPORT_S / 10)

    async def __del__(self) -> None:
        """Serve calls this when the replica is to end: what was asked of it is done first."""
        self._taking = False
        await asyncio.sleep(REPORT_S)
        await self._loop.wait()
        await self._server.close(REPORT_S)
