"""Every family with an adapter: the engine draws what its own pipeline in diffusers draws.

`pytest -v` on this file prints the greatest differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
from torch import Tensor

from models.backbones.importing.source import CannotImport
from models.diffusion.condition import Condition, ConditionError
from models.diffusion.method import SamplerName
from models.diffusion.noise_schedule import NoiseSchedule, read_config
from service.ports import SamplingPlan
from tests.families import TINY
from tests.imports import edit, import_folder
from tests.parity import Made, ask, draw_each, noise
from tests.plans import vary
from tests.schedulers import scheduler_of

TOLERANCE = 1e-4
NEGATIVE = ("sd3", "sd3-clip", "pixart", "sana", "z-image", "qwen-image")
"""Families that compare with a prompt of the caller's; FLUX.2 with none but the empty one."""


@dataclass(frozen=True)
class Tiny:
    """A pipeline, and the bundle that was made of it."""

    made: Made

    @classmethod
    def make(cls, kind: str, folder: Path) -> Tiny:
        made = Made.make(kind, folder)
        # The file as it was spelled out: some are another solver's over the same flow.
        made.scheduler = read_config(made.bundle.folder / "backbone")
        return cls(made)

    def diffusers(self, plan: SamplingPlan, seed: int) -> tuple[Tensor, Tensor]:
        """(x_0 [C, H, W] as the engine lays it out, the image in [0, 1]) by the pipeline itself."""
        pipeline, asked = self.made.pipeline, plan.condition
        schedule = NoiseSchedule.from_diffusers(self.made.scheduler)
        pipeline.scheduler = scheduler_of(schedule, plan.method)
        x_t = noise(seed, self.made.generator.shape)
        backbone = self.made.bundle.manifest.backbone
        kept: list[Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            kept.append(given["latents"])
            return given

        call: dict[str, Any] = {
            "prompt": asked.prompt,
            "height": backbone.height,
            "width": backbone.width,
            "num_inference_steps": plan.method.num_inference_steps,
            "latents": self._packed(x_t),
            "output_type": "pt",
            "callback_on_step_end": keep,
        }
        kind = self.made.kind
        if kind == "pixart":  # it has a callback of its own
            del call["callback_on_step_end"]
            call |= {"callback": lambda step, t, latents: kept.append(latents)}
        if kind in ("pixart", "sana"):
            call |= {"use_resolution_binning": False, "clean_caption": False}
        if kind == "qwen-image":
            call |= {"true_cfg_scale": asked.guidance_scale,
                     "negative_prompt": asked.negative_prompt or " "}  # fmt: skip
        else:
            call["guidance_scale"] = asked.guidance_scale
        if kind == "z-image" and asked.guidance_scale == 1:
            call["guidance_scale"] = 0.0  # 1 guides there, and is none here as everywhere
        if kind in NEGATIVE and kind != "qwen-image":
            call["negative_prompt"] = asked.negative_prompt
        image = pipeline(**call).images
        return self._unpacked(kept[-1], x_t)[0], image[0]

    def _packed(self, x_t: Tensor) -> Tensor:
        rows, channels, height, width = x_t.shape
        if self.made.kind.startswith("flux") and "flux2" not in self.made.kind:
            return diffusers.FluxPipeline._pack_latents(x_t, rows, channels, height, width)
        if self.made.kind == "qwen-image":
            return diffusers.QwenImagePipeline._pack_latents(x_t, rows, channels, height, width)
        return x_t

    def _unpacked(self, latents: Tensor, x_t: Tensor) -> Tensor:
        _, _, height, width = x_t.shape
        if self.made.kind.startswith("flux2"):
            return latents.transpose(1, 2).reshape(x_t.shape)
        if self.made.kind.startswith("flux"):
            return diffusers.FluxPipeline._unpack_latents(latents, height, width, 1)
        if self.made.kind == "qwen-image":
            return diffusers.QwenImagePipeline._unpack_latents(latents, height, width, 1)[:, :, 0]
        return latents

    def difference(self, result: Any, plan: SamplingPlan, seed: int) -> float:
        """The greatest of all numbers' differences, of x_0 and of pixels."""
        found, (x_0, image) = self.made.image(result), self.diffusers(plan, seed)
        pixels = (found.decoded / 2 + 0.5).clamp(0, 1)
        assert found.x_0.abs().max() < 100, "or float32 itself is not as exact"
        return max(float((found.x_0 - x_0).abs().max()), float((pixels - image).abs().max()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The pipeline of each family, made once."""
    return cache(lambda kind: Tiny.make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def differences(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    """The table that `-v` prints."""
    found: dict[str, float] = {}
    yield found
    if request.config.get_verbosity() > 0:
        plugins = request.config.pluginmanager
        reporter, capture = map(plugins.get_plugin, ("terminalreporter", "capturemanager"))
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for name, difference in found.items():
                reporter.write_line(f"{name:34} {difference:.1e}")


def _sampler(kind: str) -> SamplerName:
    return "dpmsolver++" if kind in ("pixart", "sana") else "euler"


def _asked(kind: str) -> Mapping[str, SamplingPlan]:
    """Plans of a family: without guidance, with it, and with a negative prompt."""
    sampler = _sampler(kind)
    plans = {"plain": ask(6, sampler, prompt="a cat", guidance_scale=1.0)}
    if kind not in ("flux-schnell", "flux2-distilled"):
        plans["guided"] = ask(8, sampler, prompt="a dog", guidance_scale=3.5)
    if kind in NEGATIVE:
        plans["negative"] = ask(
            5, sampler, prompt="a cat", negative_prompt="no owl", guidance_scale=2.5
        )
    return plans


@pytest.mark.parametrize("kind", TINY)
def test_the_engine_draws_what_the_familys_pipeline_does(
    kind: str, tiny: Callable[[str], Tiny], differences: dict[str, float]
) -> None:
    it = tiny(kind)
    for name, plan in _asked(kind).items():
        (result,) = draw_each(it.made.engine(), [plan])
        differences[f"{kind}, {name}"] = it.difference(result, plan, 0)
    assert max(differences[f"{kind}, {name}"] for name in _asked(kind)) <= TOLERANCE


@pytest.mark.parametrize("kind", TINY)
def test_rows_of_one_batch_are_what_each_is_alone(
    kind: str, tiny: Callable[[str], Tiny], differences: dict[str, float]
) -> None:
    """Whatever their prompts (of several lengths), scales, steps and timesteps."""
    it = tiny(kind)
    plans = [*_asked(kind).values()]
    plans.append(
        ask(7, _sampler(kind), prompt="a", guidance_scale=plans[-1].condition.guidance_scale)
    )
    plans.append(ask(4, _sampler(kind), prompt="a dog a cat an owl", guidance_scale=1.0))
    it.made.denoised.clear()
    mixed = draw_each(it.made.engine(max_batch=3), plans, ticks_between=2)
    calls = [timesteps.tolist() for timesteps, _ in it.made.denoised]
    assert max(len(set(call)) for call in calls) >= 3
    encoder = it.made.generator.encoder
    owed = [
        plan.method.num_inference_steps * (2 if encoder.scale(plan.condition) > 1 else 1)
        for plan in plans
    ]
    assert [result.nfe for result in mixed] == owed
    found = [it.difference(result, plan, seed)
             for seed, (result, plan) in enumerate(zip(mixed, plans, strict=True))]  # fmt: skip
    differences[f"{kind}, mixed batch"] = max(found)
    assert max(found) <= TOLERANCE


@pytest.mark.parametrize("kind", TINY)
def test_every_condition_shows_in_the_image(kind: str, tiny: Callable[[str], Tiny]) -> None:
    """Otherwise the tests above would say nothing of them."""
    it = tiny(kind)
    plans = [*_asked(kind).values(), ask(6, _sampler(kind), prompt="an owl", guidance_scale=1.0)]
    images = []
    for plan in plans:
        plan = vary(plan, num_inference_steps=6)
        (result,) = draw_each(it.made.engine(), [plan])
        images.append(it.made.image(result).x_0)
    for place, one in enumerate(images):
        for other in images[:place]:
            assert (one - other).abs().max() > 10 * TOLERANCE


def test_what_a_pipeline_warns_of_repeats_no_prompt(
    tiny: Callable[[str], Tiny], caplog: pytest.LogCaptureFixture
) -> None:
    """CLIP's part of it is cut, as in the pipeline, which says what of it was."""
    diffusers.utils.logging.enable_propagation()
    encoder = tiny("flux").made.generator.encoder
    encoder.encode(Condition("secretname " * 30), 0)
    assert "secretname" not in caplog.text


def test_a_pixart_of_the_generation_before_is_refused(tmp_path: Path) -> None:
    TINY["pixart"](tmp_path / "pixart")
    edit(tmp_path / "pixart/transformer/config.json", use_additional_conditions=True)
    with pytest.raises(CannotImport, match="is no PixArt-Σ: it takes the image's size"):
        import_folder(tmp_path / "pixart", tmp_path / "out")


@pytest.mark.parametrize("kind", TINY)
def test_a_prompt_that_is_too_long_is_refused_with_its_length(
    kind: str, tiny: Callable[[str], Tiny]
) -> None:
    made = tiny(kind).made
    encoder, inputs = made.generator.encoder, made.bundle.manifest.backbone.inputs
    assert inputs.tokens(chunks=8) == inputs.max_tokens, "which no configuration changes"
    encoder.check(Condition("a cat"), 0)
    with pytest.raises(
        ConditionError, match=rf"has \d+ tokens, \d+ more than the {inputs.max_tokens} "
    ) as caught:
        encoder.check(Condition("a cat " * 2000), 0)
    assert caught.value.field == "prompt"
