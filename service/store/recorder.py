"""Writes decisions from one thread, so that an event loop waits for them without blocking."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from service.errors import StoreUnavailable
from service.store.decisions import Decisions
from service.store.schema import Row

log = logging.getLogger("winnow.store")

WRITE_S = 5.0
"""After this a request stops waiting for its record, and gets no pixels."""

MAX_WAITING = 1024
"""Records that may wait. More means that the database is gone: refuse at once, keep no heap."""

PURGE_EVERY_S = 3600.0


@dataclass(frozen=True)
class Item:
    """A decision on its way to the store; a `final` one replaces what has its id."""

    row: Row
    final: bool
    written: Future[None] = field(default_factory=Future)


class Recorder:
    """The writing end of the decisions. Records that wait together are committed together.

    A second thread deletes what is older than `keep_days`: at the start, then every hour.
    """

    def __init__(self, decisions: Decisions, keep_days: int) -> None:
        self._decisions = decisions
        self._keep = timedelta(days=keep_days)
        self._queue: queue.Queue[Item | None] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, name="store-write", daemon=True),
            threading.Thread(target=self._purge, name="store-purge", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    async def write(self, row: Row) -> None:
        """Return once the decision is committed. Raises StoreUnavailable.

        A commit that runs cannot be called back. So whoever gives up, or is cancelled, may leave
        the record in the store: `note` then has the last word.
        """
        future = self._submit(row, final=False)
        try:
            async with asyncio.timeout(WRITE_S):
                await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            future.cancel()
            raise StoreUnavailable("the decision store did not answer in time") from None

    def note(self, row: Row) -> None:
        """Write a decision when there is time; a failure is logged. For what delivers nothing.

        Replaces what `write` has written of the same decision, or may yet write.
        """
        try:
            self._submit(row, final=True)
        except StoreUnavailable as error:
            log.error("decision %s was not recorded: %s", row.id, error)

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closing.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, row: Row, final: bool) -> Future[None]:
        item = Item(row, final)
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise StoreUnavailable("too many records wait for the decision store") from None
        return item.written

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            with suppress(queue.Empty):
                while (further := self._queue.get_nowait()) is not None:
                    batch.append(further)
                self._queue.put(None)  # closing: seen again after this batch
            # A request that gave up has answered 503: its record would tell of a delivery.
            wanted = [one for one in batch if one.written.set_running_or_notify_cancel()]
            if wanted:
                self._commit(wanted)

    def _commit(self, batch: list[Item]) -> None:
        try:
            self._decisions.insert(
                [one.row for one in batch if not one.final],
                [one.row for one in batch if one.final],
            )
        except Exception as error:  # whatever went wrong, nothing was written
            log.error("%d decisions were not recorded", len(batch), exc_info=error)
            fault = StoreUnavailable("the decision store failed; the log holds its cause")
            for one in batch:
                one.written.set_exception(fault)
        else:
            for one in batch:
                one.written.set_result(None)

    def _purge(self) -> None:
        while not self._closing.is_set():
            try:
                if gone := self._decisions.purge(datetime.now(UTC) - self._keep):
                    log.info("purged %d decisions", gone)
            except Exception as error:  # old records are no reason to end the service
                log.warning("old decisions were not purged", exc_info=error)
            self._closing.wait(PURGE_EVERY_S)
