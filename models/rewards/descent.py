"""The loop by which every network of a reward learns: AdamW, its rate falling along half a cosine.

(Loshchilov & Hutter 2017 and 2019.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Rates(Protocol):
    """How long, how fast, and how much weights decay."""

    @property
    def iterations(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def descend(
    network: nn.Module,
    rates: Rates,
    loss: Callable[[], Tensor],
    on_iteration: Callable[[int], None] = lambda _: None,
    max_norm: float = math.inf,
) -> None:
    """Minimise `loss()`, which draws a batch of its own at each call.

    Gradients are clipped to `max_norm`. `on_iteration` hears how many are done.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=rates.learning_rate, weight_decay=rates.weight_decay
    )
    for i in range(rates.iterations):
        for group in optimizer.param_groups:
            group["lr"] = rates.learning_rate * 0.5 * (1 + math.cos(math.pi * i / rates.iterations))
        value = loss()
        optimizer.zero_grad()
        value.backward()
        if max_norm < math.inf:
            torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        on_iteration(i + 1)
