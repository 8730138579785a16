from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.store import recorder as module
from service.store.database import Database
from service.store.decisions import Decisions
from service.store.recorder import Recorder
from service.store.schema import Row
from tests.processes import wait_for
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


def test_a_record_that_the_database_refuses_costs_no_other_its_place(
    recorder: Recorder, store: Gated
) -> None:
    store.gate.clear()

    async def run() -> list[BaseException | None]:
        first = asyncio.create_task(recorder.write(make_row(0)))
        await asyncio.to_thread(store.entered.wait, 10)
        # The number 0 is there already, and a set is no JSON.
        rows = [make_row(1), make_row(0), replace(make_row(2), document={"n": {1}}), make_row(3)]
        rest = [asyncio.create_task(recorder.write(row)) for row in rows]
        await asyncio.sleep(0)
        store.gate.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    ended = asyncio.run(run())
    assert [type(one) for one in ended] == [
        *(type(None), type(None)),
        *(StoreUnavailable, StoreUnavailable, type(None)),
    ]
    assert [store.read(make_row(i).id) is None for i in range(4)] == [False, False, True, False]


def test_a_write_that_fails_says_so_to_each_that_waited(recorder: Recorder) -> None:
    async def run() -> list[BaseException | None]:
        writes = [recorder.write(make_row(7)) for _ in range(2)]
        return await asyncio.gather(*writes, return_exceptions=True)

    asyncio.run(recorder.write(make_row(7)))
    assert [type(one) for one in asyncio.run(run())] == [StoreUnavailable] * 2


def test_one_record_that_cannot_be_written_stops_no_other(recorder: Recorder, store: Gated) -> None:
    store.insert([make_row(7)])
    store.gate.clear()

    async def run() -> list[BaseException | None]:
        first = asyncio.create_task(recorder.write(make_row(0)))
        await asyncio.to_thread(store.entered.wait, 10)
        writes = [asyncio.create_task(recorder.write(make_row(number))) for number in (6, 7, 8)]
        await asyncio.sleep(0)
        store.gate.set()
        await first
        return await asyncio.gather(*writes, return_exceptions=True)

    store.entered.clear()
    failed = asyncio.run(run())
    assert [type(one) for one in failed] == [type(None), StoreUnavailable, type(None)]
    assert store.read(make_row(6).id) is not None
    assert store.read(make_row(8).id) is not None


def test_a_check_leaves_no_record_and_waits_for_what_hangs(
    recorder: Recorder, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[None] = []
    monkeypatch.setattr(store, "probe", lambda: probes.append(Decisions.probe(store)))
    store.gate.clear()
    recorder.note(make_row(1))
    assert store.entered.wait(10)

    async def run() -> None:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await recorder.check()
        store.gate.set()
        await recorder.check()

    asyncio.run(run())
    wait_for(lambda: recorder._probe is not None and recorder._probe.done())
    assert len(probes) <= 1, "three that gave up left one probe behind"
    assert len(store.recent(9)) == 1


def test_a_check_fails_when_nothing_can_be_written(
    recorder: Recorder, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store._database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE decisions")
    with pytest.raises(StoreUnavailable):
        asyncio.run(recorder.check())


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
    wait_for(lambda: store.read(make_row(2).id) is not None)
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
    wait_for(lambda: store.read(make_row(1).id) is not None)


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
    wait_for(lambda: store.batches == [1, 1])
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
    wait_for(lambda: store.batches == [1, 2])
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
    wait_for(lambda: len(store.recent(9)) == 1)
    recorder.note(make_row(2, old))
    wait_for(lambda: [one["id"] for one in store.recent(9)] == [make_row(1).id] and store.batches)
    recorder.close()
