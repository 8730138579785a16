"""Trainings of seconds: small networks, few iterations."""

from __future__ import annotations

from dataclasses import replace

from models.rewards.distillation import DistilRecipe
from models.rewards.training import CLEAN_GUIDE, TIME_GUIDE
from service.labelling.judge_training import FEW_JUDGE
from service.labelling.training import Hyperparameters


def quick(
    judge: int = 15, clean_guide: int = 15, guide: int = 15, pool: int = 4
) -> Hyperparameters:
    """So many iterations of each network, and so many fresh draws for a threshold."""
    widths = (4, 4, 8, 8)
    return Hyperparameters(
        judge=replace(FEW_JUDGE, iterations=judge, widths=widths),
        clean_guide=replace(CLEAN_GUIDE, iterations=clean_guide, widths=widths),
        guide=replace(TIME_GUIDE, iterations=guide, widths=widths),
        student=DistilRecipe(draws=8, iterations=5, num_inference_steps=3),
        pool=pool,
    )
