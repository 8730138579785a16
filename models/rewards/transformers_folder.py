"""A network in a folder of transformers': config.json, model.safetensors, preprocessor_config.json.

Code that such a folder brings is never run, and pickles are not opened. Serving imports none of
this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.backbones.importing.file_format import conversion
from models.onnx.graph import PICKLED, GraphError, said

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


def weights_of(folder: Path) -> Path:
    """The weights of a folder that can be opened. Raises GraphError for any other."""
    if not folder.is_dir():
        raise GraphError(f"{folder}: is neither a file nor a folder")
    if not (folder / CONFIG).is_file():
        snapshots = sorted(folder.glob(f"snapshots/*/{CONFIG}"))
        at = f": it is in {snapshots[-1].parent}" if snapshots else ""
        raise GraphError(f"{folder}: has no {CONFIG}{at or ': is it a folder of transformers?'}")
    for name in (CONFIG, PREPROCESSOR):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise GraphError(
                f"{folder / name}: auto_map: the network brings code of its own, which is never "
                "run here: export it to ONNX where you trust it, and import that file"
            )
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = next((one for one in sorted(folder.iterdir()) if one.suffix in PICKLED), None)
        if pickled is not None:
            raise GraphError(convert(pickled, weights))
        raise GraphError(f"{folder}: has no {WEIGHTS}, in one file")
    return weights


def load(auto: Any, folder: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    """(network, what transformers says of its loading), by one of transformers' Auto classes, in
    float32. Raises GraphError."""
    quieten()
    try:
        network, loading = auto.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # of many libraries
        raise GraphError(f"{folder}: transformers cannot load it: {said(error)}") from error
    loaded: nn.Module = network.eval()
    return loaded, loading


def quieten() -> None:
    """Stop transformers' bars and reports: what matters of them is an error here."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises GraphError."""
    try:
        found: Any = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise GraphError(f"{path}: is not JSON: fetch it again") from None
    if not isinstance(found, dict):
        raise GraphError(f"{path}: must hold a JSON object")
    return found


def numbers(path: Path, key: str, value: Any) -> tuple[float, ...]:
    """One number, or one a channel; none where it is null. Raises GraphError."""
    found = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(one, int | float) for one in found):
        raise GraphError(f"{path}: {key} is {value!r}, must be a number, or one a channel")
    return tuple(float(one) for one in found)


def convert(pickled: Path, safe: Path) -> str:
    """The refusal of a pickle, with the command that converts it."""
    return (
        f"{pickled}: a pickle can run code, so it is not opened. Where you trust it, convert it:\n"
        f"{conversion(pickled, safe)}"
    )
