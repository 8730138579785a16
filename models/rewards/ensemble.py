"""The guide: a product ensemble of reward networks, log r = Σ_k log σ(logit_k).

(Yoon et al. 2023, section 4: members disagree where labels said nothing, and the product trusts
only what all of them call benign.)
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from models.diffusion.conditioning import Conditions
from models.rewards.network import RewardConfig, RewardNetwork


class Ensemble:
    """K networks that answer one question; float32, in evaluation mode, without gradients."""

    def __init__(self, network: RewardNetwork) -> None:
        """Takes the network over and freezes it. Raises ValueError for a classifier's."""
        if network.config.classes != 1:
            raise ValueError(
                f"this network tells {network.config.classes} classes apart: no reward"
            )
        self.network = network.eval().requires_grad_(False)

    @property
    def config(self) -> RewardConfig:
        """The shape of the members."""
        return self.network.config

    def logits(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Logits [B, K] of x [B, C, H, W]: x_t with its timesteps [B], or clean images in [-1, 1].

        Differentiable in x. Raises ValueError when the timestep is missing, or not wanted.
        """
        output: Tensor = self.network(x.float(), timestep)
        return output

    def log_reward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        """log r = Σ_k log σ(logit_k), [B], at most 0."""
        return functional.logsigmoid(self.logits(x, timestep)).sum(dim=1)

    def gradient(
        self, x_t: Tensor, timestep: Tensor | None = None, conditions: Conditions | None = None
    ) -> Tensor:
        """∇_x log r(x), float32 [B, C, H, W]; leaves no gradient on x_t or the weights.

        Rows do not interact, so row b's gradient is that of its own log r.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().float().requires_grad_()
            total = self.log_reward(x, None if timestep is None else timestep.clone()).sum()
            return torch.autograd.grad(total, x)[0]

    def to(self, device: str | torch.device) -> Ensemble:
        """Move the networks to `device`; returns itself."""
        self.network.to(device)
        return self

    def save(self, path: Path, **metadata: str) -> None:
        """Write safetensors, with the config as JSON in the metadata, beside what is given.

        Weights are stored as float16, half the size: the loss is far below what K members differ
        by, and whatever is measured or served is loaded from the file first.
        """
        save_network(self.network, path, **metadata)

    @classmethod
    def load(cls, path: Path) -> Ensemble:
        """Read what `save` wrote, as float32 on the CPU.

        Raises ValueError when the file holds no such ensemble.
        """
        return cls(load_network(path))


def save_network(network: RewardNetwork, path: Path, **metadata: str) -> None:
    """See `Ensemble.save`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, path, metadata=metadata | {"config": json.dumps(asdict(network.config))})


def load_network(path: Path) -> RewardNetwork:
    """See `Ensemble.load`."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError(f"{path}: no `config` in the metadata: not an ensemble of rewards")
    values: dict[str, Any] = json.loads(metadata["config"])
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    network = RewardNetwork(RewardConfig(**values))
    try:
        network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the config: {error}") from None
    return network
