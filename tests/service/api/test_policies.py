"""Versions, and which of them is in force: what is refused, what happens at once, what is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.errors import BackendUnavailable, StoreUnavailable
from service.policies.policy import to_document
from service.policies.registry import STALE_S
from service.ports import DrawResult
from service.store.schema import Row
from tests.metrics import parse, value
from tests.processes import wait_for
from tests.rewards import put_reward
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served, serve

IMAGES = "/v1/images/generations"
HIGHER = {50: 0.55, 20: 0.65}
"""Thresholds above those of the bundle."""
ids = count()


@pytest.fixture
def served(bundle: Bundle) -> Iterator[Served]:
    """A server of one's own: what is in force is its state."""
    with serve(bundle) as running:
        yield running


@pytest.fixture
def approve(served: Served) -> Iterator[httpx.Client]:
    with client(served, "APPROVE_KEY") as opened:
        yield opened


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with client(served) as opened:
        yield opened


def trained(served: Served, factor: float = 0.95, **changes: Any) -> str:
    """A reward whose judge says `factor` times the brightness; returns its id."""
    reward_id = f"rw_{next(ids)}"
    wanted: dict[str, Any] = {"thresholds": HIGHER} | changes
    policy = served.policy_registry.seeds["bright"]
    put_reward(served.store, reward_id, policy, {"judge": str(factor).encode()}, **wanted)
    return reward_id


def add(served: Served, key: str = "LABEL_KEY", **body: Any) -> httpx.Response:
    """A version of `bright`, unless `body` says otherwise."""
    with client(served, key) as http:
        return http.post("/v1/policies", json={"name": "bright", "based_on": "bright"} | body)


def promote(http: httpx.Client, version: int, name: str = "bright") -> httpx.Response:
    return http.post(f"/v1/policies/{name}/promote", json={"version": version})


def refused(answer: httpx.Response, status: int, code: str, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert words in error["message"], error["message"]


def generate(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post(IMAGES, json=body)


def test_a_new_version_is_there_but_not_in_force(served: Served, http: httpx.Client) -> None:
    reward_id = trained(served)
    answer = add(served, reward=reward_id)
    assert answer.status_code == 201
    said = answer.json()
    assert (said["version"], said["reward"], said["created_by"]) == (2, reward_id, "label/api")
    assert said["question"] == "Is it?"
    assert generate(http, seed=1).json()["policy"]["version"] == 1


def test_thresholds_are_not_for_those_who_only_label(served: Served) -> None:
    reward_id = trained(served)
    assert "thresholds" not in add(served, reward=reward_id).json()
    said = add(served, "APPROVE_KEY", reward=reward_id).json()
    assert said["thresholds"] == {"50": 0.55, "20": 0.65}


def test_the_audit_log_names_the_person(served: Served) -> None:
    with client(served, None) as browser:
        body = {"name": "Ada", "key": KEYS["APPROVE_KEY"]}
        browser.headers["X-CSRF-Token"] = browser.post("/v1/session", json=body).json()["csrf"]
        made = browser.post(
            "/v1/policies",
            json={"name": "bright", "based_on": "bright", "reward": trained(served, 0.9)},
        )
        assert made.json()["created_by"] == "approve/Ada"
        assert promote(browser, 2).status_code == 200
        for route, then in (
            ("shadow", {"version": 1}), ("rollback", None), ("disable", None),
        ):  # fmt: skip
            answer = browser.post(f"/v1/policies/bright/{route}", json=then)
            assert answer.status_code == 200, answer.text
        told = browser.get("/v1/policies/bright/history").json()["data"]
    assert [entry["actor"] for entry in told] == ["approve/Ada"] * 5 + ["configuration"]


def test_a_promoted_version_judges_by_the_judge_and_threshold_of_its_reward(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    networks = add(served, reward=trained(served, 0.9)).json()["networks"]
    judge = networks["judge"]
    answer = approve.post("/v1/policies/bright/promote", json={"version": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "id": "bright",
        "object": "policy.pointer",
        "version": 2,
        "disabled": False,
        "shadow": None,
    }
    assert served.loaded == [networks], "in the replicas before it is in force"
    said = generate(http, n=4, seed=1).json()
    assert (said["policy"]["version"], said["policy"]["judge"]) == (2, judge)
    for entry in said["data"]:
        verdict = entry["content_filter_results"]["bright"]
        assert verdict["threshold"] == 0.55
        assert 0.55 <= verdict["benign_score"] <= 0.9
    listed = http.get("/v1/policies/bright").json()
    assert (listed["version"], listed["judge"]) == (2, judge)
    url = "data:image/png;base64," + said["data"][0]["b64_json"]
    item = {"type": "image_url", "image_url": {"url": url}}
    score = http.post("/v1/moderations", json={"input": [item]}).json()
    assert score["judge"] == judge
    with client(served, "APPROVE_KEY") as reader:
        record = reader.get(f"/v1/decisions/{said['id']}").json()
    assert record["plan"]["policy_version"] == 2
    assert record["versions"]["sampling"]["parts"]["judge"] == judge


@pytest.mark.parametrize("version", [0, 2**31, 2**63])
def test_a_number_that_no_version_has_is_refused(approve: httpx.Client, version: int) -> None:
    for route in ("promote", "shadow"):
        answer = approve.post(f"/v1/policies/bright/{route}", json={"version": version})
        refused(answer, 400, "invalid_value", "version")
    answer = approve.post("/v1/policies/bri%00ght/promote", json={"version": 1})
    refused(answer, 400, "invalid_value", "name")


def test_a_name_may_be_new(served: Served, http: httpx.Client, approve: httpx.Client) -> None:
    assert add(served, name="brighter", reward=trained(served)).json()["version"] == 1
    assert generate(http, policy="brighter").status_code == 404
    assert promote(approve, 1, "brighter").status_code == 200
    said = generate(http, policy="brighter", seed=1).json()
    assert said["policy"]["id"] == "brighter"
    assert "brighter" in said["data"][0]["content_filter_results"]
    refused(approve.post("/v1/policies/brighter/rollback"), 409, "conflict", "no version in force")


@pytest.mark.parametrize("key", ["PLAIN_KEY", "SCORES_KEY"])
def test_who_may_do_what(served: Served, key: str) -> None:
    refused(add(served, key, reward="rw"), 403, "policy_not_allowed", "'approve' scope")
    with client(served, "LABEL_KEY") as label, client(served, key) as other:
        for http in (label, other):
            for route in ("promote", "rollback", "disable", "shadow"):
                body = {"version": 1} if route in ("promote", "shadow") else None
                answer = http.post(f"/v1/policies/bright/{route}", json=body)
                refused(answer, 403, "policy_not_allowed", "'approve' scope")
            for route in ("versions", "history"):
                answer = http.get(f"/v1/policies/bright/{route}")
                refused(answer, 403, "policy_not_allowed", "'approve' scope")
    assert served.policy_registry.pointers["bright"].version == 1


def test_what_cannot_become_a_version(served: Served) -> None:
    policy = served.policy_registry.seeds["bright"]
    put_reward(served.store, "rw_guide", policy, {"guide": b"1"}, {})
    for body, status, code, words in (
        ({"name": "Bright!", "reward": "x"}, 400, "invalid_value", "name"),
        ({"reward": "rw_none"}, 404, "reward_not_found", "rw_none"),
        ({"based_on": "other", "reward": "x"}, 404, "policy_not_found", "other"),
        ({"based_on": "none", "reward": trained(served)}, 400, "invalid_value", "no judge"),
        ({"based_on": "none"}, 400, "invalid_value", "one of none, bright"),
        ({"reward": trained(served, ready=False)}, 409, "conflict", "it is queued"),
        ({"colour": "red"}, 400, "invalid_value", "no such field"),
        ({"reward": "rw\0"}, 400, "invalid_value", "reward: letters, digits"),
        ({"based_on": "a\0"}, 400, "invalid_value", "based_on"),
    ):
        refused(add(served, **body), status, code, words)
    refused(add(served, reward="rw_guide"), 400, "invalid_value", "no `judge`")


def test_a_step_count_without_a_threshold_is_not_promoted(
    served: Served, approve: httpx.Client
) -> None:
    said = add(served, reward=trained(served, thresholds={50: 0.7})).json()
    assert said["uncalibrated"] == [20]
    answer = promote(approve, 2)
    refused(answer, 409, "conflict", "no calibrated threshold at 20 steps")
    refused(
        approve.post("/v1/policies/bright/shadow", json={"version": 2}), 409, "conflict", "at 20"
    )
    assert served.policy_registry.pointers["bright"].version == 1
    assert not served.loaded


@pytest.mark.parametrize("by", ["approve", "approve/ann"])
def test_whoever_trained_does_not_approve(served: Served, approve: httpx.Client, by: str) -> None:
    add(served, reward=trained(served, by=by))
    refused(promote(approve, 2), 409, "conflict", "somebody else")
    with client(served, "ADMIN_KEY") as admin:
        assert promote(admin, 2).status_code == 200


def test_what_is_promoted_is_named(served: Served, approve: httpx.Client) -> None:
    """The newest may be another than the one that somebody looked at."""
    add(served, reward=trained(served))
    path = "/v1/policies/bright/promote"
    for answer in (approve.post(path), approve.post(path, json={})):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert served.policy_registry.pointers["bright"].version == 1


def test_a_laptop_may_let_its_only_person_approve(bundle: Bundle) -> None:
    with serve(bundle, feedback={"self_approval": True}) as served:
        add(served, reward=trained(served, by="approve"))
        with client(served, "APPROVE_KEY") as approve:
            assert promote(approve, 2).status_code == 200


def test_a_lower_threshold_of_the_same_judge_needs_an_admin(
    served: Served, approve: httpx.Client
) -> None:
    add(served, reward=trained(served, thresholds={50: 0.7, 20: 0.6}))
    assert promote(approve, 2).status_code == 200
    add(served, reward=trained(served, thresholds={50: 0.7, 20: 0.59}))
    answer = promote(approve, 3)
    refused(answer, 409, "conflict", "at 20 steps")
    assert "from 0.6000 to 0.5900" in answer.json()["error"]["message"]
    with client(served, "ADMIN_KEY") as admin:
        assert promote(admin, 3).status_code == 200


def test_a_detour_over_another_judge_lowers_nothing(served: Served, approve: httpx.Client) -> None:
    strict, loose = {50: 0.7, 20: 0.6}, {50: 0.7, 20: 0.59}
    for changes in ({"thresholds": strict}, {"factor": 0.5}, {"thresholds": loose}):
        add(served, reward=trained(served, **changes))
    assert promote(approve, 2).status_code == 200
    assert promote(approve, 3).status_code == 200
    refused(promote(approve, 4), 409, "conflict", "at 20 steps")
    # However much is written into the audit log meanwhile.
    for _ in range(150):
        served.store.policies.add("bright", {}, None, "somebody")
    refused(promote(approve, 4), 409, "conflict", "at 20 steps")
    with client(served, "ADMIN_KEY") as admin:
        assert promote(admin, 4).status_code == 200


def test_a_rollback_loosens_for_admins_only(served: Served, approve: httpx.Client) -> None:
    for threshold in (0.7, 0.8):
        add(served, reward=trained(served, thresholds={50: threshold, 20: threshold}))
    assert promote(approve, 2).status_code == 200
    assert promote(approve, 3).status_code == 200
    refused(approve.post("/v1/policies/bright/rollback"), 409, "conflict", "from 0.8000 to 0.7000")
    with client(served, "ADMIN_KEY") as admin:
        assert admin.post("/v1/policies/bright/rollback").json()["version"] == 2


def test_a_rollback_needs_a_threshold_at_every_step_count(
    served: Served, approve: httpx.Client
) -> None:
    """Such a version can be in force in a store that somebody wrote to by hand."""
    add(served, reward=trained(served, thresholds={50: 0.7}))
    before = served.store.policies.pointers()["bright"]
    served.store.policies.point("bright", before, 2, "somebody", "policy.promote")
    add(served, reward=trained(served, 0.9))
    assert promote(approve, 3).status_code == 200
    refused(approve.post("/v1/policies/bright/rollback"), 409, "conflict", "threshold at 20 steps")


def test_a_rollback_does_not_switch_on(served: Served, approve: httpx.Client) -> None:
    add(served, reward=trained(served, 0.9))
    assert promote(approve, 2).status_code == 200
    approve.post("/v1/policies/bright/disable")
    refused(approve.post("/v1/policies/bright/rollback"), 409, "conflict", "promote a version")
    assert served.store.policies.pointers()["bright"].disabled


def test_another_judge_has_another_scale(served: Served, approve: httpx.Client) -> None:
    add(served, reward=trained(served, factor=0.5, thresholds={50: 0.3, 20: 0.3}))
    assert promote(approve, 2).status_code == 200


def test_what_censors_nothing_replaces_no_censor(served: Served, approve: httpx.Client) -> None:
    document = to_document(replace(served.policy_registry.seeds["none"], name="bright"))
    served.store.policies.add("bright", document, None, "somebody")
    refused(promote(approve, 2), 409, "conflict", "must censor")
    add(served, name="other", reward=trained(served))
    assert promote(approve, 1, "other").status_code == 200
    served.store.policies.add("other", document, None, "somebody")
    refused(promote(approve, 2, "other"), 409, "conflict", "censors nothing")


def test_what_no_replica_can_load_is_not_promoted(served: Served, approve: httpx.Client) -> None:
    add(served, reward=trained(served))
    served.cold = BackendUnavailable("a replica could not")
    refused(promote(approve, 2), 503, "backend_unavailable", "could not")
    served.cold = None
    judge = served.store.policies.read("bright", 2).document["parts"]["judge"]
    served.store.blobs.delete(judge)
    refused(promote(approve, 2), 503, "censor_unavailable", "not in the")
    assert served.policy_registry.pointers["bright"].version == 1


def test_of_two_that_promote_at_once_one_is_told(
    served: Served, approve: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(served, reward=trained(served, 0.9))
    add(served, reward=trained(served, 0.95))
    point = served.store.policies.point

    def overtaken(name: str, before: Any, *rest: Any) -> Any:
        monkeypatch.undo()
        point(name, before, 2, "another", "policy.promote")
        return point(name, before, *rest)

    monkeypatch.setattr(served.store.policies, "point", overtaken)
    refused(promote(approve, 3), 409, "conflict", "changed meanwhile")
    wait_for(lambda: served.policy_registry.pointers["bright"].version == 2)


def test_a_rollback_undoes_promotions_one_by_one(served: Served, approve: httpx.Client) -> None:
    refused(approve.post("/v1/policies/bright/rollback"), 409, "conflict", "no version in force")
    for factor in (0.9, 0.95):
        number = add(served, reward=trained(served, factor)).json()["version"]
        assert promote(approve, number).status_code == 200
    went = [approve.post("/v1/policies/bright/rollback").json() for _ in range(2)]
    assert [pointer["version"] for pointer in went] == [2, 1]
    refused(approve.post("/v1/policies/bright/rollback"), 409, "conflict", "no version in force")
    assert approve.post("/v1/policies/bright/promote", json={"version": 3}).status_code == 200
    assert approve.post("/v1/policies/bright/rollback").json()["version"] == 1
    told = approve.get("/v1/policies/bright/history").json()["data"]
    assert [entry["action"] for entry in told] == [
        "policy.rollback", "policy.promote", "policy.rollback", "policy.rollback",
        "policy.promote", "policy.add", "policy.promote", "policy.add", "policy.seed",
    ]  # fmt: skip
    assert told[0]["actor"] == "approve/api"
    versions = approve.get("/v1/policies/bright/versions").json()
    assert versions["in_force"]["version"] == 1
    assert [version["version"] for version in versions["data"]] == [3, 2, 1]


def test_a_rollback_waits_for_no_replica(served: Served, approve: httpx.Client) -> None:
    add(served, reward=trained(served))
    promote(approve, 2)
    served.cold = BackendUnavailable("all of them crash")
    assert approve.post("/v1/policies/bright/rollback").json()["version"] == 1


def test_a_policy_that_is_switched_off_refuses_until_a_version_is_promoted(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    served.cold = BackendUnavailable("the backbone is down")
    assert approve.post("/v1/policies/bright/disable").json()["disabled"] is True
    refused(generate(http), 403, "policy_disabled", "'bright' was switched off")
    listed = {one["id"]: one["disabled"] for one in http.get("/v1/policies").json()["data"]}
    assert listed == {"bright": True, "none": False}, "a switch does not hide its own state"
    assert http.get("/v1/policies/bright").json()["disabled"] is True
    assert http.get("/v1/models/tiny").json()["policies"] == ["none"], "what requests can name"
    refused(approve.post("/v1/policies/other/disable"), 404, "policy_not_found", "other")
    served.cold = None
    # It can be repaired: a new reward, based on what was switched off.
    assert add(served, reward=trained(served)).json()["version"] == 2
    assert promote(approve, 2).status_code == 200
    assert generate(http, seed=1).status_code == 200
    shown = http.get("/v1/policies/bright").json()
    assert (shown["disabled"], shown["censors"]) == (False, "Is it?")


@pytest.mark.parametrize("through", ["this replica", "another"])
def test_what_runs_when_its_policy_is_switched_off_delivers_nothing(
    served: Served, http: httpx.Client, approve: httpx.Client, through: str
) -> None:
    """The denoiser is slow: without the switch this takes two minutes."""
    served.backbone.delay_s = 2.0
    with ThreadPoolExecutor() as pool:
        running = pool.submit(generate, http, n=2, seed=1)
        wait_for(lambda: served.backends.loop.running > 0)
        started = time.monotonic()
        if through == "this replica":
            approve.post("/v1/policies/bright/disable")
        else:
            served.store.policies.disable("bright", "another")
        answer = running.result()
    assert time.monotonic() - started < 60
    refused(answer, 403, "policy_disabled", "switched off")
    assert "b64_json" not in answer.text
    wait_for(lambda: served.backends.loop.running == 0)
    wait_for(lambda: served.store.decisions.read(answer.json()["id"]) is not None)
    record = served.store.decisions.read(answer.json()["id"])
    assert record is not None
    assert record["outcome"] == "policy_disabled"
    assert [image["pixels_sha256"] for image in record["images"]] == [None, None]


def test_a_switch_that_is_pulled_and_put_back_ends_what_runs(
    served: Served, http: httpx.Client
) -> None:
    """Both between two looks: no reading ever shows the policy switched off."""
    store = served.store.policies
    served.backbone.delay_s = 0.1
    with ThreadPoolExecutor() as pool, served.policy_registry._reading:
        running = pool.submit(generate, http, n=2, seed=1)
        wait_for(lambda: served.backends.loop.running > 0)
        off = store.disable("bright", "another")
        store.point("bright", off, 1, "another", "policy.promote")
    refused(running.result(), 403, "policy_disabled", "switched off")
    served.backbone.delay_s = 0.0
    assert generate(http, seed=1).status_code == 200


def test_images_that_are_done_do_not_leave_a_policy_that_was_just_switched_off(
    served: Served, http: httpx.Client
) -> None:
    """Off between the last draw and the answer: nobody has looked in between."""

    def off(results: list[DrawResult]) -> None:
        served.store.policies.disable("bright", "another")
        served.policy_registry.refresh()

    served.backends.on_results = off
    served.judge.answer = 0.9
    refused(generate(http, seed=1), 403, "policy_disabled", "switched off")


def test_images_do_not_leave_a_policy_that_was_switched_off_while_they_were_recorded(
    served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = served.recorder.write

    async def slowly(record: Row) -> None:
        await write(record)
        served.store.policies.disable("bright", "another")
        served.policy_registry.refresh()

    monkeypatch.setattr(served.recorder, "write", slowly)
    answer = generate(http, seed=1)
    refused(answer, 403, "policy_disabled", "switched off")
    assert "b64_json" not in answer.text

    def recorded() -> Any:
        return served.store.decisions.read(answer.json()["id"])

    wait_for(lambda: recorded()["outcome"] == "policy_disabled")
    assert [image["pixels_sha256"] for image in recorded()["images"]] == [None]


def test_pointers_that_cannot_be_read_count_as_pulled_switches(
    served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STALE_S == 5.0
    served.policy_registry.stale_s = 0.5

    def gone() -> None:
        raise StoreUnavailable("the store failed")

    served.backbone.delay_s = 0.02
    with ThreadPoolExecutor() as pool:
        monkeypatch.setattr(served.store.policies, "pointers", gone)
        running = pool.submit(generate, http, n=1, seed=1)
        refused(running.result(), 503, "store_unavailable", "switched off")
    refused(generate(http), 503, "store_unavailable", "could not be read for 0.5 s")
    # The outage pages somebody: what was refused before there was a plan is counted too.
    page = parse(http.get("/metrics").text)
    labels = {"policy": "bright", "outcome": "error", "code": "store_unavailable"}
    assert value(page, "winnow_requests_total", **labels) == 2
    refused(http.post("/v1/moderations", json={"input": [ITEM]}), 503, "store_unavailable", "0.5")
    monkeypatch.undo()
    served.backbone.delay_s = 0.0
    wait_for(lambda: generate(http, seed=1).status_code == 200)


ITEM = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def test_requests_that_run_keep_their_plan(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    add(served, reward=trained(served))
    served.backbone.delay_s = 0.02
    with ThreadPoolExecutor() as pool:
        running = pool.submit(generate, http, seed=1)
        wait_for(lambda: served.backends.loop.running > 0)
        assert promote(approve, 2).status_code == 200
        served.backbone.delay_s = 0.0
        first = running.result().json()
    assert first["policy"]["version"] == 1
    assert generate(http, seed=1).json()["policy"]["version"] == 2


def test_a_policy_for_another_backbone_is_kept_and_answers_503(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    document = dict(served.store.policies.read("bright", 1).document)
    for name in ("weights", "schedule", "dtype"):
        other = document | {"backbone": document["backbone"] | {name: "another"}}
        number = served.store.policies.add("bright", other, None, "somebody")
        before = served.policy_registry.pointers["bright"]
        answer = approve.post("/v1/policies/bright/promote", json={"version": number})
        refused(answer, 503, "backend_unavailable", f"another backbone ({name})")
        served.store.policies.point("bright", before, number, "somebody", "policy.promote")
        served.policy_registry.refresh()
        refused(generate(http), 503, "backend_unavailable", f"another backbone ({name})")


def test_what_the_configuration_says_comes_into_force_by_hand(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    add(served, reward=trained(served))
    promote(approve, 2)
    assert add(served, "APPROVE_KEY").json()["version"] == 3
    assert promote(approve, 3).status_code == 200
    said = generate(http, seed=1).json()
    assert said["policy"]["version"] == 3
    assert said["policy"]["judge"] == served.policy_registry.seeds["bright"].judge


def test_a_shadow_scores_what_was_judged_and_decides_nothing(
    served: Served, http: httpx.Client, approve: httpx.Client
) -> None:
    before = generate(http, n=4, seed=10).json()
    judge = add(served, reward=trained(served, 0.5)).json()["networks"]["judge"]
    answer = approve.post("/v1/policies/bright/shadow", json={"version": 2})
    assert answer.json()["shadow"] == 2
    after = generate(http, n=4, seed=10).json()
    assert after["data"] == before["data"], "the same images by the same verdicts"
    draws = after["usage"]["draws"]
    rejected = draws - 4
    assert rejected, "there is something for the shadow to see beside what was delivered"

    def page() -> Any:
        return parse(http.get("/metrics").text)

    labels = {"policy": "bright", "judge": judge.removeprefix("sha256:")[:12]}
    wait_for(lambda: value(page(), "winnow_shadow_draws_total", **labels) == draws)
    # At half the brightness nothing reaches 0.55.
    seen = {
        policy_registry: value(
            page(),
            "winnow_shadow_draws_total",
            verdict="rejected",
            live_verdict=policy_registry,
            **labels,
        )
        for policy_registry in ("accepted", "rejected")
    }
    assert seen == {"accepted": 4, "rejected": rejected}
    assert value(page(), "winnow_shadow_score_count", **labels) == draws
    assert value(page(), "winnow_draws_total", policy="bright") == 2 * draws

    # A shadow that fails is dropped, and nobody notices.
    served.backends.judges._judges[judge].factor = float("nan")  # type: ignore[attr-defined]
    assert generate(http, n=4, seed=10).json()["data"] == before["data"]
    wait_for(lambda: value(page(), "winnow_shadow_dropped_total", policy="bright") == draws)

    assert (
        approve.post("/v1/policies/bright/shadow", json={"version": None}).json()["shadow"] is None
    )
    generate(http, n=4, seed=10)
    assert value(page(), "winnow_shadow_draws_total", **labels) == draws


def test_who_has_no_judge_casts_no_shadow(served: Served, approve: httpx.Client) -> None:
    answer = approve.post("/v1/policies/none/shadow", json={"version": 1})
    refused(answer, 400, "invalid_value", "no judge")
    answer = approve.post("/v1/policies/bright/shadow", json={"version": 9})
    refused(answer, 404, "policy_not_found", "no version 9")
    refused(approve.post("/v1/policies/bright/shadow", json={}), 400, "invalid_value", "version")
