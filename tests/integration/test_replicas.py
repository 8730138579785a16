"""Two replicas of each: one does what the other cannot, and nobody can tell which it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml

from tests.integration import endings
from tests.integration.conftest import ADMIN, Service, start, stop
from tests.processes import ROOT, wait_for
from tests.stores import open_store

pytestmark = pytest.mark.cluster

STEPS = 1000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two backbones with one slot and one waiting place each, and two judges."""
    folder = tmp_path_factory.mktemp("pair")
    file = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    args = file["applications"][0]["args"]
    model = args["models"]["mnist-sevens"]
    model["backbone"] |= {"max_batch": 1, "max_waiting": 1}
    for part in ("backbone", "judge"):
        model[part]["replicas"] = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    args["policies"]["none"]["num_inference_steps"] = [STEPS, 50]
    config = folder / "pair.yaml"
    config.write_text(yaml.safe_dump(file))
    running = start(config, folder / "log")
    yield running
    stop(running)


def _free(pair: Service, n: int, steps: int, seed: int = 0) -> httpx.Response:
    body = {"n": n, "seed": seed, "policy": "none", "num_inference_steps": steps}
    return pair.client.post("/v1/images/generations", json=body, headers=ADMIN)


def test_what_one_replica_refuses_another_takes(pair: Service) -> None:
    """One replica is full with a call of two draws, the other has room beside a call of one.

    Both have one call, so Serve tosses a coin for the third: without a second try, half of these
    would be refused.
    """
    taken = 0
    for _ in range(4):
        with ThreadPoolExecutor() as pool:
            full = pool.submit(_free, pair, 2, STEPS)
            wait_for(lambda: pair.metric("winnow_draws_waiting") == 1)
            half = pool.submit(_free, pair, 1, STEPS)
            wait_for(lambda: pair.metric("winnow_slots_running") == 2)
            third = _free(pair, 1, 50)
            assert (full.result().status_code, half.result().status_code) == (200, 200)
        taken += third.status_code == 200
    assert taken == 4


def test_what_all_refuse_is_a_429_with_a_wait(pair: Service) -> None:
    with ThreadPoolExecutor() as pool:
        held = [pool.submit(_free, pair, 2, STEPS) for _ in range(2)]
        wait_for(lambda: pair.metric("winnow_draws_waiting") == 2)
        refused = _free(pair, 1, 50)
        assert [answer.result().status_code for answer in held] == [200, 200]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert 0 < float(refused.headers["retry-after"]) < 30


def test_every_replica_draws_the_same_image_from_a_seed(pair: Service) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: _free(pair, 1, 50, seed=77), range(4)))
    images = {answer.json()["data"][0]["b64_json"] for answer in answers}
    assert len(images) == 1
    drawn = pair.client.get("/metrics").text.splitlines()
    nfe = [line for line in drawn if line.startswith("winnow_nfe_total") and "plain" in line]
    assert len([line for line in nfe if not line.endswith(" 0.0")]) == 2, "both have drawn"


def test_a_judge_that_dies_is_stood_in_for_by_the_other(pair: Service) -> None:
    """What a dead judge was asked, the other answers: one is held until it has calls, then dies."""
    body: dict[str, object] = {"num_inference_steps": 20}
    for seed in range(6):
        # Serve knows both queues now, and sends the next calls without asking first.
        assert pair.client.post("/v1/images/generations", json=body | {"seed": seed}).is_success
    victim = pair.replicas("RewardModel")[0]
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(pair.client.post, "/v1/images/generations", json=body | {"seed": seed})
            for seed in range(4)
        ]
        time.sleep(2)
        held = [one for one in asked if not one.done()]
        os.kill(victim, signal.SIGKILL)
        codes = [one.result().status_code for one in asked]
    assert held, "the judge that was held had no call"
    assert codes == [200] * 4
    wait_for(lambda: len(set(pair.replicas("RewardModel")) - {victim}) == 2)


def test_an_ingress_that_dies_while_a_certificate_is_drawn_is_followed_by_another(
    pair: Service,
) -> None:
    """No image is drawn into it twice, none is lost, and what was asked for is drawn."""
    body = {"epsilon": 0.03, "delta": 0.5}
    begun = pair.client.post("/v1/policies/no-crossbar/certify", json=body, headers=ADMIN).json()
    store = open_store(pair.store_url, create=False)

    def drawing() -> bool:
        so_far = store.certificates.read(begun["id"]).result
        return bool(so_far["drawn"] and so_far["pending"])

    wait_for(drawing)
    (ingress,) = pair.replicas("Ingress")
    os.kill(ingress, signal.SIGKILL)
    wait_for(lambda: ingress not in pair.replicas("Ingress"))
    left = store.certificates.read(begun["id"]).result
    before = store.certificates.images(begun["id"])
    assert 0 < len(before) < begun["terms"]["n"]
    wait_for(lambda: store.certificates.read(begun["id"]).status != "drawing", 300)
    found, after = store.certificates.read(begun["id"]), store.certificates.images(begun["id"])
    job = store.jobs.read("drawing", begun["id"])
    store.close()
    assert (found.status, found.result["drawn"]) == ("labelling", begun["terms"]["n"])
    assert after[: len(before)] == before
    assert len({one.seed for one in after}) == len(after) == begun["terms"]["n"]
    lost = {*left["pending"]} - {one.seed for one in after}
    assert len(lost) <= found.result["blocked"] - left["blocked"], "one was never drawn"
    assert job is not None
    assert job.lease == 2


def test_a_killed_supervisor_leaves_no_process(pair: Service) -> None:
    endings.killed(pair, "supervisor")
