"""An imported image classifier as a judge: an ONNX file, or a folder of transformers'.

Its graph stays as it is. In front of it comes what makes `pixels` fit for it, and behind it what
makes one benign logit of its classes; the three are one file, in the form of every judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.backbones.importing.source import HUB_ID
from models.onnx import graph as onnx_graph
from models.onnx.batch_invariance import FLAT, TRIAL
from models.onnx.graph import Graph, GraphError, said
from models.onnx.preprocessing import Preparation, PreparationOptions, fit
from models.rewards.class_numbers import (
    OutputMeaning,
    benign_logit,
    benign_nodes,
    check,
    malign_classes,
    rows,
    same,
)
from models.rewards.judge_check import NEAR, SPREAD, KnownImages, TrialScores
from models.rewards.onnx_judge import OnnxJudge
from models.rewards.transformers_classifier import TransformersClassifier, exported, read

ROUNDED = 0.01
"""How far a judge's scores may lie from those of transformers' own network and image processor,
which rounds to bytes where it resizes."""

Numbers = NDArray[np.float64]

_NOTHING = KnownImages()


@dataclass(frozen=True)
class Imported:
    """What is known of a judge that was imported: `source` is for the manifest, `seen` is what it
    scored what it was tried on, and `error` is how far that lies from the network's own. `malign`
    and `benign` are its classes, by label where it has labels.
    """

    opset: int
    bytes: int
    fixed_batch: int | None
    preparation: Preparation
    error: float
    seen: TrialScores
    malign: tuple[str, ...]
    benign: tuple[str, ...]
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
    if not path.exists() and HUB_ID.fullmatch(str(path)) and path.suffix != ".onnx":
        raise GraphError(
            f"{path}: no such file or folder. If it is on the hub, fetch it where there is a "
            f"network, `hf download {path} --local-dir DIR`, and import DIR"
        )
    if not path.is_dir():
        graph = onnx_graph.read(path, meaning.output)
        return _make(graph, fit(graph, image, wanted), meaning, out, known)
    if wanted != PreparationOptions() or (meaning.activation, meaning.output) != ("logits", None):
        raise GraphError(
            f"{path}: a folder of transformers' says itself what it takes and gives: leave out "
            "--size, --layout, --mean, --std, --scale, --bgr, --activation and --output"
        )
    theirs = read(path)
    # An export takes its time: what is wrong with the classes is said before.
    malign_classes(path, len(theirs.labels), meaning, theirs.labels)
    with exported(theirs, known.shown(image)) as (graph, preparation):
        return _make(graph, preparation, meaning, out, known, theirs)


def _make(
    graph: Graph,
    preparation: Preparation,
    meaning: OutputMeaning,
    out: Path,
    known: KnownImages,
    theirs: TransformersClassifier | None = None,
) -> Imported:
    """Join, write, try, compare."""
    image = preparation.image
    pixels = known.shown(image)
    raw = rows(graph, graph.run(preparation.apply(pixels)))
    labels = () if theirs is None else theirs.labels
    malign = malign_classes(graph.path, raw.shape[1], meaning, labels)
    sure = known.canary is not None and known.control is not None
    check(graph, raw, meaning.activation, sure)

    before, prepared = preparation.nodes(graph.opset)
    after, logit = benign_nodes(graph, raw.shape[1], malign, meaning.activation)
    model = onnx_graph.join(graph, before, prepared, after, logit)
    onnx_graph.publish(model, image, "logit", None, out)
    try:
        judge = OnnxJudge(out)
    except Exception as error:  # ONNX Runtime has one for each of its faults
        raise GraphError(f"{graph.path}: ONNX Runtime cannot open it: {said(error)}") from error
    scores = onnx_graph.run_rows(graph, judge.score, pixels)
    off = _distance(scores, raw, malign, meaning)
    if not off <= onnx_graph.TOLERANCE[graph.dtype]:
        raise GraphError(
            f"{graph.path}: as a judge it scores up to {off:.2g} away from the file itself. Such a "
            "graph cannot be imported as it is: export it again, for float32 and a dynamic batch"
        )
    if theirs is not None:
        off = _distance(scores, theirs.logits(pixels), malign, meaning)
        if not off <= ROUNDED:
            raise GraphError(
                f"{graph.path}: as a judge it scores up to {off:.2g} away from transformers' own "
                "network and image processor: it cannot be imported as it is"
            )
    _refuse_constant(graph, raw, scores)
    names = labels or tuple(str(index) for index in range(raw.shape[1]))
    return Imported(
        opset=graph.opset,
        bytes=out.stat().st_size,
        fixed_batch=graph.batch,
        preparation=preparation,
        error=off,
        seen=TrialScores.of(scores, known),
        malign=tuple(names[index] for index in malign),
        benign=tuple(name for index, name in enumerate(names) if index not in malign),
        source={
            "files": graph.files,
            "output": graph.output,
            "activation": meaning.activation,
            "malign": malign,
            "classes": raw.shape[1],
            "opset": graph.opset,
            "preparation": preparation.to_json(),
        }
        | ({} if theirs is None else theirs.source),
    )


def _distance(scores: Numbers, raw: Numbers, malign: list[int], meaning: OutputMeaning) -> float:
    """How far a judge's scores lie from what a network's numbers [B, K] mean."""
    expected = expit(benign_logit(raw, malign, meaning.activation))
    return float(np.abs(scores - expected).max())


def _refuse_constant(graph: Graph, raw: Numbers, scores: Numbers) -> None:
    """Raises GraphError for a graph that gives every image the same score."""
    if same(raw):
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
