"""An image classifier of transformers', exported to ONNX, with its labels and its pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.onnx import graph as onnx_graph
from models.onnx.export import export_graph
from models.onnx.graph import Graph, GraphError, said
from models.onnx.preprocessing import Preparation
from models.rewards.image_processor import ImageProcessor, open_processor
from models.rewards.transformers_folder import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    load,
    read_json,
    weights_of,
)

HEAD = "ForImageClassification"
OTHERS = (
    ("ObjectDetection", "a detector, which has a row for each box"),
    ("Segmentation", "a segmenter, which has a map of each class"),
    ("DepthEstimation", "a network that measures depth"),
    ("ZeroShotImageClassification", "a comparison of images with texts"),
    ("CLIPModel", "a comparison of images with texts"),
    ("SiglipModel", "a comparison of images with texts"),
    ("VideoClassification", "a classifier of videos"),
    ("MaskedImageModeling", "a network that fills in what is hidden"),
    ("CausalLM", "a language model"),
    ("ConditionalGeneration", "a network that writes text"),
    ("Model", "a feature extractor, without a head that knows classes"),
)
"""(what an architecture's name has in it, what it is then): the first that fits."""

TOLERANCE = 1e-4
"""How far the exported graph's logits may lie from the network's, relative above 1."""

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class TransformersClassifier:
    """A folder's network, its image processor, and the labels of its classes in order."""

    folder: Path
    network: nn.Module
    processor: ImageProcessor
    labels: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """What it was read from."""
        return tuple(self.folder / name for name in (CONFIG, WEIGHTS, PREPROCESSOR))

    @property
    def source(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        import transformers

        return {
            "architecture": type(self.network).__name__,
            "image_processor": self.processor.name,
            "transformers": transformers.__version__,
            "labels": list(self.labels),
        }

    def logits(self, pixels: Pixels) -> Numbers:
        """[B, K] of pixels [B, H, W, C], by transformers' own image processor and network."""
        with torch.no_grad():
            found: Tensor = self.network(torch.from_numpy(self.processor.shown(pixels))).logits
        return found.double().numpy()


def read(folder: Path) -> TransformersClassifier:
    """The classifier of a folder. Raises GraphError, naming what does not fit and what to do."""
    weights = weights_of(folder)
    if (size := weights.stat().st_size) > onnx_graph.MAX_BYTES:
        raise GraphError(onnx_graph.too_big(weights, size))
    _check_head(folder / CONFIG, read_json(folder / CONFIG))
    processor = open_processor(folder)
    network = _network(folder, weights)
    return TransformersClassifier(folder, network, processor, _labels(folder / CONFIG, network))


@contextmanager
def exported(theirs: TransformersClassifier, pixels: Pixels) -> Iterator[tuple[Graph, Preparation]]:
    """The classifier as a graph, and what brings a bundle's images to it; both agree with
    transformers' own on `pixels` [B, H, W, C]. Raises GraphError.
    """
    folder, shown = theirs.folder, _tried(theirs, pixels)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "classifier.onnx"
        _export(theirs, shown, file)
        graph = replace(onnx_graph.read(file), path=folder, sources=theirs.files)
        expected, found = theirs.logits(pixels), graph.run(shown)
        off = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
        if not off <= TOLERANCE:
            raise GraphError(
                f"{folder}: exported to ONNX, its logits are {off:.2g} away from transformers' "
                "own: it cannot be imported like this"
            )
        yield graph, theirs.processor.preparation(graph, pixels)


def _check_head(path: Path, config: dict[str, Any]) -> None:
    """Raises GraphError for what does not say one class of several for an image."""
    if isinstance(timm := config.get("pretrained_cfg"), dict):
        raise GraphError(f"{path}: is a network of timm's: {_of_timm(timm)}")
    found = config.get("architectures")
    name = str(found[0]) if isinstance(found, list) and found else "nothing"
    if not name.endswith(HEAD):
        what = next((words for mark, words in OTHERS if mark in name), "no image classifier")
        raise GraphError(
            f"{path}: architectures says {name}: {what}. A judge needs one row of class numbers an "
            f"image, of a ...{HEAD}; a judge can be trained on any network's features: `winnow "
            "features import`"
        )
    problem = config.get("problem_type") or "single_label_classification"
    if problem != "single_label_classification":
        why = {
            "multi_label_classification": "its labels do not exclude each other: export it to "
            "ONNX, and import that with --activation sigmoid-logits",
            "regression": "it gives quantities and no classes",
        }.get(str(problem), "that is no classification")
        raise GraphError(f"{path}: problem_type is {problem}: {why}")


def _of_timm(said: dict[str, Any]) -> str:
    """What to do with a network of timm's, as its configuration says."""
    options = []
    size, mean, std = (said.get(key) for key in ("input_size", "mean", "std"))
    if isinstance(size, list) and len(size) == 3:
        options.append(f"--size {size[1]}x{size[2]}")
    for name, value in (("--mean", mean), ("--std", std)):
        if isinstance(value, list):
            options.append(f"{name} {','.join(str(one) for one in value)}")
    return (
        "export it to ONNX (`timm.create_model(..., exportable=True)`, torch.onnx.export), and "
        f"import that file with {' '.join(options) or '--size, --mean and --std'}"
    )


def _network(folder: Path, weights: Path) -> nn.Module:
    """The network with all of its weights, its head's too."""
    from transformers import AutoModelForImageClassification

    # Attention in plain operators is what every version of ONNX has.
    network, loading = load(AutoModelForImageClassification, folder, attn_implementation="eager")
    for what, keys in (("lacks", "missing_keys"), ("has other sizes for", "mismatched_keys")):
        if lost := sorted(str(one) for one in loading.get(keys, ())):
            raise GraphError(
                f"{weights}: {what} {len(lost)} weights of the network ({lost[0]}, …), so they "
                "would be random: it belongs to another config.json, or was never trained as a "
                "classifier"
            )
    if more := sorted(one for one in loading.get("unexpected_keys", ()) if "pooler" not in one):
        raise GraphError(
            f"{weights}: has {len(more)} weights that {CONFIG} knows nothing of ({more[0]}, …): it "
            "belongs to another network"
        )
    loaded: nn.Module = network
    return loaded


def _labels(path: Path, network: Any) -> tuple[str, ...]:
    """The name of each class, in order."""
    found = network.config.id2label
    if sorted(found) != list(range(len(found))):
        raise GraphError(f"{path}: id2label must name the classes 0 to {len(found) - 1}")
    if len(found) < 2:
        raise GraphError(
            f"{path}: id2label has {len(found)} class: nothing says what else an image may be"
        )
    return tuple(str(found[i]) for i in range(len(found)))


def _tried(theirs: TransformersClassifier, pixels: Pixels) -> NDArray[np.float32]:
    """What the image processor makes of pixels, if its network takes it. Raises GraphError."""
    path = theirs.folder / PREPROCESSOR
    try:
        shown = theirs.processor.shown(pixels)
    except Exception as error:  # of many libraries
        raise GraphError(
            f"{path}: its image processor does not take the bundle's images: {said(error)}"
        ) from error
    if shown.ndim != 4:
        raise GraphError(
            f"{path}: its image processor makes {list(shown.shape[1:])} of an image, must make "
            "[channels, height, width]"
        )
    try:
        logits = theirs.logits(pixels[:1])
    except Exception as error:  # a size that it cannot take
        raise GraphError(
            f"{theirs.folder}: does not take what its {PREPROCESSOR} makes of an image, "
            f"{list(shown.shape[1:])}: {said(error)}"
        ) from error
    if logits.shape != (1, len(theirs.labels)):
        raise GraphError(
            f"{theirs.folder}: gives {list(logits.shape[1:])} numbers an image for "
            f"{len(theirs.labels)} labels of {CONFIG}"
        )
    return shown


class _Logits(nn.Module):
    """A classifier of transformers' with a tensor out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).logits
        return logits


def _export(theirs: TransformersClassifier, shown: NDArray[np.float32], file: Path) -> None:
    example = (torch.from_numpy(shown[:2]),)
    try:
        export_graph(_Logits(theirs.network), example, ["images"], "logits", file)
    except Exception as error:  # of torch's exporter
        raise GraphError(f"{theirs.folder}: cannot be exported to ONNX: {said(error)}") from error
