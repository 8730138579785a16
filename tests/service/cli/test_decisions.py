from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from models.diffusion.condition import Condition
from service.cli.main import app
from tests.plans import JUDGED
from tests.records import make_decision, make_outcome, make_row
from tests.stores import open_store

BLOCKED = "moderation_blocked"


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path}/decisions.sqlite"
    store = open_store(address)
    store.decisions.insert([make_row(1), make_row(2, policy="other", outcome=BLOCKED)])
    store.close()
    return address


def _run(*arguments: str) -> Result:
    answer = CliRunner().invoke(app, ["decisions", *arguments])
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit | None), "a mistake is a sentence"
    return answer


def test_show_tells_plan_weights_and_every_draw(url: str) -> None:
    row = make_row(1)
    answer = _run("show", row.id, "--url", url)
    assert answer.exit_code == 0
    for word in (row.id, "request-1", "sha256:judge", "threshold 0.5000", "abandoned", "0.2000"):
        assert word in answer.output


def test_show_as_json_is_the_record(url: str) -> None:
    answer = _run("show", make_row(1).id, "--url", url, "--json")
    assert json.loads(answer.stdout) == open_store(url).decisions.read(make_row(1).id)


def test_show_says_when_a_prompt_was_not_kept(tmp_path: Path) -> None:
    from service.generation.record import row

    url = f"sqlite:///{tmp_path}/decisions.sqlite"
    record = make_decision(prompt=None).record("backend_unavailable", 1.0, make_outcome())
    open_store(url).decisions.insert([row(record)])
    assert "not kept" in _run("show", record.id, "--url", url).output


def test_show_tells_what_the_model_was_asked_for(tmp_path: Path) -> None:
    from service.generation.record import row

    url = f"sqlite:///{tmp_path}/decisions.sqlite"
    asked = [
        Condition("a cat", "a dog", guidance_scale=7.5),
        Condition(class_label=3),
        Condition(class_labels=(5, 8)),
    ]
    store, shown = open_store(url), []
    for condition in asked:
        plan = replace(JUDGED, condition=condition)
        decision = make_decision(condition.prompt, plan=plan)
        record = decision.record("ok", 1.0, make_outcome())
        store.decisions.insert([row(record)])
        shown.append(_run("show", record.id, "--url", url).output)
    for words in ("'a cat'", "'a dog'", "guidance scale   7.5"):
        assert words in shown[0]
        assert words not in shown[1]
    assert re.search(r"class +3 *\n", shown[1])
    assert "drawn by each seed from 5, 8" in shown[2]
    drawn = asked[2].label(40)
    assert re.search(rf"^ *0 +40 +{drawn} +success", shown[2], re.MULTILINE)


def test_list_filters(url: str) -> None:
    both = _run("list", "--url", url).output
    assert make_row(1).id in both
    assert make_row(2).id in both
    blocked = _run("list", "--url", url, "--outcome", BLOCKED, "--policy", "other").output
    assert make_row(1).id not in blocked
    assert make_row(2).id in blocked
    assert "img_" not in _run("list", "--url", url, "--request-id", "unknown").output


def test_an_empty_list_says_where_it_looked(url: str) -> None:
    answer = _run("list", "--url", url, "--policy", "other", "--outcome", "ok")
    assert f"no such decision in {url}" in answer.output


def test_outside_of_the_repository_it_is_said_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for arguments in (("list",), ("show", "img_x")):
        answer = _run(*arguments)
        assert answer.exit_code == 1
        for word in ("deploy/local.yaml", "--config", "--url", f"sqlite:///{tmp_path}/winnow"):
            assert word in answer.output


def test_an_unknown_decision_is_one_line(url: str) -> None:
    answer = _run("show", "img_unknown", "--url", url)
    assert answer.exit_code == 1
    assert answer.output.count("\n") == 1
    assert "no decision 'img_unknown'" in answer.output


def test_no_store_is_one_line(tmp_path: Path) -> None:
    answer = _run("show", "img_x", "--url", f"sqlite:///{tmp_path}/none.sqlite")
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1)
    assert "nothing has been recorded" in answer.output


def test_a_record_of_another_winnow_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/decisions.sqlite"
    document = {**make_row(1).document, "record_version": 9, "moon": "full"}
    open_store(url).decisions.insert([make_row(1, document=document)])
    answer = _run("show", make_row(1).id, "--url", url)
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1)
    assert "version 9" in answer.output
    assert _run("show", make_row(1).id, "--url", url, "--json").exit_code == 0


def test_without_a_url_the_configuration_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = open_store(f"sqlite:///{tmp_path}/winnow/decisions.sqlite")
    store.decisions.insert([make_row(1)])
    root = Path(__file__).parents[3]
    answer = _run("show", make_row(1).id, "--config", str(root / "deploy/local.yaml"))
    assert make_row(1).id in answer.output
