"""Three hundred mixed requests, a fifth of whose callers hang up: nothing leaks."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.bundles import bundle as bundles
from service.config import JudgeSettings
from service.generation.record import sha256
from service.judge.judges import load_judges
from tests.integration.conftest import ADMIN, Service
from tests.processes import wait_for
from tests.stores import open_store

pytestmark = pytest.mark.cluster

REQUESTS, CALLERS, LEAVERS = 300, 8, 0.2
POLICIES = ("no-crossbar", "no-crossbar", "no-crossbar-guided", "only-crossbar", "none")


@dataclass
class Soak:
    """What came of the requests, and the memory of all replicas after each hundred, in MiB."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    left: int = 0
    memory: list[float] = field(default_factory=list)


def test_nothing_leaks_and_nothing_leaves_unjudged(service: Service) -> None:
    soak = asyncio.run(_soak(service))
    assert soak.left > REQUESTS * LEAVERS / 2
    assert soak.codes == {200: REQUESTS - soak.left}
    wait_for(lambda: service.metric("winnow_slots_running") == 0)
    assert service.metric("winnow_draws_waiting") == 0
    # The first hundred fill caches and arenas.
    assert soak.memory[-1] - soak.memory[0] < 0.05 * soak.memory[0], soak.memory
    store = open_store(service.store_url, create=False)
    bundle = bundles.load("mnist-sevens")
    judges = load_judges(bundle, JudgeSettings())
    delivered = 0
    for answer in soak.answers:
        record = store.decisions.read(answer["id"])
        assert record is not None
        for entry in answer["data"]:
            if entry["b64_json"] is None:
                continue
            delivered += 1
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))
            kept = record["images"][entry["index"]]
            assert kept["pixels_sha256"] == sha256(pixels[..., None])
            accepted = [one for one in kept["judged"] if one["verdict"] == "accepted"]
            assert [one["draw"] for one in accepted] == [entry["draws"] - 1]
            plan = record["plan"]
            if judge := plan["parts"].get("judge"):
                # Not what the service says: the judge's own word on the bytes that left.
                (score,) = judges.score(judge, [pixels[..., None]])
                assert score == pytest.approx(accepted[0]["score"], abs=1e-5)
                assert score >= plan["threshold"]
    assert delivered > REQUESTS / 2


async def _soak(service: Service) -> Soak:
    soak, rng = Soak(), random.Random(0)
    orders = [_order(rng, number) for number in range(REQUESTS)]
    limits = httpx.Limits(max_connections=CALLERS)
    async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
        for start in range(0, REQUESTS, 100):
            queue = orders[start : start + 100]
            await asyncio.gather(*(_caller(client, queue, soak) for _ in range(CALLERS)))
            soak.memory.append(_memory(service))
    return soak


def _order(rng: random.Random, number: int) -> tuple[dict[str, Any], float | None]:
    """A request's body, and after how many seconds its caller hangs up."""
    policy = rng.choice(POLICIES)
    body = {"n": rng.randint(1, 4), "seed": 10 * number, "policy": policy}
    if policy in ("no-crossbar", "none"):
        body["num_inference_steps"] = rng.choice([20, 50])
    return body, rng.uniform(0.0, 0.05) if rng.random() < LEAVERS else None


async def _caller(
    client: httpx.AsyncClient, queue: list[tuple[dict[str, Any], float | None]], soak: Soak
) -> None:
    while queue:
        body, patience_s = queue.pop()
        asked = client.post("/v1/images/generations", json=body, headers=ADMIN)
        try:
            answer = await asyncio.wait_for(asked, patience_s)
        except TimeoutError:
            soak.left += 1
            continue
        soak.codes[answer.status_code] = soak.codes.get(answer.status_code, 0) + 1
        soak.answers.append(answer.json())


def _memory(service: Service) -> float:
    """Resident memory of ingress, backbone and judge, in MiB."""
    pages = 0
    for deployment in ("Ingress", "Backbone", "RewardModel"):
        for pid in service.replicas(deployment):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20
