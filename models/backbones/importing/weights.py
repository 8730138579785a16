"""The files of a component's weights: found, measured, copied or merged; never a pickle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones.importing.source import INDEX, PICKLES, CannotImport, read_json

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""How each library calls the weights of a component."""

BLOCK = 1 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Weights:
    """The files of one component: one, or the shards of one; `name` is the standard one.

    `parameters` counts their numbers, `dtype` is what most of them are.
    """

    files: tuple[Path, ...]
    name: str
    bytes: int
    parameters: int
    dtype: str

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> None:
        """Copy them, or merge their shards, under the standard name. `on_bytes` gets their size."""
        folder.mkdir(parents=True, exist_ok=True)
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
    for wanted in dict.fromkeys((variant, None)):
        dot = f".{wanted}" if wanted else ""
        single = folder / f"{stem}{dot}.safetensors"
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if single.is_file():
            return _measured((single,), f"{stem}.safetensors")
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CannotImport(f"{index}: weight_map must say which shard each weight is in")
            names = sorted({str(name) for name in shards.values()})
            return _measured(tuple(_shard(folder, name) for name in names), f"{stem}.safetensors")
    raise CannotImport(_missing(folder, stem, variant))


def _shard(folder: Path, name: str) -> Path:
    path = folder / name
    if path.parent != folder or not path.is_file():
        raise CannotImport(f"{path}: a shard that the index names is missing: fetch it again")
    return path


def _measured(files: tuple[Path, ...], name: str) -> Weights:
    count: Counter[str] = Counter()
    for path in files:
        for dtype, shape in _tensors(path):
            count[dtype] += math.prod(shape)
    if not count:
        raise CannotImport(f"{files[0].parent}: its weights are empty")
    most = count.most_common(1)[0][0]
    return Weights(
        files,
        name,
        sum(path.stat().st_size for path in files),
        sum(count.values()),
        DTYPES.get(most, most),
    )


def _tensors(path: Path) -> list[tuple[str, list[int]]]:
    """The dtype and shape of each tensor of a file, from its header. Raises CannotImport."""
    try:
        # Opening compares the header with the length: a file that was cut short is found here.
        with safetensors.safe_open(path, framework="pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
            return [(one.get_dtype(), one.get_shape()) for one in slices]
    except (safetensors.SafetensorError, OSError) as error:
        raise CannotImport(f"{path}: is not whole ({error}): fetch it again") from None


def _merge(files: tuple[Path, ...], target: Path, on_bytes: Callable[[int], None]) -> None:
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= load_file(path)
        on_bytes(path.stat().st_size)
    save_file(tensors, target, metadata={"format": "pt"})


def _missing(folder: Path, stem: str, variant: str | None) -> str:
    here = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    variants = [name.split(".")[1].split("-")[0] for name in here
                if name.startswith(f"{stem}.") and name.endswith(".safetensors")
                and name.count(".") > 1]  # fmt: skip
    if variants:
        wanted = f"has no variant {variant!r}" if variant else "has none without a variant"
        return f"{folder}: {wanted}: add `--variant {sorted(set(variants))[0]}`"
    pickles = [name for name in here if Path(name).suffix in PICKLES]
    if pickles:
        source = folder / next((name for name in pickles if name.startswith(stem)), pickles[0])
        return (
            f"{source}: pickled weights can run code, and are never read here. Convert them once, "
            f"and import again:\n{conversion(source, folder / f'{stem}.safetensors')}"
        )
    return f"{folder}: holds no weights ({stem}.safetensors)"


def conversion(source: Path, target: Path) -> str:
    """The command that makes safetensors of a pickle of tensors alone."""
    code = (
        "import sys, torch, safetensors.torch as s; "
        "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "s.save_file({k: v.contiguous().clone() for k, v in w.items()}, sys.argv[2], "
        "{'format': 'pt'})"
    )
    return f'python -c "{code}" {quote(str(source))} {quote(str(target))}'
