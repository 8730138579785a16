from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
from torch import Tensor

from service.engine.admission import HEADROOM, PredictionError, TickTimes, Workload
from service.engine.loop import FAULTS_BEFORE_UNHEALTHY, EngineLoop
from service.errors import BackendUnavailable, DeadlineExceeded, Overloaded
from service.judge.judges import Judges
from service.ports import DrawKey, DrawResult, SamplingPlan
from service.serving.in_process import InProcessBackends
from tests.engines import make_engine, make_plan, make_schedule

LONG, SHORT = make_plan(num_inference_steps=500), make_plan(num_inference_steps=1)


class Gate:
    """A denoiser that makes a test the clock: each call waits until it is let through."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.started = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._open = False

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        self.rows.append(len(x_t))
        self.started.release()
        if not self._open:
            assert self._permits.acquire(timeout=30), "the test forgot to let a tick through"
        return x_t

    async def tick_started(self) -> None:
        """Return when the next tick has called the denoiser."""
        assert await asyncio.to_thread(self.started.acquire, timeout=30)

    def let_through(self) -> None:
        """Let one call return."""
        self._permits.release()

    def open(self) -> None:
        """Let all calls return from now on."""
        self._open = True
        self._permits.release()


@contextmanager
def _loop(
    denoiser: Callable[[Tensor, Tensor], Tensor], max_batch: int = 2, max_waiting: int = 4
) -> Iterator[EngineLoop]:
    loop = EngineLoop(make_engine(denoiser, make_schedule(), max_batch=max_batch), max_waiting)
    try:
        yield loop
    finally:
        if isinstance(denoiser, Gate):
            denoiser.open()
        loop.close()


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


def _keys(count: int, first: int = 0) -> list[DrawKey]:
    return [DrawKey(i, first + i, 0) for i in range(count)]


async def _all(draws: AsyncGenerator[list[DrawResult], None]) -> list[DrawResult]:
    async with aclosing(draws) as groups:
        return [result async for group in groups for result in group]


def _echo(x_t: Tensor, timestep: Tensor) -> Tensor:
    return x_t.clone()


def test_draws_come_back_each_once() -> None:
    async def scenario() -> None:
        with _loop(_echo) as loop:
            results = await _all(loop.draw(make_plan(), _keys(5), 30))
            assert sorted(result.key.index for result in results) == list(range(5))
            loop.check_health()

    _run(scenario())


@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["loop", "local"])
def test_slots_and_queue_places_are_free_at_the_tick_after_the_caller_left(
    how: str, wrapped: bool
) -> None:
    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=2, max_waiting=8) as loop:
            backbone_client = InProcessBackends(loop, Judges({}, (2, 3, 1))) if wrapped else loop
            draws = backbone_client.draw(SHORT if how == "close" else LONG, _keys(5), 30)
            asked = asyncio.ensure_future(anext(draws))
            await gate.tick_started()
            if how == "close":
                gate.let_through()
                assert len(await asked) == 2
                await draws.aclose()
            else:
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            other = asyncio.ensure_future(_all(loop.draw(SHORT, _keys(1, first=9), 30)))
            await asyncio.sleep(0.05)
            if how == "cancel":
                gate.let_through()
            await gate.tick_started()
            if gate.rows[-1] != 1:
                # This tick began before the generator was closed.
                assert how == "close"
                gate.let_through()
                await gate.tick_started()
            # Only the newcomer is left: what waited has gone too.
            assert gate.rows[-1] == 1
            assert loop.waiting == 0
            gate.open()
            assert len(await other) == 1
            assert not loop._open

    _run(scenario())


def test_a_deadline_frees_slots_and_queue_places() -> None:
    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=2, max_waiting=8) as loop:
            late = asyncio.ensure_future(_all(loop.draw(LONG, _keys(4), 0.2)))
            await gate.tick_started()
            other = asyncio.ensure_future(_all(loop.draw(SHORT, _keys(1), 30)))
            await asyncio.sleep(0.3)
            gate.let_through()
            await gate.tick_started()
            assert gate.rows == [2, 1]
            gate.open()
            assert len(await other) == 1
            with pytest.raises(DeadlineExceeded):
                await late

    _run(scenario())


def test_a_fault_reaches_every_caller_and_the_engine_goes_on() -> None:
    async def scenario() -> None:
        broken = threading.Event()

        def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
            if broken.is_set():
                raise RuntimeError("out of memory")
            return x_t.clone()

        with _loop(breaks, max_batch=2, max_waiting=20) as loop:
            for _ in range(FAULTS_BEFORE_UNHEALTHY):
                broken.set()
                # Both the draws in the batch and those that wait hear of it.
                callers = [_all(loop.draw(SHORT, _keys(3), 30)) for _ in range(2)]
                outcomes = await asyncio.gather(*callers, return_exceptions=True)
                assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)
                # The cause may hold paths and shapes: it goes to the log, not to callers.
                assert "out of memory" not in str(outcomes[0])
                broken.clear()
                assert len(await _all(loop.draw(SHORT, _keys(3), 30))) == 3
                # Only faults in a row are unhealthy.
                loop.check_health()

    _run(scenario())


def test_three_faults_in_a_row_are_unhealthy() -> None:
    async def scenario() -> None:
        def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
            raise RuntimeError("broken for good")

        with _loop(breaks) as loop:
            for _ in range(FAULTS_BEFORE_UNHEALTHY):
                loop.check_health()
                with pytest.raises(BackendUnavailable):
                    await _all(loop.draw(SHORT, _keys(1), 30))
            with pytest.raises(BackendUnavailable, match="ticks failed"):
                loop.check_health()

    _run(scenario())


def test_a_tenant_pays_for_a_draw_when_it_is_made_and_not_for_redraws_in_advance() -> None:
    """One slot; a draw of either tenant costs half a turn, whatever redraws are to be expected."""

    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=1, max_waiting=100) as loop:
            choosy = make_plan(num_inference_steps=50, acceptance=0.1, max_draws=10)
            plain = make_plan(num_inference_steps=50)
            finished: list[str] = []

            async def one(plan: SamplingPlan, tenant: str) -> None:
                await _all(loop.draw(plan, _keys(1), 3600, tenant))
                finished.append(tenant)

            first = asyncio.ensure_future(one(SHORT, "first"))
            await gate.tick_started()
            names = ["choosy", "plain"] * 4
            plans = {"choosy": choosy, "plain": plain}
            others = [asyncio.ensure_future(one(plans[name], name)) for name in names]
            await asyncio.sleep(0)
            gate.open()
            await asyncio.gather(first, *others)
            turns = [*["choosy"] * 2, *["plain"] * 2]
            assert finished == ["first", *turns, *turns]

    _run(scenario())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=1, max_waiting=3) as loop:
            first = asyncio.ensure_future(_all(loop.draw(SHORT, _keys(1), 30)))
            await gate.tick_started()
            waiting = [asyncio.ensure_future(_all(loop.draw(SHORT, _keys(1), 30)))]
            await asyncio.sleep(0)
            # None of these has reached the engine's own queue yet: they count all the same.
            waiting += [asyncio.ensure_future(_all(loop.draw(SHORT, _keys(2), 30)))]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refusal:
                await _all(loop.draw(SHORT, _keys(1), 30))
            assert refusal.value.retry_after_s is not None
            # What was admitted once is not refused when the sampling loop draws it again.
            redraw = asyncio.ensure_future(
                _all(loop.draw(SHORT, [DrawKey(0, 0, 0, fresh=False)], 30))
            )
            await asyncio.sleep(0)
            gate.open()
            assert len(await first) == len(await redraw) == 1
            assert sum(len(results) for results in await asyncio.gather(*waiting)) == 3

    _run(scenario())


def test_a_full_queue_of_one_tenant_refuses_nobody_else() -> None:
    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=16, max_waiting=256) as loop:
            # One in the slots, sixteen that wait, some of them still on their way to the engine.
            crowd = [asyncio.ensure_future(_all(loop.draw(SHORT, _keys(16), 3600, "crowd")))]
            await gate.tick_started()
            for _ in range(16):
                crowd += [asyncio.ensure_future(_all(loop.draw(SHORT, _keys(16), 3600, "crowd")))]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="256 draws of this key are waiting"):
                await _all(loop.draw(SHORT, _keys(1), 3600, "crowd"))
            lone = asyncio.ensure_future(_all(loop.draw(SHORT, _keys(1), 3600, "lone")))
            await asyncio.sleep(0)
            gate.let_through()
            await gate.tick_started()
            # All have reached the engine, and the bound is the same.
            assert loop.waiting == 241
            with pytest.raises(Overloaded, match="240 draws of this key are waiting"):
                await _all(loop.draw(SHORT, _keys(17), 3600, "crowd"))
            gate.open()
            assert len(await lone) == 1
            await asyncio.gather(*crowd)

    _run(scenario())


def test_of_others_work_only_what_fair_turns_put_first_counts() -> None:
    """One slot, a second a line, by the pace; 400 lines of the crowd wait, later 30 of a third."""

    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=1, max_waiting=100) as loop:
            ten, own = make_plan(num_inference_steps=10), make_plan(num_inference_steps=2)
            others = [asyncio.ensure_future(_all(loop.draw(ten, _keys(1), 3600, "crowd")))]
            await gate.tick_started()
            for _ in range(10):
                loop._engine.pace.observe(1, 1.0)
            others += [asyncio.ensure_future(_all(loop.draw(ten, _keys(40), 3600, "crowd")))]
            await asyncio.sleep(0)
            # What runs, its own, and as much of the crowd's with a quantum: 10 + 2 + 102.
            with pytest.raises(Overloaded, match=r"would take 114\.0 s") as refusal:
                await _all(loop.draw(own, _keys(1), 113.0 / HEADROOM, "lone"))
            # Not before nearly all of the crowd's work is done does it come to less.
            assert refusal.value.retry_after_s == pytest.approx(10 + 400 + 2 - 113)
            with pytest.raises(Overloaded, match=r"would take 412\.0 s"):
                await _all(loop.draw(own, _keys(1), 113.0 / HEADROOM, "crowd"))
            lone = asyncio.ensure_future(_all(loop.draw(own, _keys(1), 115.0 / HEADROOM, "lone")))
            others += [asyncio.ensure_future(_all(loop.draw(ten, _keys(3), 3600, "third")))]
            await asyncio.sleep(0)
            # Its own draw that waits counts as well, and of the third no more than there is.
            with pytest.raises(Overloaded, match=r"would take 148\.0 s"):
                await _all(loop.draw(own, _keys(1), 147.0 / HEADROOM, "lone"))
            gate.open()
            assert len(await lone) == 1
            await asyncio.gather(*others)

    _run(scenario())


def test_an_idle_engine_takes_more_than_its_queue_holds() -> None:
    """A request larger than `max_waiting` must not be refused for ever."""

    async def scenario() -> None:
        with _loop(_echo, max_batch=1, max_waiting=3) as loop:
            assert len(await _all(loop.draw(SHORT, _keys(9), 30))) == 9

    _run(scenario())


def test_an_unknown_guide_is_refused_before_it_is_queued() -> None:
    async def scenario() -> None:
        with _loop(_echo) as loop:
            with pytest.raises(BackendUnavailable, match="sha256:other"):
                await _all(loop.draw(make_plan(guide="sha256:other"), _keys(1), 30))
            assert len(await _all(loop.draw(SHORT, _keys(1), 30))) == 1

    _run(scenario())


def test_close_answers_whoever_waits() -> None:
    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=1) as loop:
            callers = [asyncio.ensure_future(_all(loop.draw(LONG, _keys(1), 30))) for _ in range(2)]
            await gate.tick_started()
            gate.open()
            await asyncio.to_thread(loop.close)
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [BackendUnavailable] * 2
            with pytest.raises(BackendUnavailable):
                loop.check_health()
            with pytest.raises(BackendUnavailable, match="stopped"):
                await _all(loop.draw(SHORT, _keys(1), 30))

    _run(scenario())


def test_draws_that_arrive_while_the_engine_ends_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        with _loop(_echo) as loop:
            # Between the look at the thread and the inbox.
            monkeypatch.setattr(Workload, "check", lambda *_: loop.close())
            with pytest.raises(BackendUnavailable, match="stopped"):
                await _all(loop.draw(SHORT, _keys(1), 2.0))
            assert not loop._open

    _run(scenario())


def test_what_would_miss_its_deadline_is_refused_with_a_wait_that_is_true() -> None:
    """One slot, ten lines ahead at a second each, by the pace: the test never waits for them."""

    async def scenario() -> None:
        gate = Gate()
        with _loop(gate, max_batch=1, max_waiting=100) as loop:
            ahead = make_plan(num_inference_steps=10)
            first = asyncio.ensure_future(_all(loop.draw(ahead, _keys(1), 30)))
            await gate.tick_started()
            for _ in range(10):
                loop._engine.pace.observe(1, 1.0)
            own = make_plan(num_inference_steps=2)
            with pytest.raises(Overloaded, match=r"would take 12\.0 s of the 11\.4 s") as refusal:
                await _all(loop.draw(own, _keys(1), 8.0 / HEADROOM))
            # In 4 s, 6 of the lines ahead are left: then 8 s are enough, and not a moment before.
            assert refusal.value.retry_after_s == pytest.approx(4.0)
            with pytest.raises(Overloaded) as refusal:
                await _all(loop.draw(own, _keys(1), 0.5))
            # Never enough by itself: it may come when nothing is ahead.
            assert refusal.value.retry_after_s == pytest.approx(10.0)
            redraw = asyncio.ensure_future(_all(loop.draw(own, [DrawKey(0, 0, 1, False)], 8.0)))
            fits = asyncio.ensure_future(_all(loop.draw(own, _keys(1), 20.0 / HEADROOM)))
            await asyncio.sleep(0)
            # Those two count for whoever comes next, though the engine has not seen them yet.
            with pytest.raises(Overloaded, match=r"would take 16\.0 s"):
                await _all(loop.draw(own, _keys(1), 15.0 / HEADROOM))
            gate.open()
            assert [len(results) for results in await asyncio.gather(first, redraw, fits)] == [
                1
            ] * 3

    _run(scenario())


def test_calls_that_take_longer_than_was_predicted_make_the_next_prediction_longer() -> None:
    slip = PredictionError()
    slip.observe(predicted_s=1.0, taken_s=0.5)
    assert slip.mean == 1, "what went faster may go slower again"
    slip.observe(predicted_s=0.01, taken_s=1.0)
    assert slip.mean == 1, "a tick or two say nothing"
    for _ in range(100):
        slip.observe(predicted_s=1.0, taken_s=1.5)
    assert slip.mean == pytest.approx(1.5, abs=0.01)
    slow, steady = (Workload(4, 256, 1, 100.0, pace=_even_pace(), slip=one) for one in (1.5, 1.0))
    assert slow.ready_s("me", [50.0]) == pytest.approx(1.5 * steady.ready_s("me", [50.0]))


def _even_pace() -> TickTimes:
    pace = TickTimes()
    for _ in range(9):
        pace.observe(2, 0.1)
    return pace


def test_a_slow_spell_is_forgotten_where_nothing_else_runs() -> None:
    """The pace is that of the last ticks, and an idle engine makes none: it must let one in."""

    async def scenario() -> None:
        with _loop(_echo, max_batch=1) as loop:
            for _ in range(200):
                loop._engine.pace.observe(1, 60.0)
            assert len(await _all(loop.draw(SHORT, _keys(1), 30.0))) == 1

    _run(scenario())


def test_who_is_about_to_end_takes_redraws_alone() -> None:
    async def scenario() -> None:
        with _loop(_echo) as loop:
            loop.draining = True
            assert loop.workload.draining
            with pytest.raises(Overloaded, match="about to end"):
                await _all(loop.draw(SHORT, _keys(1), 30.0))
            redraw = [DrawKey(0, 0, 1, fresh=False)]
            assert len(await _all(loop.draw(SHORT, redraw, 30.0))) == 1
            assert loop.idle

    _run(scenario())
