"""`winnow datasets` and `winnow rewards` against the real API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from models.bundles.bundle import Bundle
from service.cli import datasets
from service.cli.main import app
from service.jobs.runner import JobRunner
from service.labelling.label_file import count, in_parts
from service.store.datasets import Dataset
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, Served, serve


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    with serve(bundle) as server:
        runner = JobRunner(server.store.jobs, [server.trainings.kind])
        with client(server, "LABEL_KEY") as http:
            _label(http, "bars")
            http.post("/v1/datasets", json={"name": "empty", "question": "Is it dark?"})
        yield server
        runner.close()


def _label(http: httpx.Client, name: str) -> None:
    http.post("/v1/datasets", json={"name": name, "question": "Is it dark?"})
    images = http.post(f"/v1/datasets/{name}/batches", json={"size": 10}).json()["images"]
    said = [
        {"image_id": one["id"], "label": "malign" if place % 2 else "benign", "elapsed_ms": 100}
        for place, one in enumerate(images)
    ]
    http.post(f"/v1/datasets/{name}/labels", json={"labels": said})


@pytest.fixture
def run(served: Served, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("WINNOW_URL", served.url)
    monkeypatch.setenv("WINNOW_KEY", KEYS["LABEL_KEY"])

    def go(*arguments: str, code: int = 0) -> Result:
        answer = CliRunner().invoke(app, [*arguments])
        assert "Traceback" not in answer.output
        assert answer.exit_code == code, answer.output
        return answer

    return go


def test_list_shows_counts(run: object, served: Served) -> None:
    proof = Dataset("proof", "tiny", "Is it?", [], "certificate", datetime.now(UTC), "x")
    served.store.datasets.create(proof)
    output = run("datasets", "list").output  # type: ignore[operator]
    assert "proof" not in output
    assert "proof" in run("datasets", "list", "--certificates").output  # type: ignore[operator]
    for word in ("bars", "tiny", "Is it dark?", "5"):
        assert word in output


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_export_and_import_in_parts(
    run: object, served: Served, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(served, "LABEL_KEY") as http:
        http.post("/v1/datasets", json={"name": f"copy-{suffix}", "question": "Is it dark?"})
    file = tmp_path / f"labels.{suffix}"
    run("datasets", "export", "bars", "--to", str(file), "--images")  # type: ignore[operator]
    monkeypatch.setattr(datasets, "PART_BYTES", 1500)
    served.paths.clear()
    into = ("datasets", "import", f"copy-{suffix}", str(file))
    assert "10 labels came in, 0 were there" in run(*into).output  # type: ignore[operator]
    assert len(served.paths) > 2
    assert "0 labels came in, 10 were there" in run(*into).output  # type: ignore[operator]
    assert served.store.datasets.counts(f"copy-{suffix}")["malign"] == 5
    again = run("datasets", "export", "bars", "--to", str(file), code=1)  # type: ignore[operator]
    assert "exists already" in again.output


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_that_a_spreadsheet_saved_comes_in(
    run: object, served: Served, tmp_path: Path, suffix: str
) -> None:
    with client(served, "LABEL_KEY") as http:
        http.post("/v1/datasets", json={"name": f"saved-{suffix}", "question": "Is it dark?"})
    file = tmp_path / f"labels.{suffix}"
    run("datasets", "export", "bars", "--to", str(file), "--images")  # type: ignore[operator]
    text = file.read_text()
    head, _, rest = text.partition("\n")
    if suffix == "csv":
        head = ",".join(f'"{name}"' for name in head.split(","))
    file.write_text("\ufeff" + head + "\n" + rest)
    into = ("datasets", "import", f"saved-{suffix}", str(file))
    assert "10 labels came in" in run(*into).output  # type: ignore[operator]


def test_a_quote_that_is_not_closed_is_refused_before_anything_is_sent(
    run: object, served: Served, tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    run("datasets", "export", "bars", "--to", str(file), "--images")  # type: ignore[operator]
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, first.rstrip(",") + ',"', *rest]))
    served.paths.clear()
    answer = run("datasets", "import", "bars", str(file), code=1)  # type: ignore[operator]
    assert "not CSV" in answer.output
    assert not served.paths


def test_files_that_are_none_are_sentences(run: object, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.jsonl")
    for arguments, words in (
        (("import", "bars", missing), "there is no such file"),
        (("import", "bars", str(tmp_path / "x.txt")), "say which with --format"),
        (("export", "bars", "--to", str(tmp_path / "x.txt")), "say which with --format"),
    ):
        answer = run("datasets", *arguments, code=1)  # type: ignore[operator]
        assert words in answer.output
        assert "Errno" not in answer.output
    assert not (tmp_path / "x.txt").exists(), "nobody reads JSONL in a .txt"


def test_labels_of_another_question_come_in_only_if_asked(
    run: object, served: Served, tmp_path: Path
) -> None:
    with client(served, "LABEL_KEY") as http:
        http.post("/v1/datasets", json={"name": "strange", "question": "Is it a cat?"})
    file = str(tmp_path / "labels.jsonl")
    run("datasets", "export", "bars", "--to", file)  # type: ignore[operator]
    answer = run("datasets", "import", "strange", file, code=1)  # type: ignore[operator]
    assert "line 1.question: answers 'Is it dark?'" in answer.output
    assert "--force" in answer.output
    assert served.store.datasets.labelled("strange") == []
    said = run("datasets", "import", "strange", file, "--force").output  # type: ignore[operator]
    assert "10 labels came in" in said


def test_a_line_is_not_cut_at_other_ends_of_lines() -> None:
    text = '{"annotator": "a\u2028b"}\n{"annotator": "c"}\n'
    assert list(in_parts(text, "jsonl", 1_000_000)) == [text]
    assert count(text, "jsonl") == 2


def test_export_to_stdout_is_json_lines(run: object) -> None:
    lines = run("datasets", "export", "bars").stdout.splitlines()  # type: ignore[operator]
    assert {json.loads(line)["label"] for line in lines} == {"benign", "malign"}


def test_an_export_that_breaks_off_is_a_sentence_and_no_file(
    run: object, served: Served, tmp_path: Path
) -> None:
    blobs = Path(served.store.blobs._root)
    elsewhere = blobs.rename(blobs.with_name("elsewhere"))
    file = tmp_path / "labels.jsonl"
    try:
        broken = run("datasets", "export", "bars", "--to", str(file), code=1)  # type: ignore[operator]
    finally:
        elsewhere.rename(blobs)
    assert "broke off" in broken.output
    assert not file.exists()


def test_train_watch_show(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = run("rewards", "train", "bars", "--target", "0.02")  # type: ignore[operator]
    reward_id = trained.stdout.splitlines()[0]
    assert reward_id.startswith("rwd_")
    assert "is ready" in trained.output
    shown = run("rewards", "show", reward_id).output  # type: ignore[operator]
    for word in (reward_id, "ready", "0.9700", "5 benign", "label/api", "80.0% of draws"):
        assert word in shown, word
    assert "threshold" not in shown
    with monkeypatch.context() as patch:
        patch.setenv("WINNOW_KEY", KEYS["APPROVE_KEY"])
        approver = run("rewards", "show", reward_id).output  # type: ignore[operator]
        assert "threshold 0.5000, 80.0% of draws" in approver
    assert shown.count("ready") == 1
    assert json.loads(run("rewards", "show", reward_id, "--json").stdout)["id"] == reward_id  # type: ignore[operator]
    assert reward_id in run("rewards", "list", "--dataset", "bars").output  # type: ignore[operator]
    ended = run("rewards", "cancel", reward_id, code=1)  # type: ignore[operator]
    assert "has ended already" in ended.output


def test_a_refusal_is_a_sentence(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs 5" in run("rewards", "train", "empty", code=1).output  # type: ignore[operator]
    assert "no dataset" in run("datasets", "export", "moon", code=1).output  # type: ignore[operator]
    monkeypatch.setenv("WINNOW_KEY", KEYS["PLAIN_KEY"])
    assert "'label' scope" in run("datasets", "list", code=1).output  # type: ignore[operator]
    monkeypatch.setenv("WINNOW_URL", "http://127.0.0.1:9")
    assert "no service answers" in run("rewards", "list", code=1).output  # type: ignore[operator]


def test_a_training_that_fails_is_told_with_exit_code_1(run: object, served: Served) -> None:
    served.training.fault = ValueError("too few of them")
    try:
        failed = run("rewards", "train", "bars", code=1)  # type: ignore[operator]
        assert "too few of them" in failed.output
    finally:
        served.training.fault = None
