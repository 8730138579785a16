"""Noise schedules: x_t = alpha·x_0 + sigma·eps, as a table of (alpha, sigma, model time).

Variance-preserving schedules have alpha = √ᾱ and sigma = √(1−ᾱ) at T integer timesteps; flow
matching has alpha = 1 − sigma at timesteps sigma·T. Above this module and `spacing` nothing asks
which of them a model was trained on.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType

PIPELINE = "pipeline"
"""A key beside diffusers' own in a stored configuration: how the model's pipeline calls its
scheduler. `sigmas` "linspace": from 1 to 1/N; `mu` "linear" or "flux2"; `patch`, the side of what
is one position."""

FLOW = "FlowMatch"
"""How the names of diffusers' schedulers over a flow begin."""


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule, as diffusers configures it.

    `times`: float64 [K], rising; `alpha` and `sigma`: float64 [K], what x_t consists of at each.
    `final_alpha`: alpha where DDIM's last step ends. `num_train_timesteps`: T, the end of model
    time. `clip_sample_range`: clamp of x̂_0 in every step, or None. `flow` says that alpha is
    1 − sigma, and `positions` how many an image has, where the spacing depends on its size.
    """

    times: NDArray[np.float64]
    alpha: NDArray[np.float64]
    sigma: NDArray[np.float64]
    final_alpha: float
    num_train_timesteps: int
    prediction_type: PredictionType
    clip_sample_range: float | None
    config: Mapping[str, Any]
    flow: bool = False
    positions: int | None = None

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read a diffusers `scheduler_config.json`.

        Raises ValueError when the config asks for what the samplers do not implement.
        """
        if config.get("thresholding"):
            raise ValueError("scheduler_config.json: dynamic thresholding is not supported")
        flow = str(config.get("_class_name", "")).startswith(FLOW)
        prediction_type = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            known = ", ".join(sorted(PREDICTION_TYPES))
            raise ValueError(
                f"scheduler_config.json: prediction_type {prediction_type!r} is not one of {known}"
            )
        prediction_type = cast(PredictionType, prediction_type)
        if flow:
            total = int(config.get("num_train_timesteps", 1000))
            ends = np.array([0.0, total]), np.array([1.0, 0.0]), np.array([0.0, 1.0])
            return cls(*ends, 1.0, total, prediction_type, None, dict(config), True)
        reference = construct(DDIMScheduler, config)
        alphas_cumprod = reference.alphas_cumprod.double().numpy()
        return cls(
            times=np.arange(len(alphas_cumprod), dtype=np.float64),
            alpha=np.sqrt(alphas_cumprod),
            sigma=np.sqrt(1 - alphas_cumprod),
            final_alpha=float(reference.final_alpha_cumprod) ** 0.5,
            num_train_timesteps=len(alphas_cumprod),
            prediction_type=prediction_type,
            clip_sample_range=(
                float(reference.config["clip_sample_range"])
                if reference.config["clip_sample"]
                else None
            ),
            config=dict(config),
        )

    def of_size(self, height: int, width: int) -> NoiseSchedule:
        """The same for x_t of this size."""
        patch = int(self.config.get(PIPELINE, {}).get("patch", 1))
        return replace(self, positions=(height // patch) * (width // patch))

    def at(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps [B], float32 [B, 1, 1, 1] each; between two, linearly."""
        times = timestep.detach().cpu().double().numpy()
        alpha, sigma = (
            torch.from_numpy(np.interp(times, self.times, table)).float().view(-1, 1, 1, 1)
            for table in (self.alpha, self.sigma)
        )
        return alpha.to(timestep.device), sigma.to(timestep.device)


def construct(scheduler: Any, config: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers, of what its class knows of a configuration: of all else it would
    log a line."""
    known = inspect.signature(scheduler.__init__).parameters
    return scheduler.from_config({key: value for key, value in config.items() if key in known})


def read_config(folder: Path) -> dict[str, Any]:
    """The `scheduler/scheduler_config.json` of a diffusers folder."""
    config: dict[str, Any] = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    return config
