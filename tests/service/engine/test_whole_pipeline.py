"""A whole pipeline behind the engine that serves: its bytes, its stops, and what is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundles.bundle import Bundle, load
from models.diffusion.codec import to_uint8
from models.diffusion.condition import Condition
from models.diffusion.noise import torch_seed
from service.config import BackboneSettings, ConfigError, Settings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.loop import EngineLoop
from service.engine.scheduler import Draw, Ticket
from service.errors import BackendUnavailable, InvalidValue
from service.policies.seeding import configured_policies
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan
from tests.engines import FOREVER, Collector
from tests.imports import import_folder
from tests.plans import FREE, vary
from tests.whole_pipelines import SIDE, tiny_lumina2

STEPS = 4
CAT = Condition("a cat", guidance_scale=4.0)
SETTINGS = BackboneSettings(runtime="torch", max_batch=1)


class Whole:
    """A pipeline, by itself and as a bundle; an engine around it counts its denoiser's calls."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = tiny_lumina2(folder / "pipeline")
        import_folder(folder / "pipeline", folder / "bundle")
        self.bundle: Bundle = load(str(folder / "bundle"))
        self.engine: Engine = load_engine(self.bundle, SETTINGS)
        self.denoiser = self.engine._batches[None]._pipeline._pipeline.transformer
        self.calls = 0
        self.denoiser.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def plan(self, condition: Condition = CAT, **changes: Any) -> SamplingPlan:
        weights = self.bundle.backbone_sha256("torch")
        plan = vary(FREE, backbone=weights, **({"num_inference_steps": STEPS} | changes))
        return replace(plan, condition=condition)

    def draw(self, plan: SamplingPlan, *keys: DrawKey) -> list[DrawResult]:
        caller = Collector()
        draws = [Draw(plan, key, caller.ticket) for key in keys]
        self.engine.check(draws)
        self.engine.scheduler.add(draws)
        self.engine.run_to_end()
        if caller.fault:
            raise caller.fault
        return [caller.results[key] for key in keys]

    def by_hand(self, condition: Condition, seed: int, draw: int, **more: Any) -> Any:
        return self.pipeline(
            prompt=condition.prompt,
            negative_prompt=condition.negative_prompt,
            guidance_scale=condition.guidance_scale,
            num_inference_steps=STEPS,
            height=SIDE,
            width=SIDE,
            generator=torch.Generator().manual_seed(torch_seed(seed, draw)),
            **more,
        ).images


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def _pixels(result: DrawResult) -> Pixels:
    assert result.pixels is not None
    return result.pixels


def _threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "pipeline"]


@pytest.mark.parametrize(
    "condition",
    [CAT, Condition("a dog", "no owl", guidance_scale=2.5), Condition("a cat", guidance_scale=1.0)],
    ids=["guided", "negative", "plain"],
)
@pytest.mark.parametrize("draw", [0, 1])
def test_the_bytes_are_those_of_the_pipeline_called_by_hand(
    whole: Whole, condition: Condition, draw: int
) -> None:
    (result,) = whole.draw(whole.plan(condition), DrawKey(0, 7, draw))
    numbers = torch.from_numpy(whole.by_hand(condition, 7, draw, output_type="np"))
    expected, _ = to_uint8(2 * numbers.permute(0, 3, 1, 2) - 1)
    assert np.array_equal(_pixels(result), expected[0])
    assert np.array_equal(_pixels(result), np.asarray(whole.by_hand(condition, 7, draw)[0]))
    assert result.nfe == STEPS * (2 if condition.guidance_scale > 1 else 1)


def test_a_first_draw_is_the_image_of_its_seed_in_diffusers() -> None:
    assert torch_seed(7, 0) == 7
    later = {torch_seed(seed, draw) for seed in range(50) for draw in range(1, 5)}
    assert len(later) == 200
    assert min(later) >= 2**62


def test_a_seed_has_one_image_whatever_else_is_drawn(whole: Whole) -> None:
    plan = whole.plan()
    keys = [DrawKey(0, 3, 0), DrawKey(1, 3, 1), DrawKey(2, 4, 0)]
    alone = [_pixels(whole.draw(plan, key)[0]) for key in keys]
    for place, one in enumerate(alone):
        assert all((one != other).any() for other in alone[:place])
    torch.manual_seed(99)
    together = whole.draw(plan, *keys[::-1])[::-1]
    for one, result in zip(alone, together, strict=True):
        assert np.array_equal(_pixels(result), one)


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_draw_that_nobody_wants_stops_between_two_steps(whole: Whole, how: str) -> None:
    plan, waiting = whole.plan(), Collector()
    gone = Ticket(lambda item: None, deadline=FOREVER)
    whole.engine.scheduler.add([Draw(plan, DrawKey(0, 1, 0), gone)])
    whole.engine.scheduler.add([Draw(plan, DrawKey(0, 2, 0), waiting.ticket)])
    whole.calls = 0
    whole.engine.tick()
    whole.engine.tick()
    assert whole.calls == 4  # two steps, each with its classifier-free half
    assert len(_threads()) == 1
    if how == "cancelled":
        gone.cancelled = True
    else:
        gone.deadline = time.monotonic()
    whole.engine.tick()
    assert whole.calls == 6  # the next draw's first step
    whole.engine.run_to_end()
    assert whole.calls == 4 + 2 * STEPS
    (result,) = waiting.results.values()
    (again,) = whole.draw(plan, DrawKey(0, 2, 0))
    assert np.array_equal(_pixels(result), _pixels(again))
    assert not _threads()


def test_a_caller_that_leaves_ends_the_pipeline(whole: Whole) -> None:
    async def scenario() -> None:
        started, go = threading.Event(), threading.Event()

        def hold(*_: Any) -> None:
            started.set()
            assert go.wait(30)

        hook = whole.denoiser.register_forward_pre_hook(hold)
        loop = EngineLoop(whole.engine, max_waiting=4)
        try:
            async with aclosing(loop.draw(whole.plan(), [DrawKey(0, 1, 0)], 60)) as draws:
                asked = asyncio.ensure_future(anext(draws))
                assert await asyncio.to_thread(started.wait, 30)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            before = whole.calls
            go.set()
            for _ in range(100):
                if not _threads():
                    break
                await asyncio.sleep(0.05)
            assert not _threads()
            assert whole.calls - before <= 1  # the other half of that step
            hook.remove()
            results = [one async for one in loop.draw(whole.plan(), [DrawKey(0, 1, 0)], 60)]
            assert results[0][0].pixels is not None
        finally:
            loop.close()

    asyncio.run(scenario())


def test_a_prompt_that_would_be_cut_is_refused_by_its_field(whole: Whole) -> None:
    long = "owl " * 90
    for field in ("prompt", "negative_prompt"):
        plan = whole.plan(replace(CAT, **{field: long}))
        with pytest.raises(InvalidValue, match=r"has \d+ tokens, \d+ more than the 256") as caught:
            whole.engine.check([Draw(plan, DrawKey(0, 1, 0), Collector().ticket)])
        assert caught.value.param == field


@contextmanager
def _weight(parameter: torch.Tensor, value: float) -> Iterator[None]:
    kept = parameter.data.clone()
    parameter.data.fill_(value)
    try:
        yield
    finally:
        parameter.data.copy_(kept)


@pytest.mark.parametrize("where", ["denoiser", "decoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_image(whole: Whole, where: str, value: float) -> None:
    pipeline = whole.engine._batches[None]._pipeline._pipeline
    bias = pipeline.transformer.norm_out.linear_2.bias
    if where == "decoder":
        bias = pipeline.vae.decoder.conv_out.bias
    with _weight(bias, value):
        (result,) = whole.draw(whole.plan(), DrawKey(0, 1, 0))
    assert result.pixels is None
    assert not result.abandoned


STEERING = {
    "censor_scale": 1.0,
    "backward_steps": 2,
    "probes": [0.5],
    "sampler": "euler",
    "eta": 0.5,
    "timestep_spacing": "trailing",
    "sigma_spacing": "karras",
    "sigmas": [1.0, 0.5],
    "classifier_scale": 1.0,
}


def _configured(whole: Whole, spec: dict[str, Any], **backbone: Any) -> Any:
    settings = Settings.model_validate(
        {
            "models": {
                "tiny": {
                    "bundle": str(whole.bundle.folder),
                    "backbone": {"runtime": "torch", "max_batch": 1} | backbone,
                }
            },
            "policies": {"one": {"model": "tiny", "num_inference_steps": [2]} | spec},
            "default_policy": "one",
            "auth": {"anonymous": True},
        }
    )
    return configured_policies(settings, {"tiny": whole.bundle})


@pytest.mark.parametrize("field", STEERING)
def test_a_policy_that_steers_is_refused_with_the_reason(whole: Whole, field: str) -> None:
    spec = {"trained": True, field: STEERING[field]}
    with pytest.raises(ConfigError, match=f"policies.one.{field}: .*whole pipeline.*Rejection"):
        _configured(whole, spec)
    value = STEERING[field]
    method = {field: tuple(value) if isinstance(value, list) else value}
    plan = whole.plan(**method)
    with pytest.raises(BackendUnavailable, match=f"{field}: .*whole pipeline"):
        whole.engine.check([Draw(plan, DrawKey(0, 1, 0), Collector().ticket)])


def test_a_policy_of_rejection_is_taken(whole: Whole) -> None:
    spec = {"trained": True, "max_draws": 4, "guidance_scale": [4, 1]}
    assert _configured(whole, spec)["one"].awaits_reward


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"max_batch": 4}, "max_batch: must be 1.*one image at a time"),
        ({"forward_guidance": True}, "forward_guidance: .*leave it out"),
        ({"compile_mode": "default"}, "compile_mode: .*leave it out"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(
    whole: Whole, backbone: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        _configured(whole, {"trained": True}, **backbone)
