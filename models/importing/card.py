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
    for path in sorted(folder.glob("LICEN[SC]E*")):
        for line in path.read_text(errors="replace").splitlines():
            if line.strip():
                return line.strip()[:200]
    return NOT_STATED


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
