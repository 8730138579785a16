"""What a model says of its licence: in its card, or in a file of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

NOT_STATED = "not stated"


def licence(folder: Path) -> str:
    """The licence of a model, in a line; NOT_STATED where nothing says it."""
    card = folder / "README.md"
    if card.is_file() and (found := _in_card(card.read_text(errors="replace"))):
        return found
    path = licence_file(folder)
    lines = [] if path is None else path.read_text(errors="replace").splitlines()
    return next((line.strip()[:200] for line in lines if line.strip()), NOT_STATED)


def licence_file(folder: Path) -> Path | None:
    """The text of the licence, which many have to be passed on with."""
    return next((path for path in sorted(folder.glob("LICEN[SC]E*")) if path.is_file()), None)


def _in_card(text: str) -> str | None:
    """Of the front matter of a model card: `license`, or the name that `other` stands for."""
    parts = text.split("---\n", 2)
    if parts[0].strip() or len(parts) < 3:
        return None
    try:
        front: Any = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    if not isinstance(front, dict) or not front.get("license"):
        return None
    named, link = front.get("license_name"), front.get("license_link")
    words = [str(named if front["license"] == "other" and named else front["license"])]
    return " ".join(words + ([f"({link})"] if link else []))[:200]
