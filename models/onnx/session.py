"""Sessions of ONNX Runtime, for denoisers and judges alike. Needs no torch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

# ONNX Runtime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def timestep_dtype(session: onnxruntime.InferenceSession) -> type[np.generic]:
    """What a graph's input `timestep` is: an export with integer timesteps takes no others."""
    types = {one.name: one.type for one in session.get_inputs()}
    return np.int64 if types.get("timestep") == "tensor(int64)" else np.float32


def open_session(path: Path, threads: int, device: str) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on `cpu`, `cuda` or `cuda:1` that does not spin while idle.

    `threads` are intra-op threads. Where CUDA is missing it falls back to the CPU, and says so.
    """
    providers: list[str | tuple[str, dict[str, Any]]] = [CPU]
    if device.startswith("cuda"):
        if CUDA in onnxruntime.get_available_providers():
            providers.insert(0, (CUDA, {"device_id": int(device.partition(":")[2] or 0)}))
        else:
            log.warning(
                "%s: this ONNX Runtime has no %s: running on the CPU (the package with CUDA is "
                "onnxruntime-gpu)",
                path.name,
                CUDA,
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads that spin starve whatever shares the machine's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if len(providers) > 1 and session.get_providers()[0] != CUDA:
        log.warning("%s: %s could not start: running on the CPU", path.name, CUDA)
    return session
