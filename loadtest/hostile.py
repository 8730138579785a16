"""Requests that must be refused, as data: what is sent, and the documented answer to it.

None needs a key; with one it must not be an admin's, who may loosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from loadtest.scenarios import PATH

_JSON = (("Content-Type", "application/json"),)


@dataclass(frozen=True)
class Case:
    """One hostile request, and the status and code that docs/api.md promises."""

    name: str
    status: int
    code: str
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = _JSON
    method: str = "POST"
    path: str = PATH


def _field(name: str, status: int = 400, code: str = "invalid_value", **body: Any) -> Case:
    return Case(name, status, code, json.dumps(body).encode())


def _raw(name: str, body: bytes, status: int = 400, code: str = "invalid_value") -> Case:
    return Case(name, status, code, body)


def _header(name: str, header: str, value: str, status: int = 400,
            code: str = "invalid_value") -> Case:  # fmt: skip
    return Case(name, status, code, headers=(*_JSON, (header, value)))


_WAIT = "x-request-timeout-seconds"

CASES: tuple[Case, ...] = (
    # Not JSON, or not an object.
    _raw("half a body", b'{"n": 1, "pol'),
    _raw("no body", b""),
    _raw("a list", b"[]"),
    _raw("null", b"null"),
    _raw("not UTF-8", b'{"prompt": "\xff\xfe"}'),
    _raw("20,000 objects deep", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    _raw("a number of 5,000 digits", b'{"seed": ' + b"9" * 5_000 + b"}"),
    _raw("a seed that is no number", b'{"seed": NaN}'),
    Case("text/plain", 415, "unsupported_media_type", headers=(("Content-Type", "text/plain"),)),
    Case("gzip that is none", 415, "unsupported_media_type", b"\x1f\x8b\x08junk",
         (*_JSON, ("Content-Encoding", "gzip"))),
    # Too much.
    _raw("two megabytes", b'{"user": "' + b"x" * 2_000_000 + b'"}', 413, "body_too_large"),
    _field("a million images", n=1_000_000),
    _field("a deadline of years", censor={"deadline_s": 1e9}),
    # Wrong types and values.
    _field("n as text", n="1"),
    _field("n as a truth value", n=True),
    _field("n as a fraction", n=1.5),
    _field("no images", n=0),
    _field("a seed below 0", seed=-1),
    _field("a seed too large", seed=2**53),
    _field("an unknown field", safety=False),
    _field("a prompt to a model without", prompt="a seven with a crossbar"),
    _field("a size it lacks", size="1024x1024"),
    _field("a URL for an answer", response_format="url"),
    _field("a stream", stream=True),
    # Names.
    _field("an unknown policy", 404, "policy_not_found", policy="nobody"),
    _field("a path for a policy", 404, "policy_not_found", policy="../../none"),
    _field("a zero byte for a policy", 404, "policy_not_found", policy="\0"),
    _field("an unknown model", 404, "model_not_found", model="dall-e-3"),
    # Looser than the policy.
    _field("the policy without a judge", 403, "policy_not_allowed", policy="none"),
    _raw("two policies, the second without a judge",
         b'{"policy": "no-crossbar", "policy": "none"}'),
    _field("the default policy, by no name", policy=""),
    _field("a threshold below the policy's", censor={"threshold": 0.001}),
    _field("a threshold of 0", censor={"threshold": 0}),
    _raw("a threshold that rounds to 0", b'{"censor": {"threshold": 1e-400}}'),
    _field("more draws than the policy's", censor={"max_draws": 1_000}),
    _field("fewer steps than are listed", num_inference_steps=1),
    _field("no judge", censor={"judge": None}),
    _field("deliver what was filtered", censor={"on_filtered": "deliver"}),
    # Headers.
    *(_header(f"{_WAIT}: {value}", _WAIT, value) for value in ("0", "-1", "nan", "soon")),
    _header("work on when I have left", "x-request-disconnect-disabled", "?1"),
    _header("an idempotency key", "Idempotency-Key", "1"),
    _header("an answer later", "Prefer", "Respond-Async"),
    _header("an id with markup", "X-Request-ID", "<script>"),
    _header("an id of 65 letters", "X-Request-ID", "x" * 65),
    # Other ways in.
    Case("GET", 405, "method_not_allowed", b"", (), "GET"),
    Case("a route it lacks", 404, "not_found", path="/v1/images/edits"),
)  # fmt: skip
