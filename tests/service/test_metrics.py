from __future__ import annotations

import numpy as np

from service.metrics import BackboneMetrics, IngressMetrics, JudgeMetrics, merge, render
from service.ports import FinishReason, Verdict
from service.router import ImageOutcome, Outcome
from tests.metrics import parse, value
from tests.plans import FREE, JUDGED


def test_verdicts_and_outcomes_are_counted() -> None:
    metrics = IngressMetrics()
    for verdict, score in [(Verdict.REJECTED, 0.1), (Verdict.ACCEPTED, 0.9)]:
        metrics.draw(JUDGED, verdict, score)
    metrics.draw(JUDGED, Verdict.CANCELLED, float("nan"))
    pixels = np.zeros((1, 1, 1), np.uint8)
    delivered = ImageOutcome(0, 40, FinishReason.SUCCESS, draws=2, pixels=pixels)
    blocked = ImageOutcome(1, 41, FinishReason.CONTENT_FILTERED, draws=4)
    metrics.outcome(Outcome(JUDGED, [delivered, blocked]))
    metrics.outcome(Outcome(FREE, [ImageOutcome(0, 1, FinishReason.SUCCESS, 1, pixels)]))
    metrics.request("tiny", "bright", "ok", 0.2)
    metrics.request("tiny", "bright", "moderation_blocked", 0.2)
    metrics.request("tiny", "bright", "censor_unavailable", 0.2)
    found = parse(render(metrics.registry))
    assert value(found, "winnow_draws_total", policy="bright", verdict="rejected") == 1
    assert value(found, "winnow_draws_total", policy="bright", verdict="cancelled") == 1
    assert value(found, "winnow_reward_score_count", policy="bright") == 2
    assert value(found, "winnow_reward_score_sum", policy="bright") == 1.0
    assert value(found, "winnow_images_delivered_total", policy="bright", checked="true") == 1
    assert value(found, "winnow_images_delivered_total", policy="none", checked="false") == 1
    assert value(found, "winnow_images_censored_total", policy="bright") == 1
    # A block is an answer: it must not count among errors.
    assert value(found, "winnow_requests_total", outcome="error") == 1
    assert value(found, "winnow_requests_total", outcome="blocked", code="moderation_blocked") == 1
    assert value(found, "winnow_guard_errors_total", policy="bright") == 1


def test_one_page_keeps_every_replicas_own_numbers() -> None:
    replicas = [BackboneMetrics("tiny", max_batch=8) for _ in range(2)]
    for count, replica in enumerate(replicas, start=1):
        for _ in range(count):
            replica.tick(rows=4, guided=1, extra_nfe=3, waiting=2, seconds=0.01)
    pages = [(f"backbone-{i}", render(replica.registry)) for i, replica in enumerate(replicas)]
    judge = JudgeMetrics("tiny")
    judge.duration.observe(0.002)
    found = parse(merge([*pages, ("judge-0", render(judge.registry))]))
    assert value(found, "winnow_nfe_total", replica="backbone-0", kind="plain") == 3
    assert value(found, "winnow_nfe_total", replica="backbone-1", kind="guided") == 2
    assert value(found, "winnow_nfe_total", kind="gradient") == 9
    assert value(found, "winnow_nfe_total") == 21
    assert value(found, "winnow_slots_running", replica="backbone-1") == 4
    assert value(found, "winnow_batch_occupancy_bucket", replica="backbone-0", le="0.5") == 1
    assert value(found, "winnow_judge_duration_seconds_count", replica="judge-0") == 1
