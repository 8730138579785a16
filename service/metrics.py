"""What is counted, by prometheus_client in each process. No prompt, user or key is ever a label.

`docs/metrics.md` lists every metric with its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.ports import FinishReason, SamplingPlan, Verdict
from service.router import Outcome

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SCORES = tuple(step / 20 for step in range(1, 21))
OUTCOMES = {"ok": "success", "moderation_blocked": "blocked", "cancelled": "cancelled"}
disable_created_metrics()  # type: ignore[no-untyped-call]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class IngressMetrics:
    """Requests, verdicts and images, as the ingress sees them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "winnow_requests",
            "Generation requests by how they ended; `code` is the error code or `ok`.",
            ["model", "policy", "outcome", "code"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "winnow_request_duration_seconds",
            "Time from a valid request to its response.",
            ["policy"],
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
            "Images that left; `checked` is false only under a policy without a judge.",
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
        checked = str(plan.judge is not None).lower()
        self._queue.labels(plan.policy).observe(outcome.queue_s)
        for image in outcome.images:
            if image.pixels is not None:
                self._delivered.labels(plan.policy, checked).inc()
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

    def request(self, model: str, policy: str, code: str, seconds: float) -> None:
        """Count one generation request that named a known model and policy."""
        outcome = OUTCOMES.get(code, "error")
        self._requests.labels(model, policy, outcome, code).inc()
        self._duration.labels(policy).observe(seconds)
        if code == "censor_unavailable":
            self._guard_errors.labels(policy).inc()


class BackboneMetrics:
    """The engine's ticks; implements `engine.Meter`."""

    def __init__(self, model: str, max_batch: int) -> None:
        self.registry = CollectorRegistry()
        nfe = Counter(
            "winnow_nfe",
            "Denoiser evaluations: a row at a timestep is one.",
            ["model", "kind"],
            registry=self.registry,
        )
        self._plain, self._guided = nfe.labels(model, "plain"), nfe.labels(model, "guided")
        self._gradient = nfe.labels(model, "gradient")
        self._occupancy = Histogram(
            "winnow_batch_occupancy",
            "Share of the slots in use at each tick.",
            ["model"],
            buckets=[step / 8 for step in range(1, 9)],
            registry=self.registry,
        ).labels(model)
        self._step = Histogram(
            "winnow_step_duration_seconds",
            "Duration of one tick of the engine.",
            ["model"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=self.registry,
        ).labels(model)
        self._slots = Gauge(
            "winnow_slots_running", "Slots in use.", ["model"], registry=self.registry
        ).labels(model)
        self._waiting = Gauge(
            "winnow_draws_waiting", "Draws without a slot.", ["model"], registry=self.registry
        ).labels(model)
        self._max_batch = max_batch

    def tick(self, rows: int, guided: int, extra_nfe: int, waiting: int, seconds: float) -> None:
        """Count one tick."""
        self._plain.inc(rows - guided)
        self._guided.inc(guided)
        self._gradient.inc(extra_nfe)
        self._occupancy.observe(rows / self._max_batch)
        self._step.observe(seconds)
        self.load(rows, waiting)

    def load(self, running: int, waiting: int) -> None:
        """Set the gauges; also called when the engine runs idle."""
        self._slots.set(running)
        self._waiting.set(waiting)


class JudgeMetrics:
    """The judge's forward passes."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.duration = Histogram(
            "winnow_judge_duration_seconds",
            "Duration of one batch of scores.",
            ["model"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
            registry=self.registry,
        ).labels(model)


def short(sha256: str | None) -> str:
    """A hash as a label: its first 12 digits, or `none`."""
    return sha256.removeprefix("sha256:")[:12] if sha256 else "none"


def render(registry: CollectorRegistry) -> str:
    """One process's metrics as Prometheus text."""
    return generate_latest(registry).decode()


def merge(texts: Iterable[tuple[str, str]]) -> str:
    """Metrics of many replicas as one page: (replica, text) pairs, with a `replica` label.

    For a laptop's single `/metrics`; production scrapes each replica by itself.
    """
    families: dict[str, Metric] = {}
    for replica, text in texts:
        for family in text_string_to_metric_families(text):
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                into.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return render(registry)


class _Families:
    """A collector of families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families
