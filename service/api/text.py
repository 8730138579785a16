"""Text that a caller sends: whole Unicode everywhere, and printable where the store keeps it."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, field_validator
from pydantic_core import PydanticCustomError

ALLOWED = "\t\n\r"
SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(text: str) -> str:
    if SURROGATE.search(text):
        raise PydanticCustomError(
            "surrogates", "must hold no surrogates, which are halves of a character"
        )
    return text


def _printable(text: str) -> str:
    if any(unicodedata.category(one) == "Cc" and one not in ALLOWED for one in text):
        raise PydanticCustomError("control_characters", "must hold no control characters")
    return _whole(text)


Text = Annotated[str, AfterValidator(_printable)]
"""PostgreSQL keeps no NUL, and nobody who reads a log wants the others."""


class Sent(BaseModel):
    """What a caller sends as JSON; every string in it is whole.

    JSON may hold half of a surrogate pair, which no response, database or tokenizer takes.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _of_whole_strings(cls, value: Any) -> Any:
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, str):
                _whole(one)
        return value
