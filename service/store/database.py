"""A connection to the store's database, set up for several processes that write."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Row,
    Select,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.store.json_column import loads

log = logging.getLogger("winnow.store")

BUSY_S = 4.0
"""How long SQLite waits for the writes of others: each takes milliseconds, but nobody queues."""

WAL_BYTES = 4 * 2**20
"""SQLite's journal is cut back to this once a burst of writes is over."""

FREED_PAGES = 256
PAUSE_S = 0.05
"""Between two long writes, so that those of others get their turn."""

OPENING_S = 5.0
MIGRATION_S = 600.0
"""How long a start waits for a database that fails, and for another process's migration."""

OPENING_WAIT_S = 0.1
TRIES = 20
Result = TypeVar("Result")

MIGRATING = 0x57494E4D
"""PostgreSQL's advisory lock of who migrates. It ends with the transaction: a pooler such as
PgBouncer gives the next one another session."""

PSYCOPG = {
    # A pooler gives each transaction another session, which knows no statement of the last one.
    "prepare_threshold": None,
    # A server that is gone without a word is found out in seconds, not in a quarter of an hour.
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}
"""How psycopg connects where the URL does not say otherwise; times in s but for the last."""


class Outdated(ConfigError):
    """The tables are older than this Winnow, or not there yet: a start brings them up to date."""


class Collision(StoreUnavailable):
    """A row breaks a constraint: as a rule, because another process was faster."""


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
                "store: its tables are of a version that this Winnow does not know. Of a newer "
                "Winnow: upgrade. Of one from before the first release: with that one write the "
                "labels to files (`winnow datasets export`), move the database and the blobs away, "
                "and bring the labels into a new store (`winnow datasets import`)"
            ) from None
        if found != wanted:
            raise Outdated(
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
            fault = Collision if isinstance(error, IntegrityError) else StoreUnavailable
            raise fault("the store failed; the log holds its cause") from error

    def repeat(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` returns, in a transaction of its own; again, where another process was
        faster. Raises StoreUnavailable."""
        for tries_left in reversed(range(TRIES)):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except Collision:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def all(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """The rows that a query finds. Raises StoreUnavailable."""
        with self.transaction() as connection:
            return connection.execute(query).all()

    def one(self, query: Select[Any]) -> Row[Any] | None:
        """The row that a query finds, if there is one. Raises StoreUnavailable."""
        with self.transaction() as connection:
            return connection.execute(query).one_or_none()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def give_back(self) -> None:
        """Return to the disk what SQLite has free, a little at a time. Raises StoreUnavailable."""
        if self._engine.dialect.name != "sqlite":
            return
        left = None
        while True:
            before = left
            with self.transaction(lasting=False) as connection:
                cursor = connection.connection.cursor()
                cursor.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()
                left = cursor.execute("PRAGMA freelist_count").fetchone()[0]
            if left in (0, before):
                return
            time.sleep(PAUSE_S)

    def _open(self, create: bool) -> tuple[str | None, str | None]:
        """The version of the tables, brought up to date first if asked to; and the newest."""
        scripts = Config()
        scripts.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        known = ScriptDirectory.from_config(scripts)
        wanted = known.get_current_head()
        started, reported = time.monotonic(), False
        while True:
            try:
                with self._engine.begin() as connection:
                    found = _version(connection)
                if found is not None:
                    known.get_revision(found)  # raises for one of another Winnow
                if found == wanted or not create:
                    return found, wanted
                with self._engine.begin() as connection:
                    if _acquire_migration_lock(connection):
                        # Somebody else may have done it since.
                        if _version(connection) != wanted:
                            scripts.attributes["connection"] = connection
                            command.upgrade(scripts, "head")
                        return _version(connection), wanted
            except SQLAlchemyError as error:
                patience = MIGRATION_S if _busy(error) else OPENING_S
                if not create or time.monotonic() > started + patience:
                    raise
            if time.monotonic() > started + MIGRATION_S:
                raise ConfigError(
                    f"store: another process has been changing its tables for {MIGRATION_S:g} s"
                )
            if not reported:
                log.info("another process may be making the store's tables: waiting")
            reported = True
            time.sleep(OPENING_WAIT_S)


def fold_log(url: str) -> None:
    """Write SQLite's log into its file, as the last to close it does: one that was killed did not.

    No-op for another database, a file that is missing, and one that others have open. Nothing is
    lost where it fails: who opens the file next reads the log.
    """
    if not url.startswith("sqlite") or not os.path.isfile(make_url(url).database or ""):
        return
    engine = _connect(url, create=False)
    with suppress(SQLAlchemyError), engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def clock(connection: Connection) -> datetime:
    """The store's time: PostgreSQL's own, since the clocks of replicas differ. SQLite's is this
    machine's, and all who use its file are on it."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now
    return datetime.now(UTC)


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _acquire_migration_lock(connection: Connection) -> bool:
    """Whether this transaction may change the tables; until it ends nobody else may."""
    if connection.dialect.name == "sqlite":
        # Or its driver would commit each table alone, and a crash leave a few.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(MIGRATING))))


def _busy(error: SQLAlchemyError) -> bool:
    """Whether SQLite has waited in vain for another's write."""
    cause = getattr(error, "orig", None)
    # The lower byte is the code, the upper ones say more.
    return (
        isinstance(cause, sqlite3.OperationalError)
        and getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    )


def _connect(url: str, create: bool) -> Engine:
    """An engine for a database URL; nothing is sent yet.

    With `create`, a missing SQLite file is made, for its owner's eyes only.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, create)
        # A pooled connection may have died with its server: ask before using it.
        return create_engine(parsed, pool_pre_ping=True, connect_args=_arguments(parsed))
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError("store: the URL is not one that SQLAlchemy reads") from None
    except ModuleNotFoundError as error:
        raise ConfigError(f"store: the URL needs {error.name}, which is not installed") from None


def _arguments(url: URL) -> dict[str, Any]:
    """What the driver is told beside what the URL says. Raises as `make_url(url).get_dialect`."""
    if url.get_dialect().driver != "psycopg":
        return {}
    return {name: value for name, value in PSYCOPG.items() if name not in url.query}


def _sqlite(url: URL, create: bool) -> Engine:
    path = Path(url.database or "")
    if not path.is_absolute():
        raise ConfigError(
            "store: SQLite needs an absolute path (sqlite:////folder/file.sqlite): replicas do "
            "not run in your folder"
        )
    if os.path.exists(path) and not path.is_file():
        what = "a folder: name a file in it" if path.is_dir() else "no file that can hold tables"
        raise ConfigError(f"store: {path} is {what}")
    if create:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its journal the mode of the file. One that is there is not opened:
            # closing it would end the locks that other connections of this process hold on it.
            if not path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(
                f"store: {path}: {error.strerror}: give store.url a place that can be written"
            ) from None
    elif not path.is_file():
        raise ConfigError(f"store: {path} does not exist: nothing has been recorded there")
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, json_deserializer=loads)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # Of a file that is still empty: what is deleted can be given back to the disk.
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
        # Readers do not wait for writers.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine
