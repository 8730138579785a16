"""A checkpoint in one file: its tensors' names, shapes and dtypes, and the tensors themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from models.backbones.importing.file_format import read_header
from models.backbones.importing.source import CannotImport
from models.backbones.importing.weights import CASTS, DTYPES

Tensors = dict[str, Tensor]

OTHER_PREFIXES = {
    "vae.": "first_stage_model.",
    "clip_l.": "text_encoders.clip_l.",
    "clip_g.": "text_encoders.clip_g.",
    "t5xxl.": "text_encoders.t5xxl.",
}
"""Beginnings of names that mean the same as another, which diffusers' conversions know."""
DENOISER = "model.diffusion_model."
BARE = ("input_blocks.0.", "joint_blocks.0.", "double_blocks.0.", "layers.0.adaLN_modulation.")
"""Beginnings of a denoiser's names in a file that holds nothing else."""
INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
            "BOOL": "bool"}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file. `outlines` are its tensors without their numbers, by the usual names.

    `own` are the names in the file by the usual ones; `metadata` is what its trainer wrote.
    """

    path: Path
    outlines: Tensors
    own: dict[str, str]
    metadata: dict[str, str]
    casts: frozenset[str]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the header. Raises CannotImport where it is no whole safetensors file."""
        header, metadata = read_header(path)
        bare = any(name.startswith(BARE) for name in header)
        own = {_usual(name, bare): name for name in header}
        outlines = {}
        for usual, name in own.items():
            dtype, shape = header[name]
            dtype = CASTS.get(dtype, dtype)
            if dtype not in DTYPES and dtype not in INTEGERS:
                raise CannotImport(f"{path}: {name} is of dtype {dtype}, which Winnow does not run")
            kind = getattr(torch, DTYPES.get(dtype) or INTEGERS[dtype])
            outlines[usual] = torch.empty(shape, dtype=kind, device="meta")
        casts = frozenset(dtype for dtype, _ in header.values() if dtype in CASTS)
        return cls(path, outlines, own, metadata, casts)

    def read(self, names: list[str]) -> Tensors:
        """Tensors by their usual names; they stay on the disk until they are used."""
        with safe_open(self.path, framework="pt") as file:
            found = {name: file.get_tensor(self.own[name]) for name in names}
        # Nothing happens here but where a dtype is cast.
        return {name: value.to(self.outlines[name].dtype) for name, value in found.items()}


def _usual(name: str, bare: bool) -> str:
    if bare:
        return DENOISER + name
    for other, usual in OTHER_PREFIXES.items():
        if name.startswith(other):
            return usual + name.removeprefix(other)
    return name
