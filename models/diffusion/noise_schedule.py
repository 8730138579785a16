"""Noise schedules: the numbers alpha_bar_t that say how much noise x_t carries.

diffusers builds the schedule and spaces the timesteps; this module reads them off once, so that
the samplers can be pure functions of per-row coefficients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from models.diffusion.method import Spacing
from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete-time variance-preserving schedule, as diffusers configures it.

    `alphas_cumprod`: [T] in (0, 1], falling; `final_alpha_cumprod`: the value before timestep 0.
    `clip_sample_range`: clamp of x̂_0 in every step, or None.
    """

    alphas_cumprod: NDArray[np.float64]
    final_alpha_cumprod: float
    prediction_type: PredictionType
    clip_sample_range: float | None
    config: Mapping[str, Any]

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read a diffusers `scheduler_config.json`.

        Raises ValueError when the config asks for what the samplers do not implement.
        """
        if config.get("thresholding"):
            raise ValueError("scheduler_config.json: dynamic thresholding is not supported")
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            known = ", ".join(sorted(PREDICTION_TYPES))
            raise ValueError(
                f"scheduler_config.json: prediction_type {prediction_type!r} is not one of {known}"
            )
        reference = DDIMScheduler.from_config(dict(config))
        return cls(
            alphas_cumprod=reference.alphas_cumprod.double().numpy(),
            final_alpha_cumprod=float(reference.final_alpha_cumprod),
            prediction_type=cast(PredictionType, prediction_type),
            clip_sample_range=(
                float(reference.config["clip_sample_range"])
                if reference.config["clip_sample"]
                else None
            ),
            config=dict(config),
        )

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps the backbone was trained on."""
        return len(self.alphas_cumprod)

    def timesteps(
        self,
        num_inference_steps: int,
        scheduler: Any = DDIMScheduler,
        spacing: Spacing | None = None,
    ) -> NDArray[np.int64]:
        """Strictly falling timesteps as this class of diffusers spaces them.

        [num_inference_steps], or one fewer where its rounding makes two equal. `spacing` None
        means the config's `timestep_spacing`. Raises ValueError where hardly any would be left.
        """
        config = dict(self.config) | ({} if spacing is None else {"timestep_spacing": spacing})
        scheduler = scheduler.from_config(config)
        scheduler.set_timesteps(num_inference_steps)
        found = np.unique(scheduler.timesteps.numpy().astype(np.int64))[::-1]
        # Trailing steps of 1000/61, and 61 others, round to one step too many, at timestep -1.
        found = found[found >= 0]
        if len(found) < num_inference_steps - 1:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, and the sampler's timestep "
                f"spacing leaves only {len(found)}: ask for fewer"
            )
        return cast(NDArray[np.int64], found)


def read_config(folder: Path) -> dict[str, Any]:
    """The `scheduler/scheduler_config.json` of a diffusers folder."""
    config: dict[str, Any] = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    return config
