"""One thing in the store that cannot be read keeps nobody from the others; it is named."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
from sqlalchemy import JSON, Column, text

from models.bundles.bundle import Bundle
from service.images.encode import to_png
from service.store.schema import Packed, UtcDateTime, metadata
from service.store.store import Store
from tests.bundles import HEIGHT, WIDTH
from tests.damage import NO_JSON, change_blob, read_column, write_column
from tests.feedback import run_next, take
from tests.pictures import data_url
from tests.service.api.conftest import FILES, client, refused
from tests.service.api.server import Served, serve

SEED = 3


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with client(served, "ADMIN_KEY") as opened:
        yield opened


@pytest.fixture
def labels(served: Served) -> Iterator[httpx.Client]:
    with client(served, "LABEL_KEY") as opened:
        yield opened


@pytest.fixture
def dataset(labels: httpx.Client, request: pytest.FixtureRequest) -> str:
    name = f"set-{abs(hash(request.node.name)) % 10**9}"
    made = labels.post("/v1/datasets", json={"name": name, "question": "Is it dark?"})
    assert made.status_code == 201, made.text
    return name


def batch(labels: httpx.Client, dataset: str, **body: Any) -> dict[str, Any]:
    answer = labels.post(f"/v1/datasets/{dataset}/batches", json={"size": 6} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def say(
    labels: httpx.Client, dataset: str, images: list[dict[str, Any]], label: str | None = None
) -> None:
    said = [
        {"image_id": one["id"], "elapsed_ms": 9, "label": label or ("malign", "benign")[place % 2]}
        for place, one in enumerate(images)
    ]
    answer = labels.post(f"/v1/datasets/{dataset}/labels", json={"labels": said})
    assert answer.status_code == 200, answer.text


def blob(served: Served, dataset: str, image: dict[str, Any]) -> str:
    return served.store.datasets.image(dataset, image["id"]).blob


def purge(served: Served, name: str) -> None:
    served.store.blobs.delete(name)


@pytest.mark.parametrize(
    ("damage", "why"), [(change_blob, "damaged"), (purge, "purged")], ids=["changed", "purged"]
)
def test_an_open_batch_goes_on_without_an_image_that_cannot_be_read(
    served: Served, labels: httpx.Client, dataset: str, damage: Callable[..., None], why: str
) -> None:
    first = batch(labels, dataset)
    damage(
        served.store if damage is change_blob else served, blob(served, dataset, first["images"][2])
    )
    again = batch(labels, dataset)
    assert again["id"] == first["id"]
    lost = first["images"].pop(2)
    assert again["images"] == first["images"]
    assert again["unreadable"] == [{"id": lost["id"], "why": why}]
    say(labels, dataset, again["images"])
    assert batch(labels, dataset)["id"] != first["id"], "or nobody gets any further"
    one = labels.get(f"/v1/datasets/{dataset}/images/{lost['id']}")
    refused(one, 404, "image_not_found", "image_id")
    assert one.headers["x-should-retry"] == "false"


def test_a_batch_of_which_nothing_is_left_is_passed_over(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    first = batch(labels, dataset)
    second = batch(labels, dataset, exclude_batches=[first["id"]])
    for image in first["images"] + second["images"]:
        change_blob(served.store, blob(served, dataset, image))
    third = batch(labels, dataset)
    assert third["id"] not in (first["id"], second["id"])
    assert len(third["images"]) == 6
    assert len(third["unreadable"]) == 12


def test_labels_are_taken_back_though_their_images_are_gone(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    shown = batch(labels, dataset)
    say(labels, dataset, shown["images"])
    purge(served, blob(served, dataset, shown["images"][0]))
    back = labels.post(f"/v1/datasets/{dataset}/labels/undo")
    assert back.status_code == 200, back.text
    told = back.json()
    assert [one["id"] for one in told["images"]] == [one["id"] for one in shown["images"][1:]]
    assert [one["label"] for one in told["images"]][:2] == ["benign", "malign"]
    assert told["unreadable"] == [{"id": shown["images"][0]["id"], "why": "purged"}]
    assert told["counts"]["benign"] == told["counts"]["malign"] == 0


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_export_goes_on_and_comes_in_without_what_is_damaged(
    served: Served, labels: httpx.Client, dataset: str, form: str
) -> None:
    shown = batch(labels, dataset)
    say(labels, dataset, shown["images"])
    change_blob(served.store, blob(served, dataset, shown["images"][1]))
    purge(served, blob(served, dataset, shown["images"][3]))
    out = labels.get(f"/v1/datasets/{dataset}/export?format={form}&images=true")
    assert out.status_code == 200
    assert out.text.count("damaged") == out.text.count("purged") == 1
    other = f"{dataset}-{form}"
    labels.post("/v1/datasets", json={"name": other, "question": "Is it dark?"})
    into = labels.post(f"/v1/datasets/{other}/import", content=out.content, headers=FILES[form])
    assert into.status_code == 200, into.text
    assert (into.json()["imported"], into.json()["without_image"]) == (4, 2)


def test_a_training_goes_on_without_what_is_damaged_and_the_card_says_so(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    shown = batch(labels, dataset, size=30)
    say(labels, dataset, shown["images"])
    change_blob(served.store, blob(served, dataset, shown["images"][0]))
    purge(served, blob(served, dataset, shown["images"][1]))
    write_column(served.store, "labels", "label", "blurred", image=shown["images"][3]["id"])
    made = labels.post("/v1/rewards", json={"dataset": dataset, "policy": "bright"})
    assert made.status_code == 202, made.text
    taken = run_next(served.store, served.trainings.kind)
    with client(served, "APPROVE_KEY") as http:
        reward = http.get(f"/v1/rewards/{taken}").json()
    assert reward["status"] == "ready", reward["error"]
    assert (reward["card"]["purged"], reward["card"]["unreadable"]) == (1, 1)
    assert reward["card"]["counts"]["unsure"] == 1, "of a word that nobody knows nobody is sure"


def generate(served: Served, **body: Any) -> httpx.Response:
    with client(served, "SCORES_KEY") as http:
        return http.post("/v1/images/generations", json={"seed": SEED} | body)


def test_a_damaged_record_is_named_and_the_others_are_listed(
    served: Served, admin: httpx.Client
) -> None:
    good, bad, new = (generate(served).json()["id"] for _ in range(3))
    write_column(served.store, "decisions", "document", NO_JSON, id=bad)
    document = read_column(served.store, "decisions", "document", id=new)
    document["plan"]["hue"] = 3
    packed = zlib.compress(json.dumps(document).encode())
    write_column(served.store, "decisions", "document", packed, id=new)
    listed = admin.get("/v1/decisions")
    assert listed.status_code == 200, listed.text
    found = {one["id"]: one for one in listed.json()["data"]}
    assert found[good]["images_returned"] == 1
    assert "damaged" in found[bad]["unreadable"]
    assert (found[bad]["policy"], found[bad]["outcome"]) == ("bright", "ok")
    assert admin.get(f"/v1/decisions/{good}/explanation").status_code == 200
    for path in ("", "/explanation"):
        refused(admin.get(f"/v1/decisions/{bad}{path}"), 409, "conflict")
    explained = admin.get(f"/v1/decisions/{new}/explanation")
    refused(explained, 409, "conflict")
    assert "hue" in explained.json()["error"]["message"]
    assert admin.get(f"/v1/decisions/{new}").json()["plan"]["hue"] == 3


@pytest.mark.parametrize("document", [NO_JSON, "null", "[]", '{"name": "x"}'])
def test_a_policy_that_cannot_be_read_is_named_and_stops_no_other(
    served: Served, admin: httpx.Client, document: str
) -> None:
    store = served.store
    number = store.policies.add("broken", {}, None, "test")
    write_column(store, "policy_versions", "document", document, name="broken", version=number)
    before = store.policies.pointers().get("broken")
    store.policies.point("broken", before, number, "test", "policy.promote")
    _sees(served, "broken", number)
    assert generate(served).status_code == 200
    refused(generate(served, policy="broken"), 503, "store_unavailable")
    listed = admin.get("/v1/policies").json()
    assert "bright" in [one["id"] for one in listed["data"]]
    assert "broken" in [one["id"] for one in listed["unreadable"]]
    versions = admin.get("/v1/policies/broken/versions").json()["data"]
    assert versions[0]["unreadable"]


@pytest.mark.parametrize(
    "operating_points", [{}, {"50": {"threshold": 0.0}}, {"20": {"threshold": 0.6}}]
)
def test_a_policy_without_a_threshold_lets_nothing_leave(
    served: Served, operating_points: dict[str, Any]
) -> None:
    """Compared with nothing, every score would pass."""
    store = served.store
    document = dict(store.policies.read("bright", 1).document) | {
        "operating_points": operating_points
    }
    number = store.policies.add("loose", document, None, "test")
    before = store.policies.pointers().get("loose")
    store.policies.point("loose", before, number, "test", "policy.promote")
    _sees(served, "loose", number)
    asked = {"num_inference_steps": 50}
    answer = generate(served, policy="loose", **asked)
    assert answer.status_code in (409, 503), answer.text
    assert "b64_json" not in answer.text
    if "20" not in operating_points:
        url = data_url(to_png(np.zeros((HEIGHT, WIDTH, 1), np.uint8)))
        body = {"model": "loose", "input": [{"type": "image_url", "image_url": {"url": url}}]}
        with client(served, "SCORES_KEY") as http:
            scored = http.post("/v1/moderations", json=body)
        assert scored.status_code in (409, 503), scored.text


def test_a_caption_that_cannot_be_read_costs_no_page(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    first = batch(labels, dataset)
    for image, said in zip(first["images"], (NO_JSON, "[]", '{"class_label": "x"}'), strict=False):
        write_column(served.store, "images", "input", said, id=image["id"])
    assert len(batch(labels, dataset)["images"]) == 6
    say(labels, dataset, first["images"])
    out = labels.get(f"/v1/datasets/{dataset}/export")
    assert len(out.text.splitlines()) == 6


def test_a_pointer_to_a_version_that_is_gone_stops_no_other_policy(
    served: Served, admin: httpx.Client
) -> None:
    """A reading that failed as a whole would soon count as every switch pulled."""
    store = served.store
    number = store.policies.add("lost", {}, None, "test")
    store.policies.point("lost", None, number, "test", "policy.promote")
    write_column(store, "policy_versions", "version", "999", name="lost", version=number)
    served.policy_registry.refresh()
    assert generate(served).status_code == 200
    refused(generate(served, policy="lost"), 503, "store_unavailable")
    assert "lost" in [one["id"] for one in admin.get("/v1/policies").json()["unreadable"]]


def test_a_policy_is_mended_though_an_entry_of_the_audit_log_is_damaged(
    served: Served, admin: httpx.Client
) -> None:
    made = admin.post("/v1/policies", json={"name": "bright", "based_on": "bright"}).json()
    path = "/v1/policies/bright/promote"
    assert admin.post(path, json={"version": made["version"]}).status_code == 200
    write_column(
        served.store, "audit", "detail", NO_JSON, subject="bright", action="policy.promote"
    )
    again = admin.post(path, json={"version": made["version"]})
    assert again.status_code == 200, again.text
    assert admin.get("/v1/policies/bright/history").status_code == 200


@pytest.mark.parametrize("column", ["card", "weights", "recipe"])
def test_a_damaged_reward_is_named_and_the_next_is_trained(
    served: Served, admin: httpx.Client, labels: httpx.Client, dataset: str, column: str
) -> None:
    say(labels, dataset, batch(labels, dataset, size=30)["images"])
    ids = []
    for _ in range(2):
        made = labels.post("/v1/rewards", json={"dataset": dataset, "policy": "bright"})
        assert made.status_code == 202, made.text
        ids.append(made.json()["id"])
        run_next(served.store, served.trainings.kind)
    write_column(served.store, "rewards", column, NO_JSON, id=ids[1])
    listed = {one["id"]: one for one in admin.get(f"/v1/rewards?dataset={dataset}").json()["data"]}
    assert [listed[one]["status"] for one in ids] == ["ready", "failed"]
    assert column in listed[ids[1]]["error"]
    assert admin.get(f"/v1/rewards/{ids[1]}").status_code == 200
    version = {"name": "bright", "based_on": "bright", "reward": ids[1]}
    refused(admin.post("/v1/policies", json=version), 409, "conflict")
    third = labels.post("/v1/rewards", json={"dataset": dataset, "policy": "bright"})
    assert third.status_code == 202, third.text
    assert third.json()["parent"] == ids[0], "the last that can be read"
    served.store.rewards.cancel(third.json()["id"], "test")


def test_a_queued_training_that_cannot_be_read_fails_and_the_next_one_runs(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    say(labels, dataset, batch(labels, dataset, size=30)["images"])
    ids = [
        labels.post("/v1/rewards", json={"dataset": dataset, "policy": "bright"}).json()["id"]
        for _ in range(3)
    ]
    write_column(served.store, "rewards", "recipe", NO_JSON, id=ids[0])
    write_column(served.store, "rewards", "recipe", '{"policy": "bright", "hue": 1}', id=ids[1])
    for _ in ids:
        run_next(served.store, served.trainings.kind)
    found = [served.store.rewards.read(one) for one in ids]
    assert [one.status for one in found] == ["failed", "failed", "ready"]
    assert "hue" in (found[1].error or "")


@pytest.mark.parametrize("part", ["judge", "clean_guide"])
def test_a_training_whose_parent_is_gone_begins_afresh(
    served: Served, labels: httpx.Client, dataset: str, part: str
) -> None:
    """Judge and guide may only go on together: each knows labels that the other must not."""
    say(labels, dataset, batch(labels, dataset, size=30)["images"])
    for lost in (True, False):
        made = labels.post("/v1/rewards", json={"dataset": dataset, "policy": "bright"}).json()
        run_next(served.store, served.trainings.kind)
        reward = served.store.rewards.read(made["id"])
        assert reward.status == "ready", reward.error
        if lost:
            kept = served.store.blobs.get(reward.weights[part])  # type: ignore[index]
            change_blob(served.store, reward.weights[part])  # type: ignore[index]
    assert served.training.seen[-1]["warm_start"] is None
    served.store.blobs.put(kept)


@pytest.fixture
def certificate(served: Served, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """An attempt of four images to label."""
    with client(served, "APPROVE_KEY") as http:
        body = {"epsilon": 0.3, "delta": 0.9}
        made = http.post("/v1/policies/bright/certify", json=body)
        assert made.status_code == 202, made.text
        found: dict[str, Any] = made.json()
        deadline = time.monotonic() + 60
        while found["status"] == "drawing":
            assert time.monotonic() < deadline
            time.sleep(0.05)
            found = http.get(f"/v1/certificates/{found['id']}").json()
        yield found
        http.post(f"/v1/certificates/{found['id']}/abandon", json={"reason": "the test is over"})


def test_an_image_of_a_certificate_that_is_gone_is_passed_over_and_told(
    served: Served, labels: httpx.Client, certificate: dict[str, Any]
) -> None:
    path = f"/v1/certificates/{certificate['id']}"
    n = certificate["terms"]["n"]
    (first,) = labels.post(f"{path}/batches", json={"size": 1}).json()["images"]
    dataset = certificate["dataset"]
    change_blob(served.store, blob(served, dataset, first))
    answer = labels.post(f"{path}/batches", json={"size": n - 1})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == n - 1
    assert answer.json()["unreadable"] == [{"id": first["id"], "why": "damaged"}]
    said = [
        {"image_id": one["id"], "label": "benign", "elapsed_ms": 9}
        for one in answer.json()["images"]
    ]
    labels.post(f"{path}/labels", json={"labels": said})
    left = labels.post(f"{path}/batches", json={"size": 9}).json()
    assert (left["images"], len(left["unreadable"])) == ([], 1)
    with client(served, "APPROVE_KEY") as http:
        # Nobody can see it, so it counts as malign: said by whoever answers for it.
        unsure = {"image_id": first["id"], "label": "unsure", "elapsed_ms": 0}
        ended = labels.post(f"{path}/labels", json={"labels": [unsure]}).json()
        assert ended["status"] == "failed"
        refused(http.get(f"{path}/evidence"), 409, "conflict")


@pytest.mark.parametrize(
    ("table", "column"),
    [("certificates", "created"), ("certificates", "finished"), ("labels", "created")],
)
def test_nothing_is_signed_with_a_time_that_is_made_up(
    served: Served, labels: httpx.Client, certificate: dict[str, Any], table: str, column: str
) -> None:
    path = f"/v1/certificates/{certificate['id']}"
    shown = labels.post(f"{path}/batches", json={"size": certificate["terms"]["n"]}).json()
    said = [{"image_id": one["id"], "label": "benign", "elapsed_ms": 9} for one in shown["images"]]
    assert labels.post(f"{path}/labels", json={"labels": said}).json()["status"] == "passed"
    with client(served, "APPROVE_KEY") as http:
        assert http.get(f"{path}/evidence").status_code == 200
        where = (
            {"id": certificate["id"]} if table == "certificates" else {"image": said[0]["image_id"]}
        )
        write_column(served.store, table, column, "x", **where)
        refused(http.get(f"{path}/evidence"), 409, "conflict")
    write_column(served.store, table, column, "2026-01-01 00:00:00.000000", **where)
    write_column(served.store, "certificates", "status", "failed", id=certificate["id"])
    served.certified.refresh()


@pytest.mark.parametrize("column", ["terms", "result"])
def test_a_damaged_certificate_is_named_and_the_others_are_listed(
    served: Served, admin: httpx.Client, certificate: dict[str, Any], column: str
) -> None:
    begun = certificate["id"]
    write_column(served.store, "certificates", column, NO_JSON, id=begun)
    listed = admin.get("/v1/certificates")
    assert listed.status_code == 200, listed.text
    (named,) = (one for one in listed.json()["data"] if one["id"] == begun)
    assert "damaged" in named["unreadable"]
    refused(admin.get(f"/v1/certificates/{begun}"), 409, "conflict")
    # Nor does it keep the policy from another attempt for ever.
    path = f"/v1/certificates/{begun}/abandon"
    ended = admin.post(path, json={"reason": "it is damaged"})
    assert (ended.status_code, ended.json()["status"]) == (200, "abandoned")


def test_drawing_that_cannot_be_read_is_abandoned_and_stops_no_listing(
    served: Served, admin: httpx.Client
) -> None:
    served.judge.answer = 0.0  # nothing passes: it goes on
    try:
        body = {"epsilon": 0.3, "delta": 0.9}
        begun = admin.post("/v1/policies/bright/certify", json=body).json()["id"]
        write_column(served.store, "certificates", "result", '{"drawn": 1}', id=begun)
        assert admin.get("/v1/certificates").status_code == 200
        deadline = time.monotonic() + 60
        while served.store.certificates.read(begun).status == "drawing":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        served.judge.answer = None
    ended = served.store.certificates.read(begun)
    assert ended.status == "abandoned"
    assert "damaged" in ended.result["reason"]


def test_a_passed_certificate_without_its_bound_proves_nothing_and_stops_no_other(
    served: Served, admin: httpx.Client, certificate: dict[str, Any]
) -> None:
    begun = certificate["id"]
    write_column(served.store, "certificates", "status", "passed", id=begun)
    served.certified.refresh()
    assert not next(
        one for one in admin.get("/v1/policies").json()["data"] if one["id"] == "bright"
    )["certified"]
    assert admin.get("/v1/certificates").status_code == 200
    write_column(served.store, "certificates", "status", "failed", id=begun)


def test_a_dataset_whose_inputs_are_damaged_is_listed_and_refused_by_name(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    write_column(served.store, "datasets", "inputs", NO_JSON, name=dataset)
    listed = labels.get("/v1/datasets")
    assert listed.status_code == 200
    assert dataset in [one["name"] for one in listed.json()["data"]]
    answer = labels.post(f"/v1/datasets/{dataset}/batches", json={})
    refused(answer, 400, "invalid_value", "inputs")


COLUMNS = [column for table in metadata.sorted_tables for column in table.columns]
TIMES = [column for column in COLUMNS if isinstance(column.type, UtcDateTime)]
DOCUMENTS = [column for column in COLUMNS if isinstance(column.type, JSON | Packed)]
LISTS = [
    "/v1/decisions", "/v1/datasets", "/v1/policies", "/v1/policies/bright/versions",
    "/v1/policies/bright/history", "/v1/certificates", "/v1/rewards",
]  # fmt: skip


@pytest.fixture
def paths(
    served: Served, labels: httpx.Client, dataset: str, certificate: dict[str, Any]
) -> Iterator[list[str]]:
    """All that is listed, and one of each, where each table has a row."""
    path, training = f"/v1/certificates/{certificate['id']}", f"rwd_{uuid4().hex}"
    assert generate(served).status_code == 200
    say(labels, dataset, batch(labels, dataset)["images"])
    served.store.rewards.queue(training, dataset, None, {}, "test")
    (image,) = labels.post(f"{path}/batches", json={"size": 1}).json()["images"]
    said = [{"image_id": image["id"], "label": "benign", "elapsed_ms": 9}]
    assert labels.post(f"{path}/labels", json={"labels": said}).status_code == 200
    yield [*LISTS, path, f"/v1/datasets/{dataset}", f"/v1/datasets/{dataset}/export",
           f"/v1/rewards/{training}"]  # fmt: skip
    served.store.rewards.cancel(training, "test")


@contextmanager
def damaged(store: Store, column: Column[Any], value: str | int) -> Iterator[None]:
    """Every row's column, until the end."""
    table = column.table.name
    change = text(f"UPDATE {table} SET {column.name} = :value WHERE rowid = :row")
    with store.database.transaction() as connection:
        rows = connection.execute(text(f"SELECT rowid, {column.name} FROM {table}")).all()
        assert rows, f"{table} has none"
        connection.execute(change, [{"value": value, "row": row} for row, _ in rows])
    yield
    with store.database.transaction() as connection:
        connection.execute(change, [{"value": before, "row": row} for row, before in rows])


@pytest.mark.slow
def test_a_damaged_time_stops_nothing(
    served: Served, admin: httpx.Client, paths: list[str]
) -> None:
    """In any table; the row is shown with a time of which nobody can think that it is true."""
    length = {one: len(admin.get(one).content.splitlines()) for one in paths}
    for column, value in zip(TIMES, cycle(["", "x", -1, "9999-99-99", "{}"]), strict=False):
        with damaged(served.store, column, value):
            served.policy_registry.refresh()
            for one in paths:
                answer = admin.get(one)
                assert answer.status_code == 200, f"{column}: {value}: {one}: {answer.text}"
                assert len(answer.content.splitlines()) == length[one]
            assert generate(served).status_code == 200


@pytest.mark.slow
def test_a_damaged_document_stops_no_list(
    served: Served, admin: httpx.Client, paths: list[str]
) -> None:
    values = cycle([NO_JSON, "", -1, "7", '"x"'])
    # Each column with two of them.
    for column, value in zip(DOCUMENTS + DOCUMENTS[::-1], values, strict=False):
        with damaged(served.store, column, value):
            served.policy_registry.refresh()
            served.certified.refresh()
            for one in paths:
                answer = admin.get(one)
                wanted = (200,) if one in LISTS else (200, 409)
                assert answer.status_code in wanted, f"{column}: {value}: {one}: {answer.text}"
            assert generate(served).status_code == 200


def test_a_training_with_a_damaged_time_is_taken_and_stops_no_other(
    served: Served, dataset: str
) -> None:
    rewards = served.store.rewards
    ids = {f"rwd_{uuid4().hex}" for _ in range(2)}
    for one in ids:
        rewards.queue(one, dataset, None, {}, "test")
    write_column(served.store, "jobs", "created", "-1", subject=min(ids))
    taken = [take(served.store), take(served.store)]
    assert {one.subject for one in taken} == ids
    for one in taken:
        served.store.jobs.end(one, "failed", "the test is over")


def test_a_pointer_with_a_damaged_time_is_moved_and_mended(
    served: Served, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    write_column(served.store, "policy_pointers", "changed", "soon", name="bright")
    served.policy_registry.refresh()
    assert "policy_pointers.changed" in caplog.text
    made = admin.post("/v1/policies", json={"name": "bright", "based_on": "bright"}).json()
    moved = admin.post("/v1/policies/bright/promote", json={"version": made["version"]})
    assert moved.status_code == 200, moved.text
    assert served.store.policies.pointers()["bright"].changed.year > 1970


def test_a_dataset_of_a_model_that_is_not_served_says_so(
    served: Served, labels: httpx.Client, dataset: str
) -> None:
    write_column(served.store, "datasets", "model", "gone", name=dataset)
    answer = labels.post(f"/v1/datasets/{dataset}/batches", json={})
    refused(answer, 409, "conflict")
    assert "not served here" in answer.json()["error"]["message"]


def _sees(served: Served, name: str, number: int) -> None:
    served.policy_registry.refresh()
    pointer = served.policy_registry.pointers[name]
    assert pointer.version == number
