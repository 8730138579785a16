"""The step engine against a bare loop around the same denoiser, and guided against unguided steps.

On one pinned core, saturated. Runs are interleaved, because machines are noisy; the ratio of the
medians is what to look at. `python -m loadtest.bench.engine`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from loadtest.bench.report import save, show
from models.backbones.runtime import OnnxDenoiser
from models.bundles import bundle as bundles
from service.config import BackboneSettings
from service.engine.engine import Engine, canary_plan
from service.engine.load import load_engine
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey, SamplingPlan

ROWS, STEPS, ROUNDS = 16, 50, 9


@contextmanager
def pinned() -> Iterator[None]:
    """This process on one core alone."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def bare(denoiser: OnnxDenoiser) -> float:
    """NFE/s of the denoiser alone, called in a loop on the same inputs."""
    x_t, timestep = torch.randn(ROWS, 4, 14, 14), torch.full((ROWS,), 500)
    started = time.perf_counter()
    for _ in range(STEPS):
        denoiser(x_t, timestep)
    return ROWS * STEPS / (time.perf_counter() - started)


def engine_rate(engine: Engine, plan: SamplingPlan) -> float:
    """NFE/s of the engine with all slots full."""
    ticket = Ticket(lambda item: None, deadline=float("inf"))
    engine.scheduler.add([Draw(plan, DrawKey(i, i, 0), ticket) for i in range(ROWS)])
    started = time.perf_counter()
    while not engine.idle:
        engine.tick()
    return ROWS * STEPS / (time.perf_counter() - started)


def main() -> None:
    """Measure, print one table, and write JSON."""
    with pinned():
        _measure()


def _measure() -> None:
    bundle = bundles.load("mnist-sevens")
    denoiser = OnnxDenoiser(bundle.path(bundle.manifest.backbone.onnx))
    engine = load_engine(bundle, BackboneSettings(max_batch=ROWS))
    reward = bundle.manifest.rewards["no-crossbar"]
    guides = {
        "engine": {},
        "engine, all guided (distilled)": {"distilled": bundle.sha256(reward.parts["distilled"])},
        "engine, all guided (ensemble, torch)": {"guide": bundle.sha256(reward.parts["guide"])},
    }
    plans = {
        name: replace(plan, method=replace(plan.method, num_inference_steps=STEPS))
        for name, plan in ((name, canary_plan(guide)) for name, guide in guides.items())
    }
    rates: dict[str, list[float]] = {name: [] for name in ("bare loop", *plans)}
    for _ in range(ROUNDS):
        rates["bare loop"].append(bare(denoiser))
        for name, plan in plans.items():
            rates[name].append(engine_rate(engine, plan))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    show(
        f"{ROWS} rows, {STEPS} steps, one core",
        ["what", "NFE/s (median)", "÷ bare loop", "time of a step ÷ unguided"],
        [
            [
                name,
                f"{rate:.0f}",
                f"{rate / medians['bare loop']:.3f}",
                "" if name == "bare loop" else f"{medians['engine'] / rate:.3f}",
            ]
            for name, rate in medians.items()
        ],
    )
    save("engine", {"rows": ROWS, "steps": STEPS, "rates": rates, "medians": medians})


if __name__ == "__main__":
    main()
