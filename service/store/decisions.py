"""Decisions in a database: written once, read, listed, and deleted when they are old."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import bindparam, delete, insert, select

from service.errors import Conflict
from service.store.database import PAUSE_S, Database
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

    def probe(self) -> None:
        """Write a decision and take it back in the same transaction: shows that one can be written.

        Nobody ever sees it, and SQLite still appends its pages to the journal.
        """
        mark = f"probe_{uuid4().hex}"
        row = Row(mark, datetime.now(UTC), mark, "probe", "probe", "probe", {})
        with self._database.transaction(lasting=False) as connection:
            connection.execute(insert(decisions), [vars(row)])
            connection.execute(delete(decisions).where(decisions.c.id == mark))

    def read(self, decision_id: str) -> dict[str, Any] | None:
        """The record with this id. Raises Conflict where it is there and cannot be read."""
        query = select(decisions.c.document).where(decisions.c.id == decision_id)
        row = self._database.one(query)
        if row is None:
            return None
        if not isinstance(row.document, dict):
            raise Conflict(
                f"the record of decision {decision_id!r} is damaged: it is no JSON object"
            )
        return row.document

    def recent(self, limit: int, having: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The documents of `rows`, of which some may be damaged."""
        return [dict(row.document) for row in self.rows(limit, having)]

    def rows(self, limit: int, having: Mapping[str, str] | None = None) -> list[Row]:
        """The newest first; `having` gives values of columns that they must have.

        The document of one that is damaged is empty.
        """
        query = select(decisions).order_by(decisions.c.created.desc()).limit(limit)
        for column, value in (having or {}).items():
            query = query.where(decisions.c[column] == value)
        return [_row(row) for row in self._database.all(query)]

    def purge(self, before: datetime) -> int:
        """Delete decisions made before this time, and give back their room; returns how many."""
        old = select(decisions.c.id).where(decisions.c.created < before).limit(PURGE_ROWS)
        total = 0
        while True:
            with self._database.transaction() as connection:
                gone = connection.execute(delete(decisions).where(decisions.c.id.in_(old))).rowcount
            total += gone
            if gone < PURGE_ROWS:
                break
            # SQLite has one writer at a time and no queue for it: let requests pass.
            time.sleep(PAUSE_S)
        if total:
            self._database.give_back()
        return total


def _row(row: Any) -> Row:
    values = dict(row._mapping)
    document = values.pop("document")
    return Row(**values, document=document if isinstance(document, dict) else {})
