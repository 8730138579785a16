"""What an answer was: an image, a policy's no, a refusal, a failure, a broken promise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from loadtest.hostile import Case


class Outcome(StrEnum):
    """The kind of row that a request is counted in. The last three are failures."""

    IMAGE = "image"
    BLOCKED = "blocked"
    OVERLOADED = "overloaded"
    REFUSED = "refused"
    READ_SLOWLY = "read slowly"
    HUNG_UP = "hung up"
    SLOTS_FREE = "slots free"
    LATE = "late"
    FAILED = "failed"
    WRONG = "wrong"


FAILURES = (Outcome.LATE, Outcome.FAILED, Outcome.WRONG)
Found = tuple[Outcome, str | None]
"""An outcome, and for a failure the reason."""


def of_ask(
    status: int, headers: Mapping[str, str], body: bytes, policy: str, n: int, what: Outcome
) -> Found:
    """The outcome of asking for n images under a censoring policy; `what` if there is one."""
    answer = _parsed(body)
    code = (answer.get("error") or {}).get("code")
    if status == 200:
        why = _breach(answer, policy, n)
        return (Outcome.WRONG, why) if why else (what, None)
    if _has_pixels(answer):
        return Outcome.WRONG, f"{status} {code} with pixels"
    if (status, code) == (400, "moderation_blocked"):
        return Outcome.BLOCKED, None
    if (status, code) == (429, "overloaded"):
        wait = {name.lower(): value for name, value in headers.items()}.get("retry-after", "")
        if not wait.isdecimal() or int(wait) < 1:
            return Outcome.WRONG, f"429 with Retry-After {wait!r}"
        return Outcome.OVERLOADED, None
    if (status, code) == (504, "deadline_exceeded"):
        return Outcome.LATE, "504 deadline_exceeded"
    return Outcome.FAILED, f"{status} {code}" if status else "no answer"


def of_hostile(case: Case, status: int, body: bytes) -> Found:
    """The outcome of a hostile request: refused as documented, or not."""
    answer = _parsed(body)
    code = (answer.get("error") or {}).get("code")
    if status == 0:
        return Outcome.FAILED, f"{case.name}: no answer"
    if _has_pixels(answer):
        return Outcome.WRONG, f"{case.name}: {status} with pixels"
    if (status, code) != (case.status, case.code):
        return Outcome.WRONG, f"{case.name}: {status} {code}, not {case.status} {case.code}"
    return Outcome.REFUSED, None


def _breach(answer: dict[str, Any], policy: str, n: int) -> str | None:
    """What is wrong with a 200 under a censoring policy, if anything."""
    data = answer.get("data")
    if not isinstance(data, list) or len(data) != n or not _has_pixels(answer):
        return f"200 without {n} entries, one with an image"
    named = answer.get("policy") or {}
    if named.get("id") != policy or not str(named.get("judge", "")).startswith("sha256:"):
        return f"policy {named.get('id')!r} with judge {named.get('judge')!r}"
    return next((why for entry in data if (why := _unchecked(entry, policy))), None)


def _unchecked(entry: dict[str, Any], policy: str) -> str | None:
    """Why an entry's image should not have left, or its absence lacks a reason."""
    verdict = (entry.get("content_filter_results") or {}).get(policy)
    reason = entry.get("finish_reason")
    if entry.get("b64_json") is None:
        return None if reason not in (None, "success") else f"no image, and {reason!r}"
    if verdict is None:
        return "an image without a verdict"
    if verdict.get("filtered") is not False or reason != "success":
        return f"an image that was filtered ({reason!r})"
    # A key without the `scores` scope sees neither.
    if {"benign_score", "threshold"} <= verdict.keys():
        score, threshold = verdict["benign_score"], verdict["threshold"]
        if score is None or not score >= threshold:
            return f"an image with score {score} below {threshold}"
    return None


def _has_pixels(answer: dict[str, Any]) -> bool:
    return any(entry.get("b64_json") is not None for entry in answer.get("data") or [])


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
