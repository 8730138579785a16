"""What a classifier's numbers mean: which classes are malign, and how sure it is.

An output is checked to be one row of class numbers an image, and to be what is said of it; then it
becomes one benign logit, in NumPy and in ONNX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from models.onnx import graph as onnx_graph
from models.onnx.graph import AFTER, Graph, GraphError, Nodes

Activation = Literal["logits", "probabilities", "sigmoid", "sigmoid-logits"]
TINY = 1e-7
"""Added before a logarithm: scores of 0 and 1 become logits of about ±16."""

SUM = 0.01
"""How far a softmax's probabilities may miss 1: float16 and int8 graphs round."""

LISTED = 50
"""So many labels are listed where one is wrong."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class OutputMeaning:
    """What a graph's numbers say. Classes that are not `malign` are benign, or the other way round.

    - `logits`: before a softmax; a single one: before a sigmoid;
    - `probabilities`: after a softmax; a single one: after a sigmoid;
    - `sigmoid`: chances that do not exclude each other;
    - `sigmoid-logits`: the same before the sigmoid.

    P(malign) is the sum of the malign classes where one excludes the other, and else the greatest.
    Classes are numbers from 0, or labels where the network has them.
    """

    activation: Activation = "logits"
    malign: tuple[int | str, ...] = ()
    benign: tuple[int | str, ...] = ()
    output: str | None = None


def rows(graph: Graph, raw: Numbers) -> Numbers:
    """The class numbers [B, K] of a classifier. Raises GraphError for what is none."""
    if raw.ndim == 1 or (raw.ndim == 2 and raw.shape[1]) or raw.shape[2:] == (1, 1):
        return raw.reshape(len(raw), -1)
    kinds = {
        3: "of a detector, which has a row for each box, or a feature extractor, for each token",
        4: "of a segmenter, which has a map of each class, or a feature extractor",
    }
    axes = ", ".join(str(n) for n in raw.shape[1:])
    raise GraphError(
        f"{graph.path}: output {graph.output!r} is [batch, {axes}], "
        f"{kinds.get(raw.ndim, 'of no classifier')}. A judge needs one row of class numbers an "
        "image: [batch, K], [batch, K, 1, 1] or [batch]"
    )


def malign_classes(
    path: Path, classes: int, meaning: OutputMeaning, labels: tuple[str, ...]
) -> list[int]:
    """The malign classes, in order; none where a single number is the benign one."""
    if bool(meaning.malign) == bool(meaning.benign):
        raise GraphError(
            "say which classes are malign with --malign, or benign with --benign"
            + (f": {path} has {_listed(labels)}" if labels else "")
        )
    option = "--malign" if meaning.malign else "--benign"
    given = sorted(
        {_class(path, option, one, labels) for one in (*meaning.malign, *meaning.benign)}
    )
    for index in given:
        if not 0 <= index < classes:
            raise GraphError(
                f"{path}: {option} {index}: it gives {classes} number"
                f"{'s' if classes > 1 else ''} an image: 0 to {classes - 1}"
            )
    rest = [index for index in range(classes) if index not in given]
    if classes > 1 and not rest:
        other = "benign" if meaning.malign else "malign"
        raise GraphError(f"{option}: every class is named: leave one that is {other}")
    return given if meaning.malign else rest


def _class(path: Path, option: str, name: int | str, labels: tuple[str, ...]) -> int:
    """The number of a class that is called by its label, or by its number."""
    text = str(name)
    if labels.count(text) > 1:
        raise GraphError(f"{path}: {option} {text}: two classes are called so: say a number")
    if text in labels:
        return labels.index(text)
    if re.fullmatch(r"-?\d{1,9}", text):
        return int(text)
    has = f"it has {_listed(labels)}" if labels else "an ONNX file has no labels: say the number"
    raise GraphError(f"{path}: {option} {text}: no class is called so: {has}")


def _listed(labels: tuple[str, ...]) -> str:
    more = f", … ({len(labels)} in all)" if len(labels) > LISTED else ""
    return ", ".join(labels[:LISTED]) + more


def check(graph: Graph, raw: Numbers, activation: Activation, sure: bool) -> None:
    """Whether the numbers [B, K] of the trial can be what they are said to be; `sure` where a
    canary and a control show what they mean.
    """
    if not np.isfinite(raw).all():
        raise GraphError(f"{graph.path}: gives numbers that are not finite for a trial of images")
    low, high = float(raw.min()), float(raw.max())
    sums = raw.sum(axis=1)
    several = raw.shape[1] > 1
    chances = low >= -1e-6 and high <= 1 + 1e-3
    begin = f"{graph.path}: --activation {activation}, but"
    if activation in ("probabilities", "sigmoid") and not chances:
        logits = "logits" if activation == "probabilities" else "sigmoid-logits"
        raise GraphError(
            f"{begin} numbers from {low:.3g} to {high:.3g} are not in 0..1: they may be "
            f"--activation {logits}"
        )
    if activation == "probabilities":
        if several and np.abs(sums - 1).max() > SUM:
            raise GraphError(
                f"{begin} they sum to {sums.min():.3g} to {sums.max():.3g}, not 1: chances that do "
                "not exclude each other are --activation sigmoid"
            )
        return
    if same(raw):
        return  # `_refuse_constant` says it, once its batch has been looked at
    if several and low >= -1e-6 and np.ptp(sums) < 1e-3 * sums.mean():
        one = np.abs(sums - 1).max() < SUM
        raise GraphError(
            f"{begin} every image's numbers are not negative and sum to {sums.mean():.3g}: a "
            + (
                "softmax is in the graph, so say --activation probabilities"
                if one
                else "softmax of another scale is in the graph: export it without"
            )
        )
    if several and activation != "logits" and np.abs(logsumexp(raw, axis=1)).max() < 1e-3:
        raise GraphError(
            f"{begin} every image's numbers are logarithms of chances that sum to 1: a log-softmax "
            "is in the graph, so say --activation logits"
        )
    if activation != "sigmoid" and chances and not sure:
        raise GraphError(
            f"{begin} all numbers of {len(raw)} images lie in 0..1: a sigmoid may be in the graph, "
            "so that they are --activation sigmoid. If not, show it both --canary and --control"
        )


def same(raw: Numbers) -> bool:
    """Whether each image has the same numbers."""
    return bool(np.ptp(raw, axis=0).max() <= 1e-6 * max(1.0, float(np.abs(raw).max())))


def benign_logit(raw: NDArray[Any], malign: list[int], activation: Activation) -> Numbers:
    """The benign logit [B] of a graph's numbers [B, K], in NumPy."""
    benign = [index for index in range(raw.shape[1]) if index not in malign]
    x = raw.astype(np.float64)
    with np.errstate(invalid="ignore"):
        if activation == "sigmoid":
            x = np.log(x + TINY) - np.log(np.abs(1 - x) + TINY)
        if raw.shape[1] == 1:
            if activation == "probabilities":
                x = np.log(x + TINY) - np.log(np.abs(1 - x) + TINY)
            return -x[:, 0] if malign else x[:, 0]
        if activation == "logits":
            good, bad = (logsumexp(x[:, rows], axis=1) for rows in (benign, malign))
            return np.asarray(good - bad)
        if activation == "probabilities":
            good, bad = (np.log(x[:, rows].sum(axis=1) + TINY) for rows in (benign, malign))
            return np.asarray(good - bad)
        return np.asarray(-x[:, malign].max(axis=1))


def benign_nodes(
    graph: Graph, classes: int, malign: list[int], activation: Activation
) -> tuple[Nodes, str]:
    """Nodes from the graph's output to the benign logit [B]: `benign_logit` in ONNX."""
    nodes = Nodes(graph.opset, AFTER)
    x = nodes.add("Flatten", nodes.add("Cast", onnx_graph.output(graph), to=1), axis=1)
    single = classes == 1
    if activation == "sigmoid" or (activation == "probabilities" and single):
        x = nodes.add("Sub", _log(nodes, x), _log(nodes, _one_minus(nodes, x)))
    if single:
        if malign:
            x = nodes.add("Neg", x)
        return nodes, nodes.reduce("ReduceSum", x, [1])
    rest = [index for index in range(classes) if index not in malign]
    bad, good = (
        nodes.add("Gather", x, np.array(rows, dtype=np.int64), axis=1) for rows in (malign, rest)
    )
    if activation == "logits":
        good, bad = (nodes.reduce("ReduceLogSumExp", part, [1]) for part in (good, bad))
        return nodes, nodes.add("Sub", good, bad)
    if activation == "probabilities":
        good, bad = (_log(nodes, nodes.reduce("ReduceSum", part, [1])) for part in (good, bad))
        return nodes, nodes.add("Sub", good, bad)
    greatest = nodes.reduce("ReduceMax", bad, [1])
    # A maximum may pass over NaN, a sum does not: a broken score must stay broken.
    total = nodes.reduce("ReduceSum", x, [1])
    return nodes, nodes.add("Sub", nodes.add("Sub", total, total), greatest)


def _log(nodes: Nodes, x: str) -> str:
    return nodes.add("Log", nodes.add("Add", x, np.array(TINY, np.float32)))


def _one_minus(nodes: Nodes, x: str) -> str:
    """1 − x; not below 0, where x was rounded to a little more than 1."""
    return nodes.add("Abs", nodes.add("Sub", np.array(1, np.float32), x))
