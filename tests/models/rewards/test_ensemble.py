"""The product law and its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork, adaptive_pool

TIMED = RewardConfig(members=3, pixel_shuffle=2, widths=(4, 4, 8, 8), groups=2, timed=True)
CLEAN = RewardConfig(members=3, widths=(4, 4, 8, 8), groups=2)


def ensemble(config: RewardConfig) -> Ensemble:
    torch.manual_seed(0)
    network = RewardNetwork(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Ensemble(network)


def test_log_reward_is_the_product_of_the_members() -> None:
    guide = ensemble(CLEAN)
    x = torch.randn(5, 1, 28, 28)
    product = torch.sigmoid(guide.logits(x)).prod(dim=1)
    torch.testing.assert_close(guide.log_reward(x), product.log())


def test_gradient_is_that_of_a_linear_logit_in_closed_form() -> None:
    # ∇ Σ_k log σ(w_k·x + b_k) = Σ_k σ(−logit_k) w_k.
    weights, bias = torch.randn(3, 4 * 6 * 6), torch.tensor([0.5, -1.0, 0.0])

    class Linear(RewardNetwork):
        def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
            return x.flatten(1) @ weights.T + bias

    x = torch.randn(2, 4, 6, 6)
    logits = x.flatten(1) @ weights.T + bias
    expected = (torch.sigmoid(-logits) @ weights).view_as(x)
    torch.testing.assert_close(Ensemble(Linear(CLEAN)).gradient(x, None), expected)


@pytest.mark.parametrize("config", [TIMED, CLEAN])
def test_gradient_matches_finite_differences(config: RewardConfig) -> None:
    guide = ensemble(config)
    shape = (2, 4, 14, 14) if config.timed else (2, 1, 28, 28)
    x, timestep = torch.randn(shape), torch.tensor([3, 700]) if config.timed else None
    gradient = guide.gradient(x, timestep)
    guide.network.double()
    direction = torch.randn(shape).double()
    step = 1e-4
    up, down = (
        torch.nn.functional.logsigmoid(guide.network(x.double() + s * direction, timestep))
        .sum(dim=1)
        .detach()
        for s in (step, -step)
    )
    numeric = (up - down) / (2 * step)
    analytic = (gradient.double() * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(analytic, numeric, rtol=2e-3, atol=1e-4)


def test_gradient_leaves_no_trace_and_works_without_grad_mode() -> None:
    guide = ensemble(TIMED)
    x, timestep = torch.randn(2, 4, 14, 14), torch.tensor([1, 2])
    expected = guide.gradient(x, timestep)
    with torch.inference_mode():
        inside = guide.gradient(x.clone(), timestep.clone())
        assert not torch.is_grad_enabled()
    with torch.no_grad():
        torch.testing.assert_close(guide.gradient(x, timestep), expected)
    torch.testing.assert_close(inside.clone(), expected)
    assert x.grad is None
    assert not x.requires_grad
    assert not expected.requires_grad
    assert all(parameter.grad is None for parameter in guide.network.parameters())


def test_rows_do_not_see_each_other() -> None:
    guide = ensemble(TIMED)
    x, timestep = torch.randn(4, 4, 14, 14), torch.tensor([0, 10, 500, 999])
    together = guide.gradient(x, timestep)
    alone = torch.cat([guide.gradient(x[i : i + 1], timestep[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_members_do_not_see_each_other() -> None:
    network = ensemble(CLEAN).network
    x = torch.randn(2, 3, 1, 28, 28)
    before = network(x)
    changed = x.clone()
    changed[:, 1] = torch.randn(2, 1, 28, 28)
    after = network(changed)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]], rtol=0, atol=1e-6)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-4


def test_timestep_matters_to_timed_members_and_is_refused_by_clean_ones() -> None:
    guide, x = ensemble(TIMED), torch.randn(1, 4, 14, 14)
    early, late = (guide.logits(x, torch.tensor([t])) for t in (1, 900))
    assert (early - late).abs().max() > 1e-3
    with pytest.raises(ValueError, match="time-dependent"):
        guide.logits(x)
    with pytest.raises(ValueError, match="takes no timestep"):
        ensemble(CLEAN).logits(torch.randn(1, 1, 28, 28), torch.tensor([1]))


def test_file_gives_the_ensemble_back(tmp_path: Path) -> None:
    guide, x, timestep = ensemble(TIMED), torch.randn(2, 4, 14, 14), torch.tensor([5, 50])
    guide.save(tmp_path / "guide.safetensors")
    loaded = Ensemble.load(tmp_path / "guide.safetensors")
    assert loaded.config == guide.config
    torch.testing.assert_close(
        loaded.logits(x, timestep), guide.logits(x, timestep), rtol=2e-2, atol=2e-2
    )
    loaded.save(tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "guide.safetensors").read_bytes()


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not an ensemble"):
        Ensemble.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (3, 3)])
def test_pool_is_torchs_adaptive_pool(size: tuple[int, int]) -> None:
    h = torch.randn(2, 3, *size)
    torch.testing.assert_close(adaptive_pool(h), torch.nn.functional.adaptive_avg_pool2d(h, 3))
