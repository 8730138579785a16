"""The step engine against a bare loop around the same denoiser, on one thread: `make bench`.

Runs are interleaved, because machines are noisy; the ratio of the medians is what to look at.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from models import bundle as bundles
from models.backbones.runtime import OnnxDenoiser
from service.config import BackboneSettings
from service.engine.engine import Engine, canary_plan
from service.engine.load import load_engine
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey, SamplingPlan

ROWS, STEPS, ROUNDS = 16, 50, 5
OUT = Path("build/bench/engine.json")


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
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = bundles.load("mnist-sevens")
    denoiser = OnnxDenoiser(bundle.path(bundle.manifest.backbone.onnx))
    engine = load_engine(bundle, BackboneSettings(max_batch=ROWS))
    guide = bundle.sha256(bundle.manifest.rewards["no-crossbar"].guide)
    plain, guided = (
        replace(plan, method=replace(plan.method, num_inference_steps=STEPS))
        for plan in (canary_plan(), canary_plan(guide))
    )
    rates: dict[str, list[float]] = {"bare loop": [], "engine": [], "engine, every step guided": []}
    for _ in range(ROUNDS):
        rates["bare loop"].append(bare(denoiser))
        rates["engine"].append(engine_rate(engine, plain))
        rates["engine, every step guided"].append(engine_rate(engine, guided))
    reference = statistics.median(rates["bare loop"])
    table = Table("what", "NFE/s (median)", "÷ bare loop", title=f"{ROWS} rows, {STEPS} steps")
    for what, found in rates.items():
        median = statistics.median(found)
        table.add_row(what, f"{median:.0f}", f"{median / reference:.3f}")
    Console().print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    main()
