"""A training run's checkpoint: weights, their average and AdamW's moments, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim, tensor


@dataclass(frozen=True)
class Checkpoint:
    """What `path` keeps: a model, its moving average `ema`, and the optimizer's state.

    `recipe` is written beside them: who resumes with another one is refused.
    """

    path: Path
    recipe: dict[str, Any]
    model: nn.Module
    ema: nn.Module
    optimizer: optim.Optimizer

    def save(self, step: int) -> None:
        """Write all of it after `step` finished steps; a reader never sees half a file."""
        tensors = dict(self._moments())
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        metadata = {"step": str(step), "recipe": self._recipe}
        fresh = self.path.with_suffix(".new.safetensors")
        save_file({k: v.contiguous() for k, v in tensors.items()}, fresh, metadata=metadata)
        os.replace(fresh, self.path)

    def resume(self) -> int:
        """Load the file, if there is one, and return how many steps are done.

        Raises ValueError when the file was written by another recipe.
        """
        if not self.path.exists():
            return 0
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
        if metadata["recipe"] != self._recipe:
            raise ValueError(
                f"{self.path} was written by another recipe ({metadata['recipe']}): "
                "give the same options, or another --out"
            )
        tensors = load_file(self.path)
        step = int(metadata["step"])
        self.model.load_state_dict(_part(tensors, "model."))
        self.ema.load_state_dict(_part(tensors, "ema."))
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": tensor(float(step)),
                "exp_avg": tensors[f"optimizer.exp_avg.{name}"],
                "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"],
            }
        return step

    @property
    def _recipe(self) -> str:
        return json.dumps(self.recipe, sort_keys=True)

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        """AdamW's two moments as named tensors, so that they fit a safetensors file."""
        for name, parameter in self.model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                yield f"optimizer.{key}.{name}", self.optimizer.state[parameter][key]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
