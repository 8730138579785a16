"""Who runs: draws wait in a queue, take slots, and give them back. Knows no tensor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.ports import DrawKey, DrawResult, SamplingPlan

Deliver = Callable[[list[DrawResult] | Exception], None]


@dataclass(eq=False)
class Ticket:
    """One caller's draws: where their results go, and until when anyone wants them."""

    deliver: Deliver
    deadline: float
    cancelled: bool = False


@dataclass(eq=False)
class Draw:
    """One trajectory, waiting or running. Times are `time.monotonic()` seconds.

    `reserved` is the NFE that it stands for while it waits, expected redraws included.
    """

    plan: SamplingPlan
    key: DrawKey
    ticket: Ticket
    reserved: float = 0.0
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0


class Scheduler:
    """First come, first served, into `max_batch` slots.

    Running draws always fill the rows 0..len(running)-1, so the batch is a slice, never a gather.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.waiting: deque[Draw] = deque()
        self.running: list[Draw] = []
        self.waiting_nfe = 0.0

    def add(self, draws: Sequence[Draw]) -> None:
        """Queue new draws."""
        self.waiting.extend(draws)
        self.waiting_nfe += sum(draw.reserved for draw in draws)

    def admit(self, now: float) -> list[Draw]:
        """Give free slots to waiting draws; those returned are the last rows of `running`."""
        admitted: list[Draw] = []
        while self.waiting and len(self.running) < self.max_batch:
            draw = self.waiting.popleft()
            self.waiting_nfe -= draw.reserved
            if unwanted(draw, now):
                continue
            draw.started = now
            self.running.append(draw)
            admitted.append(draw)
        return admitted

    def release(self, row: int) -> int:
        """Free a row by moving the last one into it; returns the row that moved."""
        last = len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return last

    def unwanted_rows(self, now: float) -> list[int]:
        """Rows whose caller went away or ran out of time, highest first, safe to release so."""
        return [
            row for row in range(len(self.running) - 1, -1, -1) if unwanted(self.running[row], now)
        ]

    def drop_unwanted(self, now: float) -> None:
        """Forget waiting draws that nobody wants any more."""
        if any(unwanted(draw, now) for draw in self.waiting):
            self.waiting = deque(draw for draw in self.waiting if not unwanted(draw, now))
            self.waiting_nfe = sum(draw.reserved for draw in self.waiting)


def unwanted(draw: Draw, now: float) -> bool:
    """Whether the draw's caller cancelled, disconnected, or is past its deadline."""
    return draw.ticket.cancelled or now >= draw.ticket.deadline
