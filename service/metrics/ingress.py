"""Requests, verdicts and images, as an ingress counts them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.policy import Policy
from service.ports import FinishReason, SamplingPlan, Verdict
from service.router import ImageOutcome, Outcome

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SCORES = tuple(step / 20 for step in range(1, 21))
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
"""Who ended a request before it was done, by the code that it ended with."""
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


class IngressMetrics:
    """Requests, verdicts and images, as the ingress sees them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # The first that a scrape asks: it makes the counters of what is in force begin at 0.
        self._in_force = _InForce()
        self.registry.register(self._in_force)
        self._canaries = _Canaries()
        self.registry.register(self._canaries)
        self._requests = Counter(
            "winnow_requests",
            "Generation requests by how they ended; `code` is the error code or `ok`.",
            ["model", "policy", "outcome", "code"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "winnow_request_duration_seconds",
            "Time from a valid request to its response, or to its end.",
            ["policy", "outcome"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queue = Histogram(
            "winnow_queue_duration_seconds",
            "Time that a request's draws waited for slots.",
            ["policy"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._draws = Counter(
            "winnow_draws",
            "Draws by verdict. Censor rate: (rejected + abandoned) / (those + accepted).",
            ["policy", "judge", "verdict"],
            registry=self.registry,
        )
        self._delivered = Counter(
            "winnow_images_delivered",
            "Images that left; `checked`: true, no_judge where there is none, and never false.",
            ["policy", "checked"],
            registry=self.registry,
        )
        self._censored = Counter(
            "winnow_images_censored",
            "Entries returned as filtered instead of an image.",
            ["policy", "judge", "reason"],
            registry=self.registry,
        )
        self._draws_per_image = Histogram(
            "winnow_draws_per_image",
            "Draws that a settled entry took.",
            ["policy"],
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
            registry=self.registry,
        )
        self._scores = Histogram(
            "winnow_reward_score",
            "The judge's score of each judged draw.",
            ["policy", "judge"],
            buckets=SCORES,
            registry=self.registry,
        )
        self._guard_errors = Counter(
            "winnow_guard_errors",
            "Requests refused because the judge could not judge.",
            ["policy"],
            registry=self.registry,
        )
        self._shadow_draws = Counter(
            "winnow_shadow_draws",
            "Judged draws that a shadow scored too, by its verdict and by the one that counted.",
            ["policy", "judge", "verdict", "live_verdict"],
            registry=self.registry,
        )
        self._shadow_scores = Histogram(
            "winnow_shadow_score",
            "The shadow's score of each draw that it scored.",
            ["policy", "judge"],
            buckets=SCORES,
            registry=self.registry,
        )
        self._shadow_dropped = Counter(
            "winnow_shadow_dropped",
            "Draws that the shadow did not score: it was behind, or its judge failed.",
            ["policy"],
            registry=self.registry,
        )
        self._cancelled = Counter(
            "winnow_cancelled",
            "Requests that ended before they were done: disconnect, deadline or switched_off.",
            ["policy", "source"],
            registry=self.registry,
        )
        self._labels = Counter(
            "winnow_labels",
            "Labels that people gave.",
            ["label"],
            registry=self.registry,
        )
        for label in ("benign", "malign", "unsure"):
            self._labels.labels(label)
        for label in ("benign", "malign", "unsure"):
            self._labels.labels(label)
        self._certificate_bound = Gauge(
            "winnow_certificate_bound",
            "The certified bound on the malign rate of what a policy delivers; NaN without one.",
            ["policy"],
            registry=self.registry,
        )

    def draw(self, plan: SamplingPlan, verdict: Verdict, score: float | None) -> None:
        """Count one verdict; the router calls it as verdicts fall."""
        judge = short(plan.judge)
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
                self._censored.labels(plan.policy, short(plan.judge), "judge").inc()
            if image.draws:
                self._draws_per_image.labels(plan.policy).observe(image.draws)

    def shadow(
        self, policy: str, judge: str, score: float, verdict: Verdict, live_verdict: Verdict
    ) -> None:
        """Count what a shadow says of a draw, beside what was decided."""
        judge = short(judge)
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
        """Set how the canary of each policy fared, by policy and judge; others are forgotten."""
        self._canaries.looked = time.monotonic(), dict(verdicts)

    def labels(self, labels: Iterable[str]) -> None:
        """Count labels: each is benign, malign or unsure."""
        for label in labels:
            self._labels.labels(label).inc()

    def watch(self, policies: Callable[[], Mapping[str, Policy]]) -> None:
        """Whom to ask, at each scrape, which policies are in force."""

        def begun() -> Mapping[str, Policy]:
            found = policies()
            for name, policy in found.items():
                self._begin(name, policy)
            return found

        self._in_force.policies = begun

    def _begin(self, name: str, policy: Policy) -> None:
        """Counters begin at 0: one that is born at 1 shows no increase, and its event to nobody."""
        judge = short(policy.judge)
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

    def request(
        self, model: str, policy: str, code: str, seconds: float, hurried: bool = False
    ) -> None:
        """Count one generation request that named a known policy.

        A `hurried` one gave less time than the default: that it was late is no fault of ours.
        """
        outcome = OUTCOMES.get(code, "error")
        if hurried and code in LATE:
            outcome = "hurried"
        self._requests.labels(model, policy, outcome, code).inc()
        self._duration.labels(policy, outcome).observe(seconds)
        if code == "censor_unavailable":
            self._guard_errors.labels(policy).inc()
        if code in CANCELLED_BY:
            self._cancelled.labels(policy, CANCELLED_BY[code]).inc()


class _Canaries(Collector):
    """What the canaries last said. What nobody has looked at for long is no verdict."""

    def __init__(self) -> None:
        self.looked: tuple[float, dict[tuple[str, str], Verdict | None]] = time.monotonic(), {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family."""
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
    """What is in force, as it is at the moment of the scrape."""

    def __init__(self) -> None:
        self.policies: Callable[[], Mapping[str, Policy]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family."""
        info = GaugeMetricFamily(
            "winnow_reward_info",
            "1 for each policy in force, with its version, judge and trained reward.",
            labels=["policy", "version", "judge", "reward"],
        )
        for name, policy in self.policies().items():
            info.add_metric(
                [name, str(policy.version), short(policy.judge), policy.reward or "bundle"], 1
            )
        yield info


def _checked(plan: SamplingPlan, image: ImageOutcome) -> str:
    """From the record of the image alone, so that it would show what went wrong elsewhere."""
    if plan.judge is None:
        return "no_judge"
    if image.score is None or plan.threshold is None:
        return "false"
    return str(image.score >= plan.threshold).lower()


def short(sha256: str | None) -> str:
    """A hash as a label: its first 12 digits, or `none`."""
    return sha256.removeprefix("sha256:")[:12] if sha256 else "none"
