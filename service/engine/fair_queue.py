"""Whose draw is next: deficit round robin between tenants, the earliest deadline first inside."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar

QUANTUM = 100.0
"""NFE that a tenant gains at each of its turns: two draws of 50 steps."""


class Waiting(Protocol):
    """What a queue asks of an entry: whose it is, until when, and the NFE its turn pays for."""

    @property
    def tenant(self) -> str: ...
    @property
    def deadline(self) -> float: ...
    @property
    def cost(self) -> float: ...


Entry = TypeVar("Entry", bound=Waiting)


class FairQueue(Generic[Entry]):
    """Deficit round robin (Shreedhar & Varghese 1995) over tenants, by NFE.

    A tenant with a thousand draws waiting holds up one with a single draw by a turn each, not by a
    thousand draws. Among one tenant's draws the earliest deadline goes first, and among equal
    deadlines the first come.
    """

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, Entry]]] = {}
        self._turns: deque[str] = deque()
        self._deficits: dict[str, float] = {}
        self._arrivals = count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in no order that means anything."""
        return (entry for heap in self._heaps.values() for _, _, entry in heap)

    def push(self, entry: Entry) -> None:
        """Queue an entry behind those of its tenant that are as urgent."""
        if entry.tenant not in self._heaps:
            self._heaps[entry.tenant] = []
            self._turns.append(entry.tenant)
            self._deficits[entry.tenant] = 0.0
        heapq.heappush(self._heaps[entry.tenant], (entry.deadline, next(self._arrivals), entry))
        self._size += 1

    def peek(self) -> Entry:
        """The next entry, which `pop` takes. Raises IndexError when there is none."""
        while self._turns:
            tenant = self._turns[0]
            entry = self._heaps[tenant][0][2]
            if entry.cost <= self._deficits[tenant]:
                return entry
            # Its turn is over; what it may spend at the next one grows.
            self._deficits[tenant] += QUANTUM
            self._turns.rotate(-1)
        raise IndexError("the queue is empty")

    def pop(self) -> Entry:
        """Take the next entry. Raises IndexError when there is none."""
        entry = self.peek()
        tenant = entry.tenant
        heapq.heappop(self._heaps[tenant])
        self._deficits[tenant] -= entry.cost
        self._size -= 1
        if not self._heaps[tenant]:
            # A tenant that waits for nothing saves nothing up.
            self._forget(tenant)
        return entry

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Drop the entries that are not wanted; the others keep their places."""
        for tenant, heap in list(self._heaps.items()):
            kept = [item for item in heap if wanted(item[2])]
            if len(kept) == len(heap):
                continue
            heapq.heapify(kept)
            self._heaps[tenant] = kept
            if not kept:
                self._forget(tenant)
        self._size = sum(len(heap) for heap in self._heaps.values())

    def clear(self) -> None:
        """Drop all entries."""
        self.keep(lambda _: False)

    def _forget(self, tenant: str) -> None:
        del self._heaps[tenant], self._deficits[tenant]
        self._turns.remove(tenant)
