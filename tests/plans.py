"""The two kinds of plan that most tests start from. Needs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import replace

from service.ports import SamplingPlan

JUDGED = SamplingPlan(
    model="tiny",
    policy="bright",
    policy_version=1,
    backbone="sha256:backbone",
    guide=None,
    judge="sha256:judge",
    censor_scale=0.0,
    guide_interval=(0, 1000),
    threshold=0.5,
    max_draws=4,
    num_inference_steps=10,
    eta=0.0,
    seed=40,
)
FREE = replace(JUDGED, policy="none", judge=None, threshold=None, max_draws=1)
