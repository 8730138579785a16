"""Every answer has a record, and without one no pixels leave."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.errors import StoreUnavailable
from service.generation.record import Record, sha256
from service.images.encode import from_data_url
from service.ports import Pixels
from service.store import database
from service.store.schema import Row
from tests.bundles import HEIGHT, WIDTH
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served, serve

ROUTE = "/v1/images/generations"
PNG = "iVBOR"


@pytest.fixture
def reviewer(server: Served) -> Iterator[httpx.Client]:
    with client(server, "APPROVE_KEY") as opened:
        yield opened


def _post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post(ROUTE, json={"prompt": ""} | body)


def _record(reviewer: httpx.Client, decision_id: str) -> Record:
    response = reviewer.get(f"/v1/decisions/{decision_id}")
    assert response.status_code == 200, response.text
    return Record.model_validate(response.json())


def _newest(served: Served, outcome: str) -> dict[str, Any]:
    """The newest record, which may still be on its way when nothing was delivered."""
    deadline = time.monotonic() + 10
    while not (found := served.store.decisions.recent(1, {"outcome": outcome})):
        assert time.monotonic() < deadline, f"no record of {outcome}"
        time.sleep(0.01)
    return found[0]


def _refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    assert PNG not in response.text


@contextmanager
def locked(served: Served) -> Iterator[None]:
    """Another process holds the write lock of the server's database, as a backup might."""
    path = served.store.database._engine.url.database
    assert path
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_the_record_tells_what_was_decided_by_which_weights(
    http: httpx.Client, reviewer: httpx.Client, bundle: Bundle
) -> None:
    answer = _post(http, n=3, seed=7, censor={"on_filtered": "never", "max_draws": 2})
    payload = answer.json()
    record = _record(reviewer, payload["id"])
    assert record.request_id == answer.headers["X-Request-ID"]
    assert (record.key, record.outcome) == ("scores", "ok")
    assert record.request.model_dump() == {
        "n": 3,
        "deadline_s": 120.0,
        "on_filtered": "never",
        "prompt": "",
    }
    assert (record.plan.seed, record.plan.max_draws, record.plan.policy) == (7, 2, "bright")
    sampling = record.versions.sampling
    assert sampling.parts["judge"] == payload["policy"]["judge"] == record.plan.judge
    assert sampling.backbone.schedule == bundle.schedule_sha256
    assert record.usage["nfe"] == payload["usage"]["nfe"]
    assert sum(len(image.judged) for image in record.images) == payload["usage"]["draws"]
    assert all(score is not None for image in record.images for score in [image.judged[-1].score])


def test_the_hash_is_that_of_the_delivered_bytes(
    http: httpx.Client, reviewer: httpx.Client
) -> None:
    payload = _post(http, n=2, seed=0).json()
    images = _record(reviewer, payload["id"]).images
    for entry, image in zip(payload["data"], images, strict=True):
        url = f"data:image/png;base64,{entry['b64_json']}"
        assert image.pixels_sha256 == sha256(from_data_url(url, HEIGHT, WIDTH, 1, "x"))


def test_a_block_is_recorded_with_its_score_and_without_a_hash(
    http: httpx.Client, reviewer: httpx.Client
) -> None:
    response = _post(http, n=2, censor={"threshold": 1.0, "max_draws": 1})
    _refused(response, 400, "moderation_blocked")
    record = _record(reviewer, response.json()["id"])
    assert record.outcome == "moderation_blocked"
    for image in record.images:
        assert image.pixels_sha256 is None
        (draw,) = image.judged
        assert draw.verdict.value == "rejected"
        assert draw.score is not None


def test_a_deadline_is_recorded(server: Served, http: httpx.Client, reviewer: httpx.Client) -> None:
    server.backbone.delay_s = 0.02
    response = _post(http, n=5, censor={"deadline_s": 0.2})
    _refused(response, 504, "deadline_exceeded")
    record = _record(reviewer, response.json()["id"])
    assert {i.finish_reason.value for i in record.images if i.finish_reason} == {"deadline"}


def test_a_fault_is_recorded_and_its_answer_has_the_id(server: Served, http: httpx.Client) -> None:
    server.judge.fault = RuntimeError("no memory left")
    response = _post(http, n=1, seed=5)
    _refused(response, 503, "censor_unavailable")
    found = _newest(server, "censor_unavailable")
    assert found["id"] == response.json()["id"]
    assert found["plan"]["seed"] == 5


@dataclass
class _Slow:
    served: Served
    entered: threading.Event
    gate: threading.Event


def _held_back(record: dict[str, Any]) -> None:
    """Image 0 was accepted and did not leave; what was settled of it is there."""
    first, *others = record["images"]
    assert (first["finish_reason"], first["pixels_sha256"]) == ("cancelled", None)
    assert [one["verdict"] for one in first["judged"]] == ["accepted"]
    assert first["judged"][0]["score"] == first["score"] == 1.0
    assert {one["pixels_sha256"] for one in others} <= {None}
    assert record["usage"]["delivered"] == 0
    assert record["usage"]["draws"] == sum(len(one["judged"]) for one in record["images"]) > 0
    assert record["usage"]["nfe"] == sum(
        draw["nfe"] for one in record["images"] for draw in one["judged"]
    )


@contextmanager
def _one_at_a_time(bundle: Bundle) -> Iterator[Served]:
    """A backbone with one slot and a judge that likes everything."""
    with serve(bundle, max_batch=1) as served:
        served.judge.answer = 1.0
        yield served


def test_a_fault_is_recorded_with_what_was_settled_before(bundle: Bundle) -> None:
    with _one_at_a_time(bundle) as served, client(served) as http:
        served.judge.fault, served.judge.good_calls = RuntimeError("no memory left"), 2
        _refused(_post(http, n=4, seed=5), 503, "censor_unavailable")
        record = _newest(served, "censor_unavailable")
        _held_back(record)
        reasons = [image["finish_reason"] for image in record["images"]]
        assert reasons == ["cancelled", "cancelled", None, None]


async def _leave(served: Served, when: Callable[[], bool], **body: Any) -> None:
    """A caller that goes away at a moment: the listener then cancels the request."""
    transport = httpx.ASGITransport(served.app)
    headers = {"Authorization": f"Bearer {KEYS['SCORES_KEY']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
        request = asyncio.ensure_future(http.post(ROUTE, json={"prompt": ""} | body))
        while not when():
            assert not request.done(), request.result().text
            await asyncio.sleep(0.001)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


def test_a_disconnect_is_recorded_with_what_was_settled_before(bundle: Bundle) -> None:
    with _one_at_a_time(bundle) as served:
        served.backbone.delay_s = 0.01
        asyncio.run(_leave(served, lambda: served.judge.good_calls <= -3, n=5, seed=5))
        record = _newest(served, "cancelled")
        _held_back(record)
        assert record["images"][-1]["finish_reason"] is None


def test_an_answer_that_cannot_be_made_is_recorded_as_held_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: Pixels) -> bytes:
        raise RuntimeError("no PNG today")

    monkeypatch.setattr("service.api.generation_body.to_png", broken)
    with _one_at_a_time(bundle) as served, client(served) as http:
        _refused(_post(http, seed=5), 500, "internal_error")
        _held_back(_newest(served, "internal_error"))


def test_a_refusal_for_load_is_not_recorded(bundle: Bundle) -> None:
    with serve(bundle, max_batch=1, max_waiting=1) as served, client(served) as http:
        served.backbone.delay_s = 0.02
        first = threading.Thread(target=_post, args=(http,), kwargs={"n": 3})
        first.start()
        while not served.backends.loop.running:
            time.sleep(0.001)
        _refused(_post(http), 429, "overloaded")
        served.backbone.delay_s = 0.0
        first.join()
        _newest(served, "ok")
        assert len(served.store.decisions.recent(9)) == 1


def test_a_locked_store_is_503_without_pixels(
    server: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.recorder.WRITE_S", 0.3)
    before = len(server.store.decisions.recent(1000))
    with locked(server):
        response = _post(http, seed=0)
        _refused(response, 503, "store_unavailable")
        assert "Retry-After" in response.headers
        blocked = _post(http, censor={"threshold": 1.0, "max_draws": 1})
        _refused(blocked, 503, "store_unavailable")
    deadline = time.monotonic() + 10
    while _post(http, seed=0).status_code != 200:
        assert time.monotonic() < deadline, "the store came back, the service did not"
    assert len(server.store.decisions.recent(1000)) >= before + 1


@contextmanager
def _slow_commits(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Slow]:
    """A server whose commits begin, and end when `gate` opens."""
    with _one_at_a_time(bundle) as served:
        store = served.store.decisions
        slow = _Slow(served, threading.Event(), threading.Event())
        insert = store.insert

        def wait(rows: Sequence[Row], final: Sequence[Row] = ()) -> None:
            slow.entered.set()
            assert slow.gate.wait(30)
            insert(rows, final)

        monkeypatch.setattr(store, "insert", wait)
        try:
            yield slow
        finally:
            slow.gate.set()


def test_a_commit_that_ends_too_late_is_corrected(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.recorder.WRITE_S", 0.1)
    with _slow_commits(bundle, monkeypatch) as slow, client(slow.served) as http:
        response = _post(http, n=2, seed=5)
        _refused(response, 503, "store_unavailable")
        slow.gate.set()
        record = _newest(slow.served, "store_unavailable")
        _held_back(record)
        assert record["id"] == response.json()["id"]
        assert len(slow.served.store.decisions.recent(9)) == 1, "in place of the first one"


def test_a_caller_that_leaves_during_the_commit_has_got_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _slow_commits(bundle, monkeypatch) as slow:
        asyncio.run(_leave(slow.served, slow.entered.is_set, seed=5))
        slow.gate.set()
        _held_back(_newest(slow.served, "cancelled"))
        assert len(slow.served.store.decisions.recent(9)) == 1


def test_a_store_that_fails_is_503_without_pixels_and_counts_no_delivery(
    server: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: list[Row], final: list[Row]) -> None:
        raise StoreUnavailable("disk full at /secret/path")

    def delivered() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = "winnow_images_delivered_total{"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = delivered()
    monkeypatch.setattr(server.recorder._decisions, "insert", broken)
    response = _post(http, seed=0)
    _refused(response, 503, "store_unavailable")
    assert "/secret/path" not in response.text
    assert delivered() == before


def test_a_policy_without_a_judge_is_recorded_too(server: Served, reviewer: httpx.Client) -> None:
    with client(server, "ADMIN_KEY") as admin:
        payload = _post(admin, policy="none", seed=3).json()
    record = _record(reviewer, payload["id"])
    assert record.plan.judge is None
    assert record.images[0].pixels_sha256 is not None
    with client(server, "ADMIN_KEY") as admin, locked(server):
        _refused(_post(admin, policy="none", seed=3), 503, "store_unavailable")


def test_a_repeated_request_id_has_a_record_for_each(
    http: httpx.Client, reviewer: httpx.Client
) -> None:
    headers = {"X-Request-ID": "the-same"}
    ids = [http.post(ROUTE, json={"seed": 0}, headers=headers).json()["id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert [_record(reviewer, one).request_id for one in ids] == ["the-same"] * 2


def test_the_log_line_has_the_id_and_no_user(
    http: httpx.Client, server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "winnow.requests"):
        payload = _post(http, seed=0, user="jane@example.org").json()
    fields = [line.__dict__["fields"] for line in caplog.records if hasattr(line, "fields")]
    assert payload["id"] in [line["id"] for line in fields]
    assert "jane" not in json.dumps(server.store.decisions.read(payload["id"]))


@pytest.mark.parametrize("key", ["PLAIN_KEY", "SCORES_KEY", "LABEL_KEY"])
def test_records_are_for_reviewers(server: Served, http: httpx.Client, key: str) -> None:
    decision_id = _post(http, seed=0).json()["id"]
    with client(server, key) as other:
        for one in (decision_id, "img_unknown"):
            _refused(other.get(f"/v1/decisions/{one}"), 403, "policy_not_allowed")
    with client(server, None) as nobody:
        _refused(nobody.get(f"/v1/decisions/{decision_id}"), 401, "invalid_api_key")
    with client(server, "ADMIN_KEY") as admin:
        assert admin.get(f"/v1/decisions/{decision_id}").json()["id"] == decision_id


@pytest.mark.parametrize("one", ["img_" + "0" * 32, "img_x", "a%00b", "'; DROP TABLE decisions"])
def test_an_unknown_decision_is_404(reviewer: httpx.Client, one: str) -> None:
    response = reviewer.get(f"/v1/decisions/{one}")
    _refused(response, 404, "decision_not_found")
    assert response.headers["x-should-retry"] == "false"


def test_the_busy_time_is_shorter_than_a_request_waits() -> None:
    from service.store import recorder

    assert database.BUSY_S < recorder.WRITE_S


def test_a_read_only_database_is_503(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served) as http:
        path = served.store.database._engine.url.database
        assert path
        served.store.database._engine.dispose()
        for file in Path(path).parent.iterdir():
            file.unlink()
        Path(path).mkdir()  # root may write any file, but nobody can open a folder as one
        _refused(_post(http, seed=0), 503, "store_unavailable")
        Path(path).rmdir()
