"""The whole service against a bare loop, its overhead when idle, and what a disconnect leaves.

`python -m loadtest.bench.service`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from loadtest.bench.engine import bare, pinned
from loadtest.bench.report import save, show
from loadtest.bench.servers import ADMIN, Server, winnow
from models.backbones.runtime import OnnxDenoiser
from models.bundles import bundle as bundles

STEPS, ROUNDS = 50, 5
NOTICED_S = 0.05
PATH = "/v1/images/generations"


def rate(client: httpx.Client, n: int, callers: int, requests: int) -> float:
    """NFE/s of `requests` requests for `n` uncensored images, by so many callers."""
    body = {"policy": "none", "n": n, "num_inference_steps": STEPS}

    def one(seed: int) -> None:
        client.post(PATH, json=body | {"seed": seed}, headers=ADMIN).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(one, range(requests)))
    return requests * n * STEPS / (time.perf_counter() - started)


def overhead(client: httpx.Client, requests: int = 60) -> list[float]:
    """Seconds of a request for one uncensored image on an idle server, less its time in a slot."""
    found = []
    for seed in range(requests):
        body = {"policy": "none", "seed": seed, "num_inference_steps": STEPS}
        started = time.perf_counter()
        answer = client.post(PATH, json=body, headers=ADMIN).json()
        found.append(time.perf_counter() - started - answer["timings"]["denoise_s"])
    return found


def after_disconnects(client: httpx.Client, server: Server, times: int = 10) -> dict[str, Any]:
    """Slots and queue places still in use after all callers hung up, and what was drawn after.

    The most of all rounds. A tick is waited for, and the hops on which a disconnect travels.
    `nfe_after` are denoiser evaluations after that.
    """
    slots = waiting = nfe_after = 0.0
    for seed in range(times):
        body = {"policy": "none", "n": 16, "seed": seed, "num_inference_steps": STEPS}
        asyncio.run(_hang_up(server, body, 0.1))
        time.sleep(NOTICED_S)
        slots = max(slots, _metric(client, "winnow_slots_running"))
        waiting = max(waiting, _metric(client, "winnow_draws_waiting"))
        before = _metric(client, "winnow_nfe_total")
        time.sleep(0.1)
        nfe_after += _metric(client, "winnow_nfe_total") - before
    return {"slots": slots, "waiting": waiting, "nfe_after": nfe_after}


async def _hang_up(server: Server, body: dict[str, Any], after_s: float) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        with suppress(TimeoutError):
            await asyncio.wait_for(client.post(PATH, json=body, headers=ADMIN), after_s)


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Measure, print one table, and write JSON."""
    bundle = bundles.load("mnist-sevens")
    denoiser = OnnxDenoiser(bundle.path(bundle.manifest.backbone.onnx))
    names = ("bare loop", "n = 16", "n = 16, two callers", "n = 1", "n = 1, 16 callers")
    rates: dict[str, list[float]] = {name: [] for name in names}
    with winnow() as server, httpx.Client(base_url=server.url, timeout=120) as client:
        rate(client, 16, 2, 4)
        for _ in range(ROUNDS):
            with pinned():
                rates["bare loop"].append(bare(denoiser))
            rates["n = 16"].append(rate(client, 16, 1, 3))
            rates["n = 16, two callers"].append(rate(client, 16, 2, 6))
            rates["n = 1"].append(rate(client, 1, 1, 10))
            rates["n = 1, 16 callers"].append(rate(client, 1, 16, 64))
        seconds = overhead(client)
        left = after_disconnects(client, server)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    show(
        f"The service, {STEPS} steps, policy none",
        ["what", "NFE/s (median)", "÷ bare loop"],
        [
            [name, f"{found:.0f}", f"{found / medians['bare loop']:.3f}"]
            for name, found in medians.items()
        ],
    )
    quantiles = {q: 1000 * statistics.quantiles(seconds, n=100)[q - 1] for q in (50, 95)}
    show(
        "Idle server",
        ["what", "figure"],
        [
            ["REST + router overhead, p50", f"{quantiles[50]:.1f} ms"],
            ["REST + router overhead, p95", f"{quantiles[95]:.1f} ms"],
            ["slots in use after a disconnect", f"{left['slots']:.0f}"],
            ["… NFE after that", f"{left['nfe_after']:.0f}"],
        ],
    )
    save("service", {"rates": rates, "medians": medians, "overhead_ms": quantiles, "left": left})


if __name__ == "__main__":
    main()
