"""Deletes images that were shown for labelling once they are too old; their labels stay."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta

from service.errors import StoreUnavailable
from service.store.store import Store

log = logging.getLogger("winnow.store")

EVERY_S = 3600.0
EVER = datetime.fromtimestamp(0, UTC)


class Retention:
    """A thread that purges at the start and then every hour."""

    def __init__(self, store: Store, keep_images_days: int) -> None:
        self._store = store
        self._keep = timedelta(days=keep_images_days)
        self._done = EVER
        self._left: set[str] = set()
        self._purging = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-retention", daemon=True)
        self._thread.start()

    def purge(self, now: datetime) -> int:
        """Delete what is due and was not deleted yet; returns how many. Raises StoreUnavailable.

        One that cannot be deleted is told, and tried again the next time.
        """
        with self._purging:
            return self._purge(now - self._keep)

    def close(self) -> None:
        """Stop."""
        self._closing.set()
        self._thread.join()

    def _purge(self, before: datetime) -> int:
        due = self._left | set(self._store.datasets.purgeable(self._done, before))
        self._left = set(due)
        self._done = max(self._done, before)
        gone = 0
        # A reward's canary is one of the images that it learned from, byte for byte.
        used = self._store.rewards.networks() if due else set()
        for blob in sorted(due):
            # It may have been shown or brought again since it was listed.
            if blob not in used and not self._store.datasets.shown_since(blob, before):
                try:
                    self._store.blobs.delete(blob)
                except StoreUnavailable as error:
                    log.warning("image %s was not purged: %s", blob, error)
                    continue
                gone += 1
            self._left.discard(blob)
        return gone

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if gone := self.purge(datetime.now(UTC)):
                    log.info("purged %d images", gone)
            except Exception as error:  # old images are no reason to end the service
                log.warning("old images were not purged", exc_info=error)
            self._closing.wait(EVERY_S)
