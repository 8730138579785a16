"""The student: one small network that says what the gradient of a time-dependent guide would be.

An ensemble's gradient is a forward and a backward pass of K networks. What guidance needs of it is
a vector field over x_t, and a field can be learned: a forward pass of one network, without
autograd, in ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from models.rewards.network import sinusoid


@dataclass(frozen=True)
class StudentConfig:
    """Shape of the network: `channels` of x_t; `outer` at its size and `inner` at half of it."""

    channels: int
    outer: int = 16
    inner: int = 32
    blocks: int = 2
    embedding: int = 32
    hidden: int = 64


class Student(nn.Module):
    """Maps x_t [B, C, H, W] and timestep [B] to ∇_{x_t} log r_t, [B, C, H, W]; H and W are even."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        inner, outer = config.inner, config.outer
        self.embed = nn.Linear(config.embedding, config.hidden)
        self.film = nn.Linear(config.hidden, 2 * inner * (config.blocks + 1))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.down = nn.Conv2d(config.channels, inner, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, padding=1) for _ in range(config.blocks)
        )
        self.up = nn.Conv2d(inner, 4 * outer, 1)
        self.skip = nn.Conv2d(config.channels, outer, 3, padding=1)
        self.out = nn.Conv2d(outer, config.channels, 3, padding=1)

    def forward(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        hidden = functional.silu(self.embed(sinusoid(timestep, self.config.embedding)))
        films = self.film(hidden)[:, :, None, None].split(self.config.inner, dim=1)
        scales, shifts = films[::2], films[1::2]
        h = functional.silu(self.down(x_t) * (1 + scales[0]) + shifts[0])
        for block, scale, shift in zip(self.blocks, scales[1:], shifts[1:], strict=True):
            h = h + functional.silu(block(h) * (1 + scale) + shift)
        wide = functional.pixel_shuffle(self.up(h), 2) + self.skip(x_t)
        gradient: Tensor = self.out(functional.silu(wide))
        return gradient
