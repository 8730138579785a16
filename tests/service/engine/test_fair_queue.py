from __future__ import annotations

from dataclasses import dataclass

import pytest

from service.engine.fair_queue import QUANTUM, FairQueue


@dataclass(frozen=True)
class Item:
    tenant: str
    deadline: float = 0.0
    cost: float = 50.0
    number: int = 0


def _drain(queue: FairQueue[Item]) -> list[Item]:
    return [queue.pop() for _ in range(len(queue))]


def test_a_crowd_does_not_hold_up_a_lone_caller() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(1000):
        queue.push(Item("crowd"))
    queue.push(Item("lone"))
    order = [item.tenant for item in _drain(queue)]
    assert order.index("lone") <= 2 * QUANTUM / 50


def test_shares_are_equal_by_nfe_not_by_draws() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(400):
        queue.push(Item("short", cost=20))
        queue.push(Item("long", cost=400))
    spent = {"short": 0.0, "long": 0.0}
    while spent["short"] < 4000:
        item = queue.pop()
        spent[item.tenant] += item.cost
    assert abs(spent["long"] - spent["short"]) <= 400 + QUANTUM


def test_inside_a_tenant_the_earliest_deadline_goes_first_then_the_first_come() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number, deadline in enumerate([9.0, 3.0, 9.0, 1.0]):
        queue.push(Item("a", deadline, number=number))
    assert [item.number for item in _drain(queue)] == [3, 1, 0, 2]


def test_nothing_is_lost_counted_twice_or_saved_up() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(30):
        queue.push(Item("abc"[number % 3], cost=10 * (1 + number % 4), number=number))
    queue.keep(lambda item: item.number % 2 == 0)
    assert len(queue) == 15
    assert sorted(item.number for item in _drain(queue)) == list(range(0, 30, 2))
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.pop()
    queue.push(Item("a"))
    queue.clear()
    assert not queue
    assert list(queue) == []
