"""The denoiser's two runtimes behind one call: torch for GPUs, ONNX Runtime for CPUs.

ONNX Runtime runs the int8 graph about twice as fast as torch runs fp32 on one CPU thread. Neither
call keeps gradients: time-dependent guidance needs none through the denoiser.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models.onnx_session import open_session

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Denoiser(Protocol):
    """x_t [B, C, H, W] float32 and timestep [B] int64 to the model's output [B, C, H, W] float32.

    What the output means is the schedule's `prediction_type`. Any B >= 1.
    """

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor: ...


class TorchDenoiser:
    """A diffusers `UNet2DModel` in torch, on any device and in any dtype."""

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile_mode: str | None = None,
    ) -> None:
        """Load `folder/unet` (diffusers' format, safetensors only).

        `compile_mode` is torch.compile's mode; where compilation fails the model runs as it is,
        and a log line says so. Raises OSError when the folder holds no model.
        """
        self.device = torch.device(device)
        self.dtype = dtype
        # Four seconds to import, which a replica on ONNX Runtime need not spend.
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(
            folder / "unet", torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        self.unet: torch.nn.Module = unet.to(self.device).eval()
        self.unet.requires_grad_(False)
        self._compiled: Callable[..., Any] | None = (
            None if compile_mode is None else torch.compile(self.unet, mode=compile_mode)
        )

    @torch.inference_mode()
    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        inputs = (x_t.to(self.device, self.dtype), timestep.to(self.device))
        output: Tensor = self._forward(*inputs)
        return output.to(x_t.device, torch.float32)

    def _forward(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        if self._compiled is not None:
            try:
                output: Tensor = self._compiled(x_t, timestep).sample
                return output
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # any of the compiler's own exceptions
                log.warning("torch.compile failed (%s): the denoiser runs uncompiled", error)
                self._compiled = None
        plain: Tensor = self.unet(x_t, timestep).sample
        return plain


class OnnxDenoiser:
    """A denoiser exported by `models.backbones.export`, in ONNX Runtime."""

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu") -> None:
        """`threads` are intra-op threads; `device` is `cpu`, `cuda` or `cuda:1`.

        Without CUDA it runs on the CPU, with a log line.
        """
        self.session = open_session(path, threads, device)

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        # On a CPU both directions share memory with torch: no copy is made.
        inputs = {
            "x_t": x_t.detach().cpu().contiguous().numpy(),
            "timestep": timestep.cpu().contiguous().numpy(),
        }
        output: np.ndarray[Any, Any] = self.session.run(None, inputs)[0]
        return torch.from_numpy(output).to(x_t.device)


def load_denoiser(
    folder: Path,
    onnx: Path,
    runtime: Literal["onnx", "torch"],
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    compile_mode: str | None = None,
    threads: int = 1,
) -> Denoiser:
    """The denoiser that the configuration asks for: torch reads `folder`, ONNX Runtime `onnx`.

    `dtype` and `compile_mode` belong to torch alone: the graph brings its own precision. `threads`
    belongs to ONNX Runtime alone: torch's are the process's (`torch.set_num_threads`). A device
    that this machine lacks falls back to the CPU, with a log line.
    """
    if runtime == "onnx":
        return OnnxDenoiser(onnx, threads, device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("%s is not available here: the denoiser runs on the CPU", device)
        device = "cpu"
    return TorchDenoiser(folder, device, DTYPES[dtype], compile_mode)
