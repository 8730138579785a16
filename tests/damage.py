"""What may happen to a store: a file is changed or gone, a row is damaged or another Winnow's."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from sqlalchemy import text

from service.store.store import Store

NO_JSON = '{"cut sho'
"""What a damaged page of a database leaves of a document."""


def change_blob(store: Store, name: str) -> None:
    """Put other bytes where a blob lies."""
    Path(store.blobs._path(name)).write_bytes(b"something else")


def write_column(store: Store, table: str, column: str, value: str | bytes, **where: Any) -> None:
    """Write this value into a column, as it is, of the rows that `where` names."""
    condition = " AND ".join(f"{name} = :{name}" for name in where)
    with store.database.transaction() as connection:
        statement = text(f"UPDATE {table} SET {column} = :value WHERE {condition}")
        changed = connection.execute(statement, {"value": value, **where})
        assert changed.rowcount, "nothing was damaged"


def read_column(store: Store, table: str, column: str, **where: Any) -> Any:
    """A column's JSON, of the one row that `where` names."""
    condition = " AND ".join(f"{name} = :{name}" for name in where)
    with store.database.transaction() as connection:
        found = connection.execute(text(f"SELECT {column} FROM {table} WHERE {condition}"), where)
        value = found.scalar_one()
        return json.loads(zlib.decompress(value) if isinstance(value, bytes) else value)
