"""Text that a caller sends and the store keeps: whatever can be printed, on one line or several."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

ALLOWED = "\t\n\r"


def _printable(text: str) -> str:
    if any(unicodedata.category(one) == "Cc" and one not in ALLOWED for one in text):
        raise PydanticCustomError("control_characters", "must hold no control characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
"""PostgreSQL keeps no NUL, and nobody who reads a log wants the others."""
