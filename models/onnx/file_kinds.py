"""What a file is that was given for an ONNX graph, by how it begins."""

from __future__ import annotations

from pathlib import Path

EXPORT = "export it: `torch.onnx.export(network, (images,), 'FILE.onnx', dynamo=True)`"

KINDS: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "is a git-lfs pointer, no network: `git lfs pull` fetches that",
    ),
    (0, b"<", "is a web page (HTML, XML), not the file: fetch it again, by its download link"),
    (0, b"PK\x03\x04", f"is a zip archive, as torch.save writes: where you trust it, {EXPORT}"),
    (0, b"\x80", f"is a pickle, which can run code: where you trust it, {EXPORT}"),
    (0, b"\x89HDF", "is HDF5, as Keras writes: `tf2onnx` makes ONNX of a Keras model"),
    (4, b"TFL3", "is a TensorFlow Lite model: `tf2onnx --tflite` makes ONNX of it"),
    (0, b"GGUF", "is GGUF, of llama.cpp's kind: no image classifier comes in it"),
    (8, b"{", "is safetensors, weights alone: give the folder that config.json is in"),
    (0, b"{", "is JSON, no network: give the folder that it is in, or the .onnx file"),
)
"""(where, the bytes there, what the file is and what to do)."""


def what_it_is(path: Path) -> str:
    """A sentence about a file that is no ONNX graph, without its name."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        return "is empty: fetch it again"
    for at, mark, words in KINDS:
        if begin[at:].startswith(mark):
            return words
    return "is not an ONNX file"
