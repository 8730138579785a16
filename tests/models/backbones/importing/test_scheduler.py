"""Schedules, spelled out: nothing of diffusers' defaults changes on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from models.backbones.families.table import FAMILIES
from models.backbones.importing.sampling import suggest
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
    assert np.allclose(schedule.alpha**2, source.alphas_cumprod, rtol=1e-5)
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
    ours = NoiseSchedule.from_diffusers(config).alpha ** 2
    assert np.allclose(ours, source.alphas_cumprod, rtol=1e-4)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas"),
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
        ({"_class_name": "SASolverScheduler", "use_flow_sigmas": True}, "over a flow is not"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
            "invert_sigmas",
        ),
        ({"_class_name": "EDMEulerScheduler"}, "EDM"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "consistency models"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "variance-exploding"),
        ({"_class_name": "UnCLIPScheduler"}, "not a discrete variance-preserving"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "dynamic thresholding"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "'score' is not one of"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "made-up"}, "cannot read it"),
    ],
)
def test_what_the_samplers_cannot_step_through_is_refused(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotImport, match=words):
        spell_out(raw, True, False)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_beta_sigmas": True},
            "use_beta_sigmas",
        ),
        (
            {"_class_name": "LCMScheduler", "original_inference_steps": 40},
            "original_inference_steps",
        ),
    ],
)
def test_what_other_samplers_are_spaced_by_is_kept(raw: dict[str, Any], kept: str) -> None:
    assert spell_out(raw, True, False)[0][kept] == raw[kept]


@pytest.mark.parametrize(
    ("raw", "shift"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 3.0),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, 1.0),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.0,
          "prediction_type": "flow_prediction"}, 2.0),
    ],
)  # fmt: skip
def test_a_flow_is_spelled_out_for_eulers_scheduler(raw: dict[str, Any], shift: float) -> None:
    config, _ = spell_out(raw, True, False)
    assert (config["_class_name"], config["shift"]) == ("FlowMatchEulerDiscreteScheduler", shift)
    assert config["use_dynamic_shifting"] is False, "what is left out is written down"
    schedule = NoiseSchedule.from_diffusers(config)
    assert schedule.flow
    assert schedule.prediction_type == "flow_prediction"


@pytest.mark.parametrize(
    ("name", "raw", "found"),
    [
        ("sd15", {"_class_name": "PNDMScheduler"}, ("ddim", 50, True)),
        ("sdxl", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
         ("euler", 50, True)),
        ("sdxl-x", {"_class_name": "EulerAncestralDiscreteScheduler",
                    "timestep_spacing": "trailing"}, ("euler-ancestral", 4, False)),
        ("x", {"_class_name": "LCMScheduler"}, ("lcm", 4, False)),
        ("Hyper-SD-8steps", {"_class_name": "TCDScheduler"}, ("tcd", 8, False)),
        ("sdxl-lightning-2step", {"_class_name": "EulerDiscreteScheduler"}, ("euler", 2, False)),
        ("x", {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
         ("dpmsolver++-sde", 50, True)),
        ("x", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("euler", 50, True)),
        ("HyperRealism-v3", {"_class_name": "PNDMScheduler"}, ("ddim", 50, True)),
        ("xl-vpred", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing",
                      "prediction_type": "v_prediction"}, ("euler", 50, True)),
        ("short", {"_class_name": "DDPMScheduler", "num_train_timesteps": 20},
         ("ddim", 20, True)),
    ],
)  # fmt: skip
def test_a_folder_says_how_its_model_wants_to_be_sampled(
    name: str, raw: dict[str, Any], found: tuple[Any, ...]
) -> None:
    sampling = suggest(name, raw, None)
    assert (sampling.sampler, sampling.num_inference_steps, sampling.guided) == found
    assert raw["_class_name"] in sampling.why


def test_a_familys_own_steps_are_taken_unless_its_name_says_that_it_was_distilled() -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    family = FAMILIES["ZImageTransformer2DModel"]
    assert suggest("Z-Image", flow, family).num_inference_steps == 50
    turbo = suggest("Z-Image-Turbo", flow, family)
    assert (turbo.num_inference_steps, turbo.guided) == (4, False)
    assert "'turbo'" in turbo.why


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
