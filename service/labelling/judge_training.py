"""Judges of few labels: the one that is served, and a quick one to choose pages by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.diffusion.codec import from_uint8
from models.rewards.ensemble import Ensemble
from models.rewards.feature_heads import COPIES, Heads, copies, train_heads
from models.rewards.features import OnnxFeatures
from models.rewards.platt import folds
from models.rewards.training import JUDGE, RewardRecipe, train_reward
from service.labelling.examples import MEMBERS, Example, arrays, ids

FOLDS = f"sha256 of the blob's name, modulo {MEMBERS}"
"""How labels are kept from members, as a judge's file says it. A judge whose file says otherwise
has members that know other labels: no training may go on from it."""
FEW_JUDGE = replace(JUDGE, members=MEMBERS, iterations=400)
REFIT = replace(JUDGE, members=3, iterations=120)


def refit(
    examples: Sequence[Example], seed: int = 0
) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """A quick small reward of pixels [N, H, W, C], [N] in (0, 1), for `selection.choose`.

    About a second on one core; it runs with torch's threads as they are. Raises ValueError when a
    class has no label.
    """
    pixels, malign = arrays(examples)
    reward = train_reward(pixels, ~malign, replace(REFIT, seed=seed))

    def score(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = member_logits(reward, images).mean(axis=1)
        scores: NDArray[np.float64] = expit(logits)
        return scores

    return score


def train_judge(
    examples: Sequence[Example],
    recipe: RewardRecipe,
    start: Ensemble | None = None,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> tuple[Ensemble, NDArray[np.float64]]:
    """A judge, and the out-of-fold logits [N] of its own labels. Raises ValueError as `folds`.

    Every member is kept from a fold of the labels, and scores it: one training gives both. With
    `start`, a judge that was trained so, training goes on, and its members' folds are the same.
    """
    pixels, malign = arrays(examples)
    seen = folds(ids(examples), malign, MEMBERS)
    judge = train_reward(pixels, ~malign, recipe, seen=seen, start=start, on_iteration=on_iteration)
    logits = np.ma.masked_array(member_logits(judge, pixels), mask=seen.T)
    return judge, np.asarray(logits.mean(axis=1), dtype=np.float64)


def train_judge_on(
    features: OnnxFeatures,
    name: str,
    examples: Sequence[Example],
    recipe: RewardRecipe,
    start: Heads | None = None,
    on_images: Callable[[int], None] = lambda _: None,
) -> tuple[Heads, NDArray[np.float64]]:
    """As `train_judge`, heads on frozen features, whose sha256 name is `name`.

    `on_images` is called for each of `images_shown(examples)` passes. Raises ValueError as
    `folds`.
    """
    pixels, malign = arrays(examples)
    seen = folds(ids(examples), malign, MEMBERS)
    vectors = copies(features, pixels, recipe, on_images)
    judge = train_heads(vectors, ~malign, recipe, name, seen=seen, start=start)
    logits = np.ma.masked_array(judge.logits(vectors[0]), mask=seen.T)
    return judge, np.asarray(logits.mean(axis=1), dtype=np.float64)


def images_shown(examples: Sequence[Example]) -> int:
    """How many images `train_judge_on` shows to the pretrained network."""
    return (1 + COPIES) * len(examples)


def member_logits(reward: Ensemble, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each member's logit of pixels [N, H, W, C], [N, K]."""
    parts = [
        reward.logits(from_uint8(pixels[i : i + 256])).numpy() for i in range(0, len(pixels), 256)
    ]
    return np.concatenate(parts).astype(np.float64)
