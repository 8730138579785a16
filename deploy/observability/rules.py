"""Recording rules: what alerts and dashboards need of a long time, computed as it passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from deploy.observability.promql import (
    CENSORED,
    FAILED,
    FAST_S,
    SETTLED,
    VALID,
    Least,
    increase,
    rate,
    share,
)

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
"""Over which the use of an error budget is watched."""

BINS = tuple(step / 10 for step in range(1, 11))
"""Upper edges of the bins of scores that are compared with last week's."""


@dataclass(frozen=True)
class Record:
    """A recording rule; its name says level, metric and operation."""

    name: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)


def budgets() -> list[Record]:
    """The shares of requests that failed, and that were slow, by policy."""
    failed, slow = [], []
    for window in WINDOWS:
        of = rate("winnow_requests_total", "policy", window, VALID)
        failures = rate("winnow_requests_total", "policy", window, FAILED)
        duration = "winnow_request_duration_seconds"
        fast = rate(f"{duration}_bucket", "policy", window, f'outcome="success",le="{FAST_S}"')
        all_ = rate(f"{duration}_count", "policy", window, 'outcome="success"')
        failed.append(Record(f"policy:winnow_failed:ratio_rate{window}", share(failures, of)))
        slow.append(Record(f"policy:winnow_slow:ratio_rate{window}", f"1 - {fast} / ({all_} > 0)"))
    return failed + slow


def history(least: Least) -> list[Record]:
    """Each policy's censor rate and draws per image in an hour, and what a week expects of them."""
    draws = increase("winnow_draws_total", "policy", "1h", SETTLED)
    censored = increase("winnow_draws_total", "policy", "1h", CENSORED)
    rate_ = "policy:winnow_censor:ratio_rate1h"
    took = "policy:winnow_draws_per_image:mean1h"
    made = increase("winnow_draws_per_image_sum", "policy", "1h")
    images = increase("winnow_draws_per_image_count", "policy", "1h")
    return [
        Record(rate_, f"({censored} or 0 * {draws}) / ({draws} >= {least.draws})"),
        Record("policy:winnow_censor:mean1w", f"avg_over_time({rate_}[1w] offset 1h)"),
        Record("policy:winnow_censor:stddev1w", f"stddev_over_time({rate_}[1w] offset 1h)"),
        Record(took, f"{made} / ({images} >= {least.images})"),
        Record("policy:winnow_draws_per_image:mean1w", f"avg_over_time({took}[1w] offset 1h)"),
    ]


def drift(least: Least) -> list[Record]:
    """The population stability index of each judge's scores: six hours against the week before.

    Σ (p − q) ln(p / q) over bins of a tenth, of which p is the share now and q the share then.
    """
    by, bucket, bin_ = "policy, judge", "winnow_reward_score_bucket", "policy_judge:winnow_score"
    scores = increase(bucket, by, "6h", 'le="+Inf"')
    records = []
    for low, high in zip((0.0, *BINS), BINS, strict=False):
        within = increase(bucket, by, "6h", f'le="{high}"')
        if low:
            below = increase(bucket, by, "6h", f'le="{low}"')
            within = f"({within} - {below})"
        expr = f"{within} / ({scores} >= {least.scores})"
        records.append(Record(f"{bin_}:share6h", expr, {"bin": f"{high}"}))
    now = f"clamp_min({bin_}:share6h, 0.0001)"
    then = f"clamp_min(avg_over_time({bin_}:share6h[1w] offset 1d), 0.0001)"
    psi = f"sum by ({by}) (({now} - {then}) * ln({now} / {then}))"
    return [*records, Record(f"{bin_}:psi", psi)]
