"""Runs queued trainings one after another, on a thread that gives way to everything else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from service.errors import StoreUnavailable
from service.store.rewards import SILENT_S, Rewards, RewardVersion

log = logging.getLogger("winnow.feedback")

POLL_S = 0.5
TEND_S = 2.0
NICE = 10


class Worker:
    """The store is the queue: what waits there is taken up, by whichever process comes first."""

    def __init__(
        self,
        rewards: Rewards,
        train: Callable[[RewardVersion], None],
        silent_s: float = SILENT_S,
    ) -> None:
        """`train` runs one, which is spoken for; one that was silent for `silent_s` has died."""
        self._rewards = rewards
        self._train = train
        self._silent_s = silent_s
        self._running: str | None = None
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="training", daemon=True),
            threading.Thread(target=self._tend, name="training-tend", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises RuntimeError when a thread has died."""
        for thread in self._threads:
            if not thread.is_alive():
                raise RuntimeError(f"thread {thread.name} has died")

    def close(self) -> None:
        """Take up nothing more, and wait for a training that runs."""
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        _give_way()
        while not self._closing.wait(POLL_S):
            try:
                reward = self._rewards.take()
                if reward is not None:
                    self._running = reward.id
                    self._train(reward)
            except Exception as error:  # the next one may go better
                log.warning("a training could not be run", exc_info=error)
            finally:
                self._running = None

    def _tend(self) -> None:
        while not self._closing.is_set():
            try:
                self._rewards.tend(self._silent_s, self._running)
            except StoreUnavailable as error:
                log.warning("trainings could not be tended", exc_info=error)
            self._closing.wait(TEND_S)


def _give_way() -> None:
    """Run this thread, and those that torch starts from it, on a core that nobody else wants."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:  # not Linux, or a sandbox that forbids it
        os.nice(NICE)
        log.info("trainings run at nice %d: no idle scheduling here (%s)", NICE, error)
