"""The Backbone deployment: one step engine per replica."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from models.bundles import bundle as bundles
from service import logs
from service.config import ModelSettings, StoreSettings, blobs_url
from service.metrics.backbone import BackboneMetrics
from service.metrics.exporter import export
from service.metrics.exposition import render
from service.policies.weights import Weights
from service.rpc.codec import DRAWS, WORKLOAD, DrawReply, pack_reply
from service.rpc.server import Address
from service.serving.autoscaling import CAPACITY, OFFERED, Rate
from service.serving.replica import replica_server

log = logging.getLogger("winnow.backbone")

REPORT_S = 0.2
"""How often the workload is published while it changes."""
STEADY_S = 1.0
"""And while it does not."""
CLOSE_S = 1.0
"""How long answers that are on their way have at the end."""


class Backbone:
    """What Serve runs: an engine in its own thread, warm before the first request."""

    def __init__(
        self,
        model: str,
        settings: ModelSettings,
        store: StoreSettings,
        metrics_ports: tuple[int, int] | None = None,
    ) -> None:
        # Here, not above: the process that deploys imports this file, and needs no torch.
        from service.engine.load import load_engine
        from service.engine.loop import EngineLoop

        logs.set_up("backbone")
        self._metrics = BackboneMetrics(model, settings.backbone.max_batch)
        bundle = bundles.load(settings.bundle)
        self._weights = Weights(bundle, blobs_url(store, os.environ))
        engine = load_engine(bundle, settings.backbone, self._metrics, self._weights.find)
        engine.warm_up()
        self._loop = loop = EngineLoop(engine, settings.backbone.max_waiting)
        self._metrics.watch(lambda: loop.running, lambda: loop.waiting, lambda: loop.capacity)
        export(self._metrics.registry, f"Backbone-{model}", metrics_ports)
        self._offered = Rate(lambda: loop.offered_nfe)
        self._server = replica_server(unary={}, streams={"draw": self._draw, "watch": self._watch})
        log.info("backbone of %s is ready", model)

    async def address(self) -> Address:
        """Where ingresses reach this replica."""
        return await self._server.address()

    async def load(self, weights: Mapping[str, str]) -> None:
        """Bring networks into the running engine, by part and sha256 name, before they are used.

        Raises BackendUnavailable when one cannot be had, verified or tried.
        """
        await self._loop.load(weights)

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._loop.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `service.serving.autoscaling` decides by: NFE a second, offered and possible."""
        return {OFFERED: self._offered(), CAPACITY: self._loop.capacity}

    async def metrics(self) -> str:
        """This replica's metrics as Prometheus text."""
        return render(self._metrics.registry)

    async def _draw(self, request: bytes) -> AsyncGenerator[bytes, None]:
        """See `ports.BackboneClient`."""
        call, _ = DRAWS.unpack(request)
        self._loop.offer(call.refused_nfe)
        draws = self._loop.draw(call.plan, call.keys, call.timeout_s, call.tenant, call.again)
        async with aclosing(draws) as groups:
            async for group in groups:
                yield pack_reply(DrawReply(group, self._loop.workload))

    async def _watch(self, _: bytes) -> AsyncGenerator[bytes, None]:
        """What the engine has to do, whenever that changes; raises once it is not healthy."""
        said, at = None, 0.0
        while True:
            self._loop.check_health()
            now = self._loop.workload
            if now != said or time.monotonic() - at > STEADY_S:
                yield WORKLOAD.pack(now)
                said, at = now, time.monotonic()
            await asyncio.sleep(REPORT_S)

    async def __del__(self) -> None:
        """Serve calls this when the replica is to end: what was asked of it is drawn first."""
        self._loop.draining = True
        await asyncio.sleep(2 * REPORT_S)
        while not self._loop.idle:  # noqa: ASYNC110  # of another thread
            await asyncio.sleep(REPORT_S)
        await self._server.close(CLOSE_S)
