"""Decisions in a database: written once, read, listed, and deleted when they are old."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from service.store.database import Database
from service.store.schema import Row, decisions

PURGE_ROWS = 500
"""Rows deleted at a time: few enough that a request's write waits for milliseconds."""


class Decisions:
    """The decision records. Methods block, and raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert(self, rows: Sequence[Row], final: Sequence[Row] = ()) -> None:
        """Write all of these decisions, or none. `final` ones replace what has their id."""
        gone = delete(decisions).where(decisions.c.id == bindparam("gone"))
        # Requests wait for this: a power loss may take the last records, and no pointer with them.
        with self._database.transaction(lasting=False) as connection:
            if rows:
                connection.execute(insert(decisions), [vars(row) for row in rows])
            if final:
                connection.execute(gone, [{"gone": row.id} for row in final])
                connection.execute(insert(decisions), [vars(row) for row in final])

    def read(self, decision_id: str) -> dict[str, Any] | None:
        """The record with this id."""
        query = select(decisions.c.document).where(decisions.c.id == decision_id)
        with self._database.transaction() as connection:
            document: dict[str, Any] | None = connection.scalar(query)
            return document

    def recent(self, limit: int, having: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The newest records first; `having` gives values of columns that they must have."""
        query = select(decisions.c.document).order_by(decisions.c.created.desc()).limit(limit)
        for column, value in (having or {}).items():
            query = query.where(decisions.c[column] == value)
        with self._database.transaction() as connection:
            return list(connection.scalars(query))

    def purge(self, before: datetime) -> int:
        """Delete decisions made before this time; returns how many."""
        old = select(decisions.c.id).where(decisions.c.created < before).limit(PURGE_ROWS)
        total = 0
        while True:
            with self._database.transaction() as connection:
                gone = connection.execute(delete(decisions).where(decisions.c.id.in_(old))).rowcount
            total += gone
            if gone < PURGE_ROWS:
                return total
            # SQLite has one writer at a time and no queue for it: let requests pass.
            time.sleep(0.02)
