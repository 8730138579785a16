from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.store import recorder as module
from service.store.database import Database
from service.store.decisions import Decisions
from service.store.recorder import Recorder
from service.store.schema import Row
from tests.records import make_row


class Gated(Decisions):
    """Decisions whose inserts wait for `gate`; it counts its transactions."""

    def __init__(self, url: str) -> None:
        super().__init__(Database(url))
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def insert(self, rows: Sequence[Row], final: Sequence[Row] = ()) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        super().insert(rows, final)
        self.batches.append(len(rows) + len(final))


@pytest.fixture
def store(tmp_path: Path) -> Gated:
    return Gated(f"sqlite:///{tmp_path}/decisions.sqlite")


@pytest.fixture
def recorder(store: Gated) -> Iterator[Recorder]:
    made = Recorder(store, keep_days=1)
    yield made
    store.gate.set()
    made.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        time.sleep(0.005)


def test_when_write_returns_the_decision_is_committed(recorder: Recorder, tmp_path: Path) -> None:
    asyncio.run(recorder.write(make_row(1)))
    other = Decisions(Database(f"sqlite:///{tmp_path}/decisions.sqlite", create=False))
    assert other.read(make_row(1).id) is not None


def test_a_write_does_not_block_the_event_loop(recorder: Recorder, store: Gated) -> None:
    store.gate.clear()

    async def run() -> None:
        write = asyncio.create_task(recorder.write(make_row(1)))
        await asyncio.to_thread(store.entered.wait, 10)
        assert not write.done()
        store.gate.set()
        await write

    asyncio.run(run())


def test_records_that_wait_together_are_committed_together(
    recorder: Recorder, store: Gated
) -> None:
    store.gate.clear()

    async def run() -> None:
        first = asyncio.create_task(recorder.write(make_row(0)))
        await asyncio.to_thread(store.entered.wait, 10)
        rest = [asyncio.create_task(recorder.write(make_row(i))) for i in range(1, 20)]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, *rest)

    asyncio.run(run())
    assert store.batches == [1, 19]
    assert len(store.recent(99)) == 20


def test_a_write_that_fails_says_so_to_each_that_waited(recorder: Recorder) -> None:
    async def run() -> list[BaseException | None]:
        writes = [recorder.write(make_row(7)) for _ in range(2)]
        return await asyncio.gather(*writes, return_exceptions=True)

    asyncio.run(recorder.write(make_row(7)))
    assert [type(one) for one in asyncio.run(run())] == [StoreUnavailable] * 2


def test_a_request_that_gave_up_leaves_no_record(
    recorder: Recorder, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_S", 0.05)
    store.gate.clear()

    async def run() -> None:
        first = asyncio.create_task(recorder.write(make_row(0)))
        await asyncio.to_thread(store.entered.wait, 10)
        with pytest.raises(StoreUnavailable, match="in time"):
            await recorder.write(make_row(1))
        with pytest.raises(StoreUnavailable, match="in time"):
            await first

    asyncio.run(run())
    store.gate.set()
    recorder.note(make_row(2))
    _until(lambda: store.read(make_row(2).id) is not None)
    assert store.read(make_row(1).id) is None


def test_a_caller_that_is_cancelled_leaves_its_record(recorder: Recorder, store: Gated) -> None:
    store.gate.clear()
    recorder.note(make_row(0))
    assert store.entered.wait(10), "the next record has to wait for this one"

    async def run() -> None:
        write = asyncio.create_task(recorder.write(make_row(1)))
        await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        store.gate.set()

    asyncio.run(run())
    _until(lambda: store.read(make_row(1).id) is not None)


def test_a_commit_that_ends_after_its_request_gave_up_is_corrected(
    recorder: Recorder, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_S", 0.05)
    store.gate.clear()
    delivered, held_back = make_row(0), make_row(0, outcome="store_unavailable", document={})

    async def run() -> None:
        first = asyncio.create_task(recorder.write(delivered))
        await asyncio.to_thread(store.entered.wait, 10)
        with pytest.raises(StoreUnavailable, match="in time"):
            await first

    asyncio.run(run())
    recorder.note(held_back)
    store.gate.set()
    _until(lambda: store.batches == [1, 1])
    assert store.read(delivered.id) == {}
    assert store.recent(9, {"outcome": "ok"}) == []
    assert store.recent(9, {"outcome": "store_unavailable"}) == [{}]


def test_a_record_and_its_correction_may_be_committed_together(
    recorder: Recorder, store: Gated
) -> None:
    store.gate.clear()
    recorder.note(make_row(0))
    assert store.entered.wait(10), "both have to wait for this one"

    async def run() -> None:
        write = asyncio.create_task(recorder.write(make_row(1)))
        await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write

    asyncio.run(run())
    recorder.note(make_row(1, outcome="cancelled", document={}))
    store.gate.set()
    _until(lambda: store.batches == [1, 2])
    assert store.read(make_row(1).id) == {}


def test_too_many_waiting_records_are_refused_at_once(
    store: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    recorder = Recorder(store, keep_days=1)
    store.gate.clear()
    recorder.note(make_row(0))
    assert store.entered.wait(10)
    for number in (1, 2):
        recorder.note(make_row(number))
    with pytest.raises(StoreUnavailable, match="too many"):
        asyncio.run(recorder.write(make_row(3)))
    with caplog.at_level(logging.ERROR):
        recorder.note(make_row(4))
    assert make_row(4).id in caplog.text
    store.gate.set()
    recorder.close()


def test_close_writes_what_waits(store: Gated, tmp_path: Path) -> None:
    recorder = Recorder(store, keep_days=1)
    for number in range(50):
        recorder.note(make_row(number))
    recorder.close()
    assert (
        len(Decisions(Database(f"sqlite:///{tmp_path}/decisions.sqlite", create=False)).recent(99))
        == 50
    )


def test_old_decisions_are_purged_at_the_start_and_again(
    store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    old = datetime.now(UTC) - timedelta(days=2)
    store.insert([make_row(0, old), make_row(1)])
    recorder = Recorder(store, keep_days=1)
    _until(lambda: len(store.recent(9)) == 1)
    recorder.note(make_row(2, old))
    _until(lambda: [one["id"] for one in store.recent(9)] == [make_row(1).id] and store.batches)
    recorder.close()
