from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.parameterization import PREDICTION_TYPES, PredictionType
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

    def gradient(self, x_t: Tensor, timestep: Tensor) -> Tensor:
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
        return engine._batch.x_t[0].clone()

    assert (halfway(5.0) >= halfway(0.0) - 1e-5).all()
