"""An imported image classifier as a judge.

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

from models.onnx import graph as onnx_graph
from models.onnx.batch_invariance import FLAT, TRIAL
from models.onnx.graph import AFTER, Graph, GraphError, Nodes, said
from models.onnx.preprocessing import Preparation, PreparationOptions, fit
from models.rewards.judge_check import NEAR, SPREAD, KnownImages, TrialScores
from models.rewards.onnx_judge import OnnxJudge

Activation = Literal["logits", "probabilities", "sigmoid", "sigmoid-logits"]
TINY = 1e-7
"""Added before a logarithm: scores of 0 and 1 become logits of about ±16."""

SUM = 0.01
"""How far a softmax's probabilities may miss 1: float16 and int8 graphs round."""

Numbers = NDArray[np.float64]

_NOTHING = KnownImages()


@dataclass(frozen=True)
class OutputMeaning:
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
    """What is known of a judge that was imported: `source` is for the manifest, `seen` is what it
    scored what it was tried on, and `error` is how far that lies from the file's own.
    """

    opset: int
    bytes: int
    fixed_batch: int | None
    preparation: Preparation
    error: float
    seen: TrialScores
    source: dict[str, Any]


def make_judge(
    path: Path,
    image: tuple[int, int, int],
    wanted: PreparationOptions,
    meaning: OutputMeaning,
    out: Path,
    known: KnownImages = _NOTHING,
) -> Imported:
    """Write `out`: the classifier in `path` as a judge of images [H, W, C], tried.

    What is `known` is tried too. Raises GraphError, naming what does not fit and what to do.
    """
    graph = onnx_graph.read(path, meaning.output)
    preparation = fit(graph, image, wanted)
    pixels = known.shown(image)
    raw = _rows(graph, graph.run(preparation.apply(pixels)))
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
    scores = onnx_graph.run_rows(graph, judge.score, pixels)
    expected = expit(benign_logit(raw, malign, meaning.activation))
    off = float(np.abs(scores - expected).max())
    if not off <= onnx_graph.TOLERANCE[graph.dtype]:
        raise GraphError(
            f"{path}: as a judge it scores up to {off:.2g} away from the file itself. Such a "
            "graph cannot be imported as it is: export it again, for float32 and a dynamic batch"
        )
    _refuse_constant(graph, raw, scores)
    return Imported(
        opset=graph.opset,
        bytes=out.stat().st_size,
        fixed_batch=graph.batch,
        preparation=preparation,
        error=off,
        seen=TrialScores.of(scores, known),
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


def _rows(graph: Graph, raw: Numbers) -> Numbers:
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


def _refuse_constant(graph: Graph, raw: Numbers, scores: Numbers) -> None:
    """Raises GraphError for a graph that gives every image the same score."""
    if np.ptp(raw, axis=0).max() <= 1e-6 * max(1.0, float(np.abs(raw).max())):
        raise GraphError(
            f"{graph.path}: gives each of {len(raw)} images the same numbers, so it cannot judge: "
            "check --scale, --mean and --std, or take another file"
        )
    # A canary or a control says more of it than the pictures of the trial do.
    known = len(scores) > TRIAL
    pictures = scores[FLAT:]
    alike = np.ptp(pictures) < NEAR or (pictures < NEAR).all() or (pictures > 1 - NEAR).all()
    if np.ptp(scores) < SPREAD or (alike and not known):
        tried = scores if known or not alike else pictures
        raise GraphError(
            f"{graph.path}: scores each of {len(tried)} images {tried.min():.4g} to "
            f"{tried.max():.4g}: nothing shows that it tells malign from benign. Check --malign, "
            "--activation, --mean and --std; where they are right, show it an image that it "
            "rejects with --canary, or one that it accepts with --control"
        )


def _malign(graph: Graph, classes: int, meaning: OutputMeaning) -> list[int]:
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
