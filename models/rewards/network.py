"""The reward network: a small convolutional classifier, K independent members side by side.

With `classes` it tells classes apart instead of giving a reward (`rewards.timed_classifier`).

The members live in one grouped network instead of a list: a gradient is then one pass of K times
wider convolutions, which on a CPU costs about half of K passes of narrow ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

POOL = 3


@dataclass(frozen=True)
class RewardConfig:
    """Shape of the network.

    Input is [B, channels·pixel_shuffle², H/pixel_shuffle, W/pixel_shuffle]: x_t in the backbone's
    space when `timed`, an image in [-1, 1] (with `pixel_shuffle=1`) when not.
    One class is a reward.
    """

    members: int = 5
    channels: int = 1
    pixel_shuffle: int = 1
    widths: tuple[int, int, int, int] = (8, 16, 24, 24)
    strides: tuple[int, int, int, int] = (1, 2, 2, 1)
    groups: int = 4
    timed: bool = False
    embedding: int = 32
    hidden: int = 64
    classes: int = 1


class MemberLinear(nn.Module):
    """K linear maps, one per member: [B, K, in] to [B, K, out]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.unsqueeze(-1)).squeeze(-1) + self.bias


class RewardNetwork(nn.Module):
    """Maps x (and a timestep) to the logits of K members; no member sees another."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        k = config.members
        inputs = (config.channels, *config.widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(k * i, k * o, 3, stride=s, padding=1, groups=k)
            for i, o, s in zip(inputs, config.widths, config.strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(k * config.groups, k * w) for w in config.widths)
        self.head = MemberLinear(k, config.widths[-1] * POOL * POOL, config.classes)
        if config.timed:
            self.embed = MemberLinear(k, config.embedding, config.hidden)
            self.film = MemberLinear(k, config.hidden, 2 * sum(config.widths))
            nn.init.zeros_(self.film.weight)

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Logits [B, K], or [B, K, classes] where there are several.

        `x` is [B, C, H, W], shown to all members, or [B, K, C, H, W], one input for each;
        `timestep` is [B] or [B, K], in 0..T−1, and belongs to timed networks alone.
        """
        k = self.config.members
        if x.ndim == 4:
            x = x.unsqueeze(1).expand(-1, k, -1, -1, -1)
        h = functional.pixel_shuffle(x, self.config.pixel_shuffle).flatten(1, 2)
        films = self._film_parameters(timestep, x.shape[0])
        for index, (convolve, normalise) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            h = normalise(convolve(h))
            if films is not None:
                scale, shift = films[index]
                h = h * (1 + scale) + shift
            h = functional.silu(h)
        pooled = adaptive_pool(h).unflatten(1, (k, -1)).flatten(2)
        logits: Tensor = self.head(pooled)
        return logits.squeeze(-1) if self.config.classes == 1 else logits

    def _film_parameters(
        self, timestep: Tensor | None, batch: int
    ) -> list[tuple[Tensor, Tensor]] | None:
        """Scale and shift of each layer, [B, K·width, 1, 1] (FiLM, Perez et al. 2018)."""
        if not self.config.timed:
            if timestep is not None:
                raise ValueError("this reward was trained on clean images: it takes no timestep")
            return None
        if timestep is None:
            raise ValueError("this reward is time-dependent: give the timestep of each row")
        k = self.config.members
        if timestep.ndim == 1:
            timestep = timestep.unsqueeze(1).expand(batch, k)
        wave = sinusoid(timestep, self.config.embedding).to(self.film.weight.dtype)
        hidden = functional.silu(self.embed(wave))
        parts = self.film(hidden).split([2 * w for w in self.config.widths], dim=-1)
        films = []
        for part in parts:
            scale, shift = part.chunk(2, dim=-1)
            films.append((scale.flatten(1)[..., None, None], shift.flatten(1)[..., None, None]))
        return films


def sinusoid(timestep: Tensor, size: int) -> Tensor:
    """Sinusoidal embedding of timesteps [...] as [..., size], as in Ho et al. 2020."""
    half = size // 2
    step = -math.log(10_000) / half
    rates = torch.exp(step * torch.arange(half, device=timestep.device, dtype=torch.float32))
    angle = timestep.unsqueeze(-1).float() * rates
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def adaptive_pool(h: Tensor) -> Tensor:
    """Mean over POOL × POOL overlapping windows: `adaptive_avg_pool2d`, as two matrix products.

    ONNX has no operator for windows that do not divide the map, and matrix products export as
    they stand.
    """
    rows, columns = (_windows(size, h) for size in h.shape[-2:])
    return rows @ h @ columns.T


def _windows(size: int, like: Tensor) -> Tensor:
    matrix = torch.zeros(POOL, size, dtype=like.dtype)
    for i in range(POOL):
        start, stop = i * size // POOL, -(-(i + 1) * size // POOL)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix.to(like.device)
