"""Sizes of a policy: each has thresholds of its own, and nothing leaves by those of another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from service.config import Caller, ConfigError, PolicySettings, Settings
from service.errors import Conflict, InvalidValue
from service.policies.inputs import RequestedInputs
from service.policies.policy import Overrides, Policy, from_document, resolve, to_document
from service.policies.promotion import refuse_looser
from service.policies.seeding import configured_policies
from tests.bundles import calibrated, settings, sized

TALL, WIDE = (8, 6), (4, 12)
OWN = {50: 0.5, 20: 0.6}
AT_TALL = {50: 0.7, 20: 0.8}


def _pin(
    bundle: Bundle, with_thresholds: bool = True, runtime: str = "torch", **policy: Any
) -> Policy:
    document = settings(str(bundle.folder))
    document["models"]["tiny"]["backbone"] = {"runtime": runtime}
    document["policies"]["bright"] |= policy
    config = Settings.model_validate(document)
    return configured_policies(config, {"tiny": bundle}, with_thresholds)["bright"]


@pytest.fixture
def unknown(bundle: Bundle) -> Bundle:
    """A bundle of three sizes, calibrated for none."""
    return sized(bundle, TALL, WIDE)


@pytest.fixture
def known(unknown: Bundle) -> Bundle:
    """And for two of them."""
    policy = _pin(unknown, with_thresholds=False, sizes=["6x8"])
    own = [(policy.sampling(steps), threshold) for steps, threshold in OWN.items()]
    tall = [(policy.sampling(steps, TALL), threshold) for steps, threshold in AT_TALL.items()]
    return calibrated(unknown, own + tall)


def _asked(policy: Policy, size: tuple[int, int] | None, **more: Any) -> Any:
    overrides = Overrides(asked=RequestedInputs(size=size), **more)
    return resolve(policy, overrides, 0, admin=False)


def test_each_size_is_judged_by_thresholds_of_its_own(known: Bundle) -> None:
    policy = _pin(known, sizes=["6x8"])
    for steps in (50, 20):
        assert _asked(policy, None, num_inference_steps=steps).threshold == OWN[steps]
        plan = _asked(policy, TALL, num_inference_steps=steps)
        assert plan.threshold == AT_TALL[steps]
        assert plan.condition.size == TALL
    # The canary has to lie below the lowest of all, and the control above the highest.
    assert set(policy.thresholds) == {*OWN.values(), *AT_TALL.values()}
    assert from_document(to_document(policy)) == policy


def test_a_key_without_a_size_is_what_it_was_and_one_with_a_size_is_another(known: Bundle) -> None:
    policy = _pin(known, sizes=["6x8"])
    own, tall = policy.sampling(50), policy.sampling(50, TALL)
    assert "size" not in own.document()
    assert tall.document() == own.document() | {"size": list(TALL)}
    assert own.fingerprint() != tall.fingerprint()


def test_a_policy_that_lists_none_serves_the_models_own_size_alone(known: Bundle) -> None:
    policy = _pin(known)
    assert policy.sized_points == {}
    with pytest.raises(InvalidValue, match=r"is 6x8; beside the model's own size .* allows none"):
        _asked(policy, TALL)


def test_a_size_without_a_calibration_is_refused_at_the_start(
    unknown: Bundle, known: Bundle
) -> None:
    said = "no calibration .* at 50 steps and 12x4. Run `winnow calibrate bright`, or leave it out"
    with pytest.raises(ConfigError, match=said):
        _pin(known, sizes=["6x8", "12x4"])
    # Those of the model's own size do not stand in for it.
    policy = _pin(unknown, with_thresholds=False)
    own = calibrated(unknown, [(policy.sampling(steps), OWN[steps]) for steps in OWN])
    assert _pin(own).operating_points
    with pytest.raises(ConfigError, match="at 50 steps and 6x8"):
        _pin(own, sizes=["6x8"])


def test_without_its_threshold_nothing_is_drawn_whatever_the_store_holds(known: Bundle) -> None:
    policy = replace(_pin(known, sizes=["6x8"]), sized_points={})
    with pytest.raises(InvalidValue, match="6x8, for which policy 'bright' has no threshold"):
        _asked(policy, TALL)
    half = replace(_pin(known, sizes=["6x8"]))
    half = replace(half, sized_points={"6x8": {20: half.sized_points["6x8"][20]}})
    with pytest.raises(InvalidValue, match="no threshold at 50 steps"):
        _asked(half, TALL)
    # A version that was stored before there were sizes has none.
    before = to_document(_pin(known))
    del before["sized_points"], before["settings"]["sizes"]
    assert from_document(before) == _pin(known)


def test_a_size_that_the_model_does_not_draw_is_refused_with_those_that_it_does(
    known: Bundle,
) -> None:
    with pytest.raises(ConfigError, match=r"draws no 9x9; beside its own 6x4, .* it has 6x8, 12x4"):
        _pin(known, sizes=["9x9"])
    with pytest.raises(ConfigError, match="a graph draws one size alone"):
        _pin(known, runtime="onnx", sizes=["6x8"])


def test_a_threshold_by_hand_is_that_of_the_models_own_size() -> None:
    with pytest.raises(ValueError, match="holds for the model's own size alone"):
        PolicySettings(model="tiny", reward="bright", threshold=0.5, sizes=["6x8"])
    with pytest.raises(ValueError, match="twice"):
        PolicySettings(model="tiny", sizes=["6x8", "6x8"])
    with pytest.raises(ValueError, match="pattern"):
        PolicySettings(model="tiny", sizes=["6 by 8"])


def test_a_threshold_of_another_size_is_lowered_by_admins_alone(known: Bundle) -> None:
    policy = _pin(known, sizes=["6x8"])
    approver = Caller("reviewer", frozenset({"approve"}))
    refuse_looser(policy, [policy], approver)
    points = policy.sized_points["6x8"]
    looser = {"6x8": {**points, 50: replace(points[50], threshold=0.1)}}
    changed = replace(policy, version=2, sized_points=looser)
    with pytest.raises(Conflict, match=r"at 50 steps of 6x8 .* would fall from 0.7000 to 0.1000"):
        refuse_looser(changed, [policy], approver)
    refuse_looser(changed, [policy], Caller("ops", frozenset({"admin"})))
