from __future__ import annotations

import pytest

from service.engine.scheduler import Draw, Scheduler, Ticket
from service.ports import DrawKey
from tests.engines import make_plan


def _draws(count: int, ticket: Ticket) -> list[Draw]:
    return [Draw(make_plan(), DrawKey(index, index, 0), ticket) for index in range(count)]


def _ticket(deadline: float = 100.0) -> Ticket:
    return Ticket(lambda item: None, deadline)


def test_first_come_first_served_into_the_slots() -> None:
    scheduler = Scheduler(max_batch=3)
    draws = _draws(5, _ticket())
    scheduler.add(draws)
    assert scheduler.admit(now=1.0) == list(enumerate(draws[:3]))
    assert scheduler.admit(now=2.0) == []
    assert list(scheduler.waiting) == draws[3:]
    assert [draw.started for draw in scheduler.running] == [1.0] * 3


def test_release_moves_the_last_row_into_the_hole() -> None:
    scheduler = Scheduler(max_batch=4)
    draws = _draws(4, _ticket())
    scheduler.add(draws)
    scheduler.admit(now=0.0)
    assert scheduler.release(None, 1) == 3
    assert scheduler.running == [draws[0], draws[3], draws[2]]
    assert scheduler.release(None, 2) == 2
    assert scheduler.running == [draws[0], draws[3]]


def test_unwanted_rows_come_highest_first() -> None:
    scheduler = Scheduler(max_batch=4)
    cancelled, late, wanted = _ticket(), _ticket(deadline=5.0), _ticket()
    cancelled.cancelled = True
    scheduler.add(_draws(4, wanted))
    scheduler.admit(now=0.0)
    for row, ticket in enumerate([cancelled, wanted, late, wanted]):
        scheduler.running[row].ticket = ticket
    assert scheduler.unwanted_rows(now=4.9) == [(None, 0)]
    assert scheduler.unwanted_rows(now=5.0) == [(None, 2), (None, 0)]


def test_waiting_draws_that_nobody_wants_never_take_a_slot() -> None:
    scheduler = Scheduler(max_batch=2)
    gone, wanted = _ticket(), _ticket()
    scheduler.add([*_draws(3, gone), *_draws(1, wanted)])
    gone.cancelled = True
    scheduler.drop_unwanted(now=0.0)
    assert [draw.ticket for draw in scheduler.waiting] == [wanted]
    scheduler.add(_draws(3, gone))
    assert [draw.ticket for _, draw in scheduler.admit(now=0.0)] == [wanted]


@pytest.mark.parametrize(
    ("waiting", "rows"), [(0, []), (1, [2]), (2, [3, 2]), (3, [4, 3, 2]), (9, [4, 3, 2, 1])]
)
def test_the_least_likely_speculative_draw_makes_room_and_of_equals_the_newest(
    waiting: int, rows: list[int]
) -> None:
    scheduler, plan, ticket = Scheduler(max_batch=5), make_plan(acceptance=0.5), _ticket()
    for ahead, started in [(0, 6.0), (1, 3.0), (2, 1.0), (1, 5.0), (1, 4.0)]:
        scheduler.start(Draw(plan, DrawKey(0, 0, 3, ahead=ahead), ticket), started)
    scheduler.add(_draws(waiting, ticket))
    assert scheduler.rows_in_the_way() == [(None, row) for row in rows]
