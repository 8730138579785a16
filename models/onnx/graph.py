"""Imported ONNX graphs: read, checked, and joined with nodes of our own.

Serving imports none of this, and no `onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, external_data_helper, inliner

from models.bundles.bundle import sha256_name
from models.onnx import batch_invariance
from models.onnx.file_kinds import what_it_is
from models.onnx.session import open_session

MAX_BYTES = 2_000_000_000
"""Protocol buffers end at 2 GiB, and a bundle's graph is one file."""

MAIN = frozenset({"", "ai.onnx"})
"""ONNX's own operators, by either name."""

DOMAINS = MAIN | {"ai.onnx.ml", "com.microsoft"}
"""Operator domains that ONNX Runtime implements; others need third-party code."""

DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
THEIRS, BEFORE, AFTER = "model/", "before/", "after/"
"""How names begin in a joined graph, so that none is used twice."""

RESULT = f"{AFTER}result"

TOLERANCE = {"float32": 1e-4, "uint8": 1e-2, "float16": 1e-2}
"""How far what we made of a graph may lie from the graph itself, by its input: roundings differ."""


class GraphError(ValueError):
    """The graph cannot be used; the message names the file, what is wrong, and what to do."""


@dataclass(frozen=True)
class Graph:
    """A graph with one input and one output that counts, checked but not yet tried.

    `path` is what the user named, `file` the graph's own, and `sources` all files that it was made
    of, the first of them first. `shape` is the input's, None where it is dynamic.
    """

    path: Path
    file: Path
    model: onnx.ModelProto
    input: str
    output: str
    dtype: str
    shape: tuple[int | None, ...]
    opset: int
    sources: tuple[Path, ...]

    @property
    def files(self) -> dict[str, str]:
        """The sha256 name of each file that it was made of."""
        return {path.name: sha256_name(path) for path in self.sources}

    @property
    def batch(self) -> int | None:
        """Rows that the file takes at once, None for any number."""
        return self.shape[0]

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """The output for `images` [B, ...], by the file as it is, float64 [B, ...].

        Raises GraphError when it cannot be run, gives another number of rows, rows of unlike
        shapes, or what are no measurements: labels, say.
        """
        try:
            session = open_session(self.file, 1, "cpu")
            at_once = self.batch or 1
            # What a file insists on is filled up with copies of the last image.
            padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % at_once, 0)])
            parts = [
                session.run([self.output], {self.input: padded[i : i + at_once]})[0]
                for i in range(0, len(padded), at_once)
            ]
        except Exception as error:  # ONNX Runtime has one for each of its faults
            raise GraphError(f"{self.path}: ONNX Runtime cannot run it: {said(error)}") from error
        if any(not isinstance(part, np.ndarray) or part.shape[:1] != (at_once,) for part in parts):
            found = [list(part.shape) if isinstance(part, np.ndarray) else "no tensor"
                     for part in parts]  # fmt: skip
            raise GraphError(
                f"{self.path}: output {self.output!r} must be [batch, ...], one row an image, and "
                f"is {found[0]} for {at_once} image{'s' if at_once > 1 else ''}"
            )
        if len(shapes := {part.shape for part in parts}) > 1:
            few, many = min(shapes), max(shapes)
            raise GraphError(
                f"{self.path}: output {self.output!r} is {list(few)} for one image and "
                f"{list(many)} for another: a detector's, which finds now more, now less"
            )
        if (kind := parts[0].dtype).kind != "f":
            raise GraphError(
                f"{self.path}: output {self.output!r} gives {kind}, must give floating-point "
                "numbers: labels say which class, and not how sure it is"
            )
        return np.concatenate(parts).astype(np.float64)[: len(images)]


@dataclass
class Nodes:
    """Nodes of our own, for a graph of this opset; `prefix` begins their names."""

    opset: int
    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str | NDArray[Any], **attributes: Any) -> str:
        """Adds a node and returns its output; an array among its inputs becomes a constant."""
        names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, names, [name], name=name, **attributes))
        return name

    def clip(self, x: str, low: float, high: float) -> str:
        """Cuts off what is below or above. Limits were attributes once."""
        if self.opset < 11:
            return self.add("Clip", x, min=low, max=high)
        return self.add("Clip", x, *(np.array(one, np.float32) for one in (low, high)))

    def reduce(self, op: str, x: str, axes: Sequence[int]) -> str:
        """A reduction over these axes, which it drops. Axes were an attribute once."""
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.add(op, x, axes=list(axes), keepdims=0)
        return self.add(op, x, np.array(axes, dtype=np.int64), keepdims=0)

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def read(path: Path, output: str | None = None, remedy: str = "say which with --output") -> Graph:
    """Read a graph with all of its weights, and check what can be checked without running it.

    Raises GraphError.
    """
    if path.suffix in PICKLED:
        raise GraphError(
            f"{path}: a pickle can run code, so it is not opened: export the network with "
            "`torch.onnx.export(network, (images,), 'FILE.onnx', dynamo=True)` where you trust it"
        )
    model, beside = _load(path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    used = {(node.domain, node.op_type) for node in _nodes(model.graph)}
    if foreign := sorted(f"{domain}.{op}" for domain, op in used if domain not in DOMAINS):
        raise GraphError(
            f"{path}: operators that ONNX Runtime does not bring: {', '.join(foreign)}. They would "
            "need somebody else's code: export the network without them"
        )
    opset = max(one.version for one in model.opset_import if one.domain in MAIN)
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise GraphError(f"{path}: must take images and nothing else; its inputs are: {names}")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise GraphError(
            f"{path}: input {inputs[0].name!r} is {kind}, must be {' or '.join(DTYPES.values())}"
        )
    outputs = [one.name for one in model.graph.output]
    if output is None and len(outputs) > 1:
        raise GraphError(f"{path}: has {len(outputs)} outputs ({', '.join(outputs)}): {remedy}")
    if output is not None and output not in outputs:
        raise GraphError(f"{path}: has no output {output!r}: it has {', '.join(outputs)}")
    return Graph(
        path=path,
        file=path,
        model=model,
        input=inputs[0].name,
        output=output or outputs[0],
        dtype=DTYPES[tensor.elem_type],
        shape=tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
            for dim in tensor.shape.dim
        ),
        opset=opset,
        sources=(path, *beside),
    )


def join(graph: Graph, before: Nodes, prepared: str, after: Nodes, result: str) -> onnx.ModelProto:
    """One model: `before` gives `prepared`, which the graph takes; `after` takes `output(graph)`.

    It has neither inputs nor outputs yet: `publish` names them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    theirs = compose.add_prefix(model, THEIRS, inplace=True).graph
    hand_over = onnx.helper.make_node("Identity", [prepared], [THEIRS + graph.input])
    finish = onnx.helper.make_node("Identity", [result], [RESULT])
    joined = onnx.helper.make_graph(
        [*before.nodes, hand_over, *theirs.node, *after.nodes, finish],
        "judge",
        [],
        [],
        [*before.constants, *theirs.initializer, *after.constants],
        # Shapes that were traced at another batch would be wrong: value_info stays behind.
        sparse_initializer=theirs.sparse_initializer,
    )
    return onnx.helper.make_model(
        joined,
        opset_imports=[one for one in model.opset_import if one.domain in DOMAINS],
        # From version 4 on, weights need not be inputs as well.
        ir_version=max(model.ir_version, 8),
        producer_name="winnow",
    )


def output(graph: Graph) -> str:
    """What the graph's output is called in a joined model."""
    return THEIRS + graph.output


def publish(
    model: onnx.ModelProto, image: tuple[int, int, int], result: str, width: int | None, path: Path
) -> None:
    """Write a joined model that takes `pixels` uint8 [batch, H, W, C] and gives `result` float32,
    [batch] or [batch, width]. Raises GraphError for one above 2 GB.
    """
    shape: list[str | int | None] = ["batch", *image]
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, shape)
    given: list[str | int | None] = ["batch"] if width is None else ["batch", width]
    found = onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, given)
    model.graph.input.append(pixels)
    model.graph.output.append(found)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == RESULT:
                node.output[place] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def run_rows(
    graph: Graph, run: Callable[[NDArray[np.uint8]], NDArray[Any]], pixels: NDArray[np.uint8]
) -> NDArray[Any]:
    """`trial.run_rows` of what was made of a graph. Raises GraphError, which says what to do."""
    try:
        return batch_invariance.run_rows(run, pixels, TOLERANCE[graph.dtype])
    except batch_invariance.TrialError as error:
        raise GraphError(f"{graph.path}: {error}") from None
    except Exception as error:  # ONNX Runtime has one for each of its faults
        wrong = "does not run on several images at once, and a judge scores batches"
        if graph.batch is not None:
            wrong = (
                f"takes {graph.batch} image{'s' if graph.batch > 1 else ''} at a time and cannot "
                "be made to take any number: export it with a dynamic batch "
                "(`dynamic_shapes=({0: torch.export.Dim('batch')},)` in torch.onnx.export)"
            )
        raise GraphError(f"{graph.path}: {wrong}: {said(error)}") from error


def said(error: Exception) -> str:
    """The first line of what a library complains of, without what stands before its colon."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _load(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model with its weights, and the files beside it that hold some of them."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror})") from None
    if size > MAX_BYTES:
        raise GraphError(too_big(path, size))
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError, which is no ValueError
        raise GraphError(f"{path}: {what_it_is(path)}") from None
    if not model.graph.node or not any(one.domain in MAIN for one in model.opset_import):
        raise GraphError(f"{path}: {what_it_is(path)}, or holds no graph of images")
    folder = path.parent
    outside = set()
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            outside.add(external_data_helper.ExternalDataInfo(tensor).location)
    for name in sorted(outside):
        if not (folder / name).is_file():
            raise GraphError(
                f"{path}: its weights are in {name}, which does not lie beside it: fetch both files"
            )
        size += (folder / name).stat().st_size
    if size > MAX_BYTES:
        raise GraphError(too_big(path, size))
    if outside:
        try:
            external_data_helper.load_external_data_for_model(model, str(folder))
        except Exception as error:  # a path that leaves the folder, a file cut short
            raise GraphError(f"{path}: its weights cannot be read: {said(error)}") from None
    return model, tuple(folder / name for name in sorted(outside))


def too_big(path: Path, size: int) -> str:
    """The refusal of a file of so many bytes."""
    return (
        f"{path}: {size / 1e9:.1f} GB with its weights, and one file of a bundle holds at most "
        f"{MAX_BYTES / 1e9:.0f} GB: export it in float16, or take a smaller network"
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those within loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)
