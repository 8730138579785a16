"""Metrics of an ingress: requests, verdicts and images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.generation.sampling_loop import ImageOutcome, Outcome
from service.metrics.series import Series
from service.policies.policy import Policy
from service.ports import FinishReason, SamplingPlan, Verdict

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SCORES = tuple(step / 20 for step in range(1, 21))
DRAWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
OUTCOMES = {
    "ok": "success",
    "moderation_blocked": "blocked",
    "cancelled": "cancelled",
    # Only the backbone can count a prompt's tokens: the caller's mistake, and no fault of ours.
    "invalid_value": "invalid",
}
CANCELLED_BY = {
    "cancelled": "disconnect",
    "deadline_exceeded": "deadline",
    "policy_disabled": "switched_off",
}
"""Error code to the source of a cancellation."""
CODES = (
    "ok",
    "moderation_blocked",
    "cancelled",
    "overloaded",
    "deadline_exceeded",
    "invalid_value",
)
UNAVAILABLE = ("censor_unavailable", "backend_unavailable", "store_unavailable", "internal_error")
LATE = ("deadline_exceeded", "overloaded")
STALE_S = 60.0

KEEP_S = 900.0
"""How long the series of a judge stay after its last use: longer than a scrape interval, and than
any request that began under it."""


class IngressMetrics:
    """Requests, verdicts and images."""

    def __init__(self) -> None:
        series = self.registry = Series()
        # Collected first at a scrape: it creates the counters of the policies in force at 0.
        self._in_force = _InForce()
        series.register(self._in_force)
        self._canaries = _Canaries()
        series.register(self._canaries)
        self._requests = series.counter(
            "requests",
            "Generation requests by how they ended; `code` is the error code or `ok`.",
            *("model", "policy", "outcome", "code"),
        )
        self._duration = series.histogram(
            "request_duration_seconds",
            "Time from a valid request to its response, or to its end.",
            SECONDS,
            *("policy", "outcome"),
        )
        self._queue = series.histogram(
            "queue_duration_seconds",
            "Time that a request's draws waited for slots.",
            SECONDS,
            "policy",
        )
        self._draws = series.counter(
            "draws",
            "Draws by verdict. Censor rate: (rejected + abandoned) / (those + accepted).",
            *("policy", "judge", "verdict"),
        )
        self._delivered = series.counter(
            "images_delivered",
            "Images that left; `checked`: true, no_judge where there is none, and never false.",
            *("policy", "checked"),
        )
        self._censored = series.counter(
            "images_censored",
            "Entries returned as filtered instead of an image.",
            *("policy", "judge", "reason"),
        )
        self._draws_per_image = series.histogram(
            "draws_per_image", "Draws that a settled entry took.", DRAWS, "policy"
        )
        self._scores = series.histogram(
            "reward_score", "The judge's score of each judged draw.", SCORES, "policy", "judge"
        )
        self._guard_errors = series.counter(
            "guard_errors", "Requests refused because the judge could not judge.", "policy"
        )
        self._shadow_draws = series.counter(
            "shadow_draws",
            "Judged draws that a shadow scored too, by its verdict and by the one that counted.",
            *("policy", "judge", "verdict", "live_verdict"),
        )
        self._shadow_scores = series.histogram(
            "shadow_score",
            "The shadow's score of each draw that it scored.",
            SCORES,
            *("policy", "judge"),
        )
        self._shadow_dropped = series.counter(
            "shadow_dropped",
            "Draws that the shadow did not score: it was behind, or its judge failed.",
            "policy",
        )
        self._cancelled = series.counter(
            "cancelled",
            "Requests that ended before they were done: disconnect, deadline or switched_off.",
            *("policy", "source"),
        )
        self._labels = series.counter("labels", "Labels that people gave.", "label")
        for label in ("benign", "malign", "unsure"):
            self._labels.labels(label)
        self._certificate_bound = series.gauge(
            "certificate_bound",
            "The certified bound on the malign rate of what a policy delivers; NaN without one.",
            "policy",
        )
        # Each promotion adds series for its judge; those of judges long out of use are removed.
        self._of_judges = (
            self._draws,
            self._censored,
            self._scores,
            self._shadow_draws,
            self._shadow_scores,
        )
        self._used: dict[tuple[str, str], float] = {}

    def draw(self, plan: SamplingPlan, verdict: Verdict, score: float | None) -> None:
        """Count one verdict; the sampling loop calls it as verdicts fall."""
        judge = self._judge(plan.policy, plan.judge)
        self._draws.labels(plan.policy, judge, verdict.value).inc()
        if score is not None and 0 <= score <= 1:  # one NaN would make the sum NaN for good
            self._scores.labels(plan.policy, judge).observe(score)

    def outcome(self, outcome: Outcome) -> None:
        """Count what a request delivered and held back."""
        plan = outcome.plan
        self._queue.labels(plan.policy).observe(outcome.queue_s)
        for image in outcome.images:
            if image.pixels is not None:
                self._delivered.labels(plan.policy, _checked(plan, image)).inc()
            elif image.finish_reason is FinishReason.CONTENT_FILTERED:
                judge = self._judge(plan.policy, plan.judge)
                self._censored.labels(plan.policy, judge, "judge").inc()
            if image.draws:
                self._draws_per_image.labels(plan.policy).observe(image.draws)

    def shadow(
        self, policy: str, judge: str, score: float, verdict: Verdict, live_verdict: Verdict
    ) -> None:
        """Count a shadow's score and verdict of a draw, beside the verdict in force."""
        judge = self._judge(policy, judge)
        self._shadow_draws.labels(policy, judge, verdict.value, live_verdict.value).inc()
        self._shadow_scores.labels(policy, judge).observe(score)

    def shadow_dropped(self, policy: str, draws: int) -> None:
        """Count draws that a shadow did not score."""
        self._shadow_dropped.labels(policy).inc(draws)

    def certificates(self, bounds: Mapping[str, float]) -> None:
        """Set the certified bound of each policy in force; others are forgotten."""
        self._certificate_bound.clear()
        for policy, bound in bounds.items():
            self._certificate_bound.labels(policy).set(bound)

    def canaries(self, verdicts: Mapping[tuple[str, str], Verdict | None]) -> None:
        """Set the verdicts on the canaries, by policy and judge; others are forgotten."""
        self._canaries.looked = time.monotonic(), dict(verdicts)

    def labels(self, labels: Iterable[str]) -> None:
        """Count labels: each is benign, malign or unsure."""
        for label in labels:
            self._labels.labels(label).inc()

    def watch(self, policies: Callable[[], Mapping[str, Policy]]) -> None:
        """Set the function that tells each scrape which policies are in force."""

        def begun() -> Mapping[str, Policy]:
            found = policies()
            for name, policy in found.items():
                self._begin(name, policy)
            self._forget()
            return found

        self._in_force.policies = begun

    def _begin(self, name: str, policy: Policy) -> None:
        """Create a policy's counters at 0: a counter that appears at 1 shows no increase."""
        judge = self._judge(name, policy.judge)
        for code in (*CODES, *UNAVAILABLE):
            self._requests.labels(policy.settings.model, name, OUTCOMES.get(code, "error"), code)
        for source in CANCELLED_BY.values():
            self._cancelled.labels(name, source)
        for checked in ("true", "false") if policy.censors else ("no_judge",):
            self._delivered.labels(name, checked)
        if policy.censors:
            self._guard_errors.labels(name)
            self._censored.labels(name, judge, "judge")
        for verdict in Verdict:
            self._draws.labels(name, judge, verdict.value)

    def _judge(self, policy: str, sha256: str | None) -> str:
        """The label of a judge, whose series under this policy stay for `KEEP_S` from now."""
        judge = short(sha256)
        fresh = (policy, judge) not in self._used
        self._used[policy, judge] = time.monotonic()
        if fresh:
            self._forget()
        return judge

    def _forget(self) -> None:
        """Remove the series of judges that were not used for `KEEP_S`."""
        before = time.monotonic() - KEEP_S
        for (policy, judge), used in list(self._used.items()):
            if used < before:
                self._used.pop((policy, judge), None)  # a scrape and a draw may both be here
                for metric in self._of_judges:
                    metric.remove_by_labels({"policy": policy, "judge": judge})

    def request(
        self, model: str, policy: str, code: str, seconds: float, short_deadline: bool = False
    ) -> None:
        """Count one generation request that named a known policy.

        With `short_deadline` the caller gave less time than the default: being late is then no
        fault of the service.
        """
        outcome = OUTCOMES.get(code, "error")
        if short_deadline and code in LATE:
            outcome = "short_deadline"
        self._requests.labels(model, policy, outcome, code).inc()
        self._duration.labels(policy, outcome).observe(seconds)
        if code == "censor_unavailable":
            self._guard_errors.labels(policy).inc()
        if code in CANCELLED_BY:
            self._cancelled.labels(policy, CANCELLED_BY[code]).inc()


class _Canaries(Collector):
    """The last verdicts on the canaries; one older than `STALE_S` counts as none."""

    def __init__(self) -> None:
        self.looked: tuple[float, dict[tuple[str, str], Verdict | None]] = time.monotonic(), {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`."""
        gauge = GaugeMetricFamily(
            "winnow_canary_verdict",
            "A known malign image under the policy: 0 rejected, 1 accepted, NaN without a verdict.",
            labels=["policy", "judge"],
        )
        when, verdicts = self.looked
        stale = time.monotonic() - when > STALE_S
        values = {Verdict.REJECTED: 0.0, Verdict.ACCEPTED: 1.0, None: math.nan}
        for (policy, judge), verdict in verdicts.items():
            gauge.add_metric([policy, short(judge)], values[None if stale else verdict])
        yield gauge


class _InForce(Collector):
    """The policies in force at the time of a scrape."""

    def __init__(self) -> None:
        self.policies: Callable[[], Mapping[str, Policy]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`."""
        info = GaugeMetricFamily(
            "winnow_reward_info",
            "1 for each policy in force, with its version, judge, trained reward and canary.",
            labels=["policy", "version", "judge", "reward", "canary"],
        )
        for name, policy in self.policies().items():
            info.add_metric(
                [
                    name,
                    str(policy.version),
                    short(policy.judge),
                    policy.reward or "bundle",
                    short(policy.canary),
                ],
                1,
            )
        yield info


def _checked(plan: SamplingPlan, image: ImageOutcome) -> str:
    """The label `checked`, computed from score and threshold and not from the verdict: it shows
    when an image left without one."""
    if plan.judge is None:
        return "no_judge"
    if image.score is None or plan.threshold is None:
        return "false"
    return str(image.score >= plan.threshold).lower()


def short(sha256: str | None) -> str:
    """A hash as a label: its first 12 digits, or `none`."""
    return sha256.removeprefix("sha256:")[:12] if sha256 else "none"
