"""The denoiser's two runtimes behind one call: torch for GPUs, ONNX Runtime for CPUs.

ONNX Runtime runs the int8 graph about twice as fast as torch runs fp32 on one CPU thread. Neither
call keeps gradients: time-dependent guidance needs none through the denoiser.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models.backbones.families.table import FAMILIES
from models.diffusion.conditioning import Named
from models.onnx.session import open_session, timestep_dtype

log = logging.getLogger(__name__)

DENOISERS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
"""diffusers' classes that take (x_t, timestep) as they are; `families` has adapters for others."""

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


NONE: Named = MappingProxyType({})
"""The inputs of an unconditional denoiser."""

ADDED = ("text_embeds", "time_ids")
"""Inputs that Stable Diffusion XL's denoiser takes in `added_cond_kwargs`."""


class Denoiser(Protocol):
    """x_t [B, C, H, W] float32 and timestep [B] float32 to the model's output [B, C, H, W] float32.

    `inputs` are what the model is conditioned on (`conditioning`). What the output means is the
    schedule's `prediction_type`. Any B >= 1.
    """

    def __call__(self, x_t: Tensor, timestep: Tensor, inputs: Named = NONE) -> Tensor: ...


class TorchDenoiser:
    """A diffusers denoiser in torch, on any device and in any dtype."""

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile_mode: str | None = None,
    ) -> None:
        """Load `folder/unet` or `folder/transformer` (diffusers' format, safetensors only).

        `compile_mode` is torch.compile's mode; where compilation fails the model runs as it is,
        and a log line says so. Raises OSError when the folder holds no model.
        """
        self.device = torch.device(device)
        self.dtype = dtype
        # Four seconds to import, which a replica on ONNX Runtime need not spend.
        import diffusers

        part = folder / ("unet" if (folder / "unet").is_dir() else "transformer")
        name = json.loads((part / "config.json").read_text())["_class_name"]
        if name not in DENOISERS and name not in FAMILIES:
            known = ", ".join([*DENOISERS, *FAMILIES])
            raise ValueError(f"{part}: {name} is not one of {known}")
        self._denoise = FAMILIES[name].denoise if name in FAMILIES else _plain
        network = getattr(diffusers, name).from_pretrained(
            part, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        self.network: torch.nn.Module = network.to(self.device).eval().requires_grad_(False)
        self._compiled: Callable[..., Any] | None = (
            None if compile_mode is None else torch.compile(self.network, mode=compile_mode)
        )

    @torch.inference_mode()
    def __call__(self, x_t: Tensor, timestep: Tensor, inputs: Named = NONE) -> Tensor:
        return self._run(x_t, timestep, inputs)

    def differentiable(self, x_t: Tensor, timestep: Tensor, inputs: Named = NONE) -> Tensor:
        """The same, uncompiled, with a gradient in x_t where the caller has switched them on."""
        return self._run(x_t, timestep, inputs, compiled=False)

    def _run(self, x_t: Tensor, timestep: Tensor, inputs: Named, compiled: bool = True) -> Tensor:
        denoiser_inputs: dict[str, Any] = {
            name: self._to_device(value) for name, value in inputs.items()
        }
        x, t = x_t.to(self.device, self.dtype), timestep.to(self.device)
        output = self._denoise(self._network(compiled), x, t, denoiser_inputs)
        return output.to(x_t.device, torch.float32)

    def _to_device(self, value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype)

    def _network(self, compiled: bool) -> Any:
        return _Compiled(self) if compiled and self._compiled is not None else self.network

    def run_compiled(self, *args: Any, **kwargs: Any) -> Any:
        """The network compiled, or as it is once its compilation has failed."""
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # any of the compiler's own exceptions
                log.warning("torch.compile failed (%s): the denoiser runs uncompiled", error)
                self._compiled = None
        return self.network(*args, **kwargs)


class _Compiled:
    """A network that is called compiled; all else is the network's own."""

    def __init__(self, denoiser: TorchDenoiser) -> None:
        self._denoiser = denoiser

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._denoiser.run_compiled(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser.network, name)


def _plain(network: Any, x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    """A denoiser of `DENOISERS`, called as it is."""
    given: dict[str, Any] = dict(inputs)
    if added := {name: given.pop(name) for name in ADDED if name in given}:
        given["added_cond_kwargs"] = added
    output: Tensor = network(x_t, timestep, return_dict=False, **given)[0]
    # What is beyond x_t's channels is a learned variance, which these samplers do not use.
    return output[:, : x_t.shape[1]]


class OnnxDenoiser:
    """A denoiser exported by `models.onnx.export`, in ONNX Runtime."""

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        """`threads` are intra-op threads; `device` is `cpu`, `cuda` or `cuda:1`.

        Without CUDA it runs on the CPU, with a log line.
        """
        self.session = open_session(path, threads, device)
        self._timestep = timestep_dtype(self.session)

    def __call__(self, x_t: Tensor, timestep: Tensor, inputs: Named = NONE) -> Tensor:
        # On a CPU both directions share memory with torch: no copy is made.
        given = {"x_t": x_t, "timestep": timestep, **inputs}
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in given.items()}
        arrays["timestep"] = arrays["timestep"].astype(self._timestep, copy=False)
        output: np.ndarray[Any, Any] = self.session.run(None, arrays)[0]
        return torch.from_numpy(output).to(x_t.device)


def load_denoiser(
    folder: Path,
    onnx: Path | None,
    runtime: Literal["onnx", "torch"],
    device: str = "cpu",
    dtype: DtypeName = "float32",
    compile_mode: str | None = None,
    threads: int = 1,
) -> Denoiser:
    """The denoiser that the configuration asks for: torch reads `folder`, ONNX Runtime `onnx`.

    `dtype` and `compile_mode` belong to torch alone: the graph brings its own precision. `threads`
    belongs to ONNX Runtime alone: torch's are the process's (`torch.set_num_threads`). A device
    that this machine lacks falls back to the CPU, with a log line. Raises ValueError without a
    graph for ONNX Runtime.
    """
    if runtime == "onnx":
        if onnx is None:
            raise ValueError(f"{folder}: no ONNX denoiser beside it: set backbone.runtime: torch")
        return OnnxDenoiser(onnx, threads, device)
    return TorchDenoiser(folder, available(device), DTYPES[dtype], compile_mode)


def available(device: str) -> str:
    """The device, or the CPU where this machine lacks it, with a log line."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("%s is not available here: the model runs on the CPU", device)
        return "cpu"
    return device
