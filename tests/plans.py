"""The two kinds of plan that most tests start from. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from models.method import Method
from service.ports import SamplingPlan

JUDGED = SamplingPlan(
    model="tiny",
    policy="bright",
    policy_version=1,
    backbone="sha256:backbone",
    guide=None,
    clean_guide=None,
    probe=None,
    judge="sha256:judge",
    method=Method(num_inference_steps=10),
    probe_thresholds=(),
    threshold=0.5,
    max_draws=4,
    acceptance=1.0,
    seed=40,
)
FREE = replace(JUDGED, policy="none", judge=None, threshold=None, max_draws=1)

_METHOD = {field.name for field in fields(Method)}


def vary(plan: SamplingPlan, **changes: Any) -> SamplingPlan:
    """A plan with some fields changed, its own or its method's."""
    method = {name: value for name, value in changes.items() if name in _METHOD}
    rest = {name: value for name, value in changes.items() if name not in _METHOD}
    return replace(plan, method=replace(plan.method, **method), **rest)
