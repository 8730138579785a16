"""A wrong verdict becomes a label: the very image, drawn again, and never into a certificate."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.errors import StoreUnavailable
from service.store.datasets import Dataset
from tests.service.api.conftest import client
from tests.service.api.server import Served, serve
from tests.service.api.test_certificates import begin, drawn, refused


@pytest.fixture
def served(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with serve(bundle) as running:
        for name, model in (("seen", "tiny"), ("elsewhere", "other")):
            running.store.datasets.create(
                Dataset(name, model, "Is it bright?", [], "labels", datetime.now(UTC), "someone")
            )
        yield running


@pytest.fixture
def reviewer(served: Served) -> Iterator[httpx.Client]:
    with client(served, "APPROVE_KEY") as opened:
        yield opened


def generate(served: Served, **body: Any) -> dict[str, Any]:
    with client(served) as http:
        found: dict[str, Any] = http.post("/v1/images/generations", json=body).json()
        return found


def blocked(served: Served, max_draws: int = 3) -> dict[str, Any]:
    return generate(served, seed=1, censor={"threshold": 1.0, "max_draws": max_draws})


def report(reviewer: httpx.Client, decision: dict[str, Any], **body: Any) -> httpx.Response:
    default = {"index": 0, "label": "malign", "dataset": "seen"}
    return reviewer.post(f"/v1/decisions/{decision['id']}/report", json=default | body)


def test_a_delivered_image_is_reported_byte_for_byte(
    served: Served, reviewer: httpx.Client
) -> None:
    decision = generate(served, n=3, seed=5)
    answer = report(reviewer, decision, index=2)
    assert answer.status_code == 201, answer.text
    (labelled,) = served.store.datasets.labelled("seen")
    assert (labelled.label, labelled.annotator) == ("malign", "approve/api")
    assert labelled.image.strategy == "report"
    assert labelled.image.draw == decision["data"][2]["draws"] - 1
    png = base64.b64decode(decision["data"][2]["b64_json"])
    assert served.store.blobs.get(labelled.image.blob) == png
    refused(report(reviewer, decision, index=2), 409, "conflict", "already")
    assert len(served.store.datasets.labelled("seen")) == 1


def test_a_report_that_fails_half_way_can_be_sent_again(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = generate(served, seed=5)

    def fail(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("service.store.datasets.append", fail)
        refused(report(reviewer, decision), 503, "store_unavailable", "full")
    assert report(reviewer, decision).status_code == 201
    assert [one.label for one in served.store.datasets.labelled("seen")] == ["malign"]


def test_a_certificates_image_is_not_reported(served: Served, reviewer: httpx.Client) -> None:
    """Who asks for its seed gets the very image that proves, and it must teach nothing."""
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    proof = served.store.certificates.images(begun["id"])[0]
    decision = generate(served, seed=proof.seed)
    png = base64.b64decode(decision["data"][0]["b64_json"])
    assert served.store.blobs.get(proof.blob) == png
    refused(report(reviewer, decision), 409, "conflict", "certificate")
    assert served.store.datasets.labelled("seen") == []


def test_of_a_blocked_image_the_best_draw_is_reported(
    served: Served, reviewer: httpx.Client
) -> None:
    decision = blocked(served)
    assert report(reviewer, decision, label="benign").status_code == 201
    (labelled,) = served.store.datasets.labelled("seen")
    record = reviewer.get(f"/v1/decisions/{decision['id']}").json()
    scores = {one["draw"]: one["score"] for one in record["images"][0]["judged"]}
    assert labelled.image.score == max(scores.values())
    assert labelled.image.draw == max(scores, key=lambda draw: scores[draw])


def test_an_image_is_drawn_again_for_those_who_may_see_it(
    served: Served, reviewer: httpx.Client
) -> None:
    good, bad = generate(served, seed=5), blocked(served)
    with client(served, "ADMIN_KEY") as both:
        answer = both.post(f"/v1/decisions/{good['id']}/draw", json={"index": 0})
        assert answer.json()["b64_json"] == good["data"][0]["b64_json"]
        assert answer.json()["identical"] is True
        assert "no-store" in answer.headers["cache-control"]
        answer = both.post(f"/v1/decisions/{bad['id']}/draw", json={"index": 0})
        assert (answer.status_code, answer.json()["identical"]) == (200, None)
        refused(
            both.post(f"/v1/decisions/{bad['id']}/draw", json={"index": 9}),
            400, "invalid_value", "index",
        )  # fmt: skip
        assert both.get(f"/v1/decisions/{bad['id']}/reports").json()["data"] == []
    for key in ("APPROVE_KEY", "LABEL_KEY", "SCORES_KEY"):
        with client(served, key) as one:
            answer = one.post(f"/v1/decisions/{bad['id']}/draw", json={"index": 0})
            refused(answer, 403, "policy_not_allowed", "scope")
            assert "b64_json" not in answer.text


def test_what_was_reported_is_told(served: Served, reviewer: httpx.Client) -> None:
    decision = blocked(served)
    path = f"/v1/decisions/{decision['id']}/reports"
    assert reviewer.get(path).json()["data"] == []
    assert report(reviewer, decision, label="benign").status_code == 201
    assert reviewer.get(path).json()["data"] == [{"index": 0, "dataset": "seen"}]
    with client(served) as http:
        refused(http.get(path), 403, "policy_not_allowed")


def test_an_image_that_is_no_longer_the_same_is_refused(
    served: Served, reviewer: httpx.Client
) -> None:
    decision = generate(served, seed=5)
    served.backbone.world = replace(served.backbone.world, mu=0.3)
    refused(report(reviewer, decision), 409, "conflict", "same image")
    assert served.store.datasets.labelled("seen") == []


def test_what_makes_no_sense_is_refused(served: Served, reviewer: httpx.Client) -> None:
    good, bad = generate(served, seed=5), blocked(served, 1)
    refused(report(reviewer, good, label="benign"), 400, "invalid_value", "came to success")
    refused(report(reviewer, bad), 400, "invalid_value", "came to content_filtered")
    refused(report(reviewer, good, index=1), 400, "invalid_value", "the decision has 1")
    refused(report(reviewer, good, dataset="none"), 404, "dataset_not_found")
    refused(report(reviewer, good, dataset="elsewhere"), 400, "invalid_value", "of model")
    refused(report(reviewer, {"id": "img_x"}), 404, "decision_not_found")
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    refused(report(reviewer, good, dataset=begun["dataset"]), 400, "invalid_value", "certificate")
    for key in ("LABEL_KEY", "SCORES_KEY"):
        with client(served, key) as other:
            refused(report(other, good), 403, "policy_not_allowed")


def test_an_explanation_says_why_and_what_would_have_passed(
    served: Served, reviewer: httpx.Client
) -> None:
    def explained(decision: dict[str, Any]) -> dict[str, Any]:
        found = reviewer.get(f"/v1/decisions/{decision['id']}/explanation")
        assert found.status_code == 200, found.text
        image: dict[str, Any] = found.json()["images"][0]
        return image

    image = explained(blocked(served))
    best = max(one["score"] for one in image["draws"])
    assert image["would_pass_at"] == best
    assert image["why"].startswith("Blocked: of 3 draws none reached the threshold of 1.0000")
    told = re.search(r"threshold of ([0-9.]+) or less", image["why"])
    assert told is not None
    assert best - 1e-4 < float(told[1]) <= best, "the sentence is true of the score itself"
    delivered = generate(served, seed=5)
    image = explained(delivered)
    assert image["why"].startswith(f"Delivered: draw {delivered['data'][0]['draws'] - 1} scored")
    with client(served) as http:
        route = f"/v1/decisions/{delivered['id']}/explanation"
        refused(http.get(route), 403, "policy_not_allowed")


def test_the_pages_hold_no_secret_and_load_nothing_from_elsewhere(served: Served) -> None:
    with client(served, None) as nobody:
        for path in ("/certificates/cert_x", "/decisions/img_x"):
            page = nobody.get(path)
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert "http://" not in page.text
            assert "https://" not in page.text
        for name in ("certificate.css", "certificate.js", "decision.js"):
            assert nobody.get(f"/pages/{name}").status_code == 200
