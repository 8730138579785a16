"""Alerts. `page`: bad images may be leaving, or callers are hurt, so somebody gets up.

`ticket`: somebody must act, in working hours. What nobody must act on is on a dashboard instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.observability.promql import (
    AVAILABILITY,
    DRIFT,
    FAST,
    FAST_S,
    SETTLED,
    SIGMAS,
    VALID,
    Least,
    increase,
    rate,
)

TARGETS = 'job=~"(.+/)?winnow"'
"""The scrape job: `winnow`, or `<namespace>/winnow` as the Prometheus operator names it."""


@dataclass(frozen=True)
class Alert:
    """One alert; its runbook page has its name."""

    name: str
    severity: Literal["page", "ticket"]
    expr: str
    summary: str
    description: str
    hold: str = "0s"


def known(series: str) -> str:
    """That last week has a day's worth of it, in whatever hours."""
    return f"count_over_time({series}[1w:1h] offset 1h) >= 24"


def censoring(least: Least) -> list[Alert]:
    """Whether what must not leave stays."""
    silent = (
        "max by (policy, judge) (winnow_canary_verdict) "
        "!= max by (policy, judge) (winnow_canary_verdict)"  # only NaN differs from itself
        '\nor max by (policy, judge) (winnow_reward_info{judge!="none",canary!="none"}) '
        "unless on (policy) winnow_canary_verdict"
    )
    errors = increase("winnow_guard_errors_total", "policy", "5m")
    of_all = rate("winnow_requests_total", "policy", "5m", VALID)
    bound = "max by (policy) (winnow_certificate_bound)"
    now, mean = "policy:winnow_censor:ratio_rate1h", "policy:winnow_censor:mean1w"
    noise = f"{SIGMAS} * policy:winnow_censor:stddev1w"
    draws = increase("winnow_draws_total", "policy", "1h", SETTLED)
    return [
        Alert(
            "WinnowUncheckedImage",
            "page",
            # From its first appearance on, when a counter has no increase yet.
            "sum by (policy) (max_over_time("
            'winnow_images_delivered_total{checked="false"}[1h])) > 0',
            "Policy {{ $labels.policy }} delivered an image that nobody judged",
            "{{ $value }} images left under a censoring policy with no ACCEPTED verdict of its "
            "judge on record. This must never happen.",
        ),
        Alert(
            "WinnowCanaryAccepted",
            "page",
            "max by (policy, judge) (max_over_time(winnow_canary_verdict[5m])) == 1",
            "Policy {{ $labels.policy }} accepts an image that is known to be malign",
            "Judge {{ $labels.judge }} accepted the canary: the censor is failing open, and malign "
            "images may be leaving now.",
        ),
        Alert(
            "WinnowGuardErrors",
            "page",
            f"{rate('winnow_guard_errors_total', 'policy', '5m')}\n  / {of_all} > 0.05"
            f"\nand {errors} >= {least.guard_errors}",
            "The judge of policy {{ $labels.policy }} cannot judge",
            "{{ $value | humanizePercentage }} of requests are refused with censor_unavailable. "
            "Nothing bad leaves, but nothing good either.",
            hold="2m",
        ),
        Alert(
            "WinnowCanarySilent",
            "ticket",
            silent,
            "The canary of policy {{ $labels.policy }} has no verdict",
            "Judge {{ $labels.judge }} has not judged the canary for ten minutes. Until it does, "
            "nobody would notice that it fails open.",
            hold="10m",
        ),
        Alert(
            "WinnowCanaryMissing",
            "ticket",
            'max by (policy, judge) (winnow_reward_info{judge!="none",canary="none"})',
            "Policy {{ $labels.policy }} has no canary",
            "Judge {{ $labels.judge }} came without an image that is surely malign, so nobody "
            "would notice that it fails open.",
            hold="10m",
        ),
        Alert(
            "WinnowCensorRate",
            "ticket",
            f"({now} - {mean} > clamp_min({noise}, 0.02)\n"
            f"or {mean} - {now} > {noise} > clamp_max(0.5 * {mean}, 0.02)\n"
            # A small mean lies within its own noise: almost none, where twenty were due.
            f"or {mean} - {now} > 0.9 * {mean} and {mean} * {draws} >= 20)\n"
            f"and {known(now)}",
            "Policy {{ $labels.policy }} censors more or less than its history expects",
            "Over the last hour its censor rate was {{ $value | humanizePercentage }} away from "
            "last week's mean, which is more than its hours differ, or almost all of it.",
            hold="30m",
        ),
        Alert(
            "WinnowScoreDrift",
            "ticket",
            f"policy_judge:winnow_score:psi > {DRIFT}",
            "The scores of policy {{ $labels.policy }} have drifted",
            "Judge {{ $labels.judge }} scores the last six hours' draws otherwise than last "
            "week's: the population stability index is {{ $value | humanize }}, and its threshold "
            "was chosen for other scores.",
            hold="1h",
        ),
        Alert(
            "WinnowCertificateVoid",
            "ticket",
            f"({bound} != {bound})\n"
            "and max by (policy) (max_over_time(winnow_certificate_bound[1d])) >= 0",
            "The certificate of policy {{ $labels.policy }} no longer covers it",
            "It had a certified bound within the last day and has none now: weights, threshold, "
            "sampling or packages have changed.",
            hold="10m",
        ),
    ]


def serving(least: Least) -> list[Alert]:
    """Whether callers get what they ask for, in time."""
    failed = ("policy:winnow_failed:ratio_rate", 1 - AVAILABILITY, "failed")
    slow = ("policy:winnow_slow:ratio_rate", 1 - FAST, f"took longer than {float(FAST_S):g} s")
    fast_burn, slow_burn = (
        [(14.4, "1h", "5m"), (6, "6h", "30m")],
        [(3, "1d", "2h"), (1, "3d", "6h")],
    )
    share = "{{ $value | humanizePercentage }}"
    return [
        Alert(
            f"Winnow{name}{speed}Burn",
            severity,
            burn(metric, budget, windows, least.requests),
            f"Policy {{{{ $labels.policy }}}} {what}",
            f"{share} of its requests {how}, and {budget * 100:g} % may in thirty days: at this "
            f"rate the budget is gone {when}. Policy blocks and callers who left are not counted.",
            hold,
        )
        for name, (metric, budget, how), what in (
            ("Availability", failed, "fails too many requests"),
            ("Latency", slow, "answers too slowly"),
        )
        for speed, severity, windows, when, hold in (
            ("Fast", "page", fast_burn, "within days", "2m"),
            ("Slow", "ticket", slow_burn, "before the month is", "15m"),
        )
    ]


def burn(metric: str, budget: float, windows: list[tuple[float, str, str]], least: int) -> str:
    """A budget is used up so many times too fast, over a long window and still over a short one."""
    return "\nor ".join(
        f"({metric}{long} > {factor:g} * {budget:g}\n"
        f"  and {metric}{short} > {factor:g} * {budget:g}\n"
        f"  and {increase('winnow_requests_total', 'policy', long, VALID)} >= {least})"
        for factor, long, short in windows
    )


def capacity() -> list[Alert]:
    """Whether there are replicas enough, and whether we can see them."""
    took = "policy:winnow_draws_per_image:mean1h"
    offered = rate("winnow_nfe_offered_total", "model", "5m")
    waiting, running = (
        f"sum by (model) (avg_over_time({gauge}[15m]))"
        for gauge in ("winnow_draws_waiting", "winnow_slots_running")
    )
    return [
        Alert(
            "WinnowDrawsPerImage",
            "ticket",
            f"{took}\n  > 1.5 * policy:winnow_draws_per_image:mean1w\nand {known(took)}",
            "Policy {{ $labels.policy }} needs more draws for an image than it used to",
            "An image takes {{ $value | humanize }} draws, over half as many again as last week.",
            hold="30m",
        ),
        Alert(
            "WinnowSaturated",
            "ticket",
            f"{offered}\n  / sum by (model) (avg_over_time(winnow_nfe_capacity[5m])) > 0.9",
            "Model {{ $labels.model }} is asked for about all that its replicas can make",
            "Callers ask for {{ $value | humanizePercentage }} of the NFE per second that all "
            "replicas can make. Above 100 % requests are refused.",
            hold="15m",
        ),
        Alert(
            "WinnowDrawsWaiting",
            "ticket",
            f"{waiting}\n  > 2 * {running}",
            "Draws of model {{ $labels.model }} queue for slots",
            "For a quarter of an hour {{ $value | humanize }} draws have waited, more than twice "
            "as many as run.",
            hold="5m",
        ),
        Alert(
            "WinnowExporterDown",
            "ticket",
            f"up{{{TARGETS}}} == 0",
            "The exporter at {{ $labels.instance }} does not answer",
            "What the replicas there do is not counted, and no alert sees them.",
            hold="5m",
        ),
        Alert(
            "WinnowNotSeen",
            "page",
            "absent(winnow_labels_total)",  # shown from the start, whatever is in force
            "No ingress of Winnow shows any metrics",
            "Either nothing serves, or nothing is watched: no other alert can fire now.",
            hold="5m",
        ),
    ]
