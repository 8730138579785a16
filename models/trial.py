"""A trial of a graph of somebody else's: does it treat every image alike, alone and in a batch?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.onnx_graph import Graph, GraphError, said

TRIAL = 5
"""Images of the trial: an odd number, so that no batch that a file insists on is met by chance."""

TOLERANCE = {"float32": 1e-4, "uint8": 1e-2, "float16": 1e-2}
"""How far what we made of a graph may lie from the graph itself, by its input: roundings differ."""


def trial(image: tuple[int, int, int]) -> NDArray[np.uint8]:
    """TRIAL images [TRIAL, H, W, C]: black, white, coarse patches and noise."""
    rng = np.random.default_rng(0)
    height, width, channels = image
    images = rng.integers(0, 256, (TRIAL, *image)).astype(np.uint8)
    images[0], images[1] = 0, 255
    patches = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels)).astype(np.uint8)
    images[2] = patches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return images


def run_rows(
    graph: Graph, run: Callable[[NDArray[np.uint8]], NDArray[Any]], pixels: NDArray[np.uint8]
) -> NDArray[Any]:
    """What `run` gives for all pixels at once, if each alone gives the same.

    Raises GraphError: a row must not depend on what else is in its batch, nor on how many are.
    """
    try:
        together = run(pixels)
        alone = np.concatenate([run(pixels[i : i + 1]) for i in range(len(pixels))])
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise GraphError(f"{graph.path}: {_fixed(graph)}: {said(error)}") from error
    if together.shape != alone.shape:
        raise GraphError(f"{graph.path}: {_fixed(graph)}")
    if not np.isfinite(together).all():
        raise GraphError(f"{graph.path}: gives numbers that are not finite for a trial of images")
    difference = float(np.abs(together - alone).max())
    if difference > TOLERANCE[graph.dtype] * max(1.0, float(np.abs(alone).max())):
        raise GraphError(
            f"{graph.path}: an image's numbers change by {difference:.2g} with what else is in its "
            "batch: export the network in evaluation mode (`network.eval()`)"
        )
    return np.asarray(together)


def _fixed(graph: Graph) -> str:
    if graph.batch is None:
        return "does not run on several images at once, and a judge scores batches"
    return (
        f"takes {graph.batch} image{'s' if graph.batch > 1 else ''} at a time and cannot be made "
        "to take any number: export it with a dynamic batch (`dynamic_shapes=({0: "
        "torch.export.Dim('batch')},)` in torch.onnx.export)"
    )
