"""Conditions as tensors: what the rows of a batch tell the denoiser beside x_t and timestep.

Inputs go by the denoiser's own argument names: `class_labels` int64, `encoder_hidden_states`
[L, D], and Stable Diffusion XL's `text_embeds` [D] and `time_ids` [6]; a batch puts B before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Named = Mapping[str, Tensor]
Denoise = Callable[[Tensor, Tensor, Named], Tensor]
"""(x_t [B, C, H, W], timestep [B], inputs [B, ...] by name) to the model's output [B, C, H, W]."""


@dataclass(frozen=True)
class Encoded:
    """One condition, encoded; `negative` is what classifier-free guidance compares with, and has
    the same names and shapes."""

    inputs: Named
    negative: Named


NOTHING = Encoded({}, {})
"""For an unconditional model."""


@dataclass(frozen=True)
class _Rows(Mapping[str, Tensor]):
    """Some rows of inputs: most guides do not look at them, and prompts are large."""

    whole: Named
    rows: NDArray[np.intp] | slice

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[name][self.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


@dataclass(frozen=True)
class Conditions:
    """Those of the rows of a batch: inputs [B, ...] by name, and guidance_scale float32 [B]."""

    inputs: Named
    negative: Named
    guidance_scale: NDArray[np.float32]

    @property
    def guided(self) -> NDArray[np.intp]:
        """The rows that pay for classifier-free guidance: those whose scale is above 1."""
        return np.flatnonzero(self.guidance_scale > 1)

    @property
    def nfe(self) -> NDArray[np.int64]:
        """What one evaluation of each row costs, int64 [B]: two where it is guided."""
        return np.where(self.guidance_scale > 1, 2, 1)

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> Conditions:
        """The conditions of some rows; an input is gathered only where it is read."""
        return Conditions(
            _Rows(self.inputs, rows), _Rows(self.negative, rows), self.guidance_scale[rows]
        )

    @classmethod
    def none(cls, rows: int) -> Conditions:
        """The conditions of `rows` unconditional rows."""
        return cls({}, {}, np.ones(rows, dtype=np.float32))

    @classmethod
    def stack(cls, encoded: list[Encoded], guidance_scale: list[float]) -> Conditions:
        """Of one row each."""
        first = encoded[0]
        return cls(
            {name: torch.stack([one.inputs[name] for one in encoded]) for name in first.inputs},
            {name: torch.stack([one.negative[name] for one in encoded]) for name in first.negative},
            np.array(guidance_scale, dtype=np.float32),
        )


def predict(denoise: Denoise, x_t: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
    """The model's output under classifier-free guidance (Ho & Salimans 2022), [B, C, H, W].

    ŷ = ŷ(negative) + guidance_scale·(ŷ(condition) − ŷ(negative)), where each guided row has a
    second one in the same call of the denoiser, and the others have none.
    """
    rows = conditions.guided
    if not rows.size:
        return denoise(x_t, timestep, conditions.inputs)
    inputs = {
        name: torch.cat([value, conditions.negative[name][rows]])
        for name, value in conditions.inputs.items()
    }
    both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([timestep, timestep[rows]]), inputs)
    output, negative = both[: len(x_t)].clone(), both[len(x_t) :]
    scale = torch.from_numpy(conditions.guidance_scale[rows]).to(output).view(-1, 1, 1, 1)
    output[rows] = negative + scale * (output[rows] - negative)
    return output
