"""Schedules, spelled out: nothing of diffusers' defaults changes on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from models.backbones.importing.scheduler import DISCRETE, spell_out
from models.backbones.importing.source import CannotImport
from models.diffusion.noise_schedule import NoiseSchedule
from tests.imports import edit, import_folder
from tests.models.backbones.importing.conftest import Copy


def _spelt(raw: dict[str, Any], latent: bool = False, sd: bool = False) -> dict[str, Any]:
    return spell_out(raw, latent, sd)[0]


@pytest.mark.parametrize("name", DISCRETE)
def test_every_discrete_scheduler_keeps_its_schedule(name: str) -> None:
    source = getattr(diffusers, name)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=500
    )
    raw = dict(source.config) | {"_class_name": name}
    config = _spelt(raw, latent=True)
    schedule = NoiseSchedule.from_diffusers(config)
    assert np.allclose(schedule.alphas_cumprod, source.alphas_cumprod, rtol=1e-5)
    assert schedule.num_train_timesteps == 500
    assert schedule.clip_sample_range is None
    # What is written stays what it is, whatever diffusers' defaults become.
    signature = set(diffusers.DDIMScheduler().config) - {
        "_use_default_values", "dynamic_thresholding_ratio", "sample_max_value"
    }  # fmt: skip
    assert signature <= set(config)


def test_defaults_are_those_of_the_class_that_the_file_is_for() -> None:
    # PNDM's file of every Stable Diffusion 1.x leaves `clip_sample` out, and DDIM would clamp.
    raw = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    pndm = _spelt(raw, latent=True)
    assert pndm["clip_sample"] is False
    assert pndm["set_alpha_to_one"] is False
    assert pndm["timestep_spacing"] == "leading"
    ddpm = _spelt({"_class_name": "DDPMScheduler"})
    assert (ddpm["clip_sample"], ddpm["clip_sample_range"]) == (True, 1.0)
    assert ddpm["set_alpha_to_one"] is True
    euler = _spelt({"_class_name": "EulerDiscreteScheduler"})
    assert euler["clip_sample"] is False
    assert euler["timestep_spacing"] == "linspace"
    dpm = _spelt({"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"})
    assert dpm["final_sigmas_type"] == "sigma_min"


def test_a_clamp_on_pixels_is_kept_and_one_on_latents_is_not() -> None:
    raw = {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 1.5}
    assert _spelt(raw)["clip_sample_range"] == 1.5
    assert _spelt(raw)["clip_sample"] is True
    config, notes = spell_out(raw, latent=True, stable_diffusion=False)
    assert config["clip_sample"] is False
    assert any("clip_sample: off" in note for note in notes)
    # Left out, it is DDIM's default, of which nobody need hear.
    config, notes = spell_out({"_class_name": "DDIMScheduler"}, True, False)
    assert config["clip_sample"] is False
    assert notes == []


def test_stable_diffusion_begins_one_step_later() -> None:
    raw = {"_class_name": "PNDMScheduler", "steps_offset": 0}
    assert _spelt(raw, latent=True, sd=True)["steps_offset"] == 1
    assert _spelt(raw, latent=True)["steps_offset"] == 0


@pytest.mark.parametrize(
    "kept",
    [
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"timestep_spacing": "trailing", "set_alpha_to_one": False, "steps_offset": 3},
        {"trained_betas": [0.01, 0.02, 0.03], "num_train_timesteps": 3},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    ],
)
def test_what_the_file_says_is_kept(kept: dict[str, Any]) -> None:
    config = _spelt({"_class_name": "DDIMScheduler"} | kept)
    assert {name: config[name] for name in kept} == kept


def test_a_schedule_that_ddim_has_no_name_for_is_written_out() -> None:
    source = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    config = _spelt(dict(source.config) | {"_class_name": "DDPMScheduler"})
    assert len(config["trained_betas"]) == 1000
    ours = NoiseSchedule.from_diffusers(config).alphas_cumprod
    assert np.allclose(ours, source.alphas_cumprod, rtol=1e-4)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"_class_name": "UniPCMultistepScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type"),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            "interpolation_type",
        ),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said(raw: dict[str, Any], word: str) -> None:
    pytest.importorskip("scipy")
    notes = spell_out(raw, True, False)[1]
    assert any(note.startswith("left out:") and word in note for note in notes), notes


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"x_t = \(1−σ\) x_0 \+ σ eps"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "flow matching"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "consistency models"),
        ({"_class_name": "LCMScheduler"}, "latent consistency"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "variance-exploding"),
        ({"_class_name": "UnCLIPScheduler"}, "not a discrete variance-preserving"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "flow"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "dynamic thresholding"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "'score' is not one of"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "made-up"}, "cannot read it"),
    ],
)
def test_what_the_samplers_cannot_step_through_is_refused(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotImport, match=words):
        spell_out(raw, True, False)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_schedule_that_cannot_be_drawn_is_blamed(
    pipeline: Copy, tmp_path: Path, spacing: str
) -> None:
    folder = pipeline("ldm")
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    edit(folder / "scheduler/scheduler_config.json", **zero)
    with pytest.raises(CannotImport, match=r"schedule cannot be drawn.*--prediction-type v_pred"):
        import_folder(folder, tmp_path / "a")
    edit(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    import_folder(folder, tmp_path / "b")
    leading = {"prediction_type": "epsilon", "timestep_spacing": "leading"}
    edit(folder / "scheduler/scheduler_config.json", **leading)
    import_folder(folder, tmp_path / "c")
