from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.conditioning import Conditions, Encoded, Named
from models.diffusion.parameterization import PREDICTION_TYPES, PredictionType
from models.sampling.batch import Batch
from models.sampling.networks import NetworkTable
from models.sampling.program import ALPHA
from models.sampling.runner import Runner
from service.ports import DrawKey
from tests.engines import (
    draw_all,
    floats,
    make_engine,
    make_plan,
    make_schedule,
    run_to_end,
    submit,
)


class Constant:
    """A guide whose gradient is 0.1 everywhere; it remembers how many rows it was asked about."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        self.rows.append(len(x_t))
        return torch.full_like(x_t, 0.1)


def _plain(x_t: Tensor, timestep: Tensor) -> Tensor:
    return 0.5 * x_t


@torch.inference_mode()
def _inference(x_t: Tensor, timestep: Tensor) -> Tensor:
    return _plain(x_t, timestep)


@pytest.mark.parametrize("prediction_type", sorted(PREDICTION_TYPES))
def test_a_denoiser_in_inference_mode_can_be_guided(prediction_type: PredictionType) -> None:
    """As `TorchDenoiser` runs: its output may not be changed in place afterwards."""
    plan = make_plan(guide="guide", censor_scale=1.0)
    schedule = make_schedule(prediction_type)
    plain, inference = (
        floats(draw_all(make_engine(d, schedule, guides={"guide": Constant()}), plan, [1])[0])
        for d in (_plain, _inference)
    )
    assert (plain == inference).all()


def test_guidance_does_not_write_into_what_the_denoiser_returned() -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def remembers(x_t: Tensor, timestep: Tensor) -> Tensor:
        output = 0.5 * x_t
        kept.append((output, output.clone()))
        return output

    plan = make_plan(guide="guide", censor_scale=1.0)
    draw_all(make_engine(remembers, make_schedule(), guides={"guide": Constant()}), plan, [1])
    assert all(torch.equal(output, before) for output, before in kept)


def test_only_rows_that_are_guided_now_pay_for_a_gradient() -> None:
    guide, other = Constant(), Constant()
    guides = {"guide": guide, "other": other}
    engine = make_engine(_plain, make_schedule(), guides=guides)

    for index, plan in enumerate(
        [
            make_plan(),
            make_plan(guide="guide"),
            make_plan(guide="guide", censor_scale=1.0, guide_interval=(0, 500)),
            make_plan(guide="guide", censor_scale=2.0),
        ]
    ):
        submit(engine, plan, [DrawKey(0, index, 0)])
    run_to_end(engine)
    # Timesteps 999, 749, 499, 249: one row is guided throughout, and a second one below 500.
    assert guide.rows == [1, 1, 2, 2]
    assert other.rows == []


def test_guidance_never_steps_against_its_gradient_where_x0_is_clipped() -> None:
    """x̂_0 lies on the clipping bound, so guidance upwards may move a row up, or not at all."""
    schedule = make_schedule("sample", clip_sample=True, clip_sample_range=1.0)

    def halfway(scale: float) -> Tensor:
        engine = make_engine(
            lambda x_t, timestep: torch.ones_like(x_t), schedule, guides={"guide": Constant()}
        )
        plan = make_plan(guide="guide", censor_scale=scale)
        submit(engine, plan, [DrawKey(0, 1, 0)])
        engine.tick()
        engine.tick()
        return engine._batches[None].x_t[0].clone()

    assert (halfway(5.0) >= halfway(0.0) - 1e-5).all()


def test_classifier_free_guidance_keeps_x0_and_eps_together_where_x0_is_clipped() -> None:
    """A bent eps beside an x̂_0 that clipping has put back would step away from the condition."""

    def denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
        # Class 1 says that x̂_0 is 0.9 everywhere, class 0 that it is 0.
        return 0.9 * inputs["class_labels"].view(-1, 1, 1, 1) * torch.ones_like(x_t)

    schedule = make_schedule("sample", clip_sample=True, clip_sample_range=1.0)
    shape, example = (1, 2, 2), {"class_labels": torch.tensor(0)}
    batch = Batch(schedule, shape, 2, "cpu")
    encoded_condition = Encoded({"class_labels": torch.tensor(1)}, example)
    for row, scale in enumerate((1.0, 4.0)):
        plan = make_plan(num_inference_steps=5, condition=Condition(guidance_scale=scale))
        batch.put(row, plan.method, 7, 0, {}, encoded_condition, plan.condition.guidance_scale)
    runner = Runner("", denoise, schedule, NetworkTable())
    start = batch.x_t[:2].clone()
    runner.advance(batch, 2)
    _, line = batch.now(2)
    alpha_bar = torch.tensor(line[:, ALPHA] ** 2).view(-1, 1, 1, 1)
    before = torch.tensor(schedule.alpha[batch.timesteps[:2, 0].astype(int)] ** 2).view(-1, 1, 1, 1)
    x_0 = torch.tensor([0.9, 1.0]).view(-1, 1, 1, 1)
    eps = (start - before.sqrt() * x_0) / (1 - before).sqrt()
    wanted = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    torch.testing.assert_close(batch.x_t[:2], wanted.float(), atol=1e-5, rtol=0)
