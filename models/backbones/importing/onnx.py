"""The denoiser of an imported model for ONNX Runtime: exported in float32, and compared."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

from models.backbones.importing.source import CannotImport
from models.backbones.runtime import OnnxDenoiser, TorchDenoiser
from models.bundles.bundle import Bundle
from models.onnx.export import examples, export_fp32

NAME = "unet.onnx"
TOLERANCE = 1e-4
"""Of what the two runtimes answer, relative to the largest number in it."""
LARGEST = 2 * 10**9
"""Bytes: one file of ONNX holds no more, and its weights stand in it."""


def export(bundle: Bundle, path: Path) -> float:
    """Write the denoiser of a bundle to `path`; returns how far it is from torch's.

    Raises CannotImport where the model is not a UNet2DModel, or the graph says something else.
    """
    backbone = bundle.manifest.backbone
    folder = bundle.folder / backbone.folder
    if backbone.kind == "pipeline":
        raise CannotImport("--onnx: exports a UNet2DModel, and this runs as a whole: leave it out")
    config = bundle.config(backbone.denoiser)
    if config["_class_name"] != "UNet2DModel":
        raise CannotImport(
            f"--onnx: exports a UNet2DModel, and this is a {config['_class_name']}: serve it with "
            "backbone.runtime: torch"
        )
    unet = diffusers.UNet2DModel.from_pretrained(
        folder / "unet", use_safetensors=True, local_files_only=True
    ).float()
    if sum(parameter.numel() for parameter in unet.parameters()) * 4 > LARGEST:
        raise CannotImport("--onnx: its weights are above 2 GB, more than a file of ONNX holds")
    size = bundle.x_t_shape[1:]
    export_fp32(unet, path, size)
    theirs, ours = TorchDenoiser(folder), OnnxDenoiser(path)
    furthest = 0.0
    for rows, seed in ((1, 1), (3, 2)):
        inputs = examples(unet, size, rows, seed)
        x_t, timestep = inputs.pop("x_t"), inputs.pop("timestep")
        wanted = theirs(x_t, timestep, inputs)
        difference = (ours(x_t, timestep, inputs) - wanted).abs().max() / wanted.abs().max()
        furthest = max(furthest, float(torch.nan_to_num(difference, nan=float("inf"))))
    if furthest > TOLERANCE:
        raise CannotImport(
            f"--onnx: the graph is {furthest:.1e} away from torch, more than {TOLERANCE:.0e}: "
            "leave --onnx out, and serve it with backbone.runtime: torch"
        )
    return furthest
