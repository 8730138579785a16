"""The service in one process, without Ray: the same sampling loop, engine and judge.

For evaluation and calibration, which make thousands of draws, and for tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType

from models.bundles.bundle import Bundle
from models.bundles.bundle import load as load_bundle
from service.config import Settings
from service.engine.load import load_engine
from service.engine.loop import EngineLoop
from service.errors import CensorUnavailable, WinnowError
from service.judge.judges import Judges, load_judges
from service.policies.policy import Policy
from service.policies.seeding import configured_policies
from service.policies.weights import Weights
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan
from service.serving.assemble import sampling_loop


class InProcessBackends:
    """An engine and a judge for one model, as the sampling loop's two Protocols.

    `on_results` sees every draw, also those that the verdict rejects: for evaluation alone.
    """

    def __init__(
        self,
        loop: EngineLoop,
        judges: Judges,
        on_results: Callable[[list[DrawResult]], None] = lambda results: None,
    ) -> None:
        self.loop = loop
        self.judges = judges
        self.on_results = on_results

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        """See `ports.BackboneClient`."""
        async with aclosing(self.loop.draw(plan, keys, timeout_s, tenant)) as groups:
            async for group in groups:
                self.on_results(group)
                yield group

    def check(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> None:
        """See `ports.BackboneClient`: in one process `draw` itself refuses as cheaply."""

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """See `ports.JudgeClient`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(self._score, judge, pixels)
        except WinnowError:
            raise
        except Exception as error:  # whatever went wrong, nothing was judged
            raise CensorUnavailable(f"the judge failed: {type(error).__name__}") from error

    def _score(self, judge: str, pixels: Sequence[Pixels]) -> list[float]:
        if not self.judges.has(judge):
            self.judges.load(judge)
        return self.judges.score(judge, pixels)

    async def load(self, model: str, weights: Mapping[str, str]) -> None:
        """Bring in networks, by part and sha256 name. Raises BackendUnavailable, CensorUnavailable.

        What cannot be verified and tried stays out.
        """
        if networks := {part: name for part, name in weights.items() if part != "judge"}:
            await self.loop.load(networks)
        if "judge" in weights:
            await asyncio.to_thread(self.judges.load, weights["judge"])

    async def ready(self) -> None:
        """See `ports.BackboneClient` and `ports.JudgeClient`."""
        self.loop.check_health()
        self.judges.canary()


class InProcessService:
    """One model of a configuration, loaded in this process. Use it as a context manager.

    With `blobs_url`, networks that the bundle lacks come from the store's blobs by hash.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        calibrated: bool = True,
        blobs_url: str | None = None,
    ) -> None:
        spec = settings.models[model]
        bundles = {name: load_bundle(other.bundle) for name, other in settings.models.items()}
        self.bundle: Bundle = bundles[model]
        self.policies: dict[str, Policy] = configured_policies(settings, bundles, calibrated)
        self._weights = None if blobs_url is None else Weights(self.bundle, blobs_url)
        find = None if self._weights is None else self._weights.find
        engine = load_engine(self.bundle, spec.backbone, find=find)
        engine.warm_up()
        judges = load_judges(self.bundle, spec.judge, find)
        self.backends = InProcessBackends(EngineLoop(engine, max_waiting=1_000_000), judges)
        self.sampling_loop = sampling_loop(spec, self.backends, self.backends)

    def __enter__(self) -> InProcessService:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.backends.loop.close()
