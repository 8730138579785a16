"""Prompts of one and of several chunks in one batch: each draws what diffusers' modules draw of it
alone, with nothing filled up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from models.backbones.encoders import load_encoder
from models.diffusion.condition import Condition
from models.diffusion.conditioning import Named
from models.diffusion.samplers import SAMPLERS
from service.config import BackboneSettings
from service.engine.load import load_engine
from service.errors import InvalidValue
from service.ports import DrawKey, SamplingPlan
from tests.engines import submit
from tests.parity import Made, ask, draw_each, noise
from tests.pipelines import TOKENS
from tests.plans import vary

TOLERANCE = 1e-4
CAT, DOG = "cat " * 70 + "dog " * 30, "a dog " * 90
ASKED = [
    ask(8, prompt=CAT, negative_prompt="owl", guidance_scale=7.5),
    ask(5, prompt="a cat", negative_prompt=DOG, guidance_scale=3.0),
    ask(8, prompt="a cat"),
    ask(6, prompt=DOG, guidance_scale=1.0),
    ask(8, prompt=CAT, guidance_scale=5.0),
    ask(4, prompt="a dog", guidance_scale=2.0),
]
"""Of two, three and one chunks."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The pipeline of each kind, made once."""
    return cache(lambda kind: Made.make(kind, tmp_path_factory.mktemp(kind)))


@torch.no_grad()
def _alone(it: Made, plan: SamplingPlan, seed: int) -> Tensor:
    """x_0 by diffusers' denoiser and scheduler: each half in a call of its own, as long as it is,
    and no mask anywhere."""
    scheduler = SAMPLERS["ddim"].scheduler.from_config(it.scheduler)
    scheduler.set_timesteps(plan.method.num_inference_steps)
    encoded = it.generator.encoder.encode(plan.condition, seed)

    def denoise(x_t: Tensor, t: Tensor, half: Named) -> Tensor:
        told = {name: value[None] for name, value in half.items()}
        states = told.pop("encoder_hidden_states")
        found: Tensor = it.pipeline.unet(
            x_t, t, encoder_hidden_states=states, added_cond_kwargs=told or None
        ).sample
        return found

    x_t, scale = noise(seed, it.generator.shape), plan.condition.guidance_scale
    for t in scheduler.timesteps:
        output = denoise(x_t, t, encoded.inputs)
        if scale > 1:
            away = denoise(x_t, t, encoded.negative)
            output = away + scale * (output - away)
        x_t = scheduler.step(output, t, x_t).prev_sample
    return x_t[0]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_prompts_of_any_length_share_a_batch_and_each_draws_as_alone(
    kind: str, made: Callable[[str], Made]
) -> None:
    it = made(kind)
    engine = it.engine(max_batch=4)
    it.denoised.clear()
    results = draw_each(engine, ASKED, ticks_between=1)
    for seed, (plan, result) in enumerate(zip(ASKED, results, strict=True)):
        wanted = _alone(it, plan, seed)
        assert (it.image(result).x_0 - wanted).abs().max() <= TOLERANCE
        # Not what its first chunk draws, nor what it draws with the other half cut.
        asked = plan.condition
        cut = replace(asked, prompt=asked.prompt[:80], negative_prompt=asked.negative_prompt[:80])
        if cut != asked:
            other = _alone(it, vary(plan, condition=cut), seed)
            assert (wanted - other).abs().max() > 10 * TOLERANCE
    widths = {inputs["encoder_hidden_states"].shape[1] for _, inputs in it.denoised}
    assert widths == {2 * TOKENS, 3 * TOKENS}, "each tick as wide as it needs"


def test_short_prompts_are_told_as_ever_after_a_long_one_has_left(
    made: Callable[[str], Made],
) -> None:
    it = made("sd")
    engine, short = it.engine(), [ask(4, prompt="a cat"), ask(4, prompt="a dog")]
    before = [result.pixels for result in draw_each(engine, short)]
    it.denoised.clear()
    long = submit(engine, ask(2, prompt=CAT), [DrawKey(0, 9, 0)])
    again = [result.pixels for result in draw_each(engine, [vary(plan) for plan in short])]
    assert long.results
    told = [inputs for _, inputs in it.denoised]
    assert "encoder_attention_mask" in told[0]
    assert all(inputs.keys() == {"encoder_hidden_states"} for inputs in told[2:])
    assert {inputs["encoder_hidden_states"].shape[1] for inputs in told[2:]} == {TOKENS}
    once_more = [result.pixels for result in draw_each(it.engine(), short)]
    for one, beside, alone in zip(before, again, once_more, strict=True):
        assert one is not None
        assert beside is not None
        assert alone is not None
        assert abs(one.view("float32") - beside.view("float32")).max() <= TOLERANCE
        assert (one == alone).all()


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, 8 * 75),
        ({"prompt_chunks": 2}, 2 * 75),
        ({"prompt_overflow": "refuse"}, 75),
    ],
)
def test_a_replica_takes_as_many_chunks_as_its_settings_say(
    settings: dict[str, object], fits: int, made: Callable[[str], Made]
) -> None:
    bundle = made("sd").bundle
    engine = load_engine(bundle, BackboneSettings(runtime="torch", **settings))  # type: ignore[arg-type]
    plan = vary(ask(2), backbone=bundle.backbone_sha256("torch"))
    for cats, takes in ((fits, True), (fits + 1, False)):
        asked = vary(plan, condition=Condition("cat " * cats))
        submit(engine, asked, [DrawKey(0, 0, 0)])
        waiting = list(engine.scheduler.waiting)
        if takes:
            engine.check(waiting)
        else:
            with pytest.raises(InvalidValue, match=f"1 more than the {fits + 2}") as fault:
                engine.check(waiting)
            assert fault.value.param == "prompt"
        engine.scheduler.waiting.clear()
    engine.decoder.close()


def test_what_a_model_says_it_takes_it_takes(made: Callable[[str], Made]) -> None:
    """What `GET /v1/models` says is what the encoder takes."""
    backbone = made("sd").bundle.manifest.backbone
    for chunks in (1, 3):
        most = backbone.inputs.tokens(chunks)
        assert most is not None
        folder = made("sd").bundle.folder / "backbone"
        it = load_encoder(folder, backbone, prompt_chunks=chunks)
        it.check(Condition("cat " * (most - 2)), 0)
