"""Decisions in a database: written, read, listed, and deleted when they are old."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.store.database import connect
from service.store.schema import VERSION, Row, decisions, metadata, schema_version

PURGE_ROWS = 500
"""Rows deleted at a time: few enough that a request's write waits for milliseconds."""

OPENING_TRIES = 20
OPENING_WAIT_S = 0.05


class Store:
    """The decision store behind a URL. Every method blocks, and any thread may call it.

    Methods raise StoreUnavailable when the database does not do what it should; its cause is the
    driver's error.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        """Open the store; with `create`, make what is missing. Raises ConfigError."""
        self._engine = connect(url, create)
        try:
            version = self._open(create)
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or type(error).__name__
            raise ConfigError(f"store: the database cannot be opened: {cause}") from error
        if version != VERSION:
            raise ConfigError(
                f"store: its tables have version {version}, this Winnow knows {VERSION}"
            )

    def insert(self, rows: Sequence[Row], final: Sequence[Row] = ()) -> None:
        """Write all of these decisions, or none. `final` ones replace what has their id."""
        gone = delete(decisions).where(decisions.c.id == bindparam("gone"))
        with self._transaction() as connection:
            if rows:
                connection.execute(insert(decisions), [vars(row) for row in rows])
            if final:
                connection.execute(gone, [{"gone": row.id} for row in final])
                connection.execute(insert(decisions), [vars(row) for row in final])

    def read(self, decision_id: str) -> dict[str, Any] | None:
        """The record with this id."""
        query = select(decisions.c.document).where(decisions.c.id == decision_id)
        with self._transaction() as connection:
            document: dict[str, Any] | None = connection.scalar(query)
            return document

    def recent(self, limit: int, having: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The newest records first; `having` gives values of columns that they must have."""
        query = select(decisions.c.document).order_by(decisions.c.created.desc()).limit(limit)
        for column, value in (having or {}).items():
            query = query.where(decisions.c[column] == value)
        with self._transaction() as connection:
            return list(connection.scalars(query))

    def purge(self, before: datetime) -> int:
        """Delete decisions made before this time; returns how many."""
        old = select(decisions.c.id).where(decisions.c.created < before).limit(PURGE_ROWS)
        total = 0
        while True:
            with self._transaction() as connection:
                gone = connection.execute(delete(decisions).where(decisions.c.id.in_(old))).rowcount
            total += gone
            if gone < PURGE_ROWS:
                return total
            # SQLite has one writer at a time and no queue for it: let requests pass.
            time.sleep(0.02)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable("the decision store failed; the log holds its cause") from error

    def _open(self, create: bool) -> str | None:
        """The version of the tables, made first if asked to."""
        for tries_left in reversed(range(OPENING_TRIES)):
            try:
                with self._engine.begin() as connection:
                    if create:
                        metadata.create_all(connection)
                    found = connection.scalar(select(schema_version.c.version_num))
                    if found is None and create:
                        connection.execute(insert(schema_version).values(version_num=VERSION))
                        found = VERSION
                    return found
            except SQLAlchemyError:
                # Another replica may be making the same tables this moment.
                if not (create and tries_left):
                    raise
                time.sleep(OPENING_WAIT_S)
        raise AssertionError("unreachable")
