"""The Backbone deployment: one step engine per replica."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from ray import serve

from models import bundle as bundles
from service import logs
from service.autoscaling import CAPACITY, OFFERED, Rate
from service.config import ModelSettings, StoreSettings, blobs_url
from service.errors import Overloaded
from service.metrics.backbone import BackboneMetrics
from service.metrics.exporter import export
from service.metrics.page import render
from service.ports import DrawKey, DrawResult, SamplingPlan
from service.weights import Weights

log = logging.getLogger("winnow.backbone")


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
        log.info("backbone of %s is ready", model)

    async def draw(
        self,
        plan: SamplingPlan,
        keys: Sequence[DrawKey],
        timeout_s: float,
        tenant: str = "",
        avoid: str | None = None,
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.Drawer`. `avoid` is for the request router alone."""
        again = avoid is not None
        try:
            async with aclosing(self._loop.draw(plan, keys, timeout_s, tenant, again)) as groups:
                async for group in groups:
                    yield group
        except Overloaded as error:
            error.refused_by = serve.get_replica_context().replica_id.unique_id
            raise

    async def draw_one(
        self,
        plan: SamplingPlan,
        key: DrawKey,
        timeout_s: float,
        tenant: str = "",
        avoid: str | None = None,
    ) -> list[DrawResult]:
        """`draw` of a single draw, without a stream."""
        async with aclosing(self.draw(plan, [key], timeout_s, tenant, avoid)) as groups:
            return await anext(groups)

    async def load(self, weights: Mapping[str, str]) -> None:
        """Bring networks into the running engine, by part and sha256 name, before they are used.

        Raises BackendUnavailable when one cannot be had, verified or tried.
        """
        await self._loop.load(weights)

    async def ready(self) -> None:
        """Answer only if the engine is healthy."""
        self._loop.check_health()

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._loop.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `service.autoscaling` decides by: NFE a second, offered and possible."""
        return {OFFERED: self._offered(), CAPACITY: self._loop.capacity}

    async def metrics(self) -> str:
        """This replica's metrics as Prometheus text."""
        return render(self._metrics.registry)
