from __future__ import annotations

import time

import httpx

from models.bundle import Bundle
from tests.metrics import parse, value
from tests.service.api.conftest import client
from tests.service.api.server import Served, serve


def test_live_and_ready_need_no_key(server: Served) -> None:
    with client(server, None) as http:
        assert http.get("/health/live").json() == {"status": "live"}
        assert http.get("/health/ready").json() == {"status": "ready"}


def test_not_ready_while_the_judge_cannot_score_its_canary(server: Served) -> None:
    server.judge.answer = float("nan")
    with client(server, None) as http:
        response = http.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "censor_unavailable"
        assert http.get("/health/live").status_code == 200


def test_not_ready_while_the_backbone_cannot_draw(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        served.backends.loop.close()
        response = http.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "backend_unavailable"


def test_metrics_parse_and_count_what_happened(http: httpx.Client) -> None:
    before = parse(http.get("/metrics").text)
    body = {"prompt": "", "n": 3, "seed": 0}
    usage = http.post("/v1/images/generations", json=body).json()["usage"]
    http.post("/v1/images/generations", json=body | {"policy": "nowhere"})
    page = http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = parse(page.text)

    def risen(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    # The engine counts a tick after it has handed its images over.
    deadline = time.monotonic() + 5
    while risen("winnow_nfe_total") < usage["nfe"] and time.monotonic() < deadline:
        after = parse(http.get("/metrics").text)
    assert risen("winnow_requests_total", policy="bright", outcome="success", code="ok") == 1
    assert risen("winnow_images_delivered_total", checked="true") == usage["images_returned"] == 3
    assert risen("winnow_draws_total", policy="bright") == usage["draws"]
    assert risen("winnow_draws_total", verdict="accepted") == 3
    assert risen("winnow_reward_score_count", policy="bright") == usage["draws"]
    assert risen("winnow_nfe_total", replica="backbone") == usage["nfe"]
    assert risen("winnow_request_duration_seconds_count", policy="bright") == 1
    assert value(after, "winnow_slots_running") == 0


def test_metrics_are_not_on_the_public_route_unless_configured(bundle: Bundle) -> None:
    with serve(bundle, ingress_metrics=False) as served, client(served) as http:
        assert http.get("/metrics").status_code == 404
