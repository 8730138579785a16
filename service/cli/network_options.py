"""Options of the commands that import networks."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from service.config import NAME, NAME_IN_WORDS

BundleName = Annotated[
    str, typer.Option("--bundle", help="A bundle's folder, or the name of a shipped one.")
]
PartName = Annotated[str, typer.Option(help="What it is called in the bundle.")]
Size = Annotated[
    str | None, typer.Option(help="HxW that it takes; needed where it takes any size.")
]
Layout = Annotated[
    Literal["NCHW", "NHWC"] | None, typer.Option(help="Order of its axes, where both are possible.")
]
Mean = Annotated[str, typer.Option(help="Taken from pixels in 0..1: one number, or R,G,B.")]
Std = Annotated[str, typer.Option(help="What they are then divided by: one number, or R,G,B.")]


def size_of(text: str | None) -> tuple[int, int] | None:
    """(height, width) of HxW. Raises ValueError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise ValueError(f"--size {text}: must be HEIGHTxWIDTH, such as 224x224")
    return int(found[1]), int(found[2])


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between. Raises ValueError."""
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text}: must be a number, or three with commas") from None


def check_name(option: str, name: str) -> None:
    """Raises ValueError for what can be no name in a bundle, or no file's."""
    if not re.fullmatch(NAME, name):
        raise ValueError(f"{option} {name}: must be {NAME_IN_WORDS}")
