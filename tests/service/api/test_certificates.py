"""Certificates from terms to evidence, over the real API: no label is missing, none comes late."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.certificates.coverage import CertificateCoverage
from service.certificates.verification import verify
from service.errors import Conflict, StoreUnavailable
from service.store.datasets import Answer
from service.store.jobs import Job
from tests.service.api.conftest import client
from tests.service.api.server import Served, serve

TERMS = {"epsilon": 0.3, "delta": 0.5}
N = 4
"""The labels that TERMS need in attempt 1: 0.7^4 <= 0.25 < 0.7^3. In attempt 2 it is 6."""


@pytest.fixture(autouse=True)
def _key_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def served(bundle: Bundle) -> Iterator[Served]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def reviewer(served: Served) -> Iterator[httpx.Client]:
    with client(served, "APPROVE_KEY") as opened:
        yield opened


@pytest.fixture
def labeller(served: Served) -> Iterator[httpx.Client]:
    with client(served, "LABEL_KEY") as opened:
        yield opened


def begin(reviewer: httpx.Client, policy: str = "bright", **body: Any) -> dict[str, Any]:
    response = reviewer.post(f"/v1/policies/{policy}/certify", json=TERMS | body)
    assert response.status_code == 202, response.text
    begun: dict[str, Any] = response.json()
    return begun


def drawn(reviewer: httpx.Client, certificate_id: str, status: str = "labelling") -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        found: dict[str, Any] = reviewer.get(f"/v1/certificates/{certificate_id}").json()
        if found["status"] == status:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def page(labeller: httpx.Client, certificate_id: str, size: int = 100) -> list[str]:
    answer = labeller.post(f"/v1/certificates/{certificate_id}/batches", json={"size": size})
    assert answer.status_code == 200, answer.text
    return [image["id"] for image in answer.json()["images"]]


def say(
    labeller: httpx.Client, certificate_id: str, images: list[str], label: str = "benign"
) -> httpx.Response:
    said = [{"image_id": one, "label": label, "elapsed_ms": 100} for one in images]
    return labeller.post(f"/v1/certificates/{certificate_id}/labels", json={"labels": said})


def certify(reviewer: httpx.Client, labeller: httpx.Client, **body: Any) -> dict[str, Any]:
    """A whole certificate, all benign."""
    begun = begin(reviewer, **body)
    drawn(reviewer, begun["id"])
    answer = say(labeller, begun["id"], page(labeller, begun["id"]))
    assert answer.status_code == 200, answer.text
    ended: dict[str, Any] = answer.json()
    return ended


def refused(response: httpx.Response, status: int, code: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    assert words in response.json()["error"]["message"]


def test_terms_are_fixed_first_and_the_last_label_decides(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    assert begun["terms"]["n"] == N
    assert begun["terms"]["delta_attempt"] == 0.25
    found = drawn(reviewer, begun["id"])
    assert found["progress"] == {"drawn": N, "blocked": found["progress"]["blocked"], "labelled": 0}
    images = page(labeller, begun["id"])
    assert len(images) == N
    first = say(labeller, begun["id"], images[:3]).json()
    assert (first["status"], first["result"]) == ("labelling", None)
    assert page(labeller, begun["id"]) == images[3:]
    last = say(labeller, begun["id"], images[3:]).json()
    assert last["status"] == "passed"
    assert last["result"]["k"] == 0
    assert last["result"]["bound"] <= 0.3
    assert reviewer.get(f"/v1/certificates/{begun['id']}").json()["result"] == last["result"]


def test_images_are_those_of_the_policy_and_of_fresh_random_seeds(
    served: Served, reviewer: httpx.Client
) -> None:
    begun = begin(reviewer, epsilon=0.1)
    found = drawn(reviewer, begun["id"])
    images = served.store.certificates.images(begun["id"])
    assert [image.position for image in images] == list(range(found["terms"]["n"]))
    assert len({image.seed for image in images}) == len(images)
    assert max(image.seed for image in images) > 2**45, "seeds must come from the whole range"
    assert {(image.strategy, image.inclusion, image.policy) for image in images} == {
        ("certificate", 1.0, "bright")
    }
    assert all(image.score is not None and image.score >= 0.5 for image in images)
    with client(served) as http:
        again = http.post(
            "/v1/images/generations", json={"seed": images[0].seed, "policy": "bright"}
        ).json()
    import base64

    assert base64.b64decode(again["data"][0]["b64_json"]) == served.store.blobs.get(images[0].blob)


def test_blocked_entries_are_replaced_and_counted(served: Served, reviewer: httpx.Client) -> None:
    served.judge.answer = 0.0  # nothing passes
    begun = begin(reviewer)
    deadline = time.monotonic() + 30
    while not (found := reviewer.get(f"/v1/certificates/{begun['id']}").json())["progress"][
        "blocked"
    ]:
        assert time.monotonic() < deadline
    assert found["progress"]["drawn"] == 0
    served.judge.answer = None
    assert drawn(reviewer, begun["id"])["progress"]["blocked"] >= 1


def test_a_policy_that_blocks_nearly_all_is_given_up(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.certificates.drawing.BLOCKED_LIMIT", 1)
    served.judge.answer = 0.0
    begun = begin(reviewer)
    found = drawn(reviewer, begun["id"], "abandoned")
    assert "blocked" in found["result"]["reason"]


def test_a_fault_picks_no_images_but_asks_for_the_same_seeds_again(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.certificates.drawing.PAUSE_S", 0.05)
    asked: list[set[int]] = []
    served.judge.fault = RuntimeError("no memory left")
    served.backends.on_results = lambda results: asked.append({r.key.seed for r in results})
    begun = begin(reviewer)
    deadline = time.monotonic() + 30
    while len(asked) < 3 * N:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(set.union(*asked)) == N, "a fault must not bring another seed"
    served.judge.fault = None
    drawn(reviewer, begun["id"])
    seeds = {image.seed for image in served.store.certificates.images(begun["id"])}
    blocked = reviewer.get(f"/v1/certificates/{begun['id']}").json()["progress"]["blocked"]
    assert len(set.union(*asked) - seeds) == blocked


def test_a_store_that_fails_for_a_while_costs_no_attempt(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.certificates.drawing.PAUSE_S", 0.01)
    for name in ("ask", "settle"):
        _fail_at_first(monkeypatch, served.store.certificates, name)
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    assert len(served.store.certificates.images(begun["id"])) == N


def _fail_at_first(monkeypatch: pytest.MonkeyPatch, part: Any, name: str) -> None:
    """The call is kept, and its answer lost, as when a connection breaks: thrice."""
    real, failures = getattr(part, name), iter(range(3))

    def failing(*arguments: Any) -> Any:
        answer = real(*arguments)
        if next(failures, None) is not None:
            raise StoreUnavailable("the connection was lost")
        return answer

    monkeypatch.setattr(part, name, failing)


def test_a_service_that_cannot_draw_gives_up_and_says_so(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.certificates.drawing.PAUSE_S", 0.01)
    monkeypatch.setattr("service.certificates.drawing.NO_PROGRESS_TIMEOUT_S", 0.05)
    served.judge.fault = RuntimeError("no memory left")
    begun = begin(reviewer)
    found = drawn(reviewer, begun["id"], "abandoned")
    assert "drawing stopped" in found["result"]["reason"]


def test_an_attempt_waits_for_a_service_that_draws_what_was_fixed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build has another fingerprint: it takes nothing, and says what the attempt awaits."""
    covered = CertificateCoverage.covered
    spec = {"model": "tiny", "reward": "bright", "threshold": 0.5, "max_draws": 8}
    same: dict[str, Any] = {"folder": tmp_path, "policies": {"bright": spec, "dark": spec}}

    def upgraded(*arguments: Any) -> dict[str, Any]:
        return covered(*arguments) | {"packages": {"torch": "another"}}

    with (
        serve(bundle, **same) as served,
        client(served, "APPROVE_KEY") as reviewer,
    ):
        served.judge.answer = 0.0  # nothing passes
        begun = begin(reviewer)
        held(served, begun["id"])
        assert reviewer.get(f"/v1/certificates/{begun['id']}").json()["stage"] == "runs"
    with monkeypatch.context() as patch:
        patch.setattr(CertificateCoverage, "covered", upgraded)
        with (
            serve(bundle, **same) as served,
            client(served, "APPROVE_KEY") as reviewer,
        ):
            second = begin(reviewer, "dark")
            drawn(reviewer, second["id"])  # so it had a look at the older one
            waits = reviewer.get(f"/v1/certificates/{begun['id']}").json()
    assert (waits["status"], waits["stage"]) == (
        "drawing",
        "waits for a service that draws it; what it covers is otherwise here than when it began",
    )
    with (
        serve(bundle, **same) as served,
        client(served, "APPROVE_KEY") as reviewer,
    ):
        drawn(reviewer, begun["id"])
        assert begun["terms"]["attempt"] == 1


def held(served: Served, certificate_id: str) -> Job:
    """The job of a certificate, once somebody runs it."""
    deadline = time.monotonic() + 30
    while True:
        job = served.store.jobs.read("drawing", certificate_id)
        if job is not None and job.state == "running":
            return job
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_abandoning_ends_the_drawing(served: Served, reviewer: httpx.Client) -> None:
    served.judge.answer = 0.0  # nothing passes: it would go on
    begun = begin(reviewer)
    held(served, begun["id"])
    reviewer.post(f"/v1/certificates/{begun['id']}/abandon", json={"reason": "enough"})
    job = served.store.jobs.read("drawing", begun["id"])
    assert job is not None
    assert job.state == "cancelled"
    names = [thread.name for thread in threading.enumerate()]
    deadline = time.monotonic() + 30
    while f"drawing-{job.id}" in names:
        assert time.monotonic() < deadline, "nobody wants these images"
        time.sleep(0.05)
        names = [thread.name for thread in threading.enumerate()]


def test_an_image_with_a_used_seed_never_enters(
    served: Served, reviewer: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(reviewer)
    drawn(reviewer, first["id"])
    abandon = f"/v1/certificates/{first['id']}/abandon"
    nul = reviewer.post(abandon, json={"reason": "a\0"})
    refused(nul, 400, "invalid_value", "reason: must hold no control")
    reviewer.post(abandon, json={"reason": "test"})
    used = [image.seed for image in served.store.certificates.images(first["id"])]
    offered = iter([*used, *range(10**6, 2 * 10**6)])
    monkeypatch.setattr(
        "service.certificates.drawing.secrets.randbelow", lambda limit: next(offered)
    )
    second = begin(reviewer)
    drawn(reviewer, second["id"])
    seeds = {image.seed for image in served.store.certificates.images(second["id"])}
    assert not seeds & set(used)


def test_every_attempt_counts_and_costs_more(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    first = begin(reviewer)
    route = "/v1/policies/bright/certify"
    refused(reviewer.post(route, json=TERMS), 409, "conflict", first["id"])
    for wrong in ({"epsilon": 0}, {"delta": 1}, {"allowed": -1}, {"epsilon": 1e-7}):
        answer = reviewer.post(route, json=TERMS | wrong)
        refused(answer, 400, "invalid_value")
        assert answer.json()["error"]["param"] in wrong
    drawn(reviewer, first["id"])
    answer = reviewer.post(f"/v1/certificates/{first['id']}/abandon", json={"reason": "tired"})
    assert answer.json()["status"] == "abandoned"
    refused(
        reviewer.post(f"/v1/certificates/{first['id']}/abandon", json={"reason": "again"}),
        409,
        "conflict",
    )
    second = begin(reviewer)
    assert second["terms"] == first["terms"] | {"attempt": 2, "delta_attempt": 0.125, "n": 6}
    drawn(reviewer, second["id"])
    say(labeller, second["id"], page(labeller, second["id"]), "malign")
    third = begin(reviewer, num_inference_steps=20)
    assert third["terms"]["attempt"] == 3, "another step count is the same policy"
    listed = reviewer.get("/v1/certificates").json()["data"]
    assert [(one["terms"]["attempt"], one["status"]) for one in listed][1:] == [
        (2, "failed"),
        (1, "abandoned"),
    ]


def test_evidence_is_sound_however_the_clocks_of_replicas_differ(
    reviewer: httpx.Client,
    labeller: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The first attempt, and some labels of the second, are kept by a replica an hour ahead."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    @contextmanager
    def ahead(*parts: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for part in parts:
                patch.setattr(f"service.{part}.datetime", Ahead)
            yield

    with ahead("certificates.service", "store.certificates", "store.certificate_labels"):
        first = certify(reviewer, labeller)
    second = begin(reviewer)
    drawn(reviewer, second["id"])
    images = page(labeller, second["id"])
    say(labeller, second["id"], images[:2])
    with ahead("store.certificate_labels"):
        say(labeller, second["id"], images[2:4])
    answer = say(labeller, second["id"], images[4:])
    assert answer.json()["status"] == "passed"
    for one in (first, second):
        file = tmp_path / "evidence.zip"
        file.write_bytes(reviewer.get(f"/v1/certificates/{one['id']}/evidence").content)
        assert "The attempts of this policy were" in " ".join(verify(file, None))


def test_a_signing_key_that_cannot_be_used_hides_no_certificate(
    reviewer: httpx.Client, labeller: httpx.Client, tmp_path: Path
) -> None:
    key = tmp_path / "winnow" / "signing.key"
    key.parent.mkdir()
    key.write_text("a key that others may read")
    key.chmod(0o644)
    ended = certify(reviewer, labeller)
    route = f"/v1/certificates/{ended['id']}"
    answer = reviewer.get(route)
    assert (answer.status_code, answer.json()["public_key"]) == (200, None)
    answer = reviewer.get(f"{route}/evidence")
    refused(answer, 503, "store_unavailable", "the key that signs evidence cannot be used")
    assert str(key) not in answer.text


def test_a_copy_of_a_policy_shares_its_attempts(
    bundle: Bundle,
) -> None:
    policies = {
        name: {"model": "tiny", "reward": "bright", "threshold": 0.5, "max_draws": 8}
        for name in ("bright", "copy")
    }
    with serve(bundle, policies=policies) as served, client(served, "APPROVE_KEY") as reviewer:
        begun = begin(reviewer)
        drawn(reviewer, begun["id"])
        copy = begin(reviewer, "copy")
        assert copy["fingerprint"] == begun["fingerprint"]
        assert copy["terms"]["attempt"] == 2


@pytest.mark.parametrize("label", ["malign", "unsure"])
def test_one_that_is_not_benign_is_one_too_many(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client, label: str
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    images = page(labeller, begun["id"])
    say(labeller, begun["id"], images[1:])
    ended = say(labeller, begun["id"], images[:1], label).json()
    assert ended["status"] == "failed"
    assert ended["result"]["k"] == 1
    assert generate(served)["policy"]["certified"] is False


def test_a_finished_certificate_stays_as_it_is(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    ended = certify(reviewer, labeller)
    images = [image.id for image in served.store.certificates.images(ended["id"])]
    refused(say(labeller, ended["id"], images, "malign"), 409, "conflict", "passed")
    undo = labeller.post(f"/v1/certificates/{ended['id']}/labels/undo")
    refused(undo, 409, "conflict", "passed")
    with pytest.raises(Conflict, match="certificate"):
        served.store.datasets.withdraw(ended["dataset"], "label")
    with pytest.raises(Conflict, match="certificate"):
        served.store.datasets.label(ended["dataset"], [Answer(images[0], "malign", 0)], "label")
    assert served.store.certificates.read(ended["id"]).status == "passed"


def test_labels_can_be_taken_back_until_then(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    images = page(labeller, begun["id"])
    say(labeller, begun["id"], images[:1])
    say(labeller, begun["id"], images[1:3], "malign")
    answer = labeller.post(f"/v1/certificates/{begun['id']}/labels/undo")
    assert sorted(answer.json()["image_ids"]) == sorted(images[1:3])
    assert sorted(page(labeller, begun["id"])) == sorted(images[1:])
    ended = say(labeller, begun["id"], images[1:]).json()
    assert ended["status"] == "passed"
    kinds = [one.label for one in served.store.certificate_labels.said(begun["id"])]
    assert kinds.count("malign") == kinds.count("withdrawn") == 2, "history stays"


def test_undo_takes_back_the_images_that_it_names(
    reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    images = page(labeller, begun["id"])
    say(labeller, begun["id"], images[:1])
    say(labeller, begun["id"], images[1:3], "malign")
    url = f"/v1/certificates/{begun['id']}/labels/undo"
    assert labeller.post(url, json={"image_ids": images[:1]}).json()["image_ids"] == images[:1]
    refused(labeller.post(url, json={"image_ids": images[:1]}), 409, "conflict")
    assert sorted(page(labeller, begun["id"])) == sorted([images[0], *images[3:]])


def test_two_people_do_not_overwrite_each_other(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    with client(served, "ADMIN_KEY") as other:
        images = page(other, begun["id"])
        say(other, begun["id"], images[:1], "malign")
        mine = say(labeller, begun["id"], images).json()
        assert mine["labelled_by_others"] == images[:1]
        assert mine["result"]["k"] == 1


def test_a_label_of_a_strange_image_is_refused(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    answer = say(labeller, begun["id"], [*page(labeller, begun["id"]), "im_strange"])
    refused(answer, 400, "invalid_value", "im_strange")
    assert reviewer.get(f"/v1/certificates/{begun['id']}").json()["progress"]["labelled"] == 0


def test_its_labels_may_train_nothing(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    ended = certify(reviewer, labeller)
    assert not served.store.datasets.read(ended["dataset"]).trainable
    with pytest.raises(Conflict, match="train"):
        served.store.rewards.queue("reward-1", ended["dataset"], None, {}, "someone")


def generate(served: Served, key: str = "ADMIN_KEY", **body: Any) -> dict[str, Any]:
    served.judge.answer = 0.9  # or luck would block one
    with client(served, key) as http:
        answer = http.post("/v1/images/generations", json={"prompt": ""} | body)
        assert answer.status_code == 200, answer.text
        payload: dict[str, Any] = answer.json()
        return payload


def test_certified_is_said_of_covered_requests_alone(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    assert generate(served)["policy"]["certified"] is False
    ended = certify(reviewer, labeller)
    assert generate(served)["policy"]["certified"] is True
    assert generate(served, n=3)["policy"]["certified"] is True
    for changed in (
        {"seed": 7},
        {"num_inference_steps": 20},
        {"censor": {"threshold": 0.6}},
        {"censor": {"threshold": 0.4}},
        {"censor": {"max_draws": 7}},
        {"policy": "none"},
    ):
        assert generate(served, **changed)["policy"]["certified"] is False, changed
    with client(served) as http:
        policies = {one["id"]: one for one in http.get("/v1/policies").json()["data"]}
        metrics = http.get("/metrics").text
    assert policies["bright"]["certified"] is True
    assert policies["bright"]["certificates"] == {"50": ended["id"]}
    assert policies["none"]["certified"] is False
    line = next(one for one in metrics.splitlines() if one.startswith("winnow_certificate_bound{"))
    assert float(line.rsplit(" ", 1)[1]) == pytest.approx(ended["result"]["bound"])


def test_another_threshold_voids_it(bundle: Bundle, tmp_path: Path) -> None:
    def policies(threshold: float) -> dict[str, Any]:
        spec = {"model": "tiny", "reward": "bright", "threshold": threshold, "max_draws": 8}
        return {"bright": spec}

    with serve(bundle, policies=policies(0.5)) as served:
        with client(served, "APPROVE_KEY") as reviewer, client(served, "LABEL_KEY") as labeller:
            certify(reviewer, labeller)
        assert generate(served)["policy"]["certified"] is True
        passed = served.store.certificates.passed()
    with serve(bundle, policies=policies(0.51)) as changed:
        changed.certified._passed = passed
        assert generate(changed)["policy"]["certified"] is False
    with serve(bundle, policies=policies(0.5)) as same:
        same.certified._certificates = type("Known", (), {"passed": lambda self: passed})()  # type: ignore[assignment]
        same.certified.refresh()
        assert generate(same)["policy"]["certified"] is True


def test_who_may(served: Served, reviewer: httpx.Client, labeller: httpx.Client) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    here = f"/v1/certificates/{begun['id']}"
    code = "policy_not_allowed"
    refused(labeller.post("/v1/policies/bright/certify", json=TERMS), 403, code)
    refused(labeller.post(f"{here}/abandon", json={"reason": "x"}), 403, code)
    refused(labeller.get(f"{here}/evidence"), 403, code)
    refused(reviewer.post(f"{here}/batches", json={}), 403, code)
    refused(say(reviewer, begun["id"], ["x"]), 403, code)
    assert "threshold" not in labeller.get(here).json()["covered"]
    assert "threshold" in reviewer.get(here).json()["covered"]
    with client(served) as http:
        for route in ("/v1/certificates", here):
            refused(http.get(route), 403, code)


def test_what_makes_no_sense_names_the_field(served: Served, reviewer: httpx.Client) -> None:
    route = "/v1/policies/bright/certify"
    for body, param in (
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": 1e-7}, "epsilon"),
        ({"delta": 1.5}, "delta"),
        ({"allowed": -1}, "allowed"),
        ({"num_inference_steps": 7}, "num_inference_steps"),
        ({"threshold": 0.4}, "threshold"),
    ):
        response = reviewer.post(route, json=TERMS | body)
        refused(response, 400, "invalid_value", param)
        assert response.json()["error"]["param"] == param
    refused(reviewer.post("/v1/policies/none/certify", json=TERMS), 400, "invalid_value")
    refused(reviewer.post("/v1/policies/what/certify", json=TERMS), 404, "policy_not_found")
    for name in ("cert_x", "cert_" + "0" * 32):
        refused(reviewer.get(f"/v1/certificates/{name}"), 404, "certificate_not_found")
    assert served.store.certificates.all() == [], "what was refused is no attempt"


def test_evidence_is_for_what_has_a_result(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    begun = begin(reviewer)
    drawn(reviewer, begun["id"])
    refused(reviewer.get(f"/v1/certificates/{begun['id']}/evidence"), 409, "conflict")
    say(labeller, begun["id"], page(labeller, begun["id"]))
    answer = reviewer.get(f"/v1/certificates/{begun['id']}/evidence")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        assert len(file.namelist()) == 3 + N
        manifest = json.loads(file.read("manifest.json"))
    assert manifest["certificate"]["fingerprint"] == begun["fingerprint"]
    assert len(manifest["labels"]) == N
    # Each download is made anew: parts of two would make no whole.
    for part in ("bytes=0-9", "bytes=-1", "nonsense", "bytes=99999999-"):
        url = f"/v1/certificates/{begun['id']}/evidence"
        again = reviewer.get(url, headers={"Range": part})
        assert (again.status_code, again.headers["Accept-Ranges"]) == (200, "none")


def test_the_clock_of_labels_is_utc(
    served: Served, reviewer: httpx.Client, labeller: httpx.Client
) -> None:
    ended = certify(reviewer, labeller)
    finished = datetime.fromisoformat(ended["finished"])
    assert abs(datetime.now(UTC) - finished) < timedelta(minutes=1)
