from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from models.bundle import Bundle, Calibration, Manifest
from models.method import Method
from service.config import ConfigError, Settings
from service.errors import InvalidValue
from service.policy import Overrides, Policy, pin, resolve
from tests.bundles import THRESHOLD, settings


def _pin(bundle: Bundle, **policy: Any) -> Policy:
    """Policy `bright`, pinned, with some of its settings changed."""
    document = settings(str(bundle.folder))
    document["policies"]["bright"] |= policy
    return pin(Settings.model_validate(document), {"tiny": bundle})["bright"]


def _edited(bundle: Bundle, **sampling: Any) -> Bundle:
    """The bundle with every calibration made under another sampling."""
    manifest = bundle.manifest
    calibrations: dict[str, list[Calibration]] = {
        name: [
            entry.model_copy(update={"sampling": entry.sampling.model_copy(update=sampling)})
            for entry in entries
        ]
        for name, entries in manifest.calibrations.items()
    }
    changed: Manifest = manifest.model_copy(update={"calibrations": calibrations})
    return Bundle(bundle.folder, changed)


def test_a_policy_is_pinned_to_hashes_and_calibrated_thresholds(bundle: Bundle) -> None:
    policy = _pin(bundle)
    reward = bundle.manifest.rewards["bright"]
    assert policy.judge == bundle.sha256(reward.judge)
    assert policy.backbone == bundle.denoiser_sha256("onnx")
    assert policy.guide is None
    assert {k: v.threshold for k, v in policy.operating.items()} == THRESHOLD
    assert policy.censors


def test_a_guided_policy_names_the_guide(bundle: Bundle) -> None:
    policy = _pin(bundle, censor_scale=1.0, threshold=0.5)
    assert policy.guide == bundle.sha256(bundle.manifest.rewards["bright"].guide)


@pytest.mark.parametrize(
    ("spec", "part"),
    [({"censor_scale": 1.0, "guidance": "distilled"}, "distilled"), ({"probes": [0.5]}, "probe")],
)
def test_what_the_bundle_does_not_hold_is_named_with_the_command_that_makes_it(
    bundle: Bundle, spec: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConfigError, match=f"no `{part}` of reward 'bright': run `winnow train dis"):
        _pin(bundle, **spec)


OTHER_SAMPLING: list[tuple[str, Any]] = [
    ("backbone", "sha256:other"),
    ("schedule", "sha256:other"),
    ("dtype", "bfloat16"),
    ("guide", "sha256:other"),
    ("clean_guide", "sha256:other"),
    ("probe", "sha256:other"),
    ("judge", "sha256:other"),
    ("method", Method(num_inference_steps=50, censor_scale=0.5)),
    ("method", Method(num_inference_steps=50, guide_interval=(0, 999))),
    ("method", Method(num_inference_steps=50, recurrences=2)),
    ("method", Method(num_inference_steps=50, probes=(0.5,))),
    ("method", Method(num_inference_steps=50, sampler="dpmsolver++")),
    ("method", Method(num_inference_steps=25)),
    ("method", Method(num_inference_steps=50, eta=0.5)),
]


def test_the_list_of_sampling_fields_is_complete(bundle: Bundle) -> None:
    entry = bundle.manifest.calibrations["bright"][0]
    assert {name for name, _ in OTHER_SAMPLING} == set(type(entry.sampling).model_fields)


@pytest.mark.parametrize(("field", "value"), OTHER_SAMPLING)
def test_a_calibration_of_another_sampling_is_refused(
    bundle: Bundle, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=r"policies\.bright: .*no calibration.*winnow calibrate"):
        _pin(_edited(bundle, **{field: value}))


@pytest.mark.parametrize(
    "change", [{"eta": 0.5}, {"censor_scale": 1.0}, {"num_inference_steps": [50, 25]}]
)
def test_a_policy_that_samples_otherwise_than_it_was_calibrated_is_refused(
    bundle: Bundle, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"policies\.bright"):
        _pin(bundle, **change)
    operating = _pin(bundle, **change, threshold=0.7).operating
    assert {here.threshold for here in operating.values()} == {0.7}


def test_a_reward_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"policies\.bright\.reward: 'dark'.*it has bright"):
        _pin(bundle, reward="dark")


def test_without_wishes_the_plan_is_the_policys(bundle: Bundle) -> None:
    policy = _pin(bundle)
    plan = resolve(policy, Overrides(), seed=7, admin=False)
    assert (plan.method.num_inference_steps, plan.threshold, plan.max_draws) == (
        50,
        THRESHOLD[50],
        8,
    )
    assert (plan.judge, plan.backbone, plan.seed) == (policy.judge, policy.backbone, 7)
    with pytest.raises(FrozenInstanceError):
        plan.threshold = 0.0  # type: ignore[misc]


def test_the_threshold_follows_the_number_of_steps(bundle: Bundle) -> None:
    plan = resolve(_pin(bundle), Overrides(num_inference_steps=20), seed=0, admin=False)
    assert plan.threshold == THRESHOLD[20]


def test_callers_may_tighten(bundle: Bundle) -> None:
    plan = resolve(_pin(bundle), Overrides(threshold=0.9, max_draws=2), seed=0, admin=False)
    assert (plan.threshold, plan.max_draws) == (0.9, 2)
    same = resolve(_pin(bundle), Overrides(threshold=0.5, max_draws=8), seed=0, admin=False)
    assert (same.threshold, same.max_draws) == (0.5, 8)


LOOSER = [
    (Overrides(threshold=0.499), "censor.threshold"),
    (Overrides(threshold=0.55, num_inference_steps=20), "censor.threshold"),
    (Overrides(max_draws=9), "censor.max_draws"),
]


@pytest.mark.parametrize(("overrides", "param"), LOOSER)
def test_callers_may_not_loosen_but_an_admin_may(
    bundle: Bundle, overrides: Overrides, param: str
) -> None:
    policy = _pin(bundle)
    with pytest.raises(InvalidValue) as refusal:
        resolve(policy, overrides, seed=0, admin=False)
    assert refusal.value.param == param
    plan = resolve(policy, overrides, seed=0, admin=True)
    if overrides.threshold is not None:
        assert plan.threshold == overrides.threshold
    if overrides.max_draws is not None:
        assert plan.max_draws == overrides.max_draws


@pytest.mark.parametrize("admin", [False, True])
def test_steps_that_the_policy_does_not_list_are_refused(bundle: Bundle, admin: bool) -> None:
    """Even for an admin: no threshold was calibrated for them."""
    with pytest.raises(InvalidValue, match="allows 50, 20") as refusal:
        resolve(_pin(bundle), Overrides(num_inference_steps=49), seed=0, admin=admin)
    assert refusal.value.param == "num_inference_steps"


def test_a_refused_threshold_does_not_tell_the_calibrated_one(bundle: Bundle) -> None:
    with pytest.raises(InvalidValue) as refusal:
        resolve(_pin(bundle), Overrides(threshold=0.1), seed=0, admin=False)
    assert "0.5" not in str(refusal.value)


def test_a_policy_without_a_judge_has_no_threshold(bundle: Bundle) -> None:
    document = Settings.model_validate(settings(str(bundle.folder)))
    free = pin(document, {"tiny": bundle})["none"]
    assert not free.censors
    plan = resolve(free, Overrides(), seed=0, admin=True)
    assert (plan.judge, plan.threshold) == (None, None)
    with pytest.raises(InvalidValue, match="no judge"):
        resolve(free, Overrides(threshold=0.9), seed=0, admin=True)


def test_more_steps_than_the_schedule_has_stop_the_start(bundle: Bundle) -> None:
    document = settings(str(bundle.folder))
    document["policies"]["none"]["num_inference_steps"] = [1000]
    schedule = bundle.folder / "backbone/scheduler/scheduler_config.json"
    pin(Settings.model_validate(document), {"tiny": bundle})
    schedule.write_text('{"num_train_timesteps": 999}')
    with pytest.raises(ConfigError, match=r"policies\.none\.num_inference_steps: at most 999"):
        pin(Settings.model_validate(document), {"tiny": bundle})
