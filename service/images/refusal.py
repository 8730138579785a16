"""The reasons for which a file is refused."""

from __future__ import annotations

from collections.abc import Callable


class ImageRefused(ValueError):
    """What is wrong with a file, as words that follow its name: "is a GIF: send PNG, …"."""


TRANSPARENT = "has transparency: what is seen depends on what lies behind it, so send it opaque"
ANIMATED = "is animated: send one still image"
PROFILE = (
    "has a colour profile, so a viewer shows other colours than its numbers say: convert it to "
    "sRGB, and leave the profile out"
)
COLOURS = (
    "has EXIF that says other colours than sRGB's (Adobe RGB, or uncalibrated): convert it to "
    "sRGB, and leave the note out"
)
DAMAGED = "does not decode as an image: it is cut short or damaged"
TRAILING = "has more bytes behind the image: send the image alone"

CheckSize = Callable[[int, int], None]
"""`check(width, height)` of a header; raises ImageRefused for another size."""
