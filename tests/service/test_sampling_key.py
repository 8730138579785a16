"""Calibration, card, certificate, record and replay hold for one sampling key: with any field of it
changed they hold no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from models.bundles.bundle import WEIGHTS, Bundle, load, read_manifest, write_manifest
from models.bundles.sampling_key import SamplingKey, differences
from service.certificates.certificate import covered, fingerprint
from service.certificates.coverage import CertificateCoverage
from service.config import ConfigError, Settings
from service.generation.record import Record, versions
from service.offline import replay
from service.offline.replay import CannotReplay
from service.policies.policy import Overrides, Policy, derive, resolve, sampling_of
from service.policies.seeding import configured_policies
from service.store.certificates import Certificate, Certificates
from tests.bundles import settings
from tests.records import make_decision, make_outcome
from tests.sampling_keys import FIELDS, mutated

STEPS = 50


@pytest.fixture
def config(bundle: Bundle) -> Settings:
    return Settings.model_validate(settings(str(bundle.folder)))


@pytest.fixture
def policy(config: Settings, bundle: Bundle) -> Policy:
    return configured_policies(config, {"tiny": bundle})["bright"]


def _calibrated(config: Settings, bundle: Bundle, key: SamplingKey) -> Policy:
    """The policy by a bundle whose calibration at `STEPS` was made under this key."""
    entries = bundle.manifest.calibrations["bright"]
    changed = [
        entry.model_copy(update={"sampling": key})
        if entry.sampling.method.num_inference_steps == STEPS
        else entry
        for entry in entries
    ]
    manifest = bundle.manifest.model_copy(update={"calibrations": {"bright": changed}})
    return configured_policies(config, {"tiny": Bundle(bundle.folder, manifest)})["bright"]


@dataclass(frozen=True)
class Trained:
    """A trained reward with the judge of the bundle, calibrated under a key."""

    weights: Mapping[str, str]
    card: Mapping[str, Any]
    id: str = "rw_1"


def _derived(policy: Policy, key: SamplingKey) -> Policy:
    entry = {"sampling": key.document(), "threshold": 0.7}
    return derive(policy, Trained(policy.parts, {"calibrations": {str(STEPS): entry}}))


def _covered(config: Settings, bundle: Bundle, policy: Policy, key: SamplingKey) -> set[int]:
    """The step counts of the policy that are covered where one certificate was passed under a key,
    at `STEPS`."""
    ran = versions(config.models["tiny"], bundle.manifest, key)
    asked = f"Is this {bundle.manifest.rewards['bright'].malign}?"
    covers = covered(policy, ran, STEPS, asked) | {"sampling": key.document()}
    passed = {fingerprint(covers): cast(Certificate, None)}

    class Passed:
        def passed(self) -> dict[str, Certificate]:
            return passed

    coverage = CertificateCoverage(
        cast(Certificates, Passed()),
        config,
        {"tiny": bundle.manifest},
        dict,
        lambda bounds: None,
    )
    try:
        coverage.refresh()
        plan = resolve(policy, Overrides(num_inference_steps=STEPS), 1, admin=False)
        return {STEPS} if coverage.covers(policy, plan, seed_is_ours=True) else set()
    finally:
        coverage.close()


def _record(config: Settings, bundle: Bundle, policy: Policy, key: SamplingKey) -> Record:
    plan = resolve(policy, Overrides(num_inference_steps=STEPS), 1, admin=False)
    assert sampling_of(plan, policy.backbone) == policy.sampling(STEPS)
    ran = versions(config.models["tiny"], bundle.manifest, key)
    return make_decision(plan=plan, versions=ran).record("ok", 1.0, make_outcome())


def test_under_its_own_key_everything_holds(
    config: Settings, bundle: Bundle, policy: Policy
) -> None:
    key = policy.sampling(STEPS)
    assert STEPS in _calibrated(config, bundle, key).operating_points
    assert STEPS in _derived(policy, key).operating_points
    assert _covered(config, bundle, policy, key) == {STEPS}
    replay.check(_record(config, bundle, policy, key), config, {"tiny": bundle})


@pytest.mark.parametrize("path", FIELDS)
def test_with_any_field_changed_nothing_does(
    config: Settings, bundle: Bundle, policy: Policy, path: str
) -> None:
    key = mutated(policy.sampling(STEPS), path)
    with pytest.raises(ConfigError, match=f"no calibration of this policy's sampling at {STEPS}"):
        _calibrated(config, bundle, key)
    assert STEPS not in _derived(policy, key).operating_points
    assert _covered(config, bundle, policy, key) == set()
    with pytest.raises(CannotReplay, match=path):
        replay.check(_record(config, bundle, policy, key), config, {"tiny": bundle})
    replaced = replace(policy, backbone=key.backbone)
    assert (replaced == policy) == (not path.startswith("backbone."))


def test_with_another_denoiser_in_torch_what_goes_through_it_does_not_hold(
    bundle_folder: Path,
) -> None:
    """ONNX Runtime draws, and forward guidance differentiates the denoiser in torch."""
    data = settings(str(bundle_folder))
    data["models"]["tiny"]["backbone"] = {"forward_guidance": True}
    data["policies"]["forward"] = data["policies"]["bright"] | {
        "guidance": "forward",
        "censor_scale": 1.0,
    }
    config = Settings.model_validate(data)

    def keys() -> dict[str, SamplingKey]:
        bundles = {"tiny": load(str(bundle_folder))}
        policies = configured_policies(config, bundles, calibrated=False)
        return {name: policies[name].sampling(STEPS) for name in ("bright", "forward")}

    before = keys()
    (bundle_folder / "backbone" / "unet" / WEIGHTS).write_bytes(b"another stand-in")
    write_manifest(bundle_folder, read_manifest(bundle_folder))
    after = keys()
    assert list(differences(before["forward"], after["forward"])) == ["backbone.gradient"]
    assert before["bright"] == after["bright"]
