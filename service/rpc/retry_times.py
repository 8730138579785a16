"""`Retry-After` times: each refused request gets one after those already promised."""

from __future__ import annotations

import time
from collections import deque

SPARE = 2.0
"""How many times its expected work is reserved for each: work takes longer as often as not, and
`Retry-After` is in whole seconds, so several return at once."""
LONGEST_S = 30.0
"""The longest wait for the sake of others, who may never return."""


class RetryTimes:
    """The promised times that have not passed yet."""

    def __init__(self, ingresses: int) -> None:
        """`ingresses` refuse equally often, and share no state."""
        self._ingresses = ingresses
        self._promised: deque[tuple[float, float]] = deque()
        self._total_s = 0.0

    def wait_s(self, free_s: float, work_s: float) -> float:
        """Promise a refused request a time; returns the seconds until then.

        It would be accepted after `free_s` if no other came, and takes all backbones together
        `work_s`.
        """
        now = time.monotonic()
        while self._promised and self._promised[0][0] <= now:
            self._total_s -= self._promised.popleft()[1]
        ahead_s = min(self._total_s, LONGEST_S) if self._promised else 0.0
        wait_s = free_s + ahead_s
        shared_s = SPARE * self._ingresses * work_s
        # Kept sorted: a wait hardly ever ends before one that began earlier.
        self._promised.append(
            (max(now + wait_s, self._promised[-1][0] if self._promised else 0.0), shared_s)
        )
        self._total_s += shared_s
        return wait_s
