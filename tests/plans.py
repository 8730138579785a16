"""The two kinds of plan that most tests start from. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from models.bundles.parts import PARTS
from models.diffusion.method import Method
from service.ports import SamplingPlan

JUDGED = SamplingPlan(
    model="tiny",
    policy="bright",
    policy_version=1,
    backbone="sha256:backbone",
    parts={"judge": "sha256:judge"},
    method=Method(num_inference_steps=10),
    probe_thresholds=(),
    threshold=0.5,
    max_draws=4,
    acceptance=1.0,
    seed=40,
)
FREE = replace(JUDGED, policy="none", parts={}, threshold=None, max_draws=1)

_METHOD = {field.name for field in fields(Method)}


def vary(plan: SamplingPlan, **changes: Any) -> SamplingPlan:
    """A plan with some fields changed, its own or its method's; or some parts, None for without."""
    parts = {name: changes.pop(name) for name in list(changes) if name in PARTS}
    if parts:
        named = {**plan.parts, **parts}
        changes["parts"] = {part: name for part, name in named.items() if name is not None}
    method = {name: value for name, value in changes.items() if name in _METHOD}
    rest = {name: value for name, value in changes.items() if name not in _METHOD}
    return replace(plan, method=replace(plan.method, **method), **rest)
