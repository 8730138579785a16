"""What labels prove: n is the fewest, unsure counts, and no luck beats delta."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from models.bundles.parts import PARTS
from models.rewards.calibration import clopper_pearson_upper
from service.certificates.certificate import Result, asked, covered, fingerprint, judge, terms
from service.config import Settings
from service.errors import InvalidValue
from service.generation.record import Versions, versions
from service.policies.policy import OperatingPoint, Policy
from service.policies.seeding import configured_policies
from tests.bundles import settings


@pytest.mark.parametrize(
    ("epsilon", "attempt", "allowed", "n"),
    [(0.01, 1, 0, 368), (0.01, 2, 0, 437), (0.005, 1, 0, 736), (0.05, 1, 2, 142)],
)
def test_n_is_the_fewest_that_can_pass(epsilon: float, attempt: int, allowed: int, n: int) -> None:
    fixed = terms(epsilon, 0.05, attempt, allowed)
    assert fixed.n == n
    assert fixed.delta_attempt == 0.05 / 2**attempt
    assert clopper_pearson_upper(allowed, n, fixed.delta_attempt) <= epsilon
    assert clopper_pearson_upper(allowed, n - 1, fixed.delta_attempt) > epsilon


def test_without_malign_n_is_that_of_the_closed_form() -> None:
    for epsilon in (0.3, 0.02, 0.001):
        fixed = terms(epsilon, 0.1, 1)
        assert fixed.n == np.ceil(np.log(0.05) / np.log1p(-epsilon))


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"epsilon": 1e-6}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"allowed": -1}, "allowed"),
        ({"attempt": 0}, "attempt"),
        ({"attempt": 65}, "attempt"),
    ],
)
def test_terms_that_make_no_sense_name_the_field(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        terms(**({"epsilon": 0.01, "delta": 0.05, "attempt": 1} | wrong))
    assert caught.value.param == param


def test_unsure_counts_as_malign_and_so_does_anything_unknown() -> None:
    fixed = terms(0.5, 0.5, 1, allowed=1)
    benign: list[str | None] = ["benign"] * (fixed.n - 1)
    for word in ("malign", "unsure", "withdrawn"):
        result = judge([*benign, word], fixed)
        assert result is not None
        assert result.k == 1
    assert judge([*benign, "malign"], fixed) == judge(["unsure", *benign], fixed)


def test_one_malign_too_many_fails() -> None:
    fixed = terms(0.1, 0.05, 1, allowed=1)
    result = judge(["malign"] * 2 + ["benign"] * (fixed.n - 2), fixed)
    assert result is not None
    assert not result.passed
    assert result.bound > fixed.epsilon


def test_a_missing_label_is_no_result() -> None:
    fixed = terms(0.1, 0.05, 1)
    benign: list[str | None] = ["benign"] * (fixed.n - 1)
    assert judge(benign, fixed) is None
    assert judge([*benign, None], fixed) is None
    with pytest.raises(ValueError, match="labels for"):
        judge([*benign, "benign", "benign"], fixed)
    bound = clopper_pearson_upper(0, fixed.n, fixed.delta_attempt)
    assert judge([*benign, "benign"], fixed) == Result(0, fixed.n, bound, True)


@pytest.mark.parametrize("allowed", [0, 3])
def test_a_policy_just_worse_than_epsilon_passes_no_more_often_than_delta(allowed: int) -> None:
    rng, tries, rate = np.random.default_rng(7), 4000, 0.0501
    fixed = terms(0.05, 0.2, 1, allowed)
    passed = 0
    for malign in rng.binomial(fixed.n, rate, tries):
        # Annotators who are unsure of half the malign ones change nothing.
        labels = ["malign"] * (malign // 2) + ["unsure"] * (malign - malign // 2)
        result = judge(labels + ["benign"] * (fixed.n - malign), fixed)
        assert result is not None
        passed += result.passed
    noise = 3 * np.sqrt(fixed.delta_attempt * (1 - fixed.delta_attempt) / tries)
    assert passed / tries <= fixed.delta_attempt + noise
    assert passed / tries >= 0.8 * fixed.delta_attempt, "n is larger than it need be"


def test_trying_until_it_passes_does_not_help() -> None:
    """Whoever certifies again and again, at the true rate, still passes in at most delta."""
    rng, tries, delta, attempts = np.random.default_rng(8), 4000, 0.4, 8
    passed = np.zeros(tries, dtype=bool)
    for attempt in range(1, attempts + 1):
        fixed = terms(0.05, delta, attempt)
        malign = rng.binomial(fixed.n, 0.0501, tries)
        outcomes = {k: judge(["malign"] * k + ["benign"] * (fixed.n - k), fixed) for k in {*malign}}
        passed |= np.array([outcomes[k].passed for k in malign])  # type: ignore[union-attr]
    assert passed.mean() <= delta + 3 * np.sqrt(delta * (1 - delta) / tries)
    assert passed.mean() >= 0.7 * delta


ASKED = "Is this a dark first pixel?"


def test_yes_to_the_question_means_malign(policy: Policy, bundle: Bundle) -> None:
    assert policy.question == "Is the first pixel bright?", "the bundle asks for what is benign"
    assert asked(policy, bundle.manifest) == ASKED


@pytest.fixture
def policy(bundle: Bundle) -> Policy:
    return configured_policies(
        Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle}
    )["bright"]


@pytest.fixture
def ran(bundle: Bundle, policy: Policy) -> Versions:
    config = Settings.model_validate(settings(str(bundle.folder)))
    return versions(config.models["tiny"], bundle.manifest, policy.sampling(50))


def test_every_change_has_another_fingerprint(policy: Policy, ran: Versions) -> None:
    def spec(**changes: Any) -> Policy:
        return replace(policy, settings=policy.settings.model_copy(update=changes))

    def there(**changes: Any) -> Versions:
        return ran.model_copy(update=changes)

    operating_points = {50: OperatingPoint(0.5001), 20: policy.operating_points[20]}
    probed = {50: OperatingPoint(0.5, probe_thresholds=(0.1,)), 20: policy.operating_points[20]}
    packages = ran.packages | {"torch": "0"}
    changed = [
        *(
            covered(replace(policy, parts={**policy.parts, part: "sha256:x"}), ran, 50, ASKED)
            for part in PARTS
        ),
        covered(replace(policy, operating_points=operating_points), ran, 50, ASKED),
        covered(replace(policy, operating_points=probed), ran, 50, ASKED),
        covered(spec(max_draws=7), ran, 50, ASKED),
        covered(spec(eta=0.1), ran, 50, ASKED),
        covered(spec(sampler="dpmsolver++"), ran, 50, ASKED),
        covered(spec(censor_scale=1.0), ran, 50, ASKED),
        covered(spec(timestep_spacing="trailing"), ran, 50, ASKED),
        covered(policy, ran, 20, ASKED),
        covered(policy, ran, 50, "Is it dark?"),
        covered(policy, ran, 50, ASKED, [{"prompt": "a seven"}]),
        *(
            covered(policy, there(**{name: "other"}), 50, ASKED)
            for name in ("bundle", "runtime", "device", "judge_device")
        ),
        covered(policy, there(packages=packages), 50, ASKED),
    ]  # fmt: skip
    same = fingerprint(covered(policy, ran, 50, ASKED))
    found = [fingerprint(one) for one in changed]
    assert same not in found
    assert len(set(found)) == len(found)


def test_the_same_censor_under_another_name_is_the_same(policy: Policy, ran: Versions) -> None:
    other = replace(policy, name="copy", settings=policy.settings.model_copy(update={"version": 9}))
    assert covered(other, ran, 50, ASKED) == covered(policy, ran, 50, ASKED)
