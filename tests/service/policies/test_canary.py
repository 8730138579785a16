"""A canary is judged as a draw would be, by the verdict that counts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundles import bundle as bundles
from models.onnx.batch_invariance import TRIAL
from service.config import Settings
from service.errors import BlobMissing, CensorUnavailable, StoreUnavailable
from service.policies.canary import Canaries, Observe
from service.policies.policy import OperatingPoint, Policy
from service.policies.seeding import configured_policies
from service.ports import Pixels, Verdict
from tests.bundles import THRESHOLD, settings, write_bundle

CANARY = np.full((4, 6, 1), 7, np.uint8)
CONTROL = np.full((4, 6, 1), 8, np.uint8)


class Judge:
    """Answers what it is told to of the canary, one score for each replica; of the control
    `control`; of all else its brightness, times `light`."""

    def __init__(
        self, *answers: float | Exception | None, light: float = 1.0, control: float = 1.0
    ) -> None:
        self.answers = answers
        self.light = light
        self.control = control
        self.asked: list[str] = []

    async def __call__(self, model: str, judge: str, pixels: Pixels) -> Sequence[float | None]:
        self.asked.append(judge)
        if (pixels == CONTROL).all():
            return [self.control]
        if not (pixels == CANARY).all():
            return [self.light * pixels.mean() / 255]
        for answer in self.answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in self.answers if not isinstance(answer, Exception)]


@pytest.fixture
def policies(tmp_path: Path) -> dict[str, Policy]:
    folder = str(write_bundle(tmp_path / "tiny"))
    found = configured_policies(
        Settings.model_validate(settings(folder)), {"tiny": bundles.load(folder)}
    )
    return {name: replace(policy, canary="sha256:c") for name, policy in found.items()}


def _look(
    policies: dict[str, Policy], judge: Judge, find: object = None
) -> dict[tuple[str, str], Verdict | None]:
    seen: dict[tuple[str, str], Verdict | None] = {}

    def pixels(model: str, name: str) -> Pixels:
        assert (model, name) == ("tiny", "sha256:c")
        if isinstance(find, Exception):
            raise find
        return CANARY

    asyncio.run(_canaries(judge, policies, pixels, seen.update).look())
    return seen


def _canaries(
    judge: Judge,
    policies: dict[str, Policy],
    find: Callable[[str, str], Pixels] = lambda model, name: (
        CANARY if name == "sha256:c" else CONTROL
    ),
    observe: Observe = lambda verdicts: None,
) -> Canaries:
    return Canaries(judge, lambda: policies, find, lambda model: (4, 6, 1), observe)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.REJECTED),
        (THRESHOLD[50] - 0.01, Verdict.REJECTED),
        (THRESHOLD[50], Verdict.ACCEPTED),
        (float("nan"), None),
        (CensorUnavailable("down"), None),
    ],
)
def test_a_canary_gets_the_verdict_that_a_draw_would(
    policies: dict[str, Policy], score: float | Exception, verdict: Verdict | None
) -> None:
    judge = Judge(score)
    assert _look(policies, judge) == {("bright", policies["bright"].judge): verdict}
    assert set(judge.asked) == {policies["bright"].judge}, "a policy without a judge has no canary"


def test_one_judge_of_two_that_accepts_it_is_enough(policies: dict[str, Policy]) -> None:
    for scores in ((0.0, 1.0), (1.0, 0.0)):
        assert list(_look(policies, Judge(*scores)).values()) == [Verdict.ACCEPTED]


@pytest.mark.parametrize("silent", [None, float("nan")])
def test_a_judge_that_says_nothing_hides_no_other(
    policies: dict[str, Policy], silent: float | None
) -> None:
    assert list(_look(policies, Judge(silent, 1.0)).values()) == [Verdict.ACCEPTED]
    assert list(_look(policies, Judge(0.0, silent)).values()) == [None]
    assert list(_look(policies, Judge()).values()) == [None]


def test_a_canary_that_is_gone_has_no_verdict(policies: dict[str, Policy]) -> None:
    for gone in (StoreUnavailable("gone"), BlobMissing("purged")):
        seen = _look(policies, Judge(0.0), gone)
        assert list(seen.values()) == [None]


def test_a_purged_canary_is_as_none_and_a_store_that_fails_is_no_trial(
    policies: dict[str, Policy],
) -> None:
    def gone(error: Exception) -> Callable[[str, str], Pixels]:
        def find(model: str, name: str) -> Pixels:
            raise error

        return find

    asyncio.run(_canaries(Judge(), policies, gone(BlobMissing("purged"))).admit(policies["bright"]))
    unread = _canaries(Judge(), policies, gone(StoreUnavailable("down")))
    with pytest.raises(CensorUnavailable, match=r"cannot be tried: .*down"):
        asyncio.run(unread.admit(policies["bright"]))


async def _admitted(canaries: Canaries, policy: Policy) -> str | None:
    """Why nothing may leave under the policy, or None."""
    try:
        await canaries.admit(policy)
        canaries.check(policy)
    except CensorUnavailable:
        return await canaries.fault(policy) or "its canary is accepted"
    return None


@pytest.mark.parametrize(
    ("judge", "fault"),
    [
        (Judge(0.1), None),
        (Judge(0.5), "it scores its canary, an image that is surely malign, 0.5, so it would not"),
        (Judge(0.1, 0.55), "surely malign, 0.55, so it would not be blocked at the threshold of 0"),
        (
            Judge(0.1, control=0.55),
            "its control, an image that is surely benign, 0.55, so it would",
        ),
        (Judge(0.9, control=0.1), "benign and malign may be turned round"),
        (Judge(float("nan")), "it gave nan where a score in .0, 1. was due"),
        (Judge(1.5), "it gave 1.5 where a score in .0, 1. was due"),
    ],
)
def test_a_judge_that_has_not_told_malign_from_benign_decides_nothing(
    policies: dict[str, Policy], judge: Judge, fault: str | None
) -> None:
    """Its thresholds are 0.5 and 0.6: a canary lies below both, a control reaches both."""
    policy = replace(policies["bright"], control="sha256:b")
    found = asyncio.run(_admitted(_canaries(judge, policies), policy))
    assert (found is None) == (fault is None), found
    assert fault is None or re.search(fault, str(found))


@pytest.mark.parametrize("light", [0.0, 0.5, 1.0])
def test_without_a_canary_the_images_of_the_trial_have_to_show_it(
    policies: dict[str, Policy], light: float
) -> None:
    class Mild(Judge):
        async def __call__(self, model: str, judge: str, pixels: Pixels) -> Sequence[float | None]:
            return [1 - self.light * (1 - pixels.mean() / 255)]

    policy = replace(policies["bright"], canary=None)
    found = asyncio.run(_admitted(_canaries(Mild(light=light), policies), policy))
    assert (found is None) == (light == 1.0)
    assert found is None or "nothing shows that it can say no" in found


def test_a_threshold_by_hand_that_no_score_reaches_is_refused(policies: dict[str, Policy]) -> None:
    policy = policies["bright"]
    by_hand = policy.settings.model_copy(update={"threshold": 0.9})
    policy = replace(policy, settings=by_hand, operating_points={50: OperatingPoint(0.9)})
    dim = _canaries(Judge(0.1, light=0.8), policies)
    assert "nothing shows that it can say yes" in str(asyncio.run(_admitted(dim, policy)))
    shown = replace(policy, control="sha256:b")
    assert asyncio.run(_admitted(dim, shown)) is None
    calibrated = replace(policy, settings=policies["bright"].settings)
    assert asyncio.run(_admitted(dim, calibrated)) is None


def test_a_policy_that_accepts_its_canary_lets_nothing_leave_until_it_rejects_it(
    policies: dict[str, Policy],
) -> None:
    judge, policy = Judge(0.1), policies["bright"]

    async def scenario() -> None:
        canaries = _canaries(judge, policies)
        assert await _admitted(canaries, policy) is None
        for scores, verdict in ((0.1, 0.7), Verdict.ACCEPTED), ((0.1, 0.1), Verdict.REJECTED):
            judge.answers = scores
            await canaries.look()
            assert canaries.verdict(policy) is verdict
            accepted = verdict is Verdict.ACCEPTED
            assert (await _admitted(canaries, policy) is not None) == accepted
        judge.answers = (None,)
        await canaries.look()
        assert await _admitted(canaries, policy) is None, "a judge that is down judges nothing"

    asyncio.run(scenario())


def test_what_failed_its_trial_gets_another_with_the_next_look(policies: dict[str, Policy]) -> None:
    judge, policy = Judge(float("nan")), policies["bright"]

    async def scenario() -> None:
        canaries = _canaries(judge, policies)
        assert await _admitted(canaries, policy)
        judge.answers = (0.1,)
        assert await _admitted(canaries, policy)
        await canaries.look()
        assert await _admitted(canaries, policy) is None

    asyncio.run(scenario())


def test_requests_at_once_share_one_trial_and_one_that_leaves_takes_it_from_no_other(
    policies: dict[str, Policy],
) -> None:
    judge, policy = Judge(0.1), policies["bright"]

    async def scenario() -> None:
        canaries = _canaries(judge, policies)
        first, *others = [asyncio.create_task(canaries.admit(policy)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(*others)
        assert len(judge.asked) == TRIAL + 1

    asyncio.run(scenario())


def test_what_is_no_longer_in_force_is_forgotten(policies: dict[str, Policy]) -> None:
    async def scenario() -> None:
        names: list[str] = []
        here = dict(policies)

        def find(model: str, name: str) -> Pixels:
            names.append(name)
            return CANARY

        canaries = _canaries(Judge(0.1), here, find)
        for number in range(3):
            here["bright"] = replace(policies["bright"], canary=f"sha256:{number}")
            await canaries.look()
        assert names == ["sha256:0", "sha256:1", "sha256:2"]
        assert list(canaries._pixels) == ["sha256:2"]
        assert len(canaries._seen) == 1

    asyncio.run(scenario())


def test_a_reward_that_brought_none_has_none(policies: dict[str, Policy]) -> None:
    without = {name: replace(policy, canary=None) for name, policy in policies.items()}
    assert _look(without, Judge(0.0)) == {}


def test_every_shipped_reward_rejects_its_canary() -> None:
    """Through the shipped judges, at the shipped thresholds."""
    from models.rewards.onnx_judge import OnnxJudge
    from service.images.encode import from_png

    bundle = bundles.load("mnist-sevens")
    for name, reward in bundle.manifest.rewards.items():
        pixels = from_png(bundle.path(reward.parts["canary"]).read_bytes())
        score = OnnxJudge(bundle.path(reward.parts["judge"])).score(pixels[None])[0]
        thresholds = [
            entry.threshold
            for entries in bundle.manifest.calibrations.values()
            for entry in entries
            if entry.sampling.parts["judge"] == bundle.sha256(reward.parts["judge"])
        ]
        assert thresholds, name
        assert score < min(thresholds) / 2, name


def test_a_look_that_fails_is_not_the_last_one(policies: dict[str, Policy]) -> None:
    looks: list[int] = []

    def observe(verdicts: object) -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            raise RuntimeError("a bug")

    async def scenario() -> None:
        canaries = _canaries(Judge(0.1), policies, observe=observe)
        canaries._every_s = 0.01
        task = asyncio.create_task(canaries.run())
        async with asyncio.timeout(60):
            while len(looks) < 3:  # noqa: ASYNC110  # of another task, by the clock
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(scenario())
