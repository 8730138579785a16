"""The connection: several processes, versions of the tables, and URLs that cannot be used."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command, op
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import OperationalError

from service.config import ConfigError
from service.store.database import Database
from service.store.decisions import Decisions
from service.store.schema import metadata
from tests.records import make_row
from tests.shown import make_batch, make_dataset
from tests.stores import open_store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/folder/decisions.sqlite"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


def test_tables_that_another_process_makes_meanwhile_are_no_fault(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_race(scripts: Config, revision: str) -> None:
        monkeypatch.undo()
        raise OperationalError("CREATE TABLE", {}, Exception("table decisions already exists"))

    monkeypatch.setattr(command, "upgrade", lose_the_race)
    Decisions(Database(url)).insert([make_row(1)])


def test_a_start_that_died_among_the_tables_leaves_none(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_index", die)
        with pytest.raises(KeyboardInterrupt):
            Database(url)
    Decisions(Database(url)).insert([make_row(1)])


def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    with database.transaction() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_a_store_from_before_labels_keeps_its_decisions(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    Database(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as raw:
        for (name,) in raw.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            if name not in ("decisions", "alembic_version") and not name.startswith("sqlite_"):
                raw.execute(f"DROP TABLE {name}")
        raw.execute("UPDATE alembic_version SET version_num = '0001'")
        raw.execute(
            "INSERT INTO decisions VALUES ('img_1', '2026-11-01', 'r', 'k', 'p', 'ok', ?)",
            ('{"a": 1}',),
        )
    with pytest.raises(ConfigError, match="version 0001, this Winnow needs"):
        Database(f"sqlite:///{path}", create=False)
    assert Decisions(Database(f"sqlite:///{path}")).read("img_1") == {"a": 1}


def test_a_store_from_before_inputs_keeps_its_images(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    url = f"sqlite:///{path}"
    store = open_store(url)
    make_dataset(store)
    (shown, *_) = make_batch(store, "batch")
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("ALTER TABLE images DROP COLUMN input")
        raw.execute("UPDATE alembic_version SET version_num = '0002'")
    store = open_store(url)
    assert store.datasets.image("bars", shown.id) == shown
    assert shown.input is None
    told = {"prompt": "a cat", "guidance_scale": 7.5}
    (fresh, *_) = make_batch(store, "fresh", input=told)
    assert store.datasets.image("bars", fresh.id).input == told
    store.close()
    with sqlite3.connect(path) as raw:
        empty = raw.execute("SELECT count(*) FROM images WHERE input IS NULL").fetchone()
    assert empty == (3,), "what there is none of is no JSON"


def test_tables_of_a_later_version_are_refused(
    database: Database, tmp_path: Path, url: str
) -> None:
    with sqlite3.connect(tmp_path / "folder/decisions.sqlite") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer version"):
        Database(url)


def test_sqlite_is_set_up_for_several_processes(database: Database) -> None:
    with database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_records_alone_need_no_fsync(database: Database) -> None:
    for lasting, level in ((False, 1), (True, 2)):
        with database.transaction(lasting) as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level


def test_only_the_owner_may_read_the_file(database: Database, tmp_path: Path) -> None:
    Decisions(database).insert([make_row(1)])
    for path in (tmp_path / "folder").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///relative.sqlite", "absolute path"),
        ("sqlite://", "absolute path"),
        ("sqlite:////proc/no/such.sqlite", "store.url"),
        ("secret-without-a-scheme", "not one that SQLAlchemy reads"),
        ("nosuch://user:secret@host/db", "not one that SQLAlchemy reads"),
        ("mysql+mysqldb://user:secret@host/db", "not installed"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_sentence_without_secrets(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_a_reader_makes_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing has been recorded"):
        Database(url, create=False)
    assert not (tmp_path / "folder").exists()


def test_a_file_that_is_no_store_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    path.write_text("not a database, but long enough that SQLite looks at its header " * 9)
    with pytest.raises(ConfigError, match="not a database"):
        Database(f"sqlite:///{path}", create=False)
