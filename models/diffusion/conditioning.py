"""Conditions as tensors: what the rows of a batch tell the denoiser beside x_t and timestep.

Inputs go by the denoiser's own argument names: `class_labels` int64, `encoder_hidden_states`
[L, D], and Stable Diffusion XL's `text_embeds` [D] and `time_ids` [6]; a batch puts B before. L may
differ from row to row where the denoiser takes a mask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
    the same names.

    `masks` names the inputs whose first axis is a sequence of any length, each with the argument
    by which the denoiser takes the mask of it; inputs that share a mask have one length. All other
    inputs have one shape in every row. `rescaled_patch` is that of guidance: see `predict`.
    """

    inputs: Named
    negative: Named
    masks: Mapping[str, str] = field(default_factory=dict)
    rescaled_patch: int = 0

    def to(self, device: torch.device) -> Encoded:
        """The same on a device; what is there already is not copied."""
        inputs, negative = (
            {name: value.to(device) for name, value in half.items()}
            for half in (self.inputs, self.negative)
        )
        return Encoded(inputs, negative, self.masks, self.rescaled_patch)


NOTHING = Encoded({}, {})
"""For an unconditional model."""


@dataclass(frozen=True)
class Conditions:
    """Those of the rows of a batch, in order, and guidance_scale float32 [B]."""

    encoded: Sequence[Encoded]
    guidance_scale: NDArray[np.float32]

    @property
    def guided(self) -> NDArray[np.intp]:
        """The rows that pay for classifier-free guidance: those whose scale is above 1."""
        return np.flatnonzero(self.guidance_scale > 1)

    @property
    def nfe(self) -> NDArray[np.int64]:
        """What one evaluation of each row costs, int64 [B]: two where it is guided."""
        return np.where(self.guidance_scale > 1, 2, 1)

    @property
    def inputs(self) -> Named:
        """What the denoiser is told of the rows: see `collate`."""
        return collate([one.inputs for one in self.encoded], self.masks)

    @property
    def masks(self) -> Mapping[str, str]:
        """Of the inputs that are sequences: all rows are of one model."""
        return self.encoded[0].masks if self.encoded else {}

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> Conditions:
        """The conditions of some rows; no input is read."""
        places = np.arange(len(self.encoded))[rows]
        return Conditions([self.encoded[place] for place in places], self.guidance_scale[rows])

    @classmethod
    def none(cls, rows: int) -> Conditions:
        """The conditions of `rows` unconditional rows."""
        return cls([NOTHING] * rows, np.ones(rows, dtype=np.float32))

    @classmethod
    def stack(cls, encoded: Sequence[Encoded], guidance_scale: Sequence[float]) -> Conditions:
        """Of one row each."""
        return cls(encoded, np.array(guidance_scale, dtype=np.float32))


def collate(rows: Sequence[Named], masks: Mapping[str, str]) -> dict[str, Tensor]:
    """The inputs of some rows as one batch, [B, ...] by name.

    A sequence shorter than the longest of these rows is filled with zeros, and a mask, bool [B, L],
    says where a row's own are. Where all are of one length there is no mask: every place counts.
    """
    found: dict[str, Tensor] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        lengths = [len(value) for value in values] if name in masks else []
        if len(set(lengths)) < 2:
            found[name] = torch.stack(values)
            continue
        found[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        places = torch.arange(max(lengths), device=values[0].device)
        found[masks[name]] = places < torch.tensor(lengths, device=places.device)[:, None]
    return found


def predict(denoise: Denoise, x_t: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
    """The model's output under classifier-free guidance (Ho & Salimans 2022), [B, C, H, W].

    ŷ = ŷ(negative) + guidance_scale·(ŷ(condition) − ŷ(negative)), where each guided row has a
    second one in the same call of the denoiser, and the others have none. With a `rescaled_patch`
    each patch of ŷ is brought to the norm of ŷ(condition) there, as Qwen-Image's pipeline does.
    """
    rows = conditions.guided
    if not rows.size:
        return denoise(x_t, timestep, conditions.inputs)
    told = [one.inputs for one in conditions.encoded]
    told += [conditions.encoded[row].negative for row in rows]
    inputs = collate(told, conditions.masks)
    both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([timestep, timestep[rows]]), inputs)
    output, negative = both[: len(x_t)].clone(), both[len(x_t) :]
    scale = torch.from_numpy(conditions.guidance_scale[rows]).to(output).view(-1, 1, 1, 1)
    prompted = output[rows]
    guided = negative + scale * (prompted - negative)
    if patch := conditions.encoded[0].rescaled_patch:
        guided = guided * (_norm(prompted, patch) / _norm(guided, patch))
    output[rows] = guided
    return output


def _norm(output: Tensor, patch: int) -> Tensor:
    """The norm of each patch over all of its channels, [B, 1, H, W]."""
    total = output.square().sum(1, keepdim=True)
    mean = torch.nn.functional.avg_pool2d(total, patch)
    return (mean * patch**2).sqrt().repeat_interleave(patch, 2).repeat_interleave(patch, 3)
