"""Pretrained image networks, by path: an ONNX file, a folder of transformers', torchvision weights.

Whatever it is, it ends as one graph of features in a bundle. Serving imports none of this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundles.bundle import sha256_name
from models.onnx import graph as onnx_graph
from models.onnx.batch_invariance import trial
from models.onnx.export import export_graph
from models.onnx.graph import AFTER, PICKLED, Graph, GraphError, Nodes, said
from models.onnx.preprocessing import Preparation, PreparationOptions, fit
from models.rewards.features import OnnxFeatures
from models.rewards.transformers_folder import (
    PREPROCESSOR,
    convert,
    load,
    numbers,
    read_json,
    weights_of,
)

IMAGENET = PreparationOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What most networks were trained with, torchvision's among them."""

LEAST = 2
"""Numbers that features have at least: with one, there is nothing to learn."""


@dataclass(frozen=True)
class Made:
    """Features that were made: `source` names what they came from, with the hash of its weights."""

    width: int
    preparation: Preparation
    bytes: int
    opset: int
    source: str
    source_sha256: str


def make_features(
    path: Path,
    image: tuple[int, int, int],
    wanted: PreparationOptions,
    out: Path,
    output: str | None = None,
    torchvision: str | None = None,
) -> Made:
    """Write `out`: what the network in `path` sees in images [H, W, C], tried.

    What `wanted` leaves open, the network's own files say: `mean` or `std` of no number are open.
    Raises GraphError, naming what does not fit and what to do.
    """
    if torchvision is None and path.suffix in PICKLED:
        raise GraphError(convert(path, path.with_suffix(".safetensors")))
    if torchvision is None and path.suffix == ".safetensors":
        raise GraphError(
            f"{path}: weights alone do not say of which network: say --torchvision NAME, or give "
            "the folder that config.json is in"
        )
    if torchvision is None and path.is_file():
        # An ONNX file says nothing of its pixels; 0..1 is the least surprising.
        known = PreparationOptions()
        graph = onnx_graph.read(path, output)
        made = _write(graph, fit(graph, image, _filled(wanted, known)), out)
        return replace(made, source=path.name, source_sha256=sha256_name(path))
    if output is not None:
        raise GraphError("--output belongs to ONNX files: this network's features are known")
    if torchvision is None:
        network, known, weights = _transformers(path)
        source = f"{path.resolve().name} ({type(network).__name__}, transformers)"
    else:
        network, known, weights = _torchvision(path, torchvision)
        source = f"{path.name} ({torchvision}, torchvision)"
    chosen = _filled(wanted, known)
    if chosen.size is None:
        raise GraphError(f"{path}: does not say which size it takes: say --size HxW")
    with _exported(_Features(network), chosen.size, path) as graph:
        made = _write(graph, fit(graph, image, chosen), out)
    return replace(made, source=source, source_sha256=sha256_name(weights))


class _Features(nn.Module):
    """A network of transformers' or torchvision's, from images to one vector each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Any = self.network(images)
        if isinstance(found, Tensor):
            return found.flatten(1)
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = found.last_hidden_state
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))


def _write(graph: Graph, preparation: Preparation, out: Path) -> Made:
    """Join, write, try, compare."""
    pixels = trial(preparation.image)
    raw = graph.run(preparation.apply(pixels))
    if raw.ndim not in (2, 4) or raw.shape[1] < LEAST:
        said_shape = ", ".join(str(n) for n in raw.shape[1:])
        raise GraphError(
            f"{graph.path}: output {graph.output!r} is [batch, {said_shape}], must be [batch, D] "
            f"or [batch, D, h, w] with D at least {LEAST}: one vector, or one map, an image"
        )
    expected = raw if raw.ndim == 2 else raw.mean(axis=(2, 3))
    if np.ptp(expected, axis=0).max() <= 1e-6 * max(1.0, float(np.abs(expected).max())):
        raise GraphError(
            f"{graph.path}: output {graph.output!r} is the same for every image of a trial: there "
            "is nothing to learn on. Check --mean and --std, or take another output"
        )
    before, prepared = preparation.nodes(graph.opset)
    after = Nodes(graph.opset, AFTER)
    vector = after.add("Cast", onnx_graph.output(graph), to=1)
    if raw.ndim == 4:
        vector = after.reduce("ReduceMean", vector, [2, 3])
    model = onnx_graph.join(graph, before, prepared, after, vector)
    width = expected.shape[1]
    onnx_graph.publish(model, preparation.image, "features", width, out)
    try:
        features = OnnxFeatures(out)
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise GraphError(f"{graph.path}: ONNX Runtime cannot open it: {said(error)}") from error
    found = onnx_graph.run_rows(graph, features.of, pixels)
    off = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not off <= onnx_graph.TOLERANCE[graph.dtype]:
        raise GraphError(
            f"{graph.path}: joined to a bundle's images, its features are {off:.2g} away from "
            "its own: export it again, for float32 and a dynamic batch"
        )
    return Made(width, preparation, out.stat().st_size, graph.opset, "", "")


@contextmanager
def _exported(network: nn.Module, size: tuple[int, int], path: Path) -> Iterator[Graph]:
    """The network as a graph of images [batch, 3, *size]."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "features.onnx"
        example = torch.rand(2, 3, *size)
        try:
            with torch.no_grad():
                network.eval()(example)
        except Exception as error:  # a size that it cannot take, or something that sees no images
            raise GraphError(
                f"{path}: does not take images of {size[0]}x{size[1]}: {said(error)}"
            ) from error
        export_graph(network, (example,), ["images"], "features", file)
        graph = onnx_graph.read(file)
        yield replace(graph, path=file)


def _transformers(folder: Path) -> tuple[nn.Module, PreparationOptions, Path]:
    """The network of a folder, what it wants to be shown, and its weights."""
    weights = weights_of(folder)
    from transformers import AutoModel

    network, loading = load(AutoModel, folder)
    # Beside a text encoder stands what looks at images.
    prefix = "vision_model." if hasattr(network, "vision_model") else ""
    missing = [
        name.removeprefix(prefix) for name in loading["missing_keys"] if name.startswith(prefix)
    ]
    if prefix:
        network = network.vision_model
    if any(name.startswith("pooler.") for name in missing):
        # What was never trained must not be what is learned on.
        network.pooler = None
    if lost := sorted(name for name in missing if not name.startswith("pooler.")):
        raise GraphError(
            f"{weights}: lacks {len(lost)} weights of the network ({lost[0]}, …): it belongs to "
            "another config.json"
        )
    return network, _preprocessor(folder), weights


def _preprocessor(folder: Path) -> PreparationOptions:
    """What preprocessor_config.json says; what it leaves out stays open."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return PreparationOptions(mean=(), std=())
    said = read_json(path)
    size: Any = said.get("crop_size") if said.get("do_center_crop", "crop_size" in said) else None
    size = said.get("size") if size is None else size
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    elif isinstance(size, int):
        size = (size, size)
    known = isinstance(size, tuple) and all(isinstance(one, int) for one in size)
    scale = 255.0
    if said.get("do_rescale", True):
        factor = numbers(path, "rescale_factor", said.get("rescale_factor", 1 / 255))
        if len(factor) != 1:
            raise GraphError(f"{path}: rescale_factor must be one number")
        scale *= factor[0]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if said.get("do_normalize", True):
        mean, std = (numbers(path, key, said.get(key)) for key in ("image_mean", "image_std"))
    return PreparationOptions(size=size if known else None, scale=scale, mean=mean, std=std)


def _torchvision(path: Path, name: str) -> tuple[nn.Module, PreparationOptions, Path]:
    """A network of torchvision's with these weights, its last layer cut off."""
    if path.suffix in PICKLED:
        raise GraphError(convert(path, path.with_suffix(".safetensors")))
    if path.suffix != ".safetensors" or not path.is_file():
        raise GraphError(f"{path}: --torchvision {name} needs its weights as a .safetensors file")
    try:
        from torchvision import models as zoo
    except ImportError:
        raise GraphError(
            f"--torchvision {name}: torchvision is not installed: `pip install "
            "'winnow-serve[features]'`, or the version that belongs to your torch (0.28 to 2.13)"
        ) from None
    except RuntimeError as error:  # built for another torch, or for CUDA where torch is not
        raise GraphError(
            f"--torchvision {name}: torchvision does not fit torch {torch.__version__}: "
            f"{said(error)}: install both from one index"
        ) from None
    try:
        network: nn.Module = zoo.get_model(name, weights=None)
    except ValueError:
        raise GraphError(f"--torchvision {name}: torchvision has no such network") from None
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise GraphError(f"{path}: is not a {name}'s state dict: {said(error)}") from None
    layers = [one for one, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise GraphError(f"--torchvision {name}: it has no linear layer to cut off")
    # The classes that it was trained for are in the last one.
    network.set_submodule(layers[-1], nn.Identity())
    return network, replace(IMAGENET, size=(224, 224)), path


def _filled(wanted: PreparationOptions, known: PreparationOptions) -> PreparationOptions:
    """`wanted`, and what it leaves open as `known` has it. Raises GraphError if both do."""
    mean, std = wanted.mean or known.mean, wanted.std or known.std
    if not mean or not std:
        raise GraphError(
            "the network does not say how its pixels were normalised: say --mean and --std (of "
            "ImageNet: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
        )
    size = wanted.size or known.size
    return replace(wanted, size=size, scale=known.scale, mean=mean, std=std)
