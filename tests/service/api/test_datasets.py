"""Labelling over REST: nobody but the label scope sees an image, and every refusal has a reason."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.api import dataset_files
from service.errors import InvalidValue
from service.images.encode import from_png
from service.store.datasets import Dataset
from tests.bundles import HEIGHT, WIDTH
from tests.foreign import bad_files, good_files
from tests.service.api.conftest import FILES, JSONL, client, refused
from tests.service.api.server import Served, serve

PNG = "iVBOR"


def _batch(http: httpx.Client, dataset: str, **body: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/datasets/{dataset}/batches", json={"size": 4} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _say(http: httpx.Client, dataset: str, batch: dict[str, Any], *labels: str) -> httpx.Response:
    said = [
        {"image_id": image["id"], "label": label, "elapsed_ms": 400}
        for image, label in zip(batch["images"], labels, strict=False)
    ]
    return http.post(f"/v1/datasets/{dataset}/labels", json={"labels": said})


def test_from_a_question_to_counted_labels(labeller: httpx.Client, dataset: str) -> None:
    batch = _batch(labeller, dataset)
    assert len(batch["images"]) == 4
    image = from_png(base64.b64decode(batch["images"][0]["b64_json"]))
    assert image.shape == (HEIGHT, WIDTH, 1)
    assert set(batch["images"][0]) == {"id", "b64_json"}, "a score beside an image sways a person"
    answer = _say(labeller, dataset, batch, "benign", "malign", "unsure", "benign")
    assert answer.json()["counts"] == {"benign": 2, "malign": 1, "unsure": 1, "seconds": 1.6}
    one = labeller.get(f"/v1/datasets/{dataset}").json()
    assert one["counts"] == answer.json()["counts"]
    assert set(one["goal"]) == {"benign", "malign", "seconds"}
    assert (one["model"], one["question"]) == ("tiny", "Is it dark?")
    listed = labeller.get("/v1/datasets").json()
    assert one in listed["data"]
    assert listed["models"] == ["tiny"]


def test_a_certificates_dataset_has_no_goal(server: Served, labeller: httpx.Client) -> None:
    proof = Dataset("proof", "tiny", "Is it dark?", [], "certificate", datetime.now(UTC), "x")
    server.store.datasets.create(proof)
    listed = labeller.get("/v1/datasets").json()["data"]
    for one in (labeller.get("/v1/datasets/proof").json(), *listed):
        assert (one["goal"] is None) == (one["purpose"] == "certificate")


def test_a_batch_is_resumed_until_it_is_labelled(labeller: httpx.Client, dataset: str) -> None:
    first = _batch(labeller, dataset)
    assert _batch(labeller, dataset) == first
    second = _batch(labeller, dataset, exclude_batches=[first["id"]])
    assert second["id"] != first["id"]
    _say(labeller, dataset, first, *["benign"] * 4)
    assert _batch(labeller, dataset)["id"] == second["id"]


def test_undo_gives_the_last_page_back_with_its_labels(
    labeller: httpx.Client, dataset: str
) -> None:
    batch = _batch(labeller, dataset)
    _say(labeller, dataset, batch, "benign", "malign", "unsure", "benign")
    back = labeller.post(f"/v1/datasets/{dataset}/labels/undo").json()
    assert back["id"] == batch["id"]
    assert [image["label"] for image in back["images"]] == ["benign", "malign", "unsure", "benign"]
    assert [image["b64_json"] for image in back["images"]] == [
        image["b64_json"] for image in batch["images"]
    ]
    assert back["counts"]["benign"] == 0
    refused(labeller.post(f"/v1/datasets/{dataset}/labels/undo"), 409, "conflict")


def test_undo_takes_back_the_batch_that_it_names(labeller: httpx.Client, dataset: str) -> None:
    first = _batch(labeller, dataset)
    second = _batch(labeller, dataset, exclude_batches=[first["id"]])
    for batch in (first, second):
        _say(labeller, dataset, batch, *["malign"] * 4)
    url = f"/v1/datasets/{dataset}/labels/undo"
    back = labeller.post(url, json={"batch": first["id"]}).json()
    assert (back["id"], back["counts"]["malign"]) == (first["id"], 4)
    refused(labeller.post(url, json={"batch": first["id"]}), 409, "conflict")
    assert labeller.post(url).json()["id"] == second["id"]


def test_two_people_are_shown_different_images_and_cannot_answer_for_each_other(
    server: Served, labeller: httpx.Client, dataset: str
) -> None:
    mine = _batch(labeller, dataset)
    with client(server, "ADMIN_KEY") as other:
        theirs = _batch(other, dataset)
        assert not {i["id"] for i in mine["images"]} & {i["id"] for i in theirs["images"]}
        refused(_say(other, dataset, mine, "malign"), 400, "invalid_value", "labels.0.image_id")
        refused(other.post(f"/v1/datasets/{dataset}/labels/undo"), 409, "conflict")


def test_images_are_drawn_uncensored_or_under_a_policy(
    server: Served, labeller: httpx.Client, dataset: str
) -> None:
    _batch(labeller, dataset, policy="bright")
    with client(server, "ADMIN_KEY") as other:
        _batch(other, dataset)
    shown = {(row["policy"], row["policy_version"]) for row in _shown(server, dataset)}
    assert shown == {("bright", 1), ("none", 0)}


def _shown(server: Served, dataset: str) -> list[dict[str, Any]]:
    from sqlalchemy import select

    from service.store.schema import images

    with server.store.database.transaction() as connection:
        query = select(images).where(images.c.dataset == dataset)
        return [dict(row._mapping) for row in connection.execute(query)]


def test_an_image_is_for_the_label_scope_alone(
    server: Served, labeller: httpx.Client, dataset: str
) -> None:
    image_id = _batch(labeller, dataset)["images"][0]["id"]
    url = f"/v1/datasets/{dataset}/images/{image_id}"
    answer = labeller.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "private, no-store"
    with client(server, "PLAIN_KEY") as plain:
        refused(plain.get(url), 403, "policy_not_allowed")
    refused(labeller.get(f"/v1/datasets/{dataset}/images/none"), 400, "invalid_value", "image_id")


ROUTES = [
    ("POST", "/v1/datasets"),
    ("GET", "/v1/datasets"),
    ("GET", "/v1/datasets/{}"),
    ("POST", "/v1/datasets/{}/batches"),
    ("POST", "/v1/datasets/{}/labels"),
    ("POST", "/v1/datasets/{}/labels/undo"),
    ("GET", "/v1/datasets/{}/images/x"),
    ("GET", "/v1/datasets/{}/export"),
    ("POST", "/v1/datasets/{}/import"),
    ("POST", "/v1/rewards"),
    ("GET", "/v1/rewards"),
    ("GET", "/v1/rewards/rwd_x"),
    ("POST", "/v1/rewards/rwd_x/cancel"),
]
BODIES = {
    "/v1/datasets": {"name": "new", "question": "Is it dark?"},
    "/v1/datasets/{}/batches": {},
    "/v1/datasets/{}/labels": {"labels": [{"image_id": "x", "label": "benign", "elapsed_ms": 1}]},
    "/v1/rewards": {"dataset": "x"},
}


@pytest.mark.parametrize("key", ["PLAIN_KEY", "SCORES_KEY", "APPROVE_KEY", None])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_the_label_scope(
    server: Served, dataset: str, method: str, path: str, key: str | None
) -> None:
    with client(server, key) as http:
        answer = http.request(method, path.format(dataset), json=BODIES.get(path))
    if key == "APPROVE_KEY" and (method, path[:11]) == ("GET", "/v1/rewards"):
        # Whoever puts a reward in force looks at its card first.
        assert answer.status_code in (200, 404)
        return
    status, code = (403, "policy_not_allowed") if key else (401, "invalid_api_key")
    refused(answer, status, code)
    assert PNG not in answer.text


def test_without_feedback_there_is_no_such_route(bundle: Bundle) -> None:
    with serve(bundle, feedback={"enabled": False}) as served, client(served, "LABEL_KEY") as http:
        for method, path in [*ROUTES, ("GET", "/feedback"), ("GET", "/feedback/rewards")]:
            refused(http.request(method, path.format("x"), json={}), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"question": "Is it?"}, "name"),
        ({"name": "x", "question": "Is\0it?"}, "question"),
        ({"name": "UPPER", "question": "Is it?"}, "name"),
        ({"name": "a" * 65, "question": "Is it?"}, "name"),
        ({"name": "../x", "question": "Is it?"}, "name"),
        ({"name": "x"}, "question"),
        ({"name": "x", "question": "?"}, "question"),
        ({"name": "x", "question": "q" * 201}, "question"),
        ({"name": "x", "question": "Is it?", "inputs": [{"class_label": 1}]}, "inputs"),
        ({"name": "x", "question": "Is it?", "moon": "full"}, "moon"),
    ],
)
def test_a_wrong_dataset_is_refused_by_field(
    reviewer: httpx.Client, body: dict[str, Any], param: str
) -> None:
    refused(reviewer.post("/v1/datasets", json=body), 400, "invalid_value", param)


def test_a_taken_name_and_an_unknown_model_are_refused(
    labeller: httpx.Client, dataset: str
) -> None:
    body = {"name": dataset, "question": "Is it?"}
    refused(labeller.post("/v1/datasets", json=body), 409, "conflict", "name")
    body = {"name": "fresh", "question": "Is it?", "model": "moon"}
    refused(labeller.post("/v1/datasets", json=body), 404, "model_not_found", "model")


@pytest.mark.parametrize("name", ["unknown", "a%00b", "UPPER", "a%27b"])
def test_an_unknown_dataset_is_404(labeller: httpx.Client, name: str) -> None:
    for method, path in ROUTES[2:9]:
        answer = labeller.request(method, path.format(name), json=BODIES.get(path))
        refused(answer, 404, "dataset_not_found")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"size": 0}, 400, "invalid_value", "size"),
        ({"size": 101}, 400, "invalid_value", "size"),
        ({"size": "4"}, 400, "invalid_value", "size"),
        ({"strategy": "clever"}, 400, "invalid_value", "strategy"),
        ({"exclude_batches": ["x"] * 101}, 400, "invalid_value", "exclude_batches"),
        ({"seed": 1}, 400, "invalid_value", "seed"),
        ({"policy": "Moon"}, 400, "invalid_value", "policy"),
    ],
)
def test_a_wrong_batch_is_refused_by_field(
    labeller: httpx.Client, dataset: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = labeller.post(f"/v1/datasets/{dataset}/batches", json=body)
    refused(answer, status, code, param)


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        ([], "labels"),
        ([{"image_id": "x", "label": "withdrawn", "elapsed_ms": 1}], "labels.0.label"),
        ([{"image_id": "x", "label": "good", "elapsed_ms": 1}], "labels.0.label"),
        ([{"image_id": "x", "label": "benign", "elapsed_ms": -1}], "labels.0.elapsed_ms"),
        ([{"image_id": "x", "label": "benign", "elapsed_ms": 4_000_000}], "labels.0.elapsed_ms"),
        ([{"image_id": "x", "label": "benign"}], "labels.0.elapsed_ms"),
        ([{"image_id": "x", "label": "benign", "elapsed_ms": 1}], "labels.0.image_id"),
        ([{"image_id": "", "label": "benign", "elapsed_ms": 1}], "labels.0.image_id"),
    ],
)
def test_a_wrong_label_is_refused_by_field(
    labeller: httpx.Client, dataset: str, labels: list[Any], param: str
) -> None:
    answer = labeller.post(f"/v1/datasets/{dataset}/labels", json={"labels": labels})
    refused(answer, 400, "invalid_value", param)


def test_a_certificates_dataset_is_closed_to_learning(
    server: Served, labeller: httpx.Client
) -> None:
    server.store.datasets.create(
        Dataset("cert", "tiny", "Is it dark?", [], "certificate", datetime.now(UTC), "x")
    )
    for path, body in (("batches", {}), ("import", None)):
        answer = labeller.post(f"/v1/datasets/cert/{path}", json=body)
        refused(answer, 409, "conflict")
    for form in ("jsonl", "csv"):
        # It would tell the judge's scores to whoever is still labelling.
        refused(labeller.get(f"/v1/datasets/cert/export?format={form}"), 409, "conflict")
    refused(labeller.post("/v1/datasets/cert/labels/undo"), 409, "conflict")
    refused(labeller.post("/v1/rewards", json={"dataset": "cert"}), 409, "conflict")


@pytest.fixture
def labelled(labeller: httpx.Client, dataset: str) -> str:
    """The name of a dataset with four labels."""
    _say(labeller, dataset, _batch(labeller, dataset), "benign", "malign", "unsure", "benign")
    return dataset


def _another(http: httpx.Client, dataset: str) -> str:
    name = f"{dataset}-again"
    http.post("/v1/datasets", json={"name": name, "question": "Is it dark?"})
    return name


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_is_exported_comes_in_elsewhere_with_its_images_and_only_once(
    labeller: httpx.Client, labelled: str, form: str
) -> None:
    query = {"format": form, "images": "true"}
    exported = labeller.get(f"/v1/datasets/{labelled}/export", params=query)
    assert f'filename="{labelled}.{form}"' in exported.headers["content-disposition"]
    other = _another(labeller, labelled)
    url = f"/v1/datasets/{other}/import"
    brought = labeller.post(url, content=exported.content, headers=FILES[form])
    assert brought.status_code == 200, brought.text
    assert (brought.json()["imported"], brought.json()["known_already"]) == (4, 0)
    counts = labeller.get(f"/v1/datasets/{labelled}").json()["counts"]
    assert brought.json()["counts"] == counts
    again = labeller.post(url, content=exported.content, headers=FILES[form])
    assert (again.json()["imported"], again.json()["known_already"]) == (0, 4)
    back = labeller.get(f"/v1/datasets/{other}/export").text.splitlines()
    before = labeller.get(f"/v1/datasets/{labelled}/export").text.splitlines()
    for one, two in zip(map(json.loads, before), map(json.loads, back), strict=True):
        assert two["annotator"] == f"import:{one['annotator']}"
        for field in set(one) - {"image_id", "annotator"}:
            assert one[field] == two[field], field


def test_an_export_leaves_out_what_was_purged_and_what_was_changed(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    first, second = server.store.datasets.labelled(labelled)[:2]
    server.store.blobs.delete(first.image.blob)
    lines = labeller.get(f"/v1/datasets/{labelled}/export").text.splitlines()
    assert [json.loads(line)["png"] is None for line in lines] == [True, False, False, False]
    Path(server.store.blobs._path(second.image.blob)).write_bytes(b"another")
    lines = labeller.get(f"/v1/datasets/{labelled}/export").text.splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["missing"] for one in found] == ["purged", "damaged", None, None]
    assert [one["png"] is None for one in found] == [True, True, False, False]


def _file(labeller: httpx.Client, dataset: str, form: str) -> bytes:
    query = {"format": form, "images": "true"}
    return labeller.get(f"/v1/datasets/{dataset}/export", params=query).content


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("jsonl", "application/jsonl"),
        ("jsonl", "Application/X-NDJSON; charset=utf-8"),
        ("csv", "text/csv"),
        ("csv", 'text/csv; charset="UTF-8"; header=present'),
    ],
)
def test_the_media_type_says_what_a_file_is(
    labeller: httpx.Client, labelled: str, form: str, kind: str
) -> None:
    other, content = _another(labeller, labelled), _file(labeller, labelled, form)
    for number, query in enumerate(("", f"?format={form}")):
        url = f"/v1/datasets/{other}/import{query}"
        answer = labeller.post(url, content=content, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json()["imported"] == (0 if number else 4)
    wrong = {"jsonl": "csv", "csv": "jsonl"}[form]
    url = f"/v1/datasets/{other}/import?format={wrong}"
    answer = labeller.post(url, content=content, headers={"Content-Type": kind})
    refused(answer, 400, "invalid_value", "format")


@pytest.mark.parametrize(
    "kind", [None, "", "image/png", "text/plain", "application/json", "application/zip", "csv"]
)
@pytest.mark.parametrize("query", ["", "?format=jsonl", "?format=csv"])
def test_another_media_type_is_415_and_names_those_that_are_read(
    labeller: httpx.Client, labelled: str, kind: str | None, query: str
) -> None:
    url = f"/v1/datasets/{_another(labeller, labelled)}/import{query}"
    content = _file(labeller, labelled, "jsonl")
    answer = labeller.post(
        url, content=content, headers={} if kind is None else {"Content-Type": kind}
    )
    refused(answer, 415, "unsupported_media_type", "Content-Type")
    assert "application/jsonl or application/x-ndjson or text/csv" in answer.text


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_byte_order_mark_is_passed_over(labeller: httpx.Client, labelled: str, form: str) -> None:
    other, content = _another(labeller, labelled), _file(labeller, labelled, form)
    answer = labeller.post(
        f"/v1/datasets/{other}/import", content=b"\xef\xbb\xbf" + content, headers=FILES[form]
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["imported"] == 4


@pytest.mark.parametrize(
    ("edit", "param"),
    [
        # A quote that opens the second row's last cell takes in the other two.
        (lambda rows: [*rows[:2], rows[2].rstrip(",") + ',"', *rows[3:]], "line 3"),
        (lambda rows: [*rows[:3], rows[3].rpartition(",")[0]], "line 4"),
        (lambda rows: [*rows[:3], rows[3] + ",more"], "line 4"),
        (lambda rows: [*rows[:2], '"a"b' + rows[2], *rows[3:]], "line 3"),
    ],
)
def test_a_broken_row_of_csv_takes_no_other_with_it(
    server: Served,
    labeller: httpx.Client,
    labelled: str,
    edit: Callable[[list[str]], list[str]],
    param: str,
) -> None:
    other = _another(labeller, labelled)
    rows = _file(labeller, labelled, "csv").decode().splitlines()
    body = "\n".join(edit(rows)).encode()
    answer = labeller.post(f"/v1/datasets/{other}/import", content=body, headers=FILES["csv"])
    refused(answer, 400, "invalid_value")
    assert answer.json()["error"]["param"].startswith(param), answer.text
    assert server.store.datasets.labelled(other) == []


@pytest.mark.parametrize(
    "change",
    [
        {"z" * 5000: 1},
        {"question": "z" * 200},
        {"question": "\u200b" * 200},
        {"strategy": "z" * 5000},
        {"seed": int("9" * 4000)},
    ],
)
def test_a_refusal_repeats_little_of_a_file(
    labeller: httpx.Client, labelled: str, change: dict[str, Any]
) -> None:
    content = json.dumps(_line(labeller, labelled) | change).encode()
    url = f"/v1/datasets/{_another(labeller, labelled)}/import"
    answer = labeller.post(url, content=content, headers=JSONL)
    refused(answer, 400, "invalid_value")
    assert len(answer.json()["error"]["message"]) < 250
    assert len(answer.json()["error"]["param"]) < 100


def test_a_datasets_own_export_brings_nothing(labeller: httpx.Client, labelled: str) -> None:
    before = labeller.get(f"/v1/datasets/{labelled}").json()["counts"]
    lines = labeller.get(f"/v1/datasets/{labelled}/export").content
    brought = labeller.post(f"/v1/datasets/{labelled}/import", content=lines, headers=JSONL).json()
    assert (brought["imported"], brought["known_already"]) == (0, 4)
    assert brought["counts"] == before


def test_a_csv_is_without_images_unless_asked_for(labeller: httpx.Client, labelled: str) -> None:
    text = labeller.get(f"/v1/datasets/{labelled}/export", params={"format": "csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["label"] for row in rows] == ["benign", "malign", "unsure", "benign"]
    assert {row["png"] for row in rows} == {""}
    refused(
        labeller.post(
            f"/v1/datasets/{labelled}/import", content=text.encode(), headers=FILES["csv"]
        ),
        400,
        "invalid_value",
        "line 1.png",
    )


def _line(labeller: httpx.Client, labelled: str) -> dict[str, Any]:
    text = labeller.get(f"/v1/datasets/{labelled}/export").text
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    return found


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"label": "withdrawn"}, "line 1.label"),
        ({"inclusion": 0}, "line 1.inclusion"),
        ({"inclusion": 1.5}, "line 1.inclusion"),
        ({"seed": 2**53}, "line 1.seed"),
        ({"elapsed_ms": -1}, "line 1.elapsed_ms"),
        ({"labelled": "2026-01-01T00:00:00"}, "line 1.labelled"),
        ({"labelled": "0001-01-01T00:00:00+14:00"}, "line 1.labelled"),
        ({"labelled": "9999-12-31T23:59:59-12:00"}, "line 1.labelled"),
        ({"annotator": "a\0"}, "line 1.annotator"),
        ({"strategy": "\x1b[2J"}, "line 1.strategy"),
        ({"policy": "a\0"}, "line 1.policy"),
        ({"annotator": ""}, "line 1.annotator"),
        ({"strategy": "certificate"}, "line 1.strategy"),
        ({"moon": "full"}, "line 1.moon"),
        ({"png": None}, "line 1.png"),
        ({"png": "AAAA"}, "line 1.png"),
        ({"png": "not base64"}, "line 1.png"),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_comes_in(
    server: Served, labeller: httpx.Client, labelled: str, change: dict[str, Any], param: str
) -> None:
    other = _another(labeller, labelled)
    line = _line(labeller, labelled) | change
    body = json.dumps(line).encode()
    answer = labeller.post(f"/v1/datasets/{other}/import", content=body, headers=JSONL)
    refused(answer, 400, "invalid_value", param)
    assert answer.json()["error"]["message"].count("line 1") == 1, "said once where it is"
    assert server.store.datasets.labelled(other) == []


BAD = {name: (data, why) for name, (_, data, why) in bad_files(HEIGHT, WIDTH).items()}


def test_an_image_that_not_everybody_sees_alike_brings_no_label(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    other = _another(labeller, labelled)
    good = _line(labeller, labelled)
    for name, (data, _) in BAD.items():
        lines = [good, good | {"png": base64.b64encode(data).decode()}]
        body = "\n".join(map(json.dumps, lines)).encode()
        answer = labeller.post(f"/v1/datasets/{other}/import", content=body, headers=JSONL)
        if name != "PNG that says it is a JPEG":  # here nobody says what it is
            refused(answer, 400, "invalid_value", "line 2.png")
    for form, good_file in good_files(HEIGHT, WIDTH).values():
        if form == "png":
            line = good | {"png": base64.b64encode(good_file).decode()}
            answer = labeller.post(
                f"/v1/datasets/{other}/import", content=json.dumps(line).encode(), headers=JSONL
            )
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b"", b"\n\n", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 8000])
def test_a_body_that_is_no_file_of_labels_is_refused(
    labeller: httpx.Client, labelled: str, body: bytes
) -> None:
    answer = labeller.post(f"/v1/datasets/{labelled}/import", content=body, headers=JSONL)
    refused(answer, 400, "invalid_value")


def test_a_line_may_hold_other_ends_of_lines(labeller: httpx.Client, labelled: str) -> None:
    other = _another(labeller, labelled)
    line = _line(labeller, labelled) | {"annotator": "a\u2028b"}
    body = json.dumps(line, ensure_ascii=False).encode()
    answer = labeller.post(f"/v1/datasets/{other}/import", content=body, headers=JSONL)
    assert answer.status_code == 200, answer.text
    assert answer.json()["imported"] == 1


def test_a_cell_holds_a_large_image_and_what_is_no_csv_is_refused() -> None:
    """As large as no test's image is: a cell may have more than csv's own 131072 characters."""
    (cell,) = dataset_files._rows("png\n" + "A" * 200_000 + "\n", "csv")
    assert cell == (2, {"png": "A" * 200_000})
    rows = dataset_files.read("label,png\nbenign,x,y\n", "csv", "bars", (HEIGHT, WIDTH, 1))
    with pytest.raises(InvalidValue, match="line 2"):
        next(rows)
    with pytest.raises(InvalidValue, match="line 3 is not CSV") as caught:
        list(dataset_files._rows("label\nbenign\na\rb\n", "csv"))
    assert caught.value.param == "line 3"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/rewards?dataset=a%00b", "dataset"),
        ("/v1/datasets/{}/images/a%00b", "image_id"),
        ("/v1/certificates?policy=a%00b", "policy"),
    ],
)
def test_a_control_character_in_an_address_is_refused(
    labeller: httpx.Client, dataset: str, path: str, param: str
) -> None:
    refused(labeller.get(path.format(dataset)), 400, "invalid_value", param)


def test_an_image_of_another_size_is_refused(labeller: httpx.Client, labelled: str) -> None:
    import numpy as np

    from service.images.encode import to_b64_png

    line = _line(labeller, labelled) | {"png": to_b64_png(np.zeros((9, 9, 1), np.uint8))}
    answer = labeller.post(
        f"/v1/datasets/{labelled}/import", content=json.dumps(line).encode(), headers=JSONL
    )
    refused(answer, 400, "invalid_value", "line 1.png")


def test_a_cell_that_a_spreadsheet_would_run_is_quoted(
    labeller: httpx.Client, labelled: str
) -> None:
    other = _another(labeller, labelled)
    line = _line(labeller, labelled) | {"annotator": "x", "strategy": "=1+1"}
    labeller.post(f"/v1/datasets/{other}/import", content=json.dumps(line).encode(), headers=JSONL)
    text = labeller.get(f"/v1/datasets/{other}/export", params={"format": "csv"}).text
    assert "'=1+1" in text
