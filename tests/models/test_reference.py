"""The engine against the straight-line reference, every kind of guidance in one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Named
from models.diffusion.guidance import CleanReward, ForwardGuide
from models.diffusion.method import Method
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork
from service.ports import DrawKey
from tests.engines import floats, make_engine, make_plan, make_schedule, run_to_end, submit
from tests.reference import Reference

SHAPE = (1, 12, 12)
SCHEDULE = make_schedule("v_prediction", clip_sample=True, clip_sample_range=1.0)

GUIDED = [
    Method(8),
    Method(8, eta=0.6),
    Method(8, censor_scale=2.0, guide_interval=(0, 800)),
    Method(6, censor_scale=1.5, guide_interval=(100, 900), recurrences=3),
    Method(6, eta=1.0, censor_scale=1.5, recurrences=2),
    Method(8, guidance="forward", censor_scale=3.0),
    Method(5, guidance="forward", censor_scale=2.0, backward_steps=3, backward_rate=1e-3),
    Method(8, backward_steps=4, backward_rate=5e-4, guide_interval=(0, 700)),
    Method(6, backward_steps=2, recurrences=2, guide_interval=(200, 900)),
    Method(16, sampler="dpmsolver++"),
    Method(16, sampler="dpmsolver++", censor_scale=1.5, guide_interval=(0, 900)),
    Method(16, sampler="dpmsolver++", recurrences=2, censor_scale=1.0, guide_interval=(100, 700)),
]


class Unet(nn.Module):
    """A small network that predicts v."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x_t: Tensor, timestep: Tensor, inputs: Named | None = None) -> Tensor:
        hidden = torch.tanh(self.first(x_t) + timestep.view(-1, 1, 1, 1) / 1000)
        found: Tensor = self.last(hidden)
        return found


def _networks() -> tuple[Unet, Ensemble, Ensemble]:
    torch.manual_seed(3)
    clean = RewardNetwork(RewardConfig(members=2, widths=(4, 4, 8, 8)))
    timed = RewardNetwork(RewardConfig(members=2, widths=(4, 4, 8, 8), timed=True))
    return Unet().requires_grad_(False), Ensemble(timed), Ensemble(clean)


def _engine_draws(methods: list[Method], max_batch: int) -> list[Tensor]:
    unet, timed, clean = _networks()
    reward = CleanReward(clean, PixelShuffle())
    engine = make_engine(
        unet,
        SCHEDULE,
        SHAPE,
        guides={"time": timed},
        forward={"forward": ForwardGuide(unet, SCHEDULE, reward)},
        clean_guides={"clean": reward},
        max_batch=max_batch,
    )
    callers = []
    for seed, method in enumerate(methods):
        plan = make_plan(**vars(method), **_steers(method), clean_guide="clean")
        callers.append(submit(engine, plan, [DrawKey(0, seed, 0)]))
    run_to_end(engine)
    results = [next(iter(caller.results.values())) for caller in callers]
    for caller, result in zip(callers, results, strict=True):
        plan = make_plan(**vars(methods[callers.index(caller)]))
        assert result.nfe == engine.cost(make_plan(**vars(plan.method), **_steers(plan.method)))
    return [torch.from_numpy(floats(result).copy()).double()[None] for result in results]


def _steers(method: Method) -> dict[str, str]:
    return {"guide" if method.guidance == "time" else "forward": method.guidance}


@pytest.mark.parametrize("max_batch", [1, 5, 16])
def test_the_engine_follows_the_equations_whatever_shares_the_batch(max_batch: int) -> None:
    unet, timed, clean = (
        _networks()[0].double(),
        *(Ensemble(ensemble.network.double()) for ensemble in _networks()[1:]),
    )

    def log_reward(network: RewardNetwork, x: Tensor, t: int | None) -> Tensor:
        timestep = None if t is None else torch.tensor([t])
        return nn.functional.logsigmoid(network(x, timestep)).sum(dim=1)

    reference = Reference(
        SCHEDULE,
        lambda x, t: unet(x, torch.tensor([t]).double()),
        lambda x, t: log_reward(timed.network, x, t),
        lambda x: log_reward(clean.network, x, None),
        limit=1.0,
    )
    for seed, (method, found) in enumerate(
        zip(GUIDED, _engine_draws(GUIDED, max_batch), strict=True)
    ):
        expected = reference.draw(method, seed, SHAPE)
        error = (found - expected).abs().max()
        assert error < 1e-4, f"{method}: {error}"


def test_guidance_moves_the_image() -> None:
    """So that the comparison above compares something."""
    plain, *guided = _engine_draws([Method(8), *[m for m in GUIDED if m.sampler == "ddim"][2:]], 8)
    for found in guided:
        assert (found - plain).abs().max() > 0.05


def test_backward_guidance_leaves_benign_rows_bit_for_bit() -> None:
    _, _, clean = _networks()
    clean.network.head.bias.fill_(50.0)
    reward = CleanReward(clean, PixelShuffle())
    unet = _networks()[0]
    draws = []
    for steps in (0, 5):
        engine = make_engine(
            unet, SCHEDULE, SHAPE,
            clean_guides={"clean": reward},
        )  # fmt: skip
        plan = make_plan(num_inference_steps=8, backward_steps=steps, clean_guide="clean")
        caller = submit(engine, plan, [DrawKey(0, 1, 0)])
        run_to_end(engine)
        draws.append(floats(next(iter(caller.results.values()))))
    assert (draws[0] == draws[1]).all()
