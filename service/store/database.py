"""A connection to the store's database, set up for several processes that write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from service.config import ConfigError

BUSY_S = 2.0
"""How long SQLite waits for another process's write to end."""


def connect(url: str, create: bool = True) -> Engine:
    """An engine for a database URL; nothing is sent yet.

    With `create`, a missing SQLite file is made, for its owner's eyes only.
    Raises ConfigError; its message never repeats the URL, which may hold a password.
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
        # Readers do not wait for writers, and a commit is an append without an fsync.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return engine
