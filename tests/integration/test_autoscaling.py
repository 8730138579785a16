"""Backbones come under load and go after it, by NFE, on real Ray; no request notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests.integration import endings
from tests.integration.conftest import ADMIN, start, stop
from tests.processes import ROOT, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CALLERS = 8
PATIENT = {"deadline_s": 600}


def test_backbones_follow_the_offered_nfe_until_a_stop(tmp_path: Path) -> None:
    file = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    args = file["applications"][0]["args"]
    # What runs at the stop is finished, however slow the machine is.
    args["ingress"]["graceful_shutdown_timeout_s"] = 300
    backbone = args["models"]["mnist-sevens"]["backbone"]
    backbone["replicas"] = {
        "ray_actor_options": {"num_cpus": 0.1},
        "autoscaling": {
            "max_replicas": 2,
            "look_back_s": 6,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
        },
    }
    config = tmp_path / "scaled.yaml"
    config.write_text(yaml.safe_dump(file))
    service = start(config, tmp_path / "log")
    leaving = threading.Event()
    statuses: list[int] = []

    def ask(caller: int) -> None:
        with httpx.Client(base_url=service.url, headers=ADMIN, timeout=600) as client:
            seed = caller * 1_000_000
            while not leaving.is_set():
                body = {"policy": "none", "n": 8, "seed": seed, "censor": PATIENT}
                statuses.append(client.post("/v1/images/generations", json=body).status_code)
                seed += 8

    try:
        assert len(service.replicas("Backbone")) == 1
        with ThreadPoolExecutor(CALLERS) as pool:
            try:
                asking = [pool.submit(ask, caller) for caller in range(CALLERS)]
                wait_for(lambda: len(service.replicas("Backbone")) == 2)
                more = len(statuses) + 2 * CALLERS
                wait_for(lambda: len(statuses) >= more)
            finally:
                leaving.set()
            for one in asking:
                one.result()
        wait_for(lambda: len(service.replicas("Backbone")) == 1)
        assert set(statuses) == {200}
        endings.interrupted(service)
    finally:
        stop(service)
