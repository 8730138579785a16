from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.store import decisions as module
from service.store.database import Database
from service.store.decisions import Decisions
from tests.records import make_row

NOW = datetime.now(UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/folder/decisions.sqlite"


@pytest.fixture
def store(url: str) -> Iterator[Decisions]:
    database = Database(url)
    yield Decisions(database)
    database.close()


def test_what_was_written_is_read(store: Decisions) -> None:
    rows = [make_row(1), make_row(2)]
    store.insert(rows)
    assert store.read(rows[1].id) == rows[1].document
    assert store.read("img_none") is None


def test_a_decision_is_written_once(store: Decisions) -> None:
    store.insert([make_row(1)])
    with pytest.raises(StoreUnavailable):
        store.insert([make_row(2), make_row(1)])
    assert store.read(make_row(2).id) is None, "all rows or none"


def test_a_final_decision_replaces_what_has_its_id(store: Decisions) -> None:
    store.insert([make_row(1), make_row(2)])
    store.insert([make_row(3)], [make_row(i, outcome="cancelled", document={}) for i in (1, 3, 4)])
    assert [store.read(make_row(i).id) for i in (1, 3, 4)] == [{}] * 3
    assert len(store.recent(9, {"outcome": "cancelled"})) == 3
    assert len(store.recent(9)) == 4


def test_recent_is_newest_first_and_filtered(store: Decisions) -> None:
    rows = [make_row(i, NOW + timedelta(seconds=i), outcome="ok") for i in (2, 0, 1)]
    store.insert([*rows, make_row(3, NOW, outcome="moderation_blocked", policy="other")])
    assert [r["id"][-1] for r in store.recent(2)] == ["2", "1"]
    assert [r["id"][-1] for r in store.recent(9, {"outcome": "moderation_blocked"})] == ["3"]
    assert store.recent(9, {"outcome": "ok", "policy": "other"}) == []


def test_purge_deletes_the_old_alone(store: Decisions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_ROWS", 3)
    old = NOW - timedelta(days=31)
    store.insert([make_row(i, old) for i in range(7)] + [make_row(i, NOW) for i in (7, 8)])
    assert store.purge(NOW - timedelta(days=30)) == 7
    assert {one["id"][-1] for one in store.recent(9)} == {"7", "8"}


def _write(url: str, first: int, count: int) -> None:
    database = Database(url)
    store = Decisions(database)
    for number in range(first, first + count):
        store.insert([make_row(number)])
    database.close()


def test_two_processes_may_open_and_write_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(url, i * 100, 100)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(Decisions(Database(url)).recent(1000)) == 200
