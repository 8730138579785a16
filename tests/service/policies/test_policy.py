from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from models.bundles.manifest import Calibration, Manifest
from models.bundles.parts import parts_for
from models.bundles.sampling_key import BackboneKey
from models.diffusion.condition import Condition
from service.config import ConfigError, Settings
from service.errors import InvalidValue, PolicyNotReady
from service.policies.inputs import RequestedInputs
from service.policies.policy import (
    OperatingPoint,
    Overrides,
    Policy,
    derive,
    from_document,
    resolve,
    to_document,
)
from service.policies.seeding import configured_policies
from tests.bundles import THRESHOLD, asking, settings


def _pin(bundle: Bundle, **policy: Any) -> Policy:
    """Policy `bright`, pinned, with some of its settings changed."""
    document = settings(str(bundle.folder))
    document["policies"]["bright"] |= policy
    return configured_policies(Settings.model_validate(document), {"tiny": bundle})["bright"]


def _edited(bundle: Bundle, **sampling: Any) -> Bundle:
    """The bundle with every calibration made under another sampling."""
    manifest = bundle.manifest
    calibrations: dict[str, list[Calibration]] = {
        name: [
            entry.model_copy(update={"sampling": replace(entry.sampling, **sampling)})
            for entry in entries
        ]
        for name, entries in manifest.calibrations.items()
    }
    changed: Manifest = manifest.model_copy(update={"calibrations": calibrations})
    return Bundle(bundle.folder, changed)


def test_a_policy_is_pinned_to_hashes_and_calibrated_thresholds(bundle: Bundle) -> None:
    policy = _pin(bundle)
    reward = bundle.manifest.rewards["bright"]
    assert policy.judge == bundle.sha256(reward.parts["judge"])
    assert policy.backbone == BackboneKey(bundle.backbone_sha256("onnx"), bundle.schedule_sha256)
    assert policy.parts == {"judge": policy.judge}
    assert {k: v.threshold for k, v in policy.operating_points.items()} == THRESHOLD
    assert policy.censors


def test_a_guided_policy_names_the_guide(bundle: Bundle) -> None:
    policy = _pin(bundle, censor_scale=1.0, threshold=0.5)
    assert policy.parts["guide"] == bundle.reward_sha256("bright")["guide"]


@pytest.mark.parametrize(
    ("spec", "part"),
    [({"censor_scale": 1.0, "guidance": "distilled"}, "distilled"), ({"probes": [0.5]}, "probe")],
)
def test_what_the_bundle_does_not_hold_is_named_with_the_command_that_makes_it(
    bundle: Bundle, spec: dict[str, Any], part: str
) -> None:
    told = f"no `{part}` of reward 'bright': train a reward from labels with `distil`"
    with pytest.raises(ConfigError, match=told):
        _pin(bundle, **spec)


@pytest.mark.parametrize(
    "change", [{"eta": 0.5}, {"censor_scale": 1.0}, {"num_inference_steps": [50, 25]}]
)
def test_a_policy_that_samples_otherwise_than_it_was_calibrated_is_refused(
    bundle: Bundle, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"policies\.bright"):
        _pin(bundle, **change)
    operating_points = _pin(bundle, **change, threshold=0.7).operating_points
    assert {here.threshold for here in operating_points.values()} == {0.7}


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
    assert (plan.judge, plan.backbone) == (policy.judge, policy.backbone.weights)
    assert plan.seed == 7
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
    free = configured_policies(document, {"tiny": bundle})["none"]
    assert not free.censors
    plan = resolve(free, Overrides(), seed=0, admin=True)
    assert (plan.judge, plan.threshold) == (None, None)
    with pytest.raises(InvalidValue, match="no judge"):
        resolve(free, Overrides(threshold=0.9), seed=0, admin=True)


def test_more_steps_than_the_schedule_has_stop_the_start(bundle: Bundle) -> None:
    document = settings(str(bundle.folder))
    document["policies"]["none"]["num_inference_steps"] = [1000]
    schedule = bundle.folder / "backbone/scheduler/scheduler_config.json"
    configured_policies(Settings.model_validate(document), {"tiny": bundle})
    schedule.write_text('{"num_train_timesteps": 999}')
    with pytest.raises(ConfigError, match=r"policies\.none\.num_inference_steps: at most 999"):
        configured_policies(Settings.model_validate(document), {"tiny": bundle})


@dataclass(frozen=True)
class Trained:
    """What `derive` needs of a reward."""

    id: str = "rw_1"
    weights: Mapping[str, str] | None = field(
        default_factory=lambda: {
            part: f"sha256:{part}" for part in ("judge", "guide", "clean_guide", "probe")
        }
    )
    card: Mapping[str, Any] | None = None


def _card(policy: Policy, steps: int = 50, **changes: Any) -> dict[str, Any]:
    parts = parts_for(policy.settings.method(steps), Trained().weights or {})
    entry = {
        "sampling": replace(policy, parts=parts).sampling(steps).document(),
        "threshold": 0.7,
        "probe_thresholds": [0.1] * len(policy.settings.probes),
        "acceptance": 0.8,
        "labelled": 600,
    }
    return {"calibrations": {str(steps): entry | changes}}


@pytest.mark.parametrize(
    "spec", [{}, {"threshold": 0.5, "censor_scale": 1.0, "guide_interval": [0, 850]}]
)
def test_a_policy_comes_back_from_its_document(bundle: Bundle, spec: dict[str, Any]) -> None:
    policy = replace(_pin(bundle, **spec), version=7, reward="rw_1")
    text = json.dumps(to_document(policy))
    assert from_document(json.loads(text)) == policy


@pytest.mark.parametrize("place", [(), ("settings",), ("operating_points", "50"), ("parts",)])
def test_a_document_with_an_unknown_key_is_refused(bundle: Bundle, place: tuple[str, ...]) -> None:
    document = to_document(_pin(bundle))
    inner: dict[str, Any] = document
    for key in place:
        inner = inner[key]
    inner["colour"] = "red"
    with pytest.raises(ValueError, match="colour"):
        from_document(document)


def test_a_document_that_lacks_something_is_refused(bundle: Bundle) -> None:
    document = to_document(_pin(bundle))
    del document["parts"]
    with pytest.raises(ValueError, match="parts"):
        from_document(document)


def test_the_version_is_the_policys_not_the_settings(bundle: Bundle) -> None:
    policy = replace(_pin(bundle, version=3), version=7)
    assert resolve(policy, Overrides(), 0, admin=False).policy_version == 7


def test_a_trained_reward_brings_its_networks_and_its_thresholds(bundle: Bundle) -> None:
    policy = _pin(bundle)
    derived = derive(policy, Trained(card=_card(policy)))
    assert derived.judge == "sha256:judge"
    assert derived.operating_points == {50: OperatingPoint(0.7, (), 0.8)}
    assert derived.uncalibrated == [20]
    assert derived.reward == "rw_1"
    assert derived.parts == {"judge": "sha256:judge"}


def test_a_guided_policy_takes_the_guide_that_it_steers_by(bundle: Bundle) -> None:
    policy = _pin(bundle, censor_scale=1.0, threshold=0.5, num_inference_steps=[50])
    derived = derive(policy, Trained(card=_card(policy)))
    assert derived.parts == {"guide": "sha256:guide", "judge": "sha256:judge"}
    # Set by hand for another judge: it must not come along.
    assert derived.settings.threshold is None
    assert derived.operating_points[50].threshold == 0.7
    distilled = replace(
        policy, settings=policy.settings.model_copy(update={"guidance": "distilled"})
    )
    with pytest.raises(InvalidValue, match="no `distilled`"):
        derive(distilled, Trained())
    forward = replace(policy, settings=policy.settings.model_copy(update={"guidance": "forward"}))
    assert derive(forward, Trained()).parts["forward"] == "sha256:clean_guide"


OTHER_CALIBRATION: list[dict[str, Any]] = [
    {"sampling": {"colour": "red"}},
    {"probe_thresholds": [0.1]},
    {"threshold": 0.0},
    {"threshold": 1.0},
    {"threshold": None},
    {"acceptance": 0.0},
]


@pytest.mark.parametrize("change", OTHER_CALIBRATION)
def test_a_calibration_of_another_sampling_is_none(bundle: Bundle, change: dict[str, Any]) -> None:
    policy = _pin(bundle)
    assert derive(policy, Trained(card=_card(policy, **change))).operating_points == {}
    assert derive(policy, Trained(card=_card(policy))).operating_points


def test_a_reward_without_a_judge_or_a_policy_without_one_gives_nothing(bundle: Bundle) -> None:
    with pytest.raises(InvalidValue, match="no `judge`"):
        derive(_pin(bundle), Trained(weights={"guide": "sha256:guide"}))
    document = settings(str(bundle.folder))
    none = configured_policies(Settings.model_validate(document), {"tiny": bundle})["none"]
    with pytest.raises(InvalidValue, match="no judge to replace"):
        derive(none, Trained())


CLASSES = {"kind": "class", "class_names": ("zero", "one", "two", "none"), "null_class": 3}


@pytest.mark.parametrize(
    ("inputs", "spec", "words"),
    [
        ({}, {"guidance_scale": [2]}, r"guidance_scale: bundle 'tiny' cannot be guided.*no input"),
        ({}, {"class_labels": [0]}, r"class_labels: bundle 'tiny' has no classes"),
        (CLASSES | {"null_class": None}, {"guidance_scale": [2]}, "guidance_scale.*no null_class"),
        (CLASSES, {"class_labels": [0, 4]}, r"class_labels: 4 is not among .*0 \(zero\).*2 \(two"),
        (CLASSES, {"class_labels": [3]}, "class_labels: 3 is not among"),
        (CLASSES, {"class_labels": [1, 2, 1]}, "class_labels: 1 stands there twice"),
        ({"kind": "class"}, {}, "has classes and no class_names"),
        ({"kind": "text"}, {"class_labels": [0]}, "has no classes"),
        (CLASSES, {"classifier_scale": 1}, "classifier_scale: bundle 'tiny' has no classifier"),
        ({}, {"classifier_scale": 1}, "classifier_scale: bundle 'tiny' has no classes"),
    ],
)
def test_a_policy_that_lists_what_its_model_cannot_draw_is_refused(
    bundle: Bundle, inputs: dict[str, Any], spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        _pin(asking(bundle, **inputs), **spec)


def test_a_plan_carries_what_is_asked_and_else_the_policys_default(bundle: Bundle) -> None:
    def condition(policy: Policy, **asked: Any) -> Condition:
        return resolve(policy, Overrides(asked=RequestedInputs(**asked)), 0, admin=False).condition

    assert condition(_pin(bundle)) == Condition()
    classes = asking(bundle, **CLASSES, guidance_scale=3.0)
    default = Condition(guidance_scale=3.0, class_labels=(0, 1, 2))
    assert condition(_pin(classes, threshold=0.5)) == default
    narrow = _pin(classes, threshold=0.5, guidance_scale=[1.5, 4], class_labels=[2, 0])
    assert condition(narrow) == Condition(guidance_scale=1.5, class_labels=(2, 0))
    assert condition(narrow, class_label="two", guidance_scale=4) == Condition(
        class_label=2, guidance_scale=4
    )
    with pytest.raises(InvalidValue, match=r"policy 'bright' has 2 \(two\), 0 \(zero\)"):
        condition(narrow, class_label=1)


def test_what_a_model_takes_comes_back_with_its_policies_and_old_ones_take_nothing(
    bundle: Bundle,
) -> None:
    policy = _pin(asking(bundle, **CLASSES), threshold=0.5)
    assert from_document(json.loads(json.dumps(to_document(policy)))) == policy
    plain = _pin(bundle)
    document = to_document(plain)
    del document["inputs"]
    assert from_document(document) == plain


def test_a_calibration_is_of_what_is_drawn_where_nothing_is_asked(bundle: Bundle) -> None:
    classes = asking(bundle, **CLASSES, guidance_scale=3.0)
    with pytest.raises(ConfigError, match="no calibration"):
        _pin(classes)
    backbone = BackboneKey(classes.backbone_sha256("onnx"), classes.schedule_sha256)
    calibrated = _edited(classes, backbone=backbone, guidance_scale=(3.0,), class_labels=(0, 1, 2))
    assert _pin(calibrated).operating_points[50].threshold == THRESHOLD[50]
    for change in ({"guidance_scale": [4.0, 3.0]}, {"class_labels": [0, 1]}):
        with pytest.raises(ConfigError, match="no calibration"):
            _pin(calibrated, **change)
    assert _pin(calibrated, guidance_scale=[3.0, 4.0]).operating_points, (
        "the default is what counts"
    )


def _waiting(bundle: Bundle, **spec: Any) -> Policy:
    document = settings(str(bundle.folder))
    document["policies"]["screened"] = {"model": "tiny", "trained": True, **spec}
    return configured_policies(Settings.model_validate(document), {"tiny": bundle})["screened"]


def test_a_policy_that_waits_for_its_reward_has_no_plan_for_anybody(bundle: Bundle) -> None:
    policy = _waiting(bundle)
    assert policy.awaits_reward
    assert policy.censors
    assert policy.uncalibrated == [50]
    for admin in (False, True):
        with pytest.raises(PolicyNotReady, match="has no reward yet"):
            resolve(policy, Overrides(), 0, admin=admin)
    assert from_document(json.loads(json.dumps(to_document(policy)))) == policy


def test_a_policy_that_waits_takes_the_networks_that_its_settings_name(bundle: Bundle) -> None:
    steering = _waiting(bundle, censor_scale=1.0, probes=[0.5])
    weights = {"judge": "sha256:judge", "guide": "sha256:guide", "probe": "sha256:probe"}
    derived = derive(steering, Trained(weights=weights))
    assert not derived.awaits_reward
    assert derived.parts == {
        "judge": "sha256:judge", "guide": "sha256:guide", "probe": "sha256:probe"
    }  # fmt: skip
    for part in ("guide", "probe"):
        rest = {name: sha256 for name, sha256 in weights.items() if name != part}
        with pytest.raises(InvalidValue, match=f"no `{part}`"):
            derive(steering, Trained(weights=rest))
    assert derive(_waiting(bundle), Trained(weights=weights)).parts == {"judge": "sha256:judge"}


@pytest.mark.parametrize(
    ("law", "holds"),
    [
        ({"guidance_scale": [3.0], "class_labels": [0, 1]}, True),
        ({"guidance_scale": [1.0], "class_labels": [0, 1]}, False),
        ({"guidance_scale": [3.0, 4.0], "class_labels": [0, 1]}, False),
        ({"guidance_scale": [3.0], "class_labels": [0]}, False),
        ({"guidance_scale": [3.0], "class_labels": [0, 1, 2]}, False),
    ],
)
def test_a_trained_calibration_is_for_the_classes_and_the_scale_that_were_drawn(
    bundle: Bundle, law: dict[str, list[float]], holds: bool
) -> None:
    spec: dict[str, Any] = {"guidance_scale": [3.0, 4.0], "class_labels": [1, 0]}
    policy = _pin(asking(bundle, **CLASSES), threshold=0.5, num_inference_steps=[50], **spec)
    card = _card(policy)
    card["calibrations"]["50"]["sampling"] |= law
    derived = derive(policy, Trained(card=card))
    assert derived.uncalibrated == ([] if holds else [50])
