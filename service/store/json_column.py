"""JSON as it lies in a column; what is damaged in one row keeps nobody from the others."""

from __future__ import annotations

import json
from typing import Any


def loads(text: Any) -> Any:
    """The value; of what is no object and no list the text itself, which no reader takes for one.

    SQLite keeps numbers as such, whatever the column.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return str(text)
    return value if isinstance(value, dict | list | None) else str(text)
