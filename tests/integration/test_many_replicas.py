"""Two replicas of each part: policies change and parts die, and nothing fails or is forgotten.

The tests go on from one another, as a service does: what one promotes, the next finds in force.
The last ones are `make chaos` in short, and hold at any speed: no goal of time is looked at.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
import yaml

from loadtest.bench.servers import Server, replicated
from loadtest.chaos import deaths, overload, slow_senders, soak
from loadtest.chaos import stop as stops
from loadtest.lines import Line
from models.bundles import bundle as bundles
from service.config.serve_file import read
from service.policies.policy import Policy
from service.policies.seeding import configured_policies
from tests.feedback import TakenElsewhere
from tests.integration import endings
from tests.integration.conftest import ADMIN, Service, start, stop
from tests.metrics import parse, value
from tests.processes import descendants, wait_for
from tests.rewards import put_reward
from tests.stores import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LONG = 1000
PATIENT_S = 600
"""The longest deadline there is: a slow machine must not refuse what a test wants to run."""
READ_S = 5.0
"""How old a replica's reading of the store may be at most."""
SPEED = ("≤", "≥", "answers later than")
"""How targets and figures of `make chaos` begin that depend on the machine's speed."""


@dataclass
class House:
    """Where a service lives: its configuration and its state outlive it."""

    config: Path
    log: Path
    service: Service = field(init=False)

    def configure(self, count: int, **changes: Any) -> None:
        """Write the file: so many ingresses and judges, two backbones, and other policies."""
        file = replicated(count, backbones=2)
        policies = file["applications"][0]["args"]["policies"]
        policies["none"]["num_inference_steps"] = [50, LONG]
        for name, change in changes.items():
            policies[name] |= change
        self.config.write_text(yaml.safe_dump(file))

    def start(self) -> None:
        self.service = start(self.config, self.log)

    def server(self) -> Server:
        """The same, as `make chaos` knows it."""
        url, process, state = self.service.url, self.service.process, self.log.parent / "state"
        body = {"policy": "no-crossbar", "num_inference_steps": 50}
        return Server("Winnow", url, "/v1/images/generations", body, process, state)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.service.client.post(path, json=body, headers=ADMIN)

    def generate(self, **body: Any) -> httpx.Response:
        return self.post("/v1/images/generations", num_inference_steps=20, **body)

    def policies(self) -> dict[str, Policy]:
        settings = read(self.config).settings
        loaded = {name: bundles.load(model.bundle) for name, model in settings.models.items()}
        return configured_policies(settings, loaded)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    house = House(folder / "house.yaml", folder / "log")
    house.configure(2)
    house.start()
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
    files = {part: reward.parts[part] for part in ("judge", "probe", "distilled")}
    store = open_store(house.service.store_url)
    for attempt in range(5):
        reward_id = f"rw_{name}_{number}_{attempt}"
        try:
            put_reward(
                store,
                reward_id,
                policy,
                {part: _in_other_bytes(bundle.path(file), number) for part, file in files.items()},
                {steps: here.threshold for steps, here in policy.operating_points.items()},
                by="trainer",
            )
        except TakenElsewhere:
            continue  # the service was faster, and fails it: there are no labels
        break
    store.close()
    answer = house.post("/v1/policies", name=name, based_on=name, reward=reward_id)
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
            began = time.monotonic()
            answer = house.generate(n=2, seed=seed)
            said = answer.json().get("policy", {})
            answers.append((began, answer.status_code, said.get("version"), said.get("judge")))
            seed += 2

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, 10_000 * number) for number in range(4)]
        try:
            wait_for(lambda: len(answers) > 40)
            promoted = house.post("/v1/policies/no-crossbar/promote", version=made["version"])
            at, told = time.monotonic(), len(answers)
            wait_for(lambda: len(answers) > told + 20 and answers[-1][0] > at + READ_S)
        finally:
            stopping.set()
        for one in asking:
            one.result()
    assert promoted.status_code == 200, promoted.text
    assert {status for _, status, _, _ in answers} == {200}
    assert {version for _, _, version, _ in answers} == {1, 2}
    assert {version for began, _, version, _ in answers if began > at + READ_S} == {2}
    judges = {judge for _, _, version, judge in answers if version == 2}
    assert judges == {made["networks"]["judge"]}
    assert _replicas(house) == before, "no replica has restarted"


def test_a_lost_head_and_a_changed_file_bring_back_no_older_censor(house: House) -> None:
    """Everything of Ray dies at once, and the file that is applied anew says other things of the
    policy, and asks for more replicas."""
    lost = house.service
    for pid in (*descendants(lost.process.pid), lost.process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stop(lost)
    house.configure(3, **{"no-crossbar": {"max_draws": 3}})
    house.start()
    wait_for(lambda: len(house.service.replicas("Ingress")) == 3)
    said = [house.generate(n=1, seed=seed).json()["policy"] for seed in range(24)]
    assert {policy["version"] for policy in said} == {2}
    listed = house.service.client.get("/v1/policies/no-crossbar").json()
    assert (listed["max_draws"], listed["judge"]) == (8, said[0]["judge"])


@pytest.mark.parametrize("deployment", ["Backbone", "RewardModel", "Ingress"])
def test_killed_replicas_come_back_to_what_was_promoted(house: House, deployment: str) -> None:
    victims = house.service.replicas(deployment)
    assert len(victims) >= 2
    for victim in victims:
        os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        found = set(house.service.replicas(deployment)) - set(victims)
        try:
            ready = house.service.client.get("/health/ready").status_code == 200
        except httpx.TransportError:  # no ingress listens yet
            return False
        return len(found) == len(victims) and ready

    wait_for(back)
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

    def seen() -> bool:
        said = (house.generate(n=1, seed=seed).json()["policy"]["version"] for seed in range(8))
        return set(said) == {1}

    wait_for(seen)


def test_what_is_switched_off_stops_while_it_runs(house: House) -> None:
    patient = {"deadline_s": PATIENT_S}
    body = {"policy": "none", "num_inference_steps": LONG, "seed": 1, "censor": patient}
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(house.post, "/v1/images/generations", n=4, **body) for _ in range(4)]
        wait_for(lambda: house.service.metric("winnow_slots_running") > 8)
        answer = house.post("/v1/policies/none/disable")
        assert answer.json()["disabled"] is True
        ended = [one.result() for one in running]
    for one in ended:
        assert (one.status_code, one.json()["error"]["code"]) == (403, "policy_disabled")
        assert "b64_json" not in one.text
    wait_for(lambda: house.service.metric("winnow_slots_running") == 0)
    again = [house.post("/v1/images/generations", n=1, **body).status_code for _ in range(8)]
    assert again == [403] * 8, "by each ingress"
    assert house.generate(n=1, seed=1).status_code == 200, "the others go on"


def test_without_rays_gcs_it_ends_and_says_so(house: House) -> None:
    endings.without(house.service, "gcs_server")


def test_what_is_switched_off_stays_off_after_a_restart(house: House) -> None:
    stop(house.service)
    house.configure(2)
    house.start()
    answer = house.post("/v1/images/generations", policy="none", n=1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "policy_disabled")


def _broken(lines: list[Line]) -> list[str]:
    """What was missed that no machine is too slow for."""
    return [
        f"{line.what}: {line.figure}: {line.measured}"
        for line in lines
        if not (line.met or line.target.startswith(SPEED) or line.figure.startswith(SPEED))
    ]


def test_every_part_may_die(house: House) -> None:
    lines = deaths.run(house.server(), 0, seeds=16, loads=["under load"])
    assert {line.figure.partition(",")[0] for line in lines if line.target == "back"} >= {
        "ingress", "backbone", "judge", "labelling", "controller"
    }  # fmt: skip
    assert _broken(lines) == []


def test_a_flood_is_refused_with_a_time_to_come_back(house: House) -> None:
    assert _broken(overload.run(house.server(), 5, times=[4])) == []


def test_slow_senders_are_closed_with_an_envelope(house: House) -> None:
    held = [one for one in slow_senders.MANNERS if one.name in ("half a head", "half a body")]
    lines = slow_senders.run(house.server(), 120, held, count=60)
    assert _broken(lines) == []


def test_use_is_counted_for_every_part(house: House) -> None:
    figures = {line.figure for line in soak.run(house.server(), 8)}
    roles = {figure.removeprefix("memory, MiB: ") for figure in figures}
    assert {"ingress", "backbone", "judge", "labelling", "controller"} <= roles
    assert {"disk, MiB: store", "disk, MiB: logs", "series of Prometheus"} <= figures


def test_what_runs_at_a_stop_is_finished(house: House) -> None:
    assert _broken(stops.run(house.server(), signal.SIGTERM)) == []
