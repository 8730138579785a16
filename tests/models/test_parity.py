"""Whatever kind of model: Winnow's engine draws what diffusers' own pipeline draws.

`pytest -v` on this file prints the greatest differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from models.backbones.runtime import TorchDenoiser
from models.diffusion.conditioning import Conditions
from models.diffusion.guidance import CleanReward, ForwardGuide
from models.diffusion.samplers import SAMPLERS
from models.offline.generator import load_generator
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork
from service.config import BackboneSettings
from service.engine.load import load_engine
from service.ports import DrawKey, SamplingPlan
from tests.engines import run_to_end, submit
from tests.parity import Made, ask, draw_each, noise
from tests.plans import vary

TOLERANCE = 1e-4
"""Of float32 numbers of up to about 40: x̂_0 of a random denoiser is not within [-1, 1]."""

PROMPT = {"prompt": "a cat", "guidance_scale": 7.5}
BOTH = PROMPT | {"negative_prompt": "owl"}
CASES: dict[str, tuple[str, SamplingPlan]] = {
    "unconditional": ("ddpm", ask(20)),
    "unconditional, ancestral": ("ddpm", ask(20, eta=1.0)),
    "class": ("class", ask(20, class_label=1)),
    "class, guided": ("class", ask(20, class_label=1, guidance_scale=3.0)),
    "latents, VQModel": ("ldm-vq", ask(20)),
    "latents, AutoencoderKL": ("ldm-kl", ask(20)),
    "SD": ("sd", ask(20, prompt="a cat")),
    "SD, guided": ("sd", ask(20, **PROMPT)),
    "SD, negative prompt": ("sd", ask(20, **BOTH)),
    "SD, ancestral": ("sd", ask(20, eta=1.0, **PROMPT)),
    "SD, v-prediction": ("sd-v", ask(20, **BOTH)),
    "SD XL": ("sdxl", ask(20, prompt="a cat")),
    "SD XL, guided": ("sdxl", ask(20, **PROMPT)),
    "SD XL, negative prompt": ("sdxl", ask(20, **BOTH)),
    "SD XL, DPM-Solver++": ("sdxl", ask(12, "dpmsolver++", **BOTH)),
    "DiT": ("dit", ask(20, class_label=7)),
    "DiT, guided": ("dit", ask(20, class_label=7, guidance_scale=4.0)),
} | {f"SD, {sampler}": ("sd", ask(10, sampler, **BOTH)) for sampler in SAMPLERS}
MIXED: dict[str, list[SamplingPlan]] = {
    # Not DPM-Solver++: diffusers' own does not clip x̂_0, whatever the config says.
    "ddpm": [ask(20), ask(8), ask(10), ask(5, eta=1.0), ask(20), ask(4)],
    "ldm-kl": [ask(20), ask(8), ask(10), ask(5), ask(20), ask(4)],
    "class": [
        ask(20, class_label=0),
        ask(10, class_label=0, guidance_scale=3.0),
        ask(15, "dpmsolver++", class_label=1, guidance_scale=2.0),
        ask(8, class_label=2),
        ask(20, class_label=2, guidance_scale=1.5),
        ask(5, "dpmsolver++", class_label=1),
    ],
    "sd": [
        ask(20, **BOTH),
        ask(8, prompt="a dog"),
        ask(10, "dpmsolver++", **PROMPT),
        ask(20, prompt="", guidance_scale=1.0),
        ask(10, prompt="an owl", negative_prompt="dog cat", guidance_scale=3.0),
        ask(10, prompt="a cat", negative_prompt="dog", eta=1.0, guidance_scale=1.5),
        ask(5, prompt="a dog", negative_prompt="dog", guidance_scale=1.0),
    ],
    "sdxl": [
        ask(20, **BOTH),
        ask(8, prompt="a dog"),
        ask(10, "dpmsolver++", **PROMPT),
        ask(20, prompt="an owl", guidance_scale=5.0),
        ask(10, prompt="an owl", negative_prompt="dog cat", guidance_scale=3.0),
    ],
    "dit": [
        ask(20, class_label=0, guidance_scale=4.0),
        ask(10, class_label=999),
        ask(12, "dpmsolver++", class_label=7, guidance_scale=2.0),
        ask(20, class_label=7),
        ask(5, class_label=500, guidance_scale=1.5),
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The pipeline of each kind, made once."""
    return cache(lambda kind: Made.make(kind, tmp_path_factory.mktemp(kind)))


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
                reporter.write_line(f"{name:26} {difference:.1e}")


@pytest.mark.parametrize("name", CASES)
def test_the_engine_draws_what_diffusers_does(
    name: str, made: Callable[[str], Made], differences: dict[str, float]
) -> None:
    kind, plan = CASES[name]
    it = made(kind)
    (result,) = draw_each(it.engine(), [plan])
    found = it.image(result).difference(it.diffusers(plan, seed=0))
    differences[name] = found
    assert found <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXED)
def test_rows_of_one_batch_are_what_each_is_alone(
    kind: str, made: Callable[[str], Made], differences: dict[str, float]
) -> None:
    """Whatever their conditions, guidance scales, timesteps, steps and samplers; and a row at
    scale 1 pays for no second half."""
    it, plans = made(kind), MIXED[kind]
    it.denoised.clear()
    mixed = draw_each(it.engine(max_batch=4), plans, ticks_between=2)
    calls = [timesteps.tolist() for timesteps, _ in it.denoised]
    assert max(len(set(call)) for call in calls) >= 3
    owed = [
        plan.method.num_inference_steps * (2 if plan.condition.guidance_scale > 1 else 1)
        for plan in plans
    ]
    assert [result.nfe for result in mixed] == owed
    assert sum(map(len, calls)) == sum(owed)
    found = []
    for seed, (plan, result) in enumerate(zip(plans, mixed, strict=True)):
        image = it.image(result)
        engine = it.engine(max_batch=1)
        caller = submit(engine, plan, [DrawKey(0, seed, 0)])
        run_to_end(engine)
        engine.decoder.wait()
        alone = it.image(next(iter(caller.results.values())))
        found += [image.difference(alone), image.difference(it.diffusers(plan, seed))]
    differences[f"{kind}, mixed batch"] = max(found)
    assert max(found) <= TOLERANCE


@pytest.mark.parametrize("kind", ["sd", "sdxl", "class", "dit"])
def test_every_condition_shows_in_the_image(kind: str, made: Callable[[str], Made]) -> None:
    """Otherwise the tests above would say nothing of them."""
    it = made(kind)
    asked = [ask(4, class_label=2), ask(4, class_label=1)]
    asked += [ask(4, class_label=1, guidance_scale=3.0)]
    if kind.startswith("sd"):
        asked = [ask(4, prompt="a cat"), ask(4, prompt="a dog"), ask(4, **PROMPT), ask(4, **BOTH)]
    engine = it.engine()
    callers = [submit(engine, plan, [DrawKey(0, 3, 0)]) for plan in asked]
    run_to_end(engine)
    engine.decoder.wait()
    images = [it.image(next(iter(caller.results.values()))).x_0 for caller in callers]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert (one - other).abs().max() > 100 * TOLERANCE


def test_a_loaded_engine_delivers_the_pixels_of_diffusers(made: Callable[[str], Made]) -> None:
    """Through `load_engine` and the decoder's thread, to the bytes; and so does the generator."""
    it, plan = made("sd"), ask(20, **BOTH)
    settings = BackboneSettings(runtime="torch", max_batch=2)
    engine = load_engine(it.bundle, settings)
    engine.warm_up()
    plan = vary(plan, backbone=it.bundle.backbone_sha256("torch"))
    caller = submit(engine, plan, [DrawKey(0, 5, 0)])
    engine.run_to_end()
    engine.decoder.close()
    (result,) = caller.results.values()
    wanted = (it.diffusers(plan, 5).decoded.clamp(-1, 1) + 1) * 127.5
    assert result.pixels is not None
    assert result.pixels.shape == (32, 32, 3)
    assert np.ptp(result.pixels) > 100
    difference = result.pixels.astype(float) - wanted.permute(1, 2, 0).double().numpy()
    assert np.abs(difference).max() <= 0.51  # rounding, and no more
    generator = replace(it.generator, num_inference_steps=20, condition=lambda _: plan.condition)
    (pixels,) = generator.images([5]).astype(int)
    assert np.abs(pixels - result.pixels).max() <= 1


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    torch.manual_seed(7)
    return Ensemble(RewardNetwork(RewardConfig(members=2, channels=3)))


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_forward_guidance_is_the_gradient_through_decoder_and_denoiser(
    scale: float, made: Callable[[str], Made], ensemble: Ensemble
) -> None:
    """Against autograd through diffusers' own modules; and what it costs."""
    it = made("sd")
    schedule, denoiser = it.generator.schedule, it.generator.denoiser
    assert isinstance(denoiser, TorchDenoiser)
    reward = CleanReward(ensemble, it.generator.codec)
    guide = ForwardGuide(denoiser.differentiable, schedule, reward)
    plan = ask(4, prompt="a cat", negative_prompt="owl", guidance_scale=scale)
    seeds, timestep = [0, 1, 2], torch.tensor([951, 501, 51])
    x_t = torch.cat([noise(seed, it.generator.shape) for seed in seeds])
    encoded = it.generator.encoder.encode(plan.condition, 0)
    found = guide.gradient(x_t, timestep, Conditions.stack([encoded] * 3, [scale] * 3))
    wanted = torch.cat(
        [
            _reference_gradient(it, ensemble, plan, x_t[row : row + 1], timestep[row])
            for row in range(3)
        ]
    )
    assert wanted.abs().amax((1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    engine = it.engine({("forward", "through"): guide})
    steered = vary(plan, forward="through", censor_scale=1.0, guide_interval=(0, 600))
    results = draw_each(engine, [steered, plan])
    halves = 2 if scale > 1 else 1
    # Timesteps 751, 501, 251 and 1: three of four lie in the interval.
    assert [result.nfe for result in results] == [halves * (4 + 3 * 3), halves * 4]
    assert engine.cost(steered) == results[0].nfe


def _reference_gradient(
    it: Made, ensemble: Ensemble, plan: SamplingPlan, x_t: Tensor, timestep: Tensor
) -> Tensor:
    pipeline, asked = it.pipeline, plan.condition
    prompt, negative = pipeline.encode_prompt(
        asked.prompt, "cpu", 1, True, negative_prompt=asked.negative_prompt
    )
    with torch.enable_grad():
        x = x_t.clone().requires_grad_()
        eps = pipeline.unet(x, timestep, encoder_hidden_states=prompt).sample
        if asked.guidance_scale > 1:
            away = pipeline.unet(x, timestep, encoder_hidden_states=negative).sample
            eps = away + asked.guidance_scale * (eps - away)
        alpha_bar = float(it.generator.schedule.alpha[timestep] ** 2)
        x_0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        image = pipeline.vae.decode(x_0 / pipeline.vae.config.scaling_factor).sample
        return torch.autograd.grad(ensemble.log_reward(image).sum(), x)[0]


@pytest.mark.parametrize("kind", ["sd", "dit"])
def test_bfloat16_draws_nearly_the_same(kind: str, made: Callable[[str], Made]) -> None:
    it, plan = made(kind), MIXED[kind][0]
    half = replace(it, generator=load_generator(it.bundle, "torch", dtype="bfloat16"))
    (result,) = draw_each(half.engine(), [plan])
    image, wanted = half.image(result), it.diffusers(plan, 0)
    assert image.decoded.isfinite().all()
    assert 0 < image.difference(wanted) < 0.05 * wanted.x_0.abs().max()
