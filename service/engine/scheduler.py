"""Who runs: draws wait in a queue, take slots, and give them back. Knows no tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from models.diffusion.condition import Size
from service.engine.fair_queue import FairQueue
from service.ports import DrawKey, DrawResult, SamplingPlan

Deliver = Callable[[list[DrawResult] | Exception], None]

ONE_SIZE: Mapping[Size, float] = MappingProxyType({None: 1.0})
"""The slots of a row by size, for a model of one size."""


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
    def size(self) -> Size:
        """The size of its image: draws of one size share a tick."""
        return self.plan.condition.size

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

    A row takes the `slots` of its size; all sizes share the slots. In `rows`, the running draws of
    a size always fill its rows 0..n-1, so a batch is a slice, never a gather. The sizes take turns
    (round robin): in a round each that has rows gets one tick, so every running draw advances by
    one step, whatever the others are, and waits for one tick of each other size at the most.
    """

    def __init__(self, max_batch: int, slots: Mapping[Size, float] = ONE_SIZE) -> None:
        self.max_batch = max_batch
        self.slots = slots
        self.waiting: FairQueue[Draw] = FairQueue()
        self.speculative: list[Draw] = []
        self.rows: Mapping[Size, list[Draw]] = {size: [] for size in slots}
        self._had_turn: set[Size] = set()

    @property
    def running(self) -> list[Draw]:
        """The draws of all sizes."""
        return [draw for rows in self.rows.values() for draw in rows]

    @property
    def used(self) -> float:
        """The slots in use."""
        return sum(len(rows) * self.slots[size] for size, rows in self.rows.items())

    def fits(self, draw: Draw) -> bool:
        """Whether there is room for it now. What is larger than all slots together runs alone."""
        used = self.used
        return not used or used + self.slots[draw.size] <= self.max_batch

    def add(self, draws: Sequence[Draw]) -> None:
        """Queue new draws."""
        for draw in draws:
            if draw.speculative:
                self.speculative.append(draw)
            else:
                self.waiting.push(draw)

    def admit(self, now: float) -> list[tuple[int, Draw]]:
        """Give free slots to waiting draws; returns them with their rows.

        One that is large waits until there is room for it, and those behind it wait too.
        """
        admitted: list[tuple[int, Draw]] = []
        while self.waiting:
            draw = self.waiting.peek()
            if not unwanted(draw, now):
                if not self.fits(draw):
                    break
                admitted.append((self.start(draw, now), draw))
            self.waiting.pop()
        return admitted

    def start(self, draw: Draw, now: float) -> int:
        """Give a draw the row after the last of its size; there is one. Returns the row."""
        draw.started = now
        rows = self.rows[draw.size]
        rows.append(draw)
        return len(rows) - 1

    def turn(self) -> Size:
        """The size whose tick is next, which has rows: the first that had none in this round."""
        size = next(size for size, rows in self.rows.items() if rows and size not in self._had_turn)
        self._had_turn.add(size)
        return size

    @property
    def round_over(self) -> bool:
        """Whether each size that has rows has had its tick in this round."""
        return not any(rows and size not in self._had_turn for size, rows in self.rows.items())

    def end_round(self) -> None:
        """Begin the next round."""
        self._had_turn.clear()

    def rows_in_the_way(self) -> list[tuple[Size, int]]:
        """Rows of speculative draws, as many as waiting draws lack slots: the least likely to be
        needed, and of equals the newest. Highest first, safe to release so."""
        rows = [
            (size, row)
            for size, draws in self.rows.items()
            for row, draw in enumerate(draws)
            if draw.speculative
        ]
        if not rows:
            return []
        rows.sort(key=lambda place: (self._at(place).chance, -self._at(place).started))
        wanted = sum(self.slots[draw.size] for draw in self.waiting)
        lacking, chosen = self.used + wanted - self.max_batch, []
        for place in rows:
            if lacking <= 0:
                break
            chosen.append(place)
            lacking -= self.slots[place[0]]
        return sorted(chosen, key=lambda place: place[1], reverse=True)

    def release(self, size: Size, row: int) -> int:
        """Free a row by moving the last of its size into it; returns the row that moved."""
        rows = self.rows[size]
        last = len(rows) - 1
        rows[row] = rows[last]
        rows.pop()
        return last

    def unwanted_rows(self, now: float) -> list[tuple[Size, int]]:
        """Rows whose caller went away or ran out of time, highest first, safe to release so."""
        return [
            (size, row)
            for size, draws in self.rows.items()
            for row, draw in enumerate(draws)
            if unwanted(draw, now)
        ][::-1]

    def clear(self) -> list[Draw]:
        """Forget all draws, and return them."""
        draws = [*self.running, *self.waiting, *self.speculative]
        for rows in (*self.rows.values(), self.speculative):
            rows.clear()
        self.waiting.clear()
        self.end_round()
        return draws

    def _at(self, place: tuple[Size, int]) -> Draw:
        return self.rows[place[0]][place[1]]

    def drop_unwanted(self, now: float) -> None:
        """Remove waiting draws whose callers have gone."""
        if any(unwanted(draw, now) for draw in self.waiting):
            self.waiting.keep(lambda draw: not unwanted(draw, now))


def unwanted(draw: Draw, now: float) -> bool:
    """Whether the draw's caller cancelled, disconnected, or is past its deadline."""
    return draw.ticket.cancelled or now >= draw.ticket.deadline
