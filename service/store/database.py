"""A connection to the store's database, set up for several processes that write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from service.config import ConfigError
from service.errors import StoreUnavailable

BUSY_S = 2.0
"""How long SQLite waits for another process's write to end."""

OPENING_TRIES = 40
OPENING_WAIT_S = 0.1


class Database:
    """The tables behind a URL, at the version that this code knows. Any thread may use it."""

    def __init__(self, url: str, create: bool = True) -> None:
        """Open it; with `create`, make what is missing and bring the tables up to date.

        Raises ConfigError; its message never repeats the URL, which may hold a password.
        """
        self._engine = _connect(url, create)
        try:
            found, wanted = self._open(create)
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or type(error).__name__
            raise ConfigError(f"store: the database cannot be opened: {cause}") from error
        except CommandError:
            raise ConfigError(
                "store: its tables are of a newer version than this Winnow knows: upgrade Winnow"
            ) from None
        if found != wanted:
            raise ConfigError(
                f"store: its tables have version {found}, this Winnow needs {wanted}: start the "
                "service once, which brings them up to date"
            )

    @contextmanager
    def transaction(self, lasting: bool = True) -> Iterator[Connection]:
        """A connection whose changes are all made, or none. Raises StoreUnavailable.

        What is `lasting` survives a power loss. Otherwise SQLite's commit is an append without an
        fsync: it survives a crash of the process alone.
        """
        try:
            with self._engine.begin() as connection:
                if connection.dialect.name == "sqlite":
                    level = "FULL" if lasting else "NORMAL"
                    connection.exec_driver_sql(f"PRAGMA synchronous={level}")
                yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable("the store failed; the log holds its cause") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _open(self, create: bool) -> tuple[str | None, str | None]:
        """The version of the tables, brought up to date first if asked to; and the newest."""
        scripts = Config()
        scripts.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        wanted = ScriptDirectory.from_config(scripts).get_current_head()
        for tries_left in reversed(range(OPENING_TRIES)):
            try:
                with self._engine.begin() as connection:
                    if create and connection.dialect.name == "sqlite":
                        # Or its driver would commit each table alone, and a crash leave a few.
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    found = MigrationContext.configure(connection).get_current_revision()
                    if create and found != wanted:
                        scripts.attributes["connection"] = connection
                        command.upgrade(scripts, "head")
                        found = MigrationContext.configure(connection).get_current_revision()
                    return found, wanted
            except SQLAlchemyError:
                # Another replica may be making the same tables this moment.
                if not (create and tries_left):
                    raise
                time.sleep(OPENING_WAIT_S)
        raise AssertionError("unreachable")


def _connect(url: str, create: bool) -> Engine:
    """An engine for a database URL; nothing is sent yet.

    With `create`, a missing SQLite file is made, for its owner's eyes only.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, create)
        # A pooled connection may have died with its server: ask before using it.
        return create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError("store: the URL is not one that SQLAlchemy reads") from None
    except ModuleNotFoundError as error:
        raise ConfigError(f"store: the URL needs {error.name}, which is not installed") from None


def _sqlite(url: URL, create: bool) -> Engine:
    path = Path(url.database or "")
    if not path.is_absolute():
        raise ConfigError(
            "store: SQLite needs an absolute path (sqlite:////folder/file.sqlite): replicas do "
            "not run in your folder"
        )
    if create:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its journal the mode of the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(
                f"store: {path}: {error.strerror}: give store.url a place that can be written"
            ) from None
    elif not path.is_file():
        raise ConfigError(f"store: {path} does not exist: nothing has been recorded there")
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # Readers do not wait for writers.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine
