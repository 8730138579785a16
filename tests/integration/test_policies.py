"""Policies change while real replicas serve, two of each: nothing fails, and nothing is forgotten.

The tests go on from one another, as a service does: what one promotes, the next finds in force.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
import yaml

from models import bundle as bundles
from service.pinning import pin
from service.policy import Policy
from service.serve_file import read
from tests.integration.conftest import (
    ADMIN_KEY,
    ROOT,
    Service,
    descendants,
    start,
    stop,
    wait_for,
)
from tests.metrics import parse, value
from tests.rewards import put_reward
from tests.stores import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
LONG = 1000


@dataclass
class House:
    """Where a service lives: its configuration and its state outlive it."""

    config: Path
    log: Path
    service: Service

    def restart(self) -> None:
        stop(self.service)
        self.service = start(self.config, self.log)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.service.client.post(path, json=body, headers=ADMIN)

    def generate(self, **body: Any) -> httpx.Response:
        return self.post("/v1/images/generations", num_inference_steps=20, **body)

    def policies(self) -> dict[str, Policy]:
        settings = read(self.config).settings
        loaded = {name: bundles.load(model.bundle) for name, model in settings.models.items()}
        return pin(settings, loaded)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    file = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    args = file["applications"][0]["args"]
    two = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    model = args["models"]["mnist-sevens"]
    model["backbone"]["replicas"] = model["judge"]["replicas"] = two
    args["ingress"] = {"max_ongoing_requests": 256} | two
    args["policies"]["none"]["num_inference_steps"] = [50, LONG]
    config, log = folder / "house.yaml", folder / "log"
    config.write_text(yaml.safe_dump(file))
    house = House(config, log, start(config, log))
    yield house
    stop(house.service)


def _in_other_bytes(path: Path, number: int) -> bytes:
    """A graph that says the same under another hash, as a training would leave it."""
    graph = onnx.load(path)
    graph.producer_name = f"training {number}"
    data: bytes = graph.SerializeToString()
    return data


def _version(house: House, name: str, number: int) -> dict[str, Any]:
    """Add a version of a policy whose networks no replica has, with today's thresholds."""
    policy, bundle = house.policies()[name], bundles.load("mnist-sevens")
    reward = bundle.manifest.rewards["no-crossbar"]
    assert reward.probe is not None
    assert reward.distilled is not None
    files = {"judge": reward.judge, "probe": reward.probe, "distilled": reward.distilled}
    store = open_store(house.service.store_url)
    put_reward(
        store,
        f"rw_{name}_{number}",
        policy,
        {part: _in_other_bytes(bundle.path(file), number) for part, file in files.items()},
        {steps: here.threshold for steps, here in policy.operating.items()},
        by="trainer",
    )
    store.close()
    answer = house.post("/v1/policies", name=name, based_on=name, reward=f"rw_{name}_{number}")
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _replicas(house: House) -> set[int]:
    names = ("Backbone", "RewardModel", "Ingress")
    return {pid for name in names for pid in house.service.replicas(name)}


def test_a_promotion_under_load_fails_no_request(house: House) -> None:
    made = _version(house, "no-crossbar", 1)
    before = _replicas(house)
    answers: list[tuple[float, int, int | None, str | None]] = []
    stopping = threading.Event()

    def ask(first: int) -> None:
        seed = first
        while not stopping.is_set():
            answer = house.generate(n=2, seed=seed)
            said = answer.json().get("policy", {})
            answers.append(
                (time.monotonic(), answer.status_code, said.get("version"), said.get("judge"))
            )
            seed += 2

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, 10_000 * number) for number in range(4)]
        try:
            wait_for(lambda: len(answers) > 40)
            promoted = house.post("/v1/policies/no-crossbar/promote", version=made["version"])
            at, told = time.monotonic(), len(answers)
            wait_for(lambda: len(answers) > told + 60 and time.monotonic() > at + 2)
        finally:
            stopping.set()
        for one in asking:
            one.result()
    assert promoted.status_code == 200, promoted.text
    assert {status for _, status, _, _ in answers} == {200}
    assert {version for _, _, version, _ in answers} == {1, 2}
    # A request may have begun before its replica's next reading, and take a while.
    assert {version for when, _, version, _ in answers if when > at + 1.5} == {2}
    judges = {judge for _, _, version, judge in answers if version == 2}
    assert judges == {made["networks"]["judge"]}
    assert _replicas(house) == before, "no replica has restarted"


def test_a_restart_keeps_what_was_promoted(house: House) -> None:
    house.restart()
    said = house.generate(n=2, seed=1).json()
    assert said["policy"]["version"] == 2
    listed = house.service.client.get("/v1/policies/no-crossbar").json()
    assert (listed["version"], listed["judge"]) == (2, said["policy"]["judge"])


def test_a_lost_head_and_a_changed_file_bring_back_no_older_censor(house: House) -> None:
    """Everything of Ray dies at once, and the file that is applied anew says other things of the
    policy, and asks for more replicas."""
    lost = house.service
    for pid in (*descendants(lost.process.pid), lost.process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stop(lost)
    file = yaml.safe_load(house.config.read_text())
    args = file["applications"][0]["args"]
    args["policies"]["no-crossbar"]["max_draws"] = 3
    args["ingress"]["num_replicas"] = 3
    judge = args["models"]["mnist-sevens"]["judge"]
    judge["replicas"] = judge["replicas"] | {"num_replicas": 3}
    house.config.write_text(yaml.safe_dump(file))
    house.service = start(house.config, house.log)
    wait_for(lambda: len(house.service.replicas("Ingress")) == 3)
    said = [house.generate(n=1, seed=seed).json()["policy"]["version"] for seed in range(24)]
    assert set(said) == {2}
    assert house.service.client.get("/v1/policies/no-crossbar").json()["max_draws"] == 8


@pytest.mark.parametrize("deployment", ["Backbone", "RewardModel", "Ingress"])
def test_killed_replicas_come_back_to_what_was_promoted(house: House, deployment: str) -> None:
    victims = house.service.replicas(deployment)
    assert len(victims) >= 2
    for victim in victims:
        os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        found = set(house.service.replicas(deployment)) - set(victims)
        return (
            len(found) == len(victims)
            and house.service.client.get("/health/ready").status_code == 200
        )

    wait_for(back, 60)
    for seed in range(6):
        said = house.generate(n=1, seed=seed)
        assert said.status_code == 200, said.text
        assert said.json()["policy"]["version"] == 2


def test_a_guided_policy_changes_its_guide(house: House) -> None:
    made = _version(house, "no-crossbar-guided", 2)
    body = {"n": 4, "seed": 50, "policy": "no-crossbar-guided"}
    before = house.post("/v1/images/generations", **body).json()
    answer = house.post("/v1/policies/no-crossbar-guided/promote", version=2)
    assert answer.status_code == 200, answer.text
    wait_for(
        lambda: all(
            house.post("/v1/images/generations", **body).json()["policy"]["version"] == 2
            for _ in range(4)
        )
    )
    after = house.post("/v1/images/generations", **body).json()
    assert after["policy"]["guide"] == made["networks"]["distilled"]
    # The same network under another name steers to the same images.
    assert [entry["b64_json"] for entry in after["data"]] == [
        entry["b64_json"] for entry in before["data"]
    ]


def test_a_network_that_cannot_be_verified_is_not_promoted(house: House) -> None:
    made = _version(house, "no-crossbar", 3)
    store = open_store(house.service.store_url)
    store.blobs.delete(made["networks"]["probe"])
    store.close()
    answer = house.post("/v1/policies/no-crossbar/promote", version=made["version"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_unavailable")
    assert "is not in the store" in answer.json()["error"]["message"]
    assert house.generate(n=1, seed=1).json()["policy"]["version"] == 2


def test_a_shadow_on_real_replicas(house: House) -> None:
    made = _version(house, "no-crossbar", 4)
    answer = house.post("/v1/policies/no-crossbar/shadow", version=made["version"])
    assert answer.status_code == 200, answer.text

    page = {}

    # Two ingresses, each with metrics of its own: one page that has seen something will do.
    def seen_by_one() -> bool:
        nonlocal page
        house.generate(n=4, seed=70)
        page = parse(house.service.client.get("/metrics").text)
        return value(page, "winnow_shadow_draws_total", live_verdict="accepted") > 0

    wait_for(seen_by_one)
    seen = {
        (live, shadow): value(page, "winnow_shadow_draws_total", live_verdict=live, verdict=shadow)
        for live in ("accepted", "rejected")
        for shadow in ("accepted", "rejected")
    }
    assert seen["accepted", "accepted"] > 0
    # The same judge in other bytes: it never disagrees.
    assert seen["accepted", "rejected"] == seen["rejected", "accepted"] == 0


def test_a_rollback_is_seen_everywhere(house: House) -> None:
    assert house.post("/v1/policies/no-crossbar/rollback").json()["version"] == 1
    time.sleep(1)
    said = {house.generate(n=1, seed=seed).json()["policy"]["version"] for seed in range(8)}
    assert said == {1}


def test_what_is_switched_off_stops_within_two_seconds(house: House) -> None:
    body = {"policy": "none", "num_inference_steps": LONG, "seed": 1}
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(house.post, "/v1/images/generations", n=8, **body) for _ in range(4)]
        wait_for(lambda: house.service.metric("winnow_slots_running") > 8)
        off = time.monotonic()
        answer = house.post("/v1/policies/none/disable")
        assert answer.json()["disabled"] is True
        ended = [one.result() for one in running]
        seconds = time.monotonic() - off
    assert seconds < 2
    for one in ended:
        assert (one.status_code, one.json()["error"]["code"]) == (403, "policy_disabled")
        assert "b64_json" not in one.text
    wait_for(lambda: house.service.metric("winnow_slots_running") == 0)
    again = [house.post("/v1/images/generations", n=1, **body).status_code for _ in range(8)]
    assert again == [403] * 8, "by each ingress"
    assert house.generate(n=1, seed=1).status_code == 200, "the others go on"


def test_what_is_switched_off_stays_off_after_a_restart(house: House) -> None:
    house.restart()
    answer = house.post("/v1/images/generations", policy="none", n=1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "policy_disabled")
