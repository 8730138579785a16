"""A noise schedule, spelled out: any of diffusers' discrete ones becomes DDIM's configuration.

diffusers' classes have different defaults, so what a file leaves out means another thing to each.
Here every number is written down, and the schedule must come out the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.backbones.importing.flow import is_flow, spell_out_flow
from models.backbones.importing.source import CannotImport, short
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import PREDICTION_TYPES
from models.diffusion.spacing import SHAPES

FILE = "scheduler_config.json"

DISCRETE = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "SASolverScheduler",
    "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""diffusers' schedulers over alphas_cumprod of T timesteps: they differ in how they step alone."""

OTHER = {
    "EDM": "EDM's preconditioning over continuous σ is not supported: it would need its own "
    "parameterization",
    "KarrasVe": "a variance-exploding process is not supported",
    "ScoreSdeVe": "a variance-exploding process is not supported",
    "CMStochastic": "consistency models are not supported: they map noise to an image in one step",
    "SCM": "continuous-time consistency models are not supported",
}
"""Beginnings of schedulers' names, and what stands against them."""

IGNORED = ("use_lu_lambdas",)
KEPT = (*SHAPES.values(), "timestep_scaling", "original_inference_steps", "final_sigmas_type")
"""What samplers other than DDIM read beside its own configuration."""

DDIM_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def spell_out(
    raw: Mapping[str, Any], latent: bool, stable_diffusion: bool
) -> tuple[dict[str, Any], list[str]]:
    """A file of diffusers' as DDIM's configuration without defaults, and what was changed.

    `latent` says that x_0 is an autoencoder's, which no pipeline clamps; `stable_diffusion` that
    its pipeline sets `steps_offset` to 1. Raises CannotImport.
    """
    if is_flow(raw):
        return spell_out_flow(raw, {})
    name = str(raw.get("_class_name", "DDIMScheduler"))
    _refuse(name, raw)
    source, full = _read(name, raw)
    clamps = "clip_sample" in full
    notes = []
    if name not in ("DDIMScheduler", "DDIMParallelScheduler"):
        notes.append(f"{name}: its noise schedule is kept; policies say how to step through it")
    ignored = [key for key in IGNORED if full.get(key)]
    if full.get("interpolation_type", "linear") != "linear":
        ignored.append("interpolation_type")
    if str(full.get("variance_type", "")).startswith("learned"):
        ignored.append("variance_type")
    if ignored:
        notes.append(f"left out: {', '.join(ignored)}: Winnow's samplers have no such thing")
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": int(full["num_train_timesteps"]),
        "beta_start": float(full["beta_start"]),
        "beta_end": float(full["beta_end"]),
        "beta_schedule": full["beta_schedule"],
        "trained_betas": full.get("trained_betas"),
        "rescale_betas_zero_snr": bool(full.get("rescale_betas_zero_snr", False)),
        "prediction_type": full.get("prediction_type", "epsilon"),
        "clip_sample": bool(clamps and full["clip_sample"]),
        "clip_sample_range": float(full.get("clip_sample_range", 1.0)),
        "set_alpha_to_one": bool(full.get("set_alpha_to_one", True)),
        "steps_offset": int(full.get("steps_offset", 0)),
        "timestep_spacing": full.get("timestep_spacing", "linspace"),
        "thresholding": False,
    }
    config |= {key: full[key] for key in KEPT if full.get(key)}
    if config["beta_schedule"] not in DDIM_BETAS and config["trained_betas"] is None:
        # Written out as they came, so already rescaled.
        config["trained_betas"] = [float(beta) for beta in source.betas]
        config |= {"beta_schedule": "linear", "rescale_betas_zero_snr": False}
    if latent and raw.get("clip_sample"):
        notes.append("clip_sample: off, since latents do not end at ±1")
    if not latent and not clamps:
        notes.append(f"clip_sample: off, as {name} has it")
    if latent:
        config["clip_sample"] = False
    if stable_diffusion and config["steps_offset"] != 1:
        notes.append("steps_offset: 1, as Stable Diffusion's pipeline sets it")
        config["steps_offset"] = 1
    _compare(source, config)
    _refuse_undrawable(config)
    return config, notes


def _refuse(name: str, raw: Mapping[str, Any]) -> None:
    where = f"scheduler/{FILE}"
    for start, reason in OTHER.items():
        if name.startswith(start):
            raise CannotImport(f"{where}: {name}: {reason}")
    if name not in DISCRETE:
        raise CannotImport(
            f"{where}: {name} is not a discrete variance-preserving scheduler that Winnow knows "
            f"({', '.join(DISCRETE)})"
        )
    if raw.get("thresholding"):
        raise CannotImport(f"{where}: dynamic thresholding is not supported")
    if raw.get("timestep_type") == "continuous":
        raise CannotImport(f"{where}: continuous timesteps are not supported")
    prediction = raw.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        known = ", ".join(sorted(PREDICTION_TYPES))
        raise CannotImport(f"{where}: prediction_type {prediction!r} is not one of {known}")


def _read(name: str, raw: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The scheduler as diffusers reads the file, and the file with that class's defaults."""
    import diffusers

    try:
        # It says what it does not know, on stdout and in its log; so do we, in `notes`.
        with contextlib.redirect_stdout(None):
            source = getattr(diffusers, name).from_config(dict(raw))
    except Exception as error:  # whatever diffusers makes of such a file
        raise CannotImport(f"scheduler/{FILE}: {name} cannot read it: {short(error)}") from None
    return source, dict(source.config) | {k: v for k, v in raw.items() if v is not None}


def _compare(source: Any, config: Mapping[str, Any]) -> None:
    ours = NoiseSchedule.from_diffusers(config).alpha ** 2
    theirs = source.alphas_cumprod.double().numpy()
    # The last may be 0 here and next to nothing there, where the noise is rescaled to zero SNR.
    if len(ours) != len(theirs) or not np.allclose(ours[:-1], theirs[:-1], rtol=1e-4, atol=1e-9):
        raise CannotImport(f"scheduler/{FILE}: its noise schedule cannot be written down for DDIM")


def _refuse_undrawable(config: Mapping[str, Any]) -> None:
    """Where the first step is at ᾱ = 0, x_t is noise alone, and eps says nothing of x_0."""
    spacing = config["timestep_spacing"]
    if config["prediction_type"] != "epsilon" or spacing == "leading":
        return
    if NoiseSchedule.from_diffusers(config).alpha[-1] < 1e-6:
        raise CannotImport(
            f"scheduler/{FILE}: this schedule cannot be drawn: with zero terminal SNR "
            f"(rescale_betas_zero_snr) and timestep_spacing {spacing} the first step is at ᾱ = 0, "
            "where prediction_type epsilon says nothing of x_0. If the network predicts v give "
            "--prediction-type v_prediction, else write timestep_spacing leading there"
        )
