"""Pieces of PromQL, and the numbers that rules and dashboards share."""

from __future__ import annotations

from dataclasses import dataclass

CENSORED = 'verdict=~"rejected|abandoned"'
SETTLED = 'verdict=~"rejected|abandoned|accepted"'
VALID = 'outcome!~"cancelled|short_deadline|invalid",code!="policy_disabled"'
"""Requests that we owed an answer: not those whose caller left, gave too little time or asked for
what the model cannot take, nor whose policy is off."""
FAILED = 'outcome="error",code!="policy_disabled"'
"""Those that got none. A policy block is an answer; a 429 for want of capacity is not."""

AVAILABILITY = 0.995
"""The share of valid requests that must be answered."""
FAST = 0.95
"""The share of requests with an image that must be answered within FAST_S."""
FAST_S = "10.0"
"""A bucket of `winnow_request_duration_seconds`, as it stands in `le`."""

SIGMAS = 4
"""How far from last week's mean a censor rate may lie, in standard deviations."""
DRIFT = 0.25
"""The population stability index from which scores have drifted: the usual bound."""


@dataclass(frozen=True)
class Least:
    """With fewer than these in its window, a rate is noise and is not computed."""

    requests: int = 20
    draws: int = 100
    images: int = 50
    scores: int = 500
    guard_errors: int = 3


ENTRIES = '__name__=~"winnow_images_(delivered|censored)_total"'
"""Entries of responses that were settled: images, and those returned as filtered."""


def rate(metric: str, by: str, window: str, where: str = "") -> str:
    """Per second, summed over replicas."""
    return f"{_sum(by)} (rate({metric}{_braces(where)}[{window}]))"


def increase(metric: str, by: str, window: str, where: str = "") -> str:
    """How many in the window, summed over replicas."""
    return f"{_sum(by)} (increase({metric}{_braces(where)}[{window}]))"


def share(part: str, whole: str) -> str:
    """A part of a whole: 0 while the part has no series, and nothing where the whole is 0."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def mean(histogram: str, by: str, window: str, where: str = "") -> str:
    """The mean of what was observed, and nothing where nothing was."""
    total = rate(f"{histogram}_sum", by, window, where)
    return f"{total} / ({rate(f'{histogram}_count', by, window, where)} > 0)"


def quantile(q: float, histogram: str, by: str, window: str, where: str = "") -> str:
    """A quantile of what was observed."""
    buckets = rate(f"{histogram}_bucket", f"{by}, le" if by else "le", window, where)
    return f"histogram_quantile({q:g}, {buckets})"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _braces(where: str) -> str:
    return f"{{{where}}}" if where else ""
