"""What a reference leads to: a folder, a file, a folder of the hub's cache, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from models.backbones.importing.file_format import pickled, refuse_other
from models.backbones.importing.flow import is_flow
from models.backbones.importing.scheduler import FILE
from models.backbones.importing.single_file.opening import FLOW, open_file
from models.backbones.importing.source import (
    HUB_ID,
    INDEX,
    PICKLES,
    CannotImport,
    Source,
    read_json,
)
from models.diffusion.parameterization import PREDICTION_TYPES

CACHED = "models--"
WEIGHTS = (*sorted(PICKLES), ".safetensors", ".gguf", ".onnx", ".sft", ".zip")
"""Endings that no hub id has."""
FAMILIES = "flux|sdxl?|sd ?[123].*|stable.?diffusion.*|z.?image.*|pixart.*|qwen.*|sana.*|pony.*"


def open_source(
    reference: str,
    variant: str | None = None,
    revision: str | None = None,
    *,
    base: Path | None = None,
    prediction_type: str | None = None,
    scratch: Path | None = None,
) -> Source:
    """A folder, a checkpoint in one file, or a snapshot of a repository of the hub by its id.

    What is there is never taken for a hub id. `base` is for a file: a folder with what it lacks;
    `scratch` too: an empty folder, which has to stay until the import is done. Raises CannotImport
    when there is nothing, or no pipeline in it.
    """
    if prediction_type not in {None, *PREDICTION_TYPES}:
        known = ", ".join(sorted(PREDICTION_TYPES))
        raise CannotImport(f"--prediction-type: {prediction_type!r} is not one of {known}")
    path = Path(reference)
    if path.is_symlink() and not path.exists():
        refuse_other(path)
    if base is not None and not base.is_dir():
        raise CannotImport(f"--base: {base} is no folder")
    if path.is_file():
        if scratch is None:
            raise CannotImport(f"{path}: is a file, where a folder is wanted")
        return open_file(path, scratch, base, prediction_type)
    if base is not None:
        raise CannotImport(
            "--base: is for a checkpoint in one file: a folder has all that it needs"
        )
    if path.is_dir():
        folder, name, commit = _followed(path, revision)
    else:
        _refuse_no_id(reference)
        folder, commit = _download(reference, variant, revision)
        name = reference
    index = _index(folder)
    if prediction_type is None:
        return Source(name, folder, index, variant, commit)
    schedule = folder / "scheduler" / FILE
    if schedule.is_file() and is_flow(read_json(schedule)):
        raise CannotImport(f"--prediction-type: {name} {FLOW}")
    note = f"prediction_type: {prediction_type}: as --prediction-type says"
    changes = {"prediction_type": prediction_type}
    return Source(name, folder, index, variant, commit, changes, said=(note,))


def _followed(folder: Path, revision: str | None) -> tuple[Path, str, str | None]:
    """The folder itself, or the snapshot in a folder of the hub's cache; its name; its commit."""
    whole = folder.resolve()
    if not whole.name.startswith(CACHED):
        return folder, whole.name, None
    name = whole.name.removeprefix(CACHED).replace("--", "/")
    wanted = revision or "main"
    ref = whole / "refs" / wanted
    commit = ref.read_text().strip() if ref.is_file() else wanted
    snapshot = whole / "snapshots" / commit
    if not snapshot.is_dir():
        here = sorted(one.name for one in (whole / "snapshots").glob("*"))
        held = f"it holds {', '.join(here)}: give one as --revision" if here else "it holds none"
        raise CannotImport(f"{folder}: a folder of the hub's cache without {wanted}: {held}")
    return snapshot, name, commit


def _refuse_no_id(reference: str) -> None:
    """Raise CannotImport for what is not there, and is no id of the hub either."""
    if reference.lower().endswith(WEIGHTS):
        raise CannotImport(f"{reference}: no such file")
    if re.fullmatch(FAMILIES, reference, re.IGNORECASE):
        raise CannotImport(
            f"{reference}: is the name of a family, and no such file or folder is here: give the "
            "path of a model of it, or its whole id on the hub, such as "
            "black-forest-labs/FLUX.1-schnell"
        )
    if not HUB_ID.fullmatch(reference):
        raise CannotImport(
            f"{reference}: no such folder or file, and not a hub id such as owner/name"
        )


def _index(folder: Path) -> dict[str, object]:
    path = folder / INDEX
    if path.is_file():
        return read_json(path)
    if path.is_symlink():
        refuse_other(path)
    raise CannotImport(
        f"{folder}: no {INDEX}, so it is no pipeline in diffusers' format.{_hint(folder)}"
    )


def _hint(folder: Path) -> str:
    """What the folder may be instead, and what to do."""
    here = {one.name: one for one in sorted(folder.iterdir())}
    if "adapter_config.json" in here or "pytorch_lora_weights.safetensors" in here:
        return " It holds a LoRA: import the model that it was made for, with --lora"
    above = folder.resolve().parent / INDEX
    if above.is_file():
        return f" It is one component of {above.parent}: import that"
    files = [one for one in here.values() if one.suffix == ".safetensors"]
    if len(files) == 1:
        return f" It holds one file of weights: import that, {files[0]}"
    if files:
        return " It holds files of weights: import one of them, if it is a whole checkpoint"
    pickles = [one for one in here.values() if one.suffix in PICKLES]
    if pickles:
        return f" {pickles[0].name} looks like an original checkpoint: {pickled(pickles[0])}"
    return " Save the pipeline with diffusers' save_pretrained"


def _download(repository: str, variant: str | None, revision: str | None) -> tuple[Path, str]:
    """Fetch the parts that an import reads: safetensors, JSON and text of the components."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        ignored = None if variant else ["*.fp16*", "*.bf16*", "*non_ema*"]
        found = snapshot_download(
            repository, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
        )
        return Path(found)

    try:
        folder = fetch([INDEX, "README.md", "LICENSE*"])
        parts = Source(repository, folder, _index(folder)).components
        fetch([f"{part}/*.{end}" for part in parts for end in ("json", "txt", "safetensors")])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CannotImport(
            f"{repository}: no such folder, and the hub did not give it ({reason}). Fetch it where "
            f"there is a network, `hf download {repository} --include '*.safetensors' '*.json' "
            "'*.txt' '*.md' --local-dir DIR`, and import DIR"
        ) from None
    return folder, folder.name
