"""An image classifier that somebody else made, as a judge.

Its graph stays as it is. In front of it comes what makes `pixels` fit for it, and behind it what
makes one benign logit of its classes; the three are one file, in the form of every judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from models import onnx_graph
from models.onnx_graph import AFTER, Graph, GraphError, Nodes, said
from models.preparation import Preparation, Wanted, fit
from models.rewards.judge import OnnxJudge
from models.trial import TOLERANCE, run_rows, trial

Activation = Literal["logits", "probabilities", "sigmoid", "sigmoid-logits"]
TINY = 1e-7
"""Added before a logarithm: scores of 0 and 1 become logits of about ±16."""

SUM = 0.01
"""How far a softmax's probabilities may miss 1: float16 and int8 graphs round."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Meaning:
    """What a graph's numbers say. Classes that are not `malign` are benign, or the other way round.

    - `logits`: before a softmax; a single one: before a sigmoid;
    - `probabilities`: after a softmax; a single one: after a sigmoid;
    - `sigmoid`: chances that do not exclude each other;
    - `sigmoid-logits`: the same before the sigmoid.

    P(malign) is the sum of the malign classes where one excludes the other, and else the greatest.
    """

    activation: Activation = "logits"
    malign: tuple[int, ...] = ()
    benign: tuple[int, ...] = ()
    output: str | None = None


@dataclass(frozen=True)
class Imported:
    """What is known of a judge that was imported: `source` is for the manifest, `scores` are those
    of the trial, and `error` is how far they lie from the file's own.
    """

    opset: int
    bytes: int
    fixed_batch: int | None
    preparation: Preparation
    error: float
    scores: tuple[float, ...]
    source: dict[str, Any]


def make_judge(
    path: Path, image: tuple[int, int, int], wanted: Wanted, meaning: Meaning, out: Path
) -> Imported:
    """Write `out`: the classifier in `path` as a judge of images [H, W, C], tried.

    Raises GraphError, naming what does not fit and what to do.
    """
    graph = onnx_graph.read(path, meaning.output)
    preparation = fit(graph, image, wanted)
    pixels = trial(image)
    raw = graph.run(preparation.apply(pixels))
    raw = raw.reshape(len(raw), -1)
    malign = _malign(graph, raw.shape[1], meaning)
    _check(graph, raw, meaning.activation)

    before, prepared = preparation.nodes(graph.opset)
    after, logit = _verdict(graph, raw.shape[1], malign, meaning.activation)
    model = onnx_graph.join(graph, before, prepared, after, logit)
    onnx_graph.publish(model, image, "logit", None, out)
    try:
        judge = OnnxJudge(out)
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise GraphError(f"{path}: ONNX Runtime cannot open it: {said(error)}") from error
    scores = run_rows(graph, judge.score, pixels)
    expected = expit(benign_logit(raw, malign, meaning.activation))
    off = float(np.abs(scores - expected).max())
    if not off <= TOLERANCE[graph.dtype]:
        raise GraphError(
            f"{path}: as a judge it scores up to {off:.2g} away from the file itself. Such a "
            "graph cannot be imported as it is: export it again, for float32 and a dynamic batch"
        )
    return Imported(
        opset=graph.opset,
        bytes=out.stat().st_size,
        fixed_batch=graph.batch,
        preparation=preparation,
        error=off,
        scores=tuple(float(score) for score in scores),
        source={
            "files": graph.files,
            "output": graph.output,
            "activation": meaning.activation,
            "malign": malign,
            "classes": raw.shape[1],
            "opset": graph.opset,
            "preparation": preparation.to_json(),
        },
    )


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


def _malign(graph: Graph, classes: int, meaning: Meaning) -> list[int]:
    """The malign classes, in order; none where a single number is the benign one."""
    if bool(meaning.malign) == bool(meaning.benign):
        raise GraphError("say which classes are malign with --malign, or benign with --benign")
    option = "--malign" if meaning.malign else "--benign"
    given = sorted({*meaning.malign, *meaning.benign})
    for index in given:
        if not 0 <= index < classes:
            raise GraphError(
                f"{graph.path}: {option} {index}: it gives {classes} number"
                f"{'s' if classes > 1 else ''} an image: 0 to {classes - 1}"
            )
    rest = [index for index in range(classes) if index not in given]
    if classes > 1 and not rest:
        other = "benign" if meaning.malign else "malign"
        raise GraphError(f"{option}: every class is named: leave one that is {other}")
    return given if meaning.malign else rest


def _check(graph: Graph, raw: Numbers, activation: Activation) -> None:
    """Whether the numbers [B, K] of the trial can be what they are said to be."""
    if not np.isfinite(raw).all():
        raise GraphError(f"{graph.path}: gives numbers that are not finite for a trial of images")
    low, high = float(raw.min()), float(raw.max())
    sums = raw.sum(axis=1)
    several = raw.shape[1] > 1
    chances = low >= -1e-6 and high <= 1 + 1e-3
    if activation in ("probabilities", "sigmoid") and not chances:
        logits = "logits" if activation == "probabilities" else "sigmoid-logits"
        raise GraphError(
            f"{graph.path}: --activation {activation}, but numbers from {low:.3g} to {high:.3g} "
            f"are not in 0..1: they may be --activation {logits}"
        )
    if activation == "probabilities" and several and np.abs(sums - 1).max() > SUM:
        raise GraphError(
            f"{graph.path}: --activation probabilities, but they sum to {sums.min():.3g} to "
            f"{sums.max():.3g}, not 1: chances that do not exclude each other are --activation "
            "sigmoid"
        )
    if activation == "logits" and several and chances and np.abs(sums - 1).max() < 1e-3:
        raise GraphError(
            f"{graph.path}: --activation logits, but every image's numbers lie in 0..1 and sum to "
            "1: a softmax is in the graph, so say --activation probabilities"
        )


def _verdict(
    graph: Graph, classes: int, malign: list[int], activation: Activation
) -> tuple[Nodes, str]:
    """Nodes from the graph's output to the benign logit [B]: `benign_logit` in ONNX."""
    nodes = Nodes(graph.opset, AFTER)
    x = nodes.add("Flatten", nodes.add("Cast", onnx_graph.output(graph), to=1), axis=1)
    single = classes == 1
    if activation == "sigmoid" or (activation == "probabilities" and single):
        x = nodes.add("Sub", _log(nodes, x), _log(nodes, _rest(nodes, x)))
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


def _rest(nodes: Nodes, x: str) -> str:
    """1 − x; not below 0, where x was rounded to a little more than 1."""
    return nodes.add("Abs", nodes.add("Sub", np.array(1, np.float32), x))
