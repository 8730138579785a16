"""The connection: several processes, versions of the tables, and URLs that cannot be used."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql.ddl import SchemaGenerator

from service.config import ConfigError
from service.store.database import WAL_BYTES, Database, fold_log
from service.store.decisions import Decisions
from service.store.schema import Row, metadata
from tests.records import make_row


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
        patch.setattr(SchemaGenerator, "visit_index", die)
        with pytest.raises(KeyboardInterrupt):
            Database(url)
    Decisions(Database(url)).insert([make_row(1)])


def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    with database.transaction() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("version", ["0004", "9999"])
def test_tables_of_another_version_are_refused_in_a_sentence(
    database: Database, tmp_path: Path, url: str, version: str
) -> None:
    """One from before the first release, and one to come."""
    with sqlite3.connect(tmp_path / "folder/decisions.sqlite") as raw:
        raw.execute("UPDATE alembic_version SET version_num = ?", (version,))
    for create in (True, False):
        with pytest.raises(ConfigError, match=r"newer Winnow: upgrade.*winnow datasets export"):
            Database(url, create=create)


def test_sqlite_is_set_up_for_several_processes(database: Database) -> None:
    with database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_records_alone_need_no_fsync(database: Database) -> None:
    for lasting, level in ((False, 1), (True, 2)):
        with database.transaction(lasting) as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level


def _rows(numbers: Iterable[int], **changes: Any) -> list[Row]:
    """Many rows at little cost."""
    one = make_row(0)
    return [replace(one, id=f"img_{number:032x}", **changes) for number in numbers]


def test_a_record_takes_a_fraction_of_a_page(database: Database, tmp_path: Path) -> None:
    decisions = Decisions(database)
    rows = _rows(range(300))
    decisions.insert(rows)
    assert decisions.read(rows[7].id) == rows[7].document
    with database.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    assert pages < 300 * 0.6, "with its places in the indexes, and with all the other tables"


def test_what_is_purged_goes_back_to_the_disk(database: Database, tmp_path: Path) -> None:
    decisions = Decisions(database)
    path = tmp_path / "folder/decisions.sqlite"
    old = datetime.now(UTC) - timedelta(days=9)

    def size() -> int:
        with sqlite3.connect(path) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    decisions.insert([make_row(1)])
    small = size()
    decisions.insert(_rows(range(2, 1002), created=old))
    assert size() > 3 * small
    assert decisions.purge(datetime.now(UTC) - timedelta(days=1)) == 1000
    assert size() < 2 * small
    assert len(decisions.recent(9)) == 1


def test_the_journal_is_cut_back_after_a_burst(database: Database, tmp_path: Path) -> None:
    decisions = Decisions(database)
    journal = tmp_path / "folder/decisions.sqlite-wal"
    decisions.insert([make_row(1)])
    reader = sqlite3.connect(tmp_path / "folder/decisions.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM decisions").fetchall()
    # Nothing is taken over into the file while somebody reads it as it was.
    decisions.insert(_rows(range(2, 9000)))
    burst = journal.stat().st_size
    reader.execute("COMMIT")
    for number in range(9000, 9004):
        decisions.insert(_rows([number]))
    assert journal.stat().st_size <= WAL_BYTES < burst
    reader.close()


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


def test_the_log_of_a_process_that_was_killed_is_folded_in(url: str, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "decisions.sqlite"
    log = file.with_name("decisions.sqlite-wal")
    writing = (
        "import os, sys\n"
        "from service.store.database import Database\n"
        "from service.store.decisions import Decisions\n"
        "from tests.records import make_row\n"
        "Decisions(Database(sys.argv[1])).insert([make_row(1)])\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", writing, url], check=True)
    assert log.stat().st_size > 0, "it was not closed"
    fold_log(url)
    assert not log.exists()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (1,)


def test_nothing_is_made_to_fold_a_log_into(tmp_path: Path) -> None:
    fold_log(f"sqlite:///{tmp_path}/none.sqlite")
    fold_log("postgresql://nobody@127.0.0.1:1/none")
    assert list(tmp_path.iterdir()) == []
