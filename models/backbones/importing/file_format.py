"""What a file is, by its first bytes: safetensors, or something else under that name."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path
from shlex import quote
from typing import Any

import safetensors

from models.backbones.importing.source import CannotImport

Header = dict[str, tuple[str, list[int]]]
"""The dtype, as safetensors calls it, and shape of each tensor, by its name."""

HEAD = 4096
"""So many bytes are looked at."""
FETCH = "fetch it again"
SAVE = "Winnow reads safetensors alone"

MAGIC: dict[bytes, str] = {
    b"GGUF": "is a GGUF file, whose weights are quantised: import the safetensors that it was "
    "made from",
    b"version https://git-lfs": "is a git-lfs pointer, not the file: run `git lfs pull` in its "
    "repository, or fetch the file itself",
    b"\x89PNG": "is a picture (PNG): it may tell which model drew it, and holds none",
    b"\xff\xd8\xff": "is a picture (JPEG): it holds no model",
    b"\x1f\x8b": "is a gzip archive: unpack it, and import what is in it",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it, and import what is in it",
    b"Rar!": "is a rar archive: unpack it, and import what is in it",
    b"\x89HDF": f"is an HDF5 file, as Keras writes: {SAVE}",
}
"""Beginnings of files, and what to say of them."""
LARGEST_HEADER = 100_000_000
"""Bytes; as in safetensors itself."""


def read_header(path: Path) -> tuple[Header, dict[str, str]]:
    """What tensors a safetensors file holds, and its metadata. Raises CannotImport by name."""
    refuse_other(path)
    try:
        # Opening compares the header with the length: a file that was cut short is found here.
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            header = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
            return header, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise CannotImport(f"{path}: is not whole ({error}): {FETCH}") from None


def refuse_other(path: Path) -> None:
    """Raise CannotImport, with what to do, where a file is surely no safetensors."""
    if path.is_symlink() and not path.exists():
        raise CannotImport(
            f"{path}: is a link to {path.readlink()}, which is not there: {FETCH}, or mend the link"
        )
    if path.is_dir():
        raise CannotImport(f"{path}: is a folder, where weights should be")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CannotImport(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise CannotImport(f"{path}: is empty: {FETCH}")
    if said := next((words for magic, words in MAGIC.items() if head.startswith(magic)), None):
        raise CannotImport(f"{path}: {said}")
    if head.startswith(b"PK"):
        raise CannotImport(f"{path}: {_archive(path)}")
    if re.match(rb"\x80[\x02-\x05]", head):
        raise CannotImport(f"{path}: {pickled(path)}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<(!doctype|html|head|\?xml|!--)", text, re.IGNORECASE):
        raise CannotImport(
            f"{path}: is an HTML page, not weights: the download was answered by a page (of a "
            f"login or a licence, perhaps): {FETCH} with an access token, or in a browser"
        )
    if path.suffix == ".onnx" or b"onnx" in head[:64].lower() or head[2:12] == b"\x12\x07pytorch":
        raise CannotImport(
            f"{path}: is an ONNX graph: models that draw are imported from safetensors, judges "
            "with `winnow judge import`"
        )
    if text.startswith((b"{", b"[")) and not _is_safetensors(head):
        raise CannotImport(f"{path}: {_json(path)}")
    _refuse_cut(path, head)


def pickled(path: Path) -> str:
    """What is said of a pickle, with the command that makes safetensors of it."""
    return (
        "pickled weights can run code, and are never read here. Convert them once, where you trust "
        f"the file, and import the result:\n{conversion(path, path.with_suffix('.safetensors'))}"
    )


def _archive(path: Path) -> str:
    """Of a zip: what torch writes, or anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"is a zip archive that is not whole: {FETCH}"
    if any(name.endswith("data.pkl") for name in names):
        return pickled(path)
    return "is a zip archive: unpack it, and import what is in it"


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < LARGEST_HEADER


def _json(path: Path) -> str:
    if path.stat().st_size > 1_000_000:
        return "is text, not weights"
    try:
        found: Any = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return "is text, not weights"
    if isinstance(found, dict) and "weight_map" in found:
        return "is the index of shards: import the folder of the whole pipeline"
    if isinstance(found, dict) and ("_class_name" in found or "_diffusers_version" in found):
        return "is a configuration, not weights: import the folder of the whole pipeline"
    return f"is a JSON document, not weights (an answer of the server, perhaps): {FETCH}"


def _refuse_cut(path: Path, head: bytes) -> None:
    size = path.stat().st_size
    if not _is_safetensors(head):
        raise CannotImport(f"{path}: is no safetensors file (nor anything else known): {FETCH}")
    length = struct.unpack("<Q", head[:8])[0]
    if length + 8 > size:
        raise CannotImport(f"{path}: is not whole ({size} bytes, less than its header): {FETCH}")


def conversion(source: Path, target: Path) -> str:
    """The command that makes safetensors of a pickle of tensors alone."""
    code = (
        "import sys, torch, safetensors.torch as s; "
        "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "w = w.get('state_dict', w); "
        "s.save_file({k: v.contiguous().clone() for k, v in w.items() if torch.is_tensor(v)}, "
        "sys.argv[2], {'format': 'pt'})"
    )
    return f'python -c "{code}" {quote(str(source))} {quote(str(target))}'
