"""Configured policies, tried with the judges of their bundles: can each say no, and yes?"""

from __future__ import annotations

from collections.abc import Mapping

from models.bundles.bundle import Bundle
from models.bundles.parts import IMAGES
from models.diffusion.condition import size_of
from models.onnx.batch_invariance import TrialError
from models.rewards.judge_check import KnownImages, TrialScores, try_judge
from models.rewards.onnx_judge import OnnxJudge
from service.config import ConfigError
from service.images.encode import from_png
from service.policies.policy import Policy
from service.ports import Pixels

Tried = dict[tuple[str | None, ...], TrialScores]
"""What each judge was seen to score, by the hashes of its network, canary and control."""


def require_discriminating_judges(
    policies: Mapping[str, Policy], bundles: Mapping[str, Bundle], tried: Tried | None = None
) -> None:
    """Raises ConfigError for a policy whose judge cannot decide at its thresholds.

    Each judge scores the images of a trial, its canary and its control, here and now: a manifest
    may say what it likes. A running service does the same, for what its store has in force too.
    Judges in `tried` are not tried again, and new ones are added.
    """
    tried = {} if tried is None else tried
    for name, policy in policies.items():
        spec, bundle = policy.settings, bundles[policy.settings.model]
        if spec.reward is None:
            continue
        called = f"policies.{name}.reward: judge {spec.reward!r} of bundle {bundle.manifest.name!r}"
        networks = policy.judge, policy.canary, policy.control
        try:
            if networks not in tried:
                tried[networks] = run_trial(bundle, spec.reward)
            for size in spec.sizes:
                _try_size(bundle, spec.reward, size)
        except TrialError as error:
            raise ConfigError(f"{called} {error}") from None
        if fault := policy.fault(tried[networks]):
            raise ConfigError(
                f"{called}, {fault}. Mend policies.{name}.threshold, or the reward with "
                "`winnow judge canary`"
            )


def run_trial(bundle: Bundle, reward: str, known: KnownImages | None = None) -> TrialScores:
    """What a bundle's judge scores, with what is `known` in place of the bundle's own examples.

    Raises TrialError for one that is no judge.
    """
    entry, image = bundle.manifest.rewards[reward], bundle.manifest.backbone.image
    try:
        judge = OnnxJudge(bundle.path(entry.parts["judge"]))
        if not judge.takes(image):
            raise TrialError(f"scores images of {judge.shape}, and the model makes {image}")
        try_judge(judge.score, image)
        if known is None:
            known = KnownImages(*(pixels_of(bundle, entry.parts.get(one)) for one in IMAGES))
        return TrialScores.of(judge.score(known.shown(image)), known)
    except TrialError:
        raise
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise TrialError(f"cannot be tried: {error}") from error


def _try_size(bundle: Bundle, reward: str, size: str) -> None:
    """Let a bundle's judge stand its trial at another size. Raises TrialError."""
    height, width = size_of(size)
    image = height, width, bundle.manifest.backbone.channels
    path = bundle.path(bundle.manifest.rewards[reward].parts["judge"])
    try:
        judge = OnnxJudge(path, fits=[image])
        try_judge(judge.score, image)
    except TrialError as error:
        raise TrialError(f"at {size} {error}") from None
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise TrialError(f"cannot be tried at {size}: {error}") from error


def pixels_of(bundle: Bundle, file: str | None) -> Pixels | None:
    """The pixels of a PNG of a bundle; None of none."""
    return None if file is None else from_png(bundle.path(file).read_bytes())
