"""LoRAs (Hu et al. 2021) that become part of a model's weights at its import.

W += scale · alpha/rank · B A, of linear and of convolution layers, in float32, and then rounded
once to what W is stored in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.backbones.importing.file_format import read_header
from models.backbones.importing.source import CannotImport

SHOWN = 3
"""So many names of layers in a message."""
MOST = 10.0
"""The greatest scale; from about 2 on nearly every LoRA draws noise."""


@dataclass(frozen=True)
class Asked:
    """A file, and how much of it: what `--lora FILE:SCALE` says."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Asked:
        """Raises CannotImport."""
        head, colon, tail = text.rpartition(":")
        if Path(text).exists() or not colon:
            return cls(Path(text))
        try:
            scale = float(tail)
        except ValueError:
            if not Path(head).exists():
                return cls(Path(text))
            raise CannotImport(
                f"--lora: {tail!r} is no scale: write {head}:0.8, or the file alone for 1"
            ) from None
        if not 0 < abs(scale) <= MOST:
            raise CannotImport(
                f"--lora: {head}: the scale is {tail}, must be {MOST:g} at the most, and not 0"
            )
        return cls(Path(head), scale)


@dataclass(frozen=True)
class Layer:
    """`down`, A [r, …], and `up`, B [out, r, …], of one layer; `factor` is what B A counts."""

    down: Tensor
    up: Tensor
    factor: float

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it can be added to a weight of this shape, [out, in] or [out, in, h, w]."""
        rank, inner = len(self.down), self.down[:1].numel()
        return (
            len(shape) >= 2
            and self.up.shape[0] == shape[0]
            and self.up[:1].numel() == rank  # a convolution's B is 1 × 1
            and inner == torch.Size(shape[1:]).numel()
        )

    def added_to(self, weight: Tensor) -> Tensor:
        """A float32 weight with this layer in it."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return torch.addmm(weight.flatten(1), self.factor * up, down).view_as(weight)


@dataclass(frozen=True)
class Lora:
    """A LoRA's layers by component and then by name; `sha256` is its file's name by hash."""

    asked: Asked
    sha256: str
    layers: Mapping[str, Mapping[str, Layer]]

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "file": self.asked.path.name,
            "sha256": self.sha256,
            "scale": self.asked.scale,
            "layers": {component: len(layers) for component, layers in self.layers.items()},
        }

    @property
    def note(self) -> str:
        """The same in a line."""
        counts = (f"{len(layers)} layers of {name}" for name, layers in self.layers.items())
        path, scale = self.asked.path.name, self.asked.scale
        return f"LoRA {path}: fused at {scale:g} into {' and '.join(counts)}"


def fuse(files: Mapping[str, Path], loras: Sequence[Lora]) -> None:
    """Add LoRAs to the weights of components, which lie in `files` by component.

    Raises CannotImport where a layer is not in the model, or of another shape; what is in `files`
    is worth nothing then.
    """
    headers = {component: read_header(path)[0] for component, path in files.items()}
    targets: dict[str, dict[str, list[Layer]]] = {name: defaultdict(list) for name in files}
    for lora in loras:
        strange = []
        for component, layers in lora.layers.items():
            for name, layer in layers.items():
                target = _target(name, headers[component])
                if target is None or not layer.fits(headers[component][target][1]):
                    strange.append(f"{component}.{name}")
                else:
                    targets[component][target].append(layer)
        if strange:
            raise unfit(lora.asked.path, strange, sum(map(len, lora.layers.values())))
    for component, found in targets.items():
        _add(files[component], found)


def unfit(path: Path, strange: Sequence[str], count: int) -> CannotImport:
    """What is said of layers that are none of the model's."""
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    return CannotImport(
        f"--lora: {path}: does not fit this model: {len(strange)} of its {count} layers are not in "
        f"it, or of another shape: {', '.join(strange[:SHOWN])}{more}. It was made for another one"
    )


def _target(layer: str, names: Container[str]) -> str | None:
    """The weight of a layer in a file: CLIP's are written with `text_model.` before, or without."""
    bare = layer.removeprefix("text_model.")
    called = (f"{one}.weight" for one in (layer, bare, f"text_model.{bare}"))
    return next((name for name in called if name in names), None)


def _add(path: Path, targets: Mapping[str, list[Layer]]) -> None:
    """Add to tensors where they lie in a file: one at a time, and no other is read."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, layers in targets.items():
            # Opened anew for each: what was read of a file stays in memory until it is closed.
            with safe_open(path, framework="pt") as tensors:
                weight = tensors.get_tensor(name)
            total = weight.float()
            for layer in layers:
                total = layer.added_to(total)
            fused = total.to(weight.dtype)
            if not fused.isfinite().all():
                raise CannotImport(
                    f"--lora: {path.parent.name}: {name} would not be finite in {weight.dtype}: a "
                    "LoRA's weights are broken, or its scale is too large"
                )
            file.seek(8 + size + header[name]["data_offsets"][0])
            file.write(fused.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
