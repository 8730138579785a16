"""Draws of several sizes in one engine: same draws, fair turns, true costs."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.diffusion.codec import PixelShuffle
from models.diffusion.condition import Size
from service.engine.admission import TickTimes, Workload
from service.engine.engine import Engine
from service.engine.networks import Networks
from service.engine.scheduler import Draw, Scheduler, Ticket
from service.errors import BackendUnavailable, Overloaded
from service.ports import DrawKey, SamplingPlan
from tests.engines import (
    FOREVER,
    Collector,
    draw_all,
    floats,
    make_engine,
    make_plan,
    make_schedule,
    run_to_end,
    submit,
)
from tests.gaussian import Gaussian, discrete_law
from tests.plans import vary

SCHEDULE = make_schedule("v_prediction", clip_sample=True)
WIDE, TALL, SMALL = (2, 6), (4, 3), (1, 2)
SHAPES = {WIDE: (1, 2, 6), TALL: (1, 4, 3), SMALL: (1, 1, 2)}
"""Beside the default, [1, 2, 3]: two of twice its area, and one of a third."""


def _plan(size: Size, **changes: Any) -> SamplingPlan:
    plan = make_plan(**changes)
    return replace(plan, condition=replace(plan.condition, size=size))


def _denoiser(x_t: Tensor, timestep: Tensor) -> Tensor:
    """Elementwise, of operations that IEEE rounds exactly."""
    t = timestep.view(-1, 1, 1, 1).float() / 1000
    return x_t * (t - 0.7) + (t * t - 0.2) / (1 + x_t * x_t)


def _engine(max_batch: int, denoiser: Any = _denoiser, **more: Any) -> Engine:
    return make_engine(denoiser, SCHEDULE, max_batch=max_batch, sizes=SHAPES, **more)


sizes = st.sampled_from([None, WIDE, TALL, SMALL])
plans = st.builds(
    _plan,
    sizes,
    num_inference_steps=st.sampled_from([1, 3, 8]),
    eta=st.sampled_from([0.0, 1.0]),
    acceptance=st.just(0.5),
)
arrivals = st.lists(
    st.tuples(st.integers(0, 8), plans, st.integers(0, 2**53 - 1), st.sampled_from([0, 0, 1])),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=50)
@given(arrivals=arrivals, max_batch=st.integers(1, 5))
def test_draws_of_other_sizes_change_no_bit_of_a_draw(
    arrivals: list[tuple[int, SamplingPlan, int, int]], max_batch: int
) -> None:
    engine = _engine(max_batch)
    callers: list[tuple[SamplingPlan, DrawKey, Collector]] = []
    for tick in range(10):
        for when, plan, seed, ahead in arrivals:
            if when == tick:
                key = DrawKey(0, seed, 0, ahead=ahead)
                callers.append((plan, key, submit(engine, plan, [key])))
        engine.tick()
        used = engine.scheduler.used
        assert used <= max_batch or len(engine.scheduler.running) == 1
    run_to_end(engine)
    for plan, key, caller in callers:
        if isinstance(caller.fault, Overloaded):
            assert key.ahead
            continue
        (alone,) = draw_all(_alone(plan), plan, [key.seed])
        np.testing.assert_array_equal(floats(caller.results[key]), floats(alone))


def _alone(plan: SamplingPlan) -> Engine:
    """An engine whose only size is the plan's; it calls that size by its name all the same."""
    size = plan.condition.size
    shape = (1, 2, 3) if size is None else SHAPES[size]
    named = {} if size is None else {size: shape}
    return make_engine(_denoiser, SCHEDULE, shape=shape, max_batch=1, sizes=named)


def test_every_size_draws_the_law_that_is_known() -> None:
    """The Gaussian world, 60 draws of each size at once, in ten slots."""
    schedule = make_schedule()
    world = Gaussian(schedule, mu=0.3, s=0.4)
    shapes = {(8, 12): (1, 8, 12), (12, 8): (1, 12, 8), (4, 4): (1, 4, 4)}
    engine = make_engine(world, schedule, shape=(1, 8, 8), max_batch=10, sizes=shapes)
    callers = {
        size: submit(
            engine,
            _plan(size, num_inference_steps=10, eta=0.5),
            [DrawKey(index, 100 + index, 0) for index in range(60)],
        )
        for size in (None, *shapes)
    }
    run_to_end(engine)
    mean, deviation = discrete_law(world, 10, 0.5)
    for size, caller in callers.items():
        drawn = np.stack([floats(result) for result in caller.results.values()])
        assert drawn.shape == (60, 1, *(size or (8, 8)))
        error = deviation / np.sqrt(drawn.size)
        assert drawn.mean() == pytest.approx(mean, abs=4 * error)
        assert drawn.std() == pytest.approx(deviation, abs=4 * error)


def test_each_size_has_one_tick_a_round_so_none_starves() -> None:
    """A flood of one size, and single draws of two others that come late: whatever else runs, no
    draw waits for more than one tick of each other size between two steps of its own."""
    seen: list[tuple[int, ...]] = []

    def recorder(x_t: Tensor, timestep: Tensor) -> Tensor:
        seen.append(tuple(x_t.shape[2:]))
        return x_t

    engine = _engine(8, recorder)
    flood = submit(
        engine, _plan(None, num_inference_steps=5), [DrawKey(i, i, 0) for i in range(40)]
    )
    for _ in range(3):
        engine.tick()
    late = {
        size: submit(engine, _plan(size, num_inference_steps=20), [DrawKey(0, 9, 0)])
        for size in (WIDE, SMALL)
    }
    run_to_end(engine)
    assert len(flood.results) == 40
    assert all(len(caller.results) == 1 for caller in late.values())
    for size in late:
        ticks = [number for number, shape in enumerate(seen) if shape == size]
        assert len(ticks) == 20
        assert max(np.diff(ticks)) <= 3
    # And no size has more than its turn: while all three run they alternate.
    both = seen[min(seen.index(WIDE), seen.index(SMALL)) :][:30]
    assert max(Counter(both).values()) - min(Counter(both).values()) <= 1


def test_a_large_draw_takes_as_many_slots_as_it_costs_and_is_not_overtaken() -> None:
    engine = _engine(3)
    first = submit(engine, _plan(None, num_inference_steps=4), [DrawKey(i, i, 0) for i in range(2)])
    engine.tick()
    large = submit(engine, _plan(WIDE), [DrawKey(0, 7, 0)])
    small = submit(engine, _plan(SMALL), [DrawKey(0, 8, 0)])
    engine.tick()
    # One slot is free, and the large one needs two: it waits, and the small one behind it.
    assert (engine.scheduler.used, len(engine.scheduler.waiting)) == (2, 2)
    run_to_end(engine)
    for caller, count in ((first, 2), (large, 1), (small, 1)):
        assert len(caller.results) == count


def test_what_is_larger_than_all_slots_runs_alone() -> None:
    engine = _engine(1)
    callers = [submit(engine, _plan(size), [DrawKey(0, 1, 0)]) for size in (None, WIDE, TALL)]
    while not engine.idle:
        engine.tick()
        assert len(engine.scheduler.running) <= 1
    assert all(len(caller.results) == 1 for caller in callers)


def test_speculative_draws_of_another_size_make_room() -> None:
    scheduler = Scheduler(4, {None: 1.0, WIDE: 2.0})
    ticket = Ticket(lambda item: None, FOREVER)
    scheduler.start(Draw(_plan(None), DrawKey(0, 0, 0), ticket), 0.0)
    scheduler.start(Draw(_plan(None, acceptance=0.5), DrawKey(0, 0, 1, ahead=1), ticket), 0.0)
    scheduler.start(Draw(_plan(WIDE, acceptance=0.5), DrawKey(0, 1, 2, ahead=2), ticket), 0.0)
    assert scheduler.rows_in_the_way() == []
    scheduler.add([Draw(_plan(None), DrawKey(0, 2, 0), ticket)] * 2)
    # Two slots are wanted, and the least likely of them has two.
    assert scheduler.rows_in_the_way() == [(WIDE, 0)]
    scheduler.add([Draw(_plan(None), DrawKey(0, 3, 0), ticket)])
    assert set(scheduler.rows_in_the_way()) == {(WIDE, 0), (None, 1)}


def test_a_size_that_nobody_asks_for_takes_no_memory() -> None:
    engine = _engine(6)
    submit(engine, _plan(WIDE), [DrawKey(0, 0, 0)])
    run_to_end(engine)
    made = engine._batches.made
    assert set(made) == {None, WIDE}
    # And one that was asked for no more than the default's.
    assert made[WIDE].x_t.numel() <= made[None].x_t.numel()


def test_a_call_is_predicted_and_paid_for_by_what_its_size_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A denoiser whose time is its pixels': after rounds of all sizes, the time of calls of each
    is foretold, alone and beside others."""

    clock = 0.0

    def slow(x_t: Tensor, timestep: Tensor) -> Tensor:
        nonlocal clock
        clock += 0.001 + 0.001 * x_t.numel()
        return _denoiser(x_t, timestep)

    monkeypatch.setattr("service.engine.engine.time", SimpleNamespace(monotonic=lambda: clock))
    engine = _engine(6, slow)
    assert engine.cost(_plan(WIDE)) == 2 * engine.cost(_plan(None))
    assert engine.cost(_plan(SMALL)) == engine.cost(_plan(None)) / 3
    for count in (1, 2, 3):
        for size in (None, WIDE, SMALL):
            submit(engine, _plan(size), [DrawKey(i, i, 0) for i in range(count)])
        run_to_end(engine)
    for mix in ([None], [WIDE], [TALL, TALL], [None, WIDE], [SMALL, SMALL, TALL]):
        draws = [_plan(size, num_inference_steps=8) for size in mix]
        nfe = [engine.cost(plan) for plan in draws]
        longest = max(min(8.0, engine.cost(plan)) for plan in draws)
        predicted = engine.pace.finish_s(sum(nfe), len(nfe), longest, 6)
        began = clock
        for number, plan in enumerate(draws):
            submit(engine, plan, [DrawKey(0, number, 0)])
        run_to_end(engine)
        assert predicted == pytest.approx(clock - began, rel=0.25), mix


def test_a_workload_foretells_a_call_by_its_size() -> None:
    """At 10 ms a row: 8 steps of a draw of twice the area take 160 ms, beside a running small one
    as well, and what would be done in time at the default size is refused at that."""
    pace = TickTimes()
    for rows in (1, 2, 3) * 20:
        pace.observe(rows, 0.01 * rows)
    load = Workload(6, 100, pace=pace, costs={"6x2": 2.0, "2x1": 0.5})
    assert load.cost(WIDE) == 2.0
    assert load.cost(None) == 1.0
    assert load.ready_s("", [8.0]) == pytest.approx(0.08)
    assert load.ready_s("", [16.0], load.cost(WIDE)) == pytest.approx(0.16)
    assert load.ready_s("", [4.0], load.cost(SMALL)) == pytest.approx(0.04)
    busy = replace(load, running=1, running_nfe=8.0)
    assert busy.ready_s("", [16.0], load.cost(WIDE)) == pytest.approx(0.24)
    busy.check("", [8.0], 0.3)
    with pytest.raises(Overloaded):
        busy.check("", [16.0], 0.3, load.cost(WIDE))


def test_what_runs_is_counted_by_its_cost() -> None:
    engine, caller = _engine(4), Collector()
    plan = _plan(WIDE, num_inference_steps=5)
    engine.scheduler.add([Draw(plan, DrawKey(0, 0, 0), caller.ticket, engine.cost(plan))])
    engine.tick()
    assert engine.running_nfe == 2 * 4


def test_a_round_ends_too_when_what_was_left_of_it_goes_away() -> None:
    engine = _engine(4)
    stays = submit(engine, _plan(None, num_inference_steps=3), [DrawKey(0, 0, 0)])
    goes = submit(engine, _plan(WIDE), [DrawKey(0, 1, 0)])
    engine.tick()
    goes.ticket.cancelled = True
    run_to_end(engine)
    assert len(stays.results) == 1
    assert engine.pace.rows == pytest.approx(1 * 0.98**2 + 1 * 0.98 + 1)


def test_a_fault_ends_the_draws_of_all_sizes() -> None:
    engine = _engine(4)
    callers = [submit(engine, _plan(size), [DrawKey(0, 0, 0)]) for size in (None, WIDE)]
    engine.tick()
    engine.fail(BackendUnavailable("the denoiser failed"))
    assert all(isinstance(caller.fault, BackendUnavailable) for caller in callers)
    assert engine.idle
    (again,) = draw_all(engine, _plan(TALL), [5])
    np.testing.assert_array_equal(floats(again), floats(draw_all(_engine(1), _plan(TALL), [5])[0]))


class Gated(PixelShuffle):
    """A codec with a thread of its own, whose first decoding ends when the test lets it."""

    exact = False

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "shapes", [])
        object.__setattr__(self, "begun", threading.Event())
        object.__setattr__(self, "go", threading.Event())

    def to_uint8(self, x_0: Tensor) -> Any:
        self.shapes.append(tuple(x_0.shape))  # type: ignore[attr-defined]
        self.begun.set()  # type: ignore[attr-defined]
        assert self.go.wait(30)  # type: ignore[attr-defined]
        return super().to_uint8(x_0)


def test_the_decoder_takes_one_size_at_a_time_and_fewer_of_a_large_one() -> None:
    codec: Any = Gated()
    engine = _engine(16, codec=codec, micro_batch=4)
    submit(engine, _plan(None, num_inference_steps=1), [DrawKey(0, 9, 0)])
    run_to_end(engine)
    assert codec.begun.wait(30)
    callers = [
        submit(engine, _plan(size, num_inference_steps=1), [DrawKey(i, i, 0) for i in range(count)])
        for size, count in ((None, 2), (WIDE, 6))
    ]
    run_to_end(engine)
    codec.go.set()
    engine.run_to_end()
    engine.decoder.close()
    for caller, shapes in zip(callers, [[(2, 3, 1)] * 2, [(2, 6, 1)] * 6], strict=True):
        assert caller.fault is None
        pixels = [result.pixels for result in caller.results.values()]
        assert [image.shape for image in pixels if image is not None] == shapes
    wide = (2, 1, 2, 6)
    assert codec.shapes == [(1, 1, 2, 3), (2, 1, 2, 3), wide, wide, wide]


def test_a_network_that_cannot_take_a_size_is_refused_before_it_draws() -> None:
    def trial(part: str, network: Any, size: tuple[int, int]) -> None:
        asked.append(size)
        if size == WIDE:
            raise RuntimeError("the graph wants 2 × 3")

    asked: list[tuple[int, int]] = []
    networks = Networks({("guide", "sha256:g"): SimpleNamespace()}, trial)
    networks.require_size({"guide": "sha256:g"}, None)
    for _ in range(2):
        networks.require_size({"guide": "sha256:g"}, TALL)
        with pytest.raises(BackendUnavailable, match="guide sha256:g cannot take images of 6x2"):
            networks.require_size({"guide": "sha256:g"}, WIDE)
    assert asked == [TALL, WIDE]


def test_the_engine_asks_for_that_trial_and_refuses_sizes_that_it_does_not_make() -> None:
    engine = _engine(2, guides={"up": SimpleNamespace()})
    engine.networks._trial = lambda part, network, size: (_ for _ in ()).throw(ValueError("no"))
    ticket = Ticket(lambda item: None, FOREVER)
    plan = vary(_plan(WIDE), guide="up", censor_scale=1.0)
    with pytest.raises(BackendUnavailable, match="guide up cannot take images of 6x2"):
        engine.check([Draw(plan, DrawKey(0, 0, 0), ticket)])
    with pytest.raises(BackendUnavailable, match="makes no images of 9x9"):
        engine.check([Draw(_plan((9, 9)), DrawKey(0, 0, 0), ticket)])
    engine.check([Draw(_plan(WIDE), DrawKey(0, 0, 0), ticket)])


def test_every_size_is_drawn_before_the_first_request() -> None:
    seen: set[tuple[int, ...]] = set()

    def recorder(x_t: Tensor, timestep: Tensor) -> Tensor:
        seen.add(tuple(x_t.shape[2:]))
        return x_t

    engine = make_engine(recorder, SCHEDULE, codec=PixelShuffle(), sizes=SHAPES)
    engine.warm_up()
    assert seen == {(2, 3), *SHAPES}

    def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
        return x_t * (float("nan") if tuple(x_t.shape[2:]) == WIDE else 1.0)

    with pytest.raises(BackendUnavailable, match="canary"):
        make_engine(breaks, SCHEDULE, codec=PixelShuffle(), sizes=SHAPES).warm_up()
