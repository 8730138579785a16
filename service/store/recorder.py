"""Writes decisions from one thread, so that an event loop waits for them without blocking."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import DataError, IntegrityError, StatementError

from service.errors import StoreUnavailable
from service.store.decisions import Decisions
from service.store.schema import Row

log = logging.getLogger("winnow.store")

WRITE_S = 5.0
"""After this a request stops waiting for its record, and gets no pixels."""

MAX_WAITING = 1024
"""Records that may wait. More means that the database is gone: refuse at once, keep no heap."""

PURGE_EVERY_S = 3600.0

FRESH_S = 1.0
"""What was written so short a time ago shows that decisions can be written."""


@dataclass(frozen=True)
class Item:
    """A decision on its way to the store; a `final` one replaces what has its id.

    Without a row, it only shows that one could be written.
    """

    row: Row | None
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
        self._written_at, self._failing = -math.inf, False
        self._probe: Future[None] | None = None
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

    async def check(self) -> None:
        """Return once it is sure that a decision can be written. Raises StoreUnavailable.

        Goes the way of a decision, and leaves none. Nothing is written where one just was; while
        the store hangs, all who ask wait for one probe.
        """
        if time.monotonic() - self._written_at < FRESH_S:
            return
        if self._probe is None or self._probe.done():
            self._probe = self._submit(None, final=False)
        await asyncio.shield(asyncio.wrap_future(self._probe))

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closing.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, row: Row | None, final: bool) -> Future[None]:
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
        rows = [one.row for one in batch if one.row is not None and not one.final]
        final = [one.row for one in batch if one.row is not None and one.final]
        try:
            if rows or final:
                self._decisions.insert(rows, final)
            else:
                self._decisions.probe()
        except Exception as error:  # whatever went wrong, nothing was written
            if len(batch) > 1 and _of_a_row(error):
                # One of them cannot be written; the others can.
                for one in batch:
                    self._commit([one])
                return
            if rows or final:
                log.error("%d decisions were not recorded", len(rows + final), exc_info=error)
            elif not self._failing:  # a probe every second need not repeat it
                log.error("no decision can be recorded", exc_info=error)
            self._failing = True
            fault = StoreUnavailable("the decision store failed; the log holds its cause")
            for one in batch:
                one.written.set_exception(fault)
        else:
            self._written_at, self._failing = time.monotonic(), False
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


def _of_a_row(error: Exception) -> bool:
    """Whether the database refused a row, and is not itself at fault."""
    cause = error.__cause__
    return isinstance(cause, DataError | IntegrityError) or type(cause) is StatementError
