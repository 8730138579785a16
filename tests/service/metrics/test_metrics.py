from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from service.config import Settings
from service.generation.sampling_loop import ImageOutcome, Outcome
from service.metrics import ingress
from service.metrics.backbone import BackboneMetrics
from service.metrics.exposition import merge, render
from service.metrics.ingress import IngressMetrics
from service.metrics.judge import JudgeMetrics
from service.policies.seeding import configured_policies
from service.ports import FinishReason, Verdict
from tests.bundles import settings, write_bundle
from tests.metrics import parse, value
from tests.plans import FREE, JUDGED


def test_verdicts_and_outcomes_are_counted() -> None:
    metrics = IngressMetrics()
    for verdict, score in [(Verdict.REJECTED, 0.1), (Verdict.ACCEPTED, 0.9)]:
        metrics.draw(JUDGED, verdict, score)
    metrics.draw(JUDGED, Verdict.CANCELLED, float("nan"))
    pixels = np.zeros((1, 1, 1), np.uint8)
    delivered = ImageOutcome(0, 40, FinishReason.SUCCESS, draws=2, pixels=pixels, score=0.9)
    blocked = ImageOutcome(1, 41, FinishReason.CONTENT_FILTERED, draws=4)
    metrics.outcome(Outcome(JUDGED, [delivered, blocked]))
    metrics.outcome(Outcome(FREE, [ImageOutcome(0, 1, FinishReason.SUCCESS, 1, pixels)]))
    metrics.request("tiny", "bright", "ok", 0.2)
    metrics.request("tiny", "bright", "moderation_blocked", 0.2)
    metrics.request("tiny", "bright", "censor_unavailable", 0.2)
    for code in ("cancelled", "deadline_exceeded", "policy_disabled"):
        metrics.request("tiny", "bright", code, 0.2)
    metrics.labels(["malign", "benign", "benign"])
    found = parse(render(metrics.registry))
    assert value(found, "winnow_draws_total", policy="bright", verdict="rejected") == 1
    assert value(found, "winnow_draws_total", policy="bright", verdict="cancelled") == 1
    assert value(found, "winnow_reward_score_count", policy="bright") == 2
    assert value(found, "winnow_reward_score_sum", policy="bright") == 1.0
    assert value(found, "winnow_images_delivered_total", policy="bright", checked="true") == 1
    assert value(found, "winnow_images_delivered_total", policy="none", checked="no_judge") == 1
    assert value(found, "winnow_images_censored_total", policy="bright") == 1
    # A block is an answer: it must not count among errors.
    assert value(found, "winnow_requests_total", code="censor_unavailable", outcome="error") == 1
    assert value(found, "winnow_requests_total", outcome="blocked", code="moderation_blocked") == 1
    assert value(found, "winnow_guard_errors_total", policy="bright") == 1
    for source in ("disconnect", "deadline", "switched_off"):
        assert value(found, "winnow_cancelled_total", policy="bright", source=source) == 1
    assert value(found, "winnow_labels_total", label="benign") == 2


@pytest.mark.parametrize("score", [None, 0.2])
def test_an_image_that_left_without_a_verdict_shows(score: float | None) -> None:
    """It cannot happen; were it to, the alert on it must not rely on what went wrong."""
    metrics = IngressMetrics()
    pixels = np.zeros((1, 1, 1), np.uint8)
    image = ImageOutcome(0, 40, FinishReason.SUCCESS, draws=1, pixels=pixels, score=score)
    metrics.outcome(Outcome(JUDGED, [image]))
    found = parse(render(metrics.registry))
    assert value(found, "winnow_images_delivered_total", policy="bright", checked="false") == 1


def test_counters_of_what_is_in_force_begin_at_zero(bundle: Bundle) -> None:
    """Born at 1, a counter shows no increase, and an alert would miss its first event."""
    file = Settings.model_validate(settings(str(bundle.folder)))
    metrics = IngressMetrics()
    metrics.watch(lambda: configured_policies(file, {"tiny": bundle}))
    render(metrics.registry)
    found = parse(render(metrics.registry))
    named = {(name, dict(labels).get("policy")) for name, labels in found}
    for name in ("guard_errors", "images_censored", "cancelled", "requests", "draws"):
        assert (f"winnow_{name}_total", "bright") in named
        assert value(found, f"winnow_{name}_total") == 0
    unchecked = {"policy": "bright", "checked": "false"}.items()
    assert ("winnow_images_delivered_total", frozenset(unchecked)) in found
    free = {"policy": "none", "checked": "false"}.items()
    assert ("winnow_images_delivered_total", frozenset(free)) not in found


def test_many_promotions_leave_no_series_behind(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do shadows; and what is in force keeps its counters, however rarely it is used."""
    file = Settings.model_validate(settings(str(bundle.folder)))
    policies = configured_policies(file, {"tiny": bundle})
    metrics, now = IngressMetrics(), [0.0]
    monkeypatch.setattr(ingress.time, "monotonic", lambda: now[0])
    metrics.watch(lambda: policies)
    metrics.draw(JUDGED, Verdict.ACCEPTED, 0.9)
    sizes: list[int] = []
    for number in range(300):
        judge = f"sha256:{number:012x}{0:052x}"
        policies["bright"] = replace(policies["bright"], parts={"judge": judge}, version=number)
        plan = replace(JUDGED, parts={"judge": judge})
        metrics.draw(plan, Verdict.REJECTED, 0.1)
        metrics.outcome(Outcome(plan, [ImageOutcome(0, 1, FinishReason.CONTENT_FILTERED, 4)]))
        metrics.shadow("bright", f"sha256:f{number:011x}", 0.1, Verdict.REJECTED, Verdict.REJECTED)
        now[0] += ingress.KEEP_S / 3
        page = render(metrics.registry)
        sizes.append(page.count("\n"))
        # Every scrape sees the end of those that were in force just now.
        assert f'judge="{max(number - 1, 0):012x}"' in page
    assert sizes[-1] == sizes[9]
    now[0] += 10 * ingress.KEEP_S
    found = parse(render(metrics.registry))
    now[0] += 10 * ingress.KEEP_S
    found = parse(render(metrics.registry))
    judges = {dict(labels)["judge"] for name, labels in found if name == "winnow_draws_total"}
    assert judges == {f"{299:012x}", *(ingress.short(one.judge) for one in policies.values())}
    assert value(found, "winnow_draws_total", judge=f"{299:012x}", verdict="rejected") == 1
    assert not any(name.startswith("winnow_shadow_score") for name, _ in found)


def test_gauges_show_the_moment_of_the_scrape() -> None:
    metrics = BackboneMetrics("tiny", max_batch=8)
    now = {"running": 1, "waiting": 0, "capacity": 2.5}
    metrics.watch(lambda: now["running"], lambda: now["waiting"], lambda: now["capacity"])
    now["running"] = 3
    found = parse(render(metrics.registry))
    assert value(found, "winnow_slots_running") == 3
    assert value(found, "winnow_nfe_capacity") == 2.5


def test_one_page_keeps_every_replicas_own_numbers() -> None:
    replicas = [BackboneMetrics("tiny", max_batch=8) for _ in range(2)]
    for count, replica in enumerate(replicas, start=1):
        for _ in range(count):
            replica.tick(rows=4, guided=1, gradient=3, negative=2, seconds=0.01)
    pages = [(f"backbone-{i}", render(replica.registry)) for i, replica in enumerate(replicas)]
    judge = JudgeMetrics("tiny")
    judge.duration.observe(0.002)
    found = parse(merge([*pages, ("judge-0", render(judge.registry))]))
    assert value(found, "winnow_nfe_total", replica="backbone-0", kind="plain") == 3
    assert value(found, "winnow_nfe_total", replica="backbone-1", kind="guided") == 2
    assert value(found, "winnow_nfe_total", kind="gradient") == 9
    assert value(found, "winnow_nfe_total", kind="negative") == 6
    assert value(found, "winnow_nfe_total") == 27
    assert value(found, "winnow_batch_occupancy_bucket", replica="backbone-0", le="0.5") == 1
    assert value(found, "winnow_judge_duration_seconds_count", replica="judge-0") == 1


def test_a_canary_that_nobody_looks_at_any_more_has_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = IngressMetrics()
    metrics.canaries({("bright", "sha256:0123"): Verdict.REJECTED, ("dim", "sha256:0123"): None})
    page = parse(render(metrics.registry))
    assert value(page, "winnow_canary_verdict", policy="bright") == 0
    assert math.isnan(value(page, "winnow_canary_verdict", policy="dim"))
    monkeypatch.setattr(ingress, "STALE_S", 0.0)
    page = parse(render(metrics.registry))
    assert math.isnan(value(page, "winnow_canary_verdict", policy="bright"))


def test_counters_begin_at_0_on_the_first_page(tmp_path: Path) -> None:
    folder = str(write_bundle(tmp_path / "tiny"))
    policies = configured_policies(
        Settings.model_validate(settings(folder)), {"tiny": bundles.load(folder)}
    )
    metrics = IngressMetrics()
    metrics.watch(lambda: policies)
    text = render(metrics.registry)
    for code in ("ok", "store_unavailable", "internal_error"):
        assert f'winnow_requests_total{{code="{code}",model="tiny"' in text
    assert 'winnow_labels_total{label="malign"} 0.0' in text


def test_what_a_hurried_caller_lacked_is_no_fault_of_ours() -> None:
    metrics = IngressMetrics()
    for code in ("deadline_exceeded", "overloaded", "censor_unavailable"):
        metrics.request("tiny", "bright", code, 0.1, short_deadline=True)
    page = parse(render(metrics.registry))
    assert value(page, "winnow_requests_total", outcome="short_deadline") == 2
    assert value(page, "winnow_requests_total", outcome="error", code="censor_unavailable") == 1
