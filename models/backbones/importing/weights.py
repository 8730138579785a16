"""The files of a component's weights: found, measured, copied or merged; never a pickle."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones.importing.file_format import (
    Header,
    conversion,
    read_header,
    refuse_other,
)
from models.backbones.importing.not_models import refuse_quantised
from models.backbones.importing.source import INDEX, PICKLES, CannotImport, read_json

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""How each library calls the weights of a component."""

BLOCK = 1 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CASTS = {"F8_E4M3": "F16", "F8_E5M2": "F16"}
"""What torch does not compute in, and what holds each of its numbers exactly."""


@dataclass(frozen=True)
class Weights:
    """The files of one component: one, or the shards of one; `name` is the standard one.

    `parameters` counts their numbers, `dtype` is what most of them are. `load` gives the tensors
    where they are not as in the files; `note` says what was chosen.
    """

    files: tuple[Path, ...]
    name: str
    bytes: int
    parameters: int
    dtype: str
    load: Callable[[], dict[str, Tensor]] | None = None
    note: str | None = None

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> None:
        """Copy them, or merge their shards, under the standard name. `on_bytes` gets their size."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.load is not None:
            # They stay in the file until they are written.
            save_file(self.load(), folder / self.name, metadata={"format": "pt"})
            on_bytes(self.bytes)
            return
        if len(self.files) > 1:
            _merge(self.files, folder / self.name, on_bytes)
            return
        with self.files[0].open("rb") as source, (folder / self.name).open("wb") as target:
            while block := source.read(BLOCK):
                target.write(block)
                on_bytes(len(block))


def find_weights(folder: Path, library: str, variant: str | None) -> Weights:
    """The weights of a component of one of the two libraries, of the variant if it has that.

    Raises CannotImport, with the command that makes safetensors of a pickle.
    """
    stem = STEMS.get(library)
    if stem is None:
        raise CannotImport(
            f"{INDEX}: {folder.name} is a class of {library!r}, which may be code of its own: "
            f"Winnow runs the classes of {' and '.join(STEMS)} alone"
        )
    _refuse_quantised_config(folder)
    only = _only_variant(folder, stem) if variant is None else None
    for wanted in dict.fromkeys((variant, None, only)):
        dot = f".{wanted}" if wanted else ""
        single = folder / f"{stem}{dot}.safetensors"
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if single.is_file():
            return _measured((single,), f"{stem}.safetensors", wanted if only else None)
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CannotImport(f"{index}: weight_map must say which shard each weight is in")
            names = sorted({str(name) for name in shards.values()})
            files = tuple(_shard(folder, name) for name in names)
            return _measured(files, f"{stem}.safetensors", wanted if only else None)
    raise CannotImport(_missing(folder, stem, variant))


def _shard(folder: Path, name: str) -> Path:
    path = folder / name
    if path.parent != folder or not path.is_file():
        raise CannotImport(f"{path}: a shard that the index names is missing: fetch it again")
    return path


def _measured(files: tuple[Path, ...], name: str, variant: str | None) -> Weights:
    headers: Header = {}
    for path in files:
        headers |= read_header(path)[0]
    folder = files[0].parent
    refuse_quantised(folder, headers)
    count: Counter[str] = Counter()
    for dtype, shape in headers.values():
        count[dtype] += math.prod(shape)
    if not count:
        raise CannotImport(f"{folder}: its weights are empty")
    most = count.most_common(1)[0][0]
    casts = sorted(set(count) & set(CASTS))
    notes = []
    if variant is not None:
        notes.append(f"variant {variant}, the only one there")
    if casts:
        notes.append(f"{', '.join(casts)} weights: cast to float16, exactly")
    most = CASTS.get(most, most)
    return Weights(
        files,
        name,
        sum(path.stat().st_size for path in files),
        sum(count.values()),
        DTYPES.get(most, most),
        partial(_cast, files) if casts else None,
        f"{folder.name}: {'; '.join(notes)}" if notes else None,
    )


def _cast(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """The tensors of files, those in float8 in float16."""
    found: dict[str, Tensor] = {}
    for path in files:
        found |= load_file(path)
    return {
        name: value.half() if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else value
        for name, value in found.items()
    }


def _refuse_quantised_config(folder: Path) -> None:
    path = folder / "config.json"
    said = read_json(path).get("quantization_config") if path.is_file() else None
    if said:
        method = said.get("quant_method") if isinstance(said, dict) else None
        raise CannotImport(
            f"{path}: its weights are quantised ({method or said}): import the original in "
            "float16, bfloat16 or float32"
        )


def _only_variant(folder: Path, stem: str) -> str | None:
    """The variant that alone is there, such as fp16; None where there are several or none."""
    here = _variants(folder, stem)
    return here[0] if len(here) == 1 else None


def _variants(folder: Path, stem: str) -> list[str]:
    pattern = re.compile(rf"{stem}\.(\w+?)(-\d+-of-\d+)?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index\.(\w+)\.json")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [pattern.fullmatch(name) or index.fullmatch(name) for name in names]
    return sorted({one[1] for one in found if one})


def _merge(files: tuple[Path, ...], target: Path, on_bytes: Callable[[int], None]) -> None:
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= load_file(path)
        on_bytes(path.stat().st_size)
    save_file(tensors, target, metadata={"format": "pt"})


def _missing(folder: Path, stem: str, variant: str | None) -> str:
    here = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in here:
        if name.startswith(stem) and (folder / name).is_symlink():
            refuse_other(folder / name)
    variants = _variants(folder, stem)
    if variants:
        wanted = f"has no variant {variant!r}" if variant else "has none without a variant"
        return f"{folder}: {wanted}: add `--variant {variants[0]}`"
    pickles = [name for name in here if Path(name).suffix in PICKLES]
    if pickles:
        source = folder / next((name for name in pickles if name.startswith(stem)), pickles[0])
        return (
            f"{source}: pickled weights can run code, and are never read here. Convert them once, "
            f"and import again:\n{conversion(source, folder / f'{stem}.safetensors')}"
        )
    return f"{folder}: holds no weights ({stem}.safetensors)"
