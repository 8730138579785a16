"""What an answer counts as; above all, that an unchecked image never counts as a good one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.hostile import Case
from loadtest.outcomes import Outcome, of_ask, of_hostile

SHA = "sha256:00"
BLOCK = {"error": {"code": "moderation_blocked"}, "data": [{"b64_json": None}]}


def _entry(**changes: Any) -> dict[str, Any]:
    verdict = {"filtered": False, "benign_score": 0.9, "threshold": 0.5}
    entry = {
        "b64_json": "AA==", "finish_reason": "success", "content_filter_results": {"p": verdict}
    }  # fmt: skip
    return entry | changes


def _answer(*entries: dict[str, Any], **policy: Any) -> dict[str, Any]:
    return {"policy": {"id": "p", "judge": SHA} | policy, "data": list(entries)}


def _of(status: int, answer: Any, n: int = 1, **headers: str) -> Outcome:
    body = json.dumps(answer).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return of_ask(status, names, body, "p", n, Outcome.IMAGE)[0]


def _verdict(**verdict: Any) -> dict[str, Any]:
    return _entry(content_filter_results={"p": verdict})


def test_a_checked_image_is_an_image() -> None:
    assert _of(200, _answer(_entry())) == Outcome.IMAGE
    assert _of(200, _answer(_verdict(filtered=False))) == Outcome.IMAGE, "without `scores`"
    held_back = _entry(b64_json=None, finish_reason="content_filtered")
    assert _of(200, _answer(_entry(), held_back), n=2) == Outcome.IMAGE


@pytest.mark.parametrize(
    "answer",
    [
        _answer(_entry(content_filter_results={})),
        _answer(_entry(content_filter_results={"other": {"filtered": False}})),
        _answer(_verdict(filtered=True)),
        _answer(_verdict()),
        _answer(_verdict(filtered=False, benign_score=0.4, threshold=0.5)),
        _answer(_verdict(filtered=False, benign_score=None, threshold=0.5)),
        _answer(_entry(finish_reason="content_filtered")),
        _answer(_entry(), judge=None),
        _answer(_entry(), id="none"),
        _answer(_entry(), _entry()),
        _answer(_entry(b64_json=None)),
        _answer(),
        {},
        [],
    ],
)
def test_an_image_that_nothing_vouches_for_is_wrong(answer: Any) -> None:
    assert _of(200, answer) == Outcome.WRONG


def test_a_null_beside_an_image_needs_a_reason() -> None:
    assert _of(200, _answer(_entry(), _entry(b64_json=None)), n=2) == Outcome.WRONG


def test_a_no_is_an_answer_unless_it_carries_pixels() -> None:
    assert _of(400, BLOCK) == Outcome.BLOCKED
    assert _of(400, BLOCK | {"data": [_entry()]}) == Outcome.WRONG
    refusal = {"error": {"code": "overloaded"}}
    assert _of(429, refusal, retry_after="3") == Outcome.OVERLOADED
    assert _of(429, refusal) == _of(429, refusal, Retry_After="soon") == Outcome.WRONG


def test_all_else_is_a_failure() -> None:
    assert _of(504, {"error": {"code": "deadline_exceeded"}}) == Outcome.LATE
    for status, code in [(503, "censor_unavailable"), (500, "internal_error"), (404, "not_found")]:
        assert _of(status, {"error": {"code": code}}) == Outcome.FAILED
    assert of_ask(0, {}, b"", "p", 1, Outcome.IMAGE) == (Outcome.FAILED, "no answer")
    assert of_ask(502, {}, b"<html>", "p", 1, Outcome.IMAGE)[0] == Outcome.FAILED


def test_a_hostile_request_must_get_the_very_answer() -> None:
    case = Case("x", 400, "invalid_value")
    good = b'{"error": {"code": "invalid_value"}}'
    assert of_hostile(case, 400, good) == (Outcome.REFUSED, None)
    assert of_hostile(case, 500, good)[0] == Outcome.WRONG
    assert of_hostile(case, 400, b"Bad Request")[0] == Outcome.WRONG
    with_pixels = {"error": {"code": "invalid_value"}, "data": [_entry()]}
    assert of_hostile(case, 400, json.dumps(with_pixels).encode())[0] == Outcome.WRONG
    assert of_hostile(case, 0, b"")[0] == Outcome.FAILED
