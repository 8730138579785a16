from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.store import store as module
from service.store.database import connect
from service.store.schema import metadata
from service.store.store import Store
from tests.records import make_row

NOW = datetime.now(UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/folder/decisions.sqlite"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def test_what_was_written_is_read(store: Store) -> None:
    rows = [make_row(1), make_row(2)]
    store.insert(rows)
    assert store.read(rows[1].id) == rows[1].document
    assert store.read("img_none") is None


def test_a_decision_is_written_once(store: Store) -> None:
    store.insert([make_row(1)])
    with pytest.raises(StoreUnavailable):
        store.insert([make_row(2), make_row(1)])
    assert store.read(make_row(2).id) is None, "all rows or none"


def test_a_final_decision_replaces_what_has_its_id(store: Store) -> None:
    store.insert([make_row(1), make_row(2)])
    store.insert([make_row(3)], [make_row(i, outcome="cancelled", document={}) for i in (1, 3, 4)])
    assert [store.read(make_row(i).id) for i in (1, 3, 4)] == [{}] * 3
    assert len(store.recent(9, {"outcome": "cancelled"})) == 3
    assert len(store.recent(9)) == 4


def test_recent_is_newest_first_and_filtered(store: Store) -> None:
    rows = [make_row(i, NOW + timedelta(seconds=i), outcome="ok") for i in (2, 0, 1)]
    store.insert([*rows, make_row(3, NOW, outcome="moderation_blocked", policy="other")])
    assert [r["id"][-1] for r in store.recent(2)] == ["2", "1"]
    assert [r["id"][-1] for r in store.recent(9, {"outcome": "moderation_blocked"})] == ["3"]
    assert store.recent(9, {"outcome": "ok", "policy": "other"}) == []


def test_purge_deletes_the_old_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_ROWS", 3)
    old = NOW - timedelta(days=31)
    store.insert([make_row(i, old) for i in range(7)] + [make_row(i, NOW) for i in (7, 8)])
    assert store.purge(NOW - timedelta(days=30)) == 7
    assert {one["id"][-1] for one in store.recent(9)} == {"7", "8"}


def _write(url: str, first: int, count: int) -> None:
    store = Store(url)
    for number in range(first, first + count):
        store.insert([make_row(number)])
    store.close()


def test_two_processes_may_open_and_write_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(url, i * 100, 100)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(Store(url).recent(1000)) == 200


def test_tables_that_another_process_makes_meanwhile_are_no_fault(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_race(connection: Connection) -> None:
        monkeypatch.undo()
        raise OperationalError("CREATE TABLE", {}, Exception("table decisions already exists"))

    monkeypatch.setattr(metadata, "create_all", lose_the_race)
    Store(url).insert([make_row(1)])


def test_sqlite_is_set_up_for_several_processes(store: Store, url: str) -> None:
    with connect(url).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_only_the_owner_may_read_the_file(store: Store, tmp_path: Path) -> None:
    store.insert([make_row(1)])
    for path in (tmp_path / "folder").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_tables_say_their_version_as_alembic_does(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "folder/decisions.sqlite") as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


def test_tables_of_another_version_are_refused(store: Store, tmp_path: Path, url: str) -> None:
    with sqlite3.connect(tmp_path / "folder/decisions.sqlite") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0002'")
    with pytest.raises(ConfigError, match="version 0002"):
        Store(url)


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
        Store(url)
    assert "secret" not in str(caught.value)


def test_a_reader_makes_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing has been recorded"):
        Store(url, create=False)
    assert not (tmp_path / "folder").exists()


def test_a_file_that_is_no_store_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    path.write_text("not a database, but long enough that SQLite looks at its header " * 9)
    with pytest.raises(ConfigError, match="not a database"):
        Store(f"sqlite:///{path}", create=False)
