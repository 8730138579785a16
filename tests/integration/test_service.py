"""The service as its users meet it: real processes, real weights, OpenAI's own client."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import ADMIN_KEY, Service
from tests.processes import ROOT, wait_for
from tests.stores import open_store

pytestmark = pytest.mark.cluster


def generate(service: Service, **body: object) -> httpx.Response:
    return service.client.post("/v1/images/generations", json=body)


def pixels(entry: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


def test_censored_images_with_their_verdicts(service: Service) -> None:
    body = generate(service, n=8, seed=100).json()
    assert body["policy"]["id"] == "no-crossbar"
    assert [entry["seed"] for entry in body["data"]] == list(range(100, 108))
    for entry in body["data"]:
        verdict = entry["content_filter_results"]["no-crossbar"]
        assert entry["finish_reason"] == "success"
        assert verdict["benign_score"] >= verdict["threshold"]
        image = pixels(entry)
        assert image.shape == (28, 28)
        assert image.max() > 200, "a seven is drawn in white"
    assert 50 * 8 <= body["usage"]["nfe"] <= 50 * body["usage"]["draws"], "probes save the rest"


def test_the_request_id_comes_back_once(service: Service) -> None:
    answer = service.client.get("/v1/models", headers={"X-Request-ID": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert len(service.client.get("/v1/models").headers.get_list("x-request-id")) == 1


def test_a_seed_gives_its_image_again_whatever_shares_the_batch(service: Service) -> None:
    together = generate(service, n=8, seed=200).json()["data"]
    for index in (0, 3, 7):
        alone = generate(service, n=1, seed=together[index]["seed"]).json()["data"][0]
        assert alone["draws"] == together[index]["draws"]
        # The runtime may round differently in another batch; a grey level is the tolerance.
        assert np.abs(pixels(alone).astype(int) - pixels(together[index])).max() <= 1


@pytest.mark.parametrize("policy", ["no-crossbar-guided", "only-crossbar"])
def test_guided_policies(service: Service, policy: str) -> None:
    body = generate(service, n=4, seed=300, policy=policy).json()
    assert body["policy"]["guide"].startswith("sha256:")
    for entry in body["data"]:
        verdict = entry["content_filter_results"][policy]
        assert (entry["b64_json"] is None) == verdict["filtered"]
        if not verdict["filtered"]:
            assert verdict["benign_score"] >= verdict["threshold"]


def test_openai_client(service: Service) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="anything")
    answer = client.images.generate(model="mnist-sevens", prompt="", n=2)
    assert answer.data is not None
    for entry in answer.data:
        assert entry.b64_json is not None
        assert Image.open(io.BytesIO(base64.b64decode(entry.b64_json))).size == (28, 28)
    with pytest.raises(openai.BadRequestError) as blocked:
        client.images.generate(prompt="", extra_body={"censor": {"threshold": 1.0, "max_draws": 1}})
    assert blocked.value.code == "moderation_blocked"
    with pytest.raises(openai.PermissionDeniedError):
        client.images.generate(prompt="", extra_body={"policy": "none"})
    admin = client.with_options(api_key=ADMIN_KEY)
    assert admin.images.generate(prompt="", extra_body={"policy": "none"}).data
    assert client.models.list().data[0].id == "mnist-sevens"


def test_moderation_agrees_with_the_verdict(service: Service) -> None:
    entry = generate(service, seed=400).json()["data"][0]
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="anything")
    url = f"data:image/png;base64,{entry['b64_json']}"
    result = client.moderations.create(
        model="no-crossbar", input=[{"type": "image_url", "image_url": {"url": url}}]
    ).results[0]
    score = entry["content_filter_results"]["no-crossbar"]["benign_score"]
    assert not result.flagged
    malign = result.category_scores.model_dump()["no-crossbar"]
    assert malign == pytest.approx(1 - score, abs=1e-6)


def test_metrics_count_what_happened(service: Service) -> None:
    before = {
        name: service.metric(name)
        for name in ("winnow_nfe_total", "winnow_images_delivered_total", "winnow_draws_total")
    }
    usage = generate(service, n=3, seed=500).json()["usage"]
    assert service.metric("winnow_nfe_total") - before["winnow_nfe_total"] == usage["nfe"]
    delivered = service.metric("winnow_images_delivered_total")
    assert delivered - before["winnow_images_delivered_total"] == 3
    draws = service.metric("winnow_draws_total")
    assert draws - before["winnow_draws_total"] == usage["draws"]
    assert service.metric('winnow_images_delivered_total{checked="false"') <= 1
    families = list(text_string_to_metric_families(service.client.get("/metrics").text))
    assert all(family.documentation for family in families)


def test_a_disconnect_frees_the_slots(service: Service) -> None:
    slow = {"n": 16, "seed": 600, "num_inference_steps": 50}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/images/generations", json=slow, timeout=0.15)
    nfe = service.metric("winnow_nfe_total")
    wait_for(lambda: service.metric("winnow_slots_running") == 0)
    settled = service.metric("winnow_nfe_total")
    time.sleep(0.5)
    assert service.metric("winnow_nfe_total") == settled
    assert settled - nfe < 16 * 50, "the draws ran to their end though nobody wanted them"


def test_a_killed_backbone_is_drawn_again(service: Service) -> None:
    expected = generate(service, n=16, seed=700).json()["data"]
    victim = service.replicas("Backbone")[0]
    answers: list[httpx.Response] = []
    request = threading.Thread(target=lambda: answers.append(generate(service, n=16, seed=700)))
    request.start()
    wait_for(lambda: service.metric("winnow_slots_running") > 0)
    os.kill(victim, signal.SIGKILL)
    request.join(120)
    assert answers[0].status_code == 200, answers[0].text
    again = answers[0].json()["data"]
    assert [entry["seed"] for entry in again] == [entry["seed"] for entry in expected]
    for first, second in zip(expected, again, strict=True):
        assert np.abs(pixels(first).astype(int) - pixels(second)).max() <= 1
    assert victim not in service.replicas("Backbone")


def test_a_backbone_that_stays_away_is_a_503(service: Service) -> None:
    victims = service.replicas("Backbone")
    stop_killing = threading.Event()

    def keep_killing() -> None:
        while not stop_killing.wait(0.05):
            for pid in service.replicas("Backbone"):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=keep_killing)
    killer.start()
    wait_for(lambda: not set(victims) & set(service.replicas("Backbone")))
    answer = generate(service, n=1, censor={"deadline_s": 3})
    stop_killing.set()
    killer.join()
    assert answer.status_code in (503, 504), answer.text
    assert "b64_json" not in answer.text
    service.wait_ready()


def test_a_killed_judge_lets_nothing_out(service: Service) -> None:
    victim = service.replicas("RewardModel")[0]
    answers: list[httpx.Response] = []
    request = threading.Thread(target=lambda: answers.append(generate(service, n=16, seed=800)))
    request.start()
    wait_for(lambda: service.metric("winnow_slots_running") > 0)
    os.kill(victim, signal.SIGKILL)
    request.join(120)
    # Either the restarted judge gave the verdicts, or nothing left.
    if answers[0].status_code == 200:
        for entry in answers[0].json()["data"]:
            verdict = entry["content_filter_results"]["no-crossbar"]
            assert verdict["benign_score"] >= verdict["threshold"]
    else:
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "censor_unavailable"
        assert "b64_json" not in answers[0].text
    service.wait_ready()
    assert generate(service, n=1).status_code == 200


def test_a_judge_that_hangs_lets_nothing_out(service: Service) -> None:
    victim = service.replicas("RewardModel")[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        answer = generate(service, n=2, seed=900)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "censor_unavailable"
        assert answer.headers["retry-after"]
        assert "b64_json" not in answer.text
        assert service.client.get("/health/ready").status_code == 503
    finally:
        for pid in (victim, *service.replicas("RewardModel")):
            if os.path.exists(f"/proc/{pid}"):
                os.kill(pid, signal.SIGCONT)
    service.wait_ready()


def test_a_decision_can_be_read_and_replayed(service: Service) -> None:
    body = generate(service, n=2, seed=400, num_inference_steps=20).json()
    path = f"/v1/decisions/{body['id']}"
    record = service.client.get(path, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()
    assert [image["seed"] for image in record["images"]] == [400, 401]
    assert record["versions"]["sampling"]["parts"]["judge"] == body["policy"]["judge"]
    winnow = Path(sys.executable).with_name("winnow")
    replayed = subprocess.run(
        [winnow, "replay", body["id"], "--url", service.store_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert replayed.stdout.count(": identical to what was delivered") == 2


def test_a_caller_that_goes_away_is_recorded(service: Service) -> None:
    body = {"n": 16, "seed": 500, "censor": {"threshold": 1.0}}
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/v1/images/generations", json=body, timeout=0.3)
    store = open_store(service.store_url, create=False)

    def recorded() -> bool:
        found = store.decisions.recent(100, {"outcome": "cancelled"})
        return any(record["plan"]["seed"] == 500 for record in found)

    wait_for(recorded)
