"""Who runs: draws wait in a queue, take slots, and give them back. Knows no tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.engine.fair_queue import FairQueue
from service.ports import DrawKey, DrawResult, SamplingPlan

Deliver = Callable[[list[DrawResult] | Exception], None]


@dataclass(eq=False)
class Ticket:
    """One caller's draws: where their results go, until when anyone wants them, and whose turn
    they use up."""

    deliver: Deliver
    deadline: float
    tenant: str = ""
    cancelled: bool = False


@dataclass(eq=False)
class Draw:
    """One trajectory, waiting or running. Times are `time.monotonic()` seconds.

    `reserved` is the NFE that it stands for until it ends, expected redraws included; `cost` its
    own NFE, which its tenant's turns pay for. `encoded_condition` is what the engine tells the
    denoiser of it.
    """

    plan: SamplingPlan
    key: DrawKey
    ticket: Ticket
    reserved: float = 0.0
    cost: float = 0.0
    encoded_condition: object = None
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0

    @property
    def tenant(self) -> str:
        """The caller's key, by name."""
        return self.ticket.tenant

    @property
    def deadline(self) -> float:
        """When its last caller gives up."""
        return self.ticket.deadline

    @property
    def speculative(self) -> bool:
        """Whether it is made only while there is room."""
        return self.key.ahead > 0

    @property
    def chance(self) -> float:
        """How likely it is needed: that no draw between it and the needed one is accepted."""
        return float((1 - self.plan.acceptance) ** self.key.ahead)


class Scheduler:
    """From a fair queue into `max_batch` slots. Speculative draws never wait: they stand in
    `speculative` until the next tick gives them a slot or turns them away.

    Running draws always fill the rows 0..len(running)-1, so the batch is a slice, never a gather.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.waiting: FairQueue[Draw] = FairQueue()
        self.speculative: list[Draw] = []
        self.running: list[Draw] = []

    def add(self, draws: Sequence[Draw]) -> None:
        """Queue new draws."""
        for draw in draws:
            if draw.speculative:
                self.speculative.append(draw)
            else:
                self.waiting.push(draw)

    def admit(self, now: float) -> list[Draw]:
        """Give free slots to waiting draws; those returned are the last rows of `running`."""
        admitted: list[Draw] = []
        while self.waiting and len(self.running) < self.max_batch:
            draw = self.waiting.pop()
            if not unwanted(draw, now):
                self.start(draw, now)
                admitted.append(draw)
        return admitted

    def start(self, draw: Draw, now: float) -> None:
        """Give a draw the row after the last; there is one."""
        draw.started = now
        self.running.append(draw)

    def rows_in_the_way(self) -> list[int]:
        """Rows of speculative draws, as many as waiting draws lack slots: the least likely to be
        needed, and of equals the newest. Highest first, safe to release so."""
        running = self.running
        lacking = len(running) + len(self.waiting) - self.max_batch
        rows = [row for row, draw in enumerate(running) if draw.speculative]
        rows.sort(key=lambda row: (running[row].chance, -running[row].started))
        return sorted(rows[: max(lacking, 0)], reverse=True)

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
        """Remove waiting draws whose callers have gone."""
        if any(unwanted(draw, now) for draw in self.waiting):
            self.waiting.keep(lambda draw: not unwanted(draw, now))


def unwanted(draw: Draw, now: float) -> bool:
    """Whether the draw's caller cancelled, disconnected, or is past its deadline."""
    return draw.ticket.cancelled or now >= draw.ticket.deadline
