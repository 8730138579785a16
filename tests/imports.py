"""Pipelines to import, and what a test damages in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from models.backbones.importing.bundle_folder import Made, Options, make
from models.backbones.importing.reference import open_source
from tests.pipelines import tiny_class, tiny_ddpm, tiny_dit, tiny_ldm, tiny_sd, tiny_sdxl
from tests.whole_pipelines import tiny_lumina2

MAKERS: dict[str, Callable[[Path], Any]] = {
    "ddpm": tiny_ddpm,
    "class": tiny_class,
    "ldm": partial(tiny_ldm, vq=False),
    "ldm-vq": partial(tiny_ldm, vq=True),
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "dit": tiny_dit,
    "lumina2": tiny_lumina2,
}


def unheard(what: str, total: int) -> Callable[..., None]:
    """Progress that nobody watches."""
    return lambda count, note="": None


def import_folder(folder: Path, out: Path, variant: str | None = None, **options: Any) -> Made:
    """The bundle of a pipeline, without the service's check."""
    return make(open_source(str(folder), variant), out, Options("tiny", **options), unheard)


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key out."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
