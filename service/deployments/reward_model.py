"""The RewardModel deployment: the judge on ONNX Runtime, in dynamic batches."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence

from ray import serve

from models import bundle as bundles
from service import logs
from service.config import ModelSettings, StoreSettings, blobs_url
from service.errors import CensorUnavailable
from service.metrics.exporter import export
from service.metrics.judge import JudgeMetrics
from service.metrics.page import render
from service.ports import Pixels
from service.reward import load_judges
from service.weights import Weights

log = logging.getLogger("winnow.reward_model")


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
        self._batched.set_max_batch_size(settings.judge.max_batch)  # type: ignore[attr-defined]
        log.info("judge of %s is ready", model)

    async def score(self, judge: str, pixels: Sequence[Pixels]) -> list[float]:
        """See `ports.Scorer`. What cannot be scored is refused here, before it joins a batch."""
        await self.load({"judge": judge})
        self._judges.check(judge, pixels)
        scores = await self._batched((judge, pixels))
        if isinstance(scores, CensorUnavailable):
            raise scores
        return scores

    @serve.batch(batch_wait_timeout_s=0.0)
    async def _batched(
        self, requests: list[tuple[str, Sequence[Pixels]]]
    ) -> list[list[float] | CensorUnavailable]:
        """Score what has arrived, with one forward pass a judge.

        A judge that fails is the answer to its own requests, and to no other's.
        """
        started = time.monotonic()
        answers: list[list[float] | CensorUnavailable] = [[] for _ in requests]
        for judge in {judge for judge, _ in requests}:
            members = [i for i, (name, _) in enumerate(requests) if name == judge]
            images = [image for i in members for image in requests[i][1]]
            try:
                scores = iter(self._judges.score(judge, images))
            except Exception as error:
                log.error("judge %s failed", judge, exc_info=error)
                fault = CensorUnavailable(f"judge {judge} failed: {error}")
                for i in members:
                    answers[i] = fault
                continue
            for i in members:
                answers[i] = [next(scores) for _ in requests[i][1]]
        self._metrics.duration.observe(time.monotonic() - started)
        return answers

    async def load(self, weights: Mapping[str, str]) -> None:
        """Bring in the judge of these, by part and sha256 name, before it is used.

        Raises CensorUnavailable when it cannot be had, verified or tried.
        """
        judge = weights.get("judge")
        if judge is not None and not self._judges.has(judge):
            await asyncio.to_thread(self._judges.load, judge)

    async def ready(self) -> None:
        """Answer only if every judge scores its canary."""
        self._judges.canary()

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._judges.canary()

    async def metrics(self) -> str:
        """This replica's metrics as Prometheus text."""
        return render(self._metrics.registry)
