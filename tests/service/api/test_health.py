from __future__ import annotations

import resource
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from models.bundles.bundle import Bundle
from service.api import readiness
from tests.metrics import parse, value
from tests.processes import wait_for
from tests.service.api.conftest import client
from tests.service.api.server import Served, serve


def test_live_and_ready_need_no_key(server: Served) -> None:
    with client(server, None) as http:
        assert http.get("/health/live").json() == {"status": "live"}
        answer = http.get("/health/ready")
        assert answer.status_code == 200
        parts = ("backbone", "judge", "policies", "decisions", "blobs")
        assert answer.json() == {"status": "ready", "parts": dict.fromkeys(parts, "ready")}


def test_not_ready_while_the_judge_cannot_score_its_canary(server: Served) -> None:
    server.judge.answer = float("nan")
    with client(server, None) as http:
        assert _becomes(http, 503).json()["error"]["code"] == "censor_unavailable"
        assert http.get("/health/live").status_code == 200


def test_not_ready_while_the_backbone_cannot_draw(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        served.backends.loop.close()
        response = http.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "backend_unavailable"


def _becomes(http: httpx.Client, status: int) -> httpx.Response:
    """The answer once it has this status: an answer stands for a second."""
    answers: list[httpx.Response] = []

    def there() -> bool:
        answers[:] = [http.get("/health/ready")]
        return answers[0].status_code == status

    wait_for(there)
    return answers[0]


def test_not_ready_while_another_holds_the_store(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        _becomes(http, 200)
        with closing(sqlite3.connect(_file(served), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            # Answered while the store hangs: nobody lets go of it before the answer is there.
            answer = _becomes(http, 503)
            other.execute("ROLLBACK")
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert answer.json()["status"] == "not ready"
        parts = answer.json()["parts"]
        assert "no answer" in parts.pop("decisions")
        assert set(parts.values()) == {"ready"}
        _becomes(http, 200)
        assert served.store.decisions.recent(9) == [], "a probe is no decision"


def test_not_ready_while_nothing_can_be_written_to_the_disk(bundle: Bundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(bundle) as served, client(served, None) as http:
        _becomes(http, 200)
        try:
            # As a full disk does: no file of this process may grow.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
            answer = _becomes(http, 503)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert answer.json()["parts"]["decisions"] != "ready"
        _becomes(http, 200)


def test_not_ready_while_nobody_can_tell_what_is_switched_off(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        _becomes(http, 200)
        served.policy_registry.stale_s = -1.0
        answer = _becomes(http, 503)
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert "switched off" in answer.json()["parts"]["policies"]


def test_ready_while_somebody_has_switched_everything_off(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        for name in served.policy_registry.pointers:
            served.store.policies.disable(name, "somebody")
        served.policy_registry.refresh()
        assert _becomes(http, 200).json()["parts"]["policies"] == "ready"


def test_not_ready_while_no_policy_in_force_can_be_read(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        policies = served.store.policies
        first = policies.pointers()["bright"]
        for before in policies.pointers().values():
            version = policies.add(before.name, {"of": "a later Winnow"}, None, "somebody")
            policies.point(before.name, before, version, "somebody", "policy.promote")
        served.policy_registry.refresh()
        assert "cannot be read" in _becomes(http, 503).json()["parts"]["policies"]
        # One that censors is enough to answer a request.
        policies.point(
            first.name, policies.pointers()[first.name], first.version, "one", "policy.promote"
        )
        served.policy_registry.refresh()
        _becomes(http, 200)


def test_blobs_that_cannot_be_written_are_told_and_do_not_count(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, None) as http:
        _file(served).with_name("blobs").write_text("no folder")
        answer = _becomes(http, 200)
        assert "blob" in answer.json()["parts"]["blobs"]
        assert http.get("/health/ready").json()["parts"]["decisions"] == "ready"


def test_polling_costs_the_parts_next_to_nothing(server: Served) -> None:
    """Those who ask together get one answer, and it stands for a moment."""
    asked: list[float] = []
    score = server.judge.score

    def counted(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        asked.append(time.monotonic())
        return score(pixels)

    server.judge.score = counted  # type: ignore[method-assign]
    try:
        with client(server, None) as http, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: http.get("/health/ready"), range(64)))
    finally:
        del server.judge.score
    assert {one.status_code for one in answers} == {200}
    asked.sort()
    # Here backbone and judge are one, and both are asked.
    apart = [later - one for one, later in pairwise(asked[::2])]
    assert all(gap > readiness.FRESH_S for gap in apart)


def _file(served: Served) -> Path:
    """The database of a server."""
    return Path(str(served.store.database._engine.url.database))


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
