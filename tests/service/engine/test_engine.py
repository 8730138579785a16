from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Conditions, Named
from models.diffusion.guidance import CleanReward, ForwardGuide
from models.diffusion.noise import Purpose, normal
from service.engine.engine import Engine
from service.engine.scheduler import Draw
from service.errors import BackendUnavailable, Overloaded
from service.metrics.backbone import BackboneMetrics
from service.metrics.exposition import render
from service.ports import DrawKey, SamplingPlan
from tests.engines import (
    Collector,
    draw_all,
    floats,
    make_engine,
    make_plan,
    make_schedule,
    run_to_end,
    submit,
)
from tests.metrics import parse, value
from tests.plans import vary

SCHEDULE = make_schedule("v_prediction", clip_sample=True)


def _denoiser(x_t: Tensor, timestep: Tensor) -> Tensor:
    """Elementwise, of operations that IEEE rounds exactly: the batch cannot change a bit of it."""
    t = timestep.view(-1, 1, 1, 1).float() / 1000
    return x_t * (t - 0.7) + (t * t - 0.2) / (1 + x_t * x_t)


@dataclass(frozen=True)
class Elementwise:
    """A guide as exact as `_denoiser`."""

    strength: float

    def gradient(
        self, x_t: Tensor, timestep: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        return self.strength * x_t / (1 + timestep.view(-1, 1, 1, 1).float() / 1000)


class FirstPixel(CleanReward):
    """A clean reward, and a probe, of one pixel alone: exact in any batch as well."""

    def __init__(self) -> None:
        pass

    def log_reward(self, x_0: Tensor) -> Tensor:
        return x_0[:, 0, 0, 0] - 1

    def gradient(self, x_0: Tensor) -> Tensor:
        gradient = torch.zeros_like(x_0)
        gradient[:, 0, 0, 0] = 1
        return gradient

    def score(self, x_0: Tensor) -> NDArray[np.float64]:
        return (x_0[:, 0, 0, 0].double().numpy() + 1) / 2


GUIDES = {"up": Elementwise(0.3), "down": Elementwise(-0.2)}


def _engine(max_batch: int) -> Engine:
    return make_engine(
        _denoiser,
        SCHEDULE,
        guides=GUIDES,
        forward={"through": ForwardGuide(_told, SCHEDULE, FirstPixel())},
        max_batch=max_batch,
        clean_guides={"bright": FirstPixel()},
        probes={"dark": FirstPixel()},
    )


def _told(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    return _denoiser(x_t, timestep)


def _probed(
    shares: tuple[float, ...], threshold: float, steers: dict[str, str] | None = None, **plan: Any
) -> SamplingPlan:
    thresholds = (threshold,) * len(shares)
    return make_plan(probes=shares, probe_thresholds=thresholds, **(steers or {}), **plan)


plans = st.builds(
    _probed,
    # More steps than probes, so that no two fall on one step.
    num_inference_steps=st.sampled_from([2, 3, 5, 10, 16]),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    steers=st.sampled_from([{"guide": "up"}, {"guide": "down"}, {"forward": "through"}]),
    censor_scale=st.sampled_from([0.0, 0.5, 2.0]),
    guide_interval=st.sampled_from([(0, 1000), (0, 400), (300, 900)]),
    recurrences=st.sampled_from([1, 1, 2, 3]),
    clean_guide=st.just("bright"),
    backward_steps=st.sampled_from([0, 0, 1, 2]),
    backward_rate=st.just(0.01),
    sampler=st.sampled_from(["ddim", "dpmsolver++"]),
    probe=st.just("dark"),
    shares=st.sampled_from([(), (0.5,), (0.2, 0.8)]),
    threshold=st.sampled_from([0.0, 0.5]),
).map(lambda plan: vary(plan, eta=0.0) if plan.method.sampler != "ddim" else plan)
plans |= st.builds(make_plan, num_inference_steps=st.just(1), eta=st.sampled_from([0.0, 1.0]))
keys = st.builds(
    DrawKey,
    index=st.just(0),
    seed=st.integers(0, 2**53 - 1),
    draw=st.integers(0, 1000),
    ahead=st.sampled_from([0, 0, 1]),
)
arrivals = st.lists(
    st.tuples(st.integers(0, 12), plans, keys, st.booleans()), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=80)
@given(arrivals=arrivals, max_batch=st.integers(1, 5))
def test_what_shares_the_batch_changes_no_bit_of_a_draw(
    arrivals: list[tuple[int, SamplingPlan, DrawKey, bool]], max_batch: int
) -> None:
    """Draws arrive at random ticks, and some are cancelled while they run."""
    engine = _engine(max_batch)
    callers: list[tuple[SamplingPlan, DrawKey, bool, Collector]] = []
    for tick in range(14):
        for when, plan, key, cancelled in arrivals:
            if when == tick:
                callers.append((plan, key, cancelled, submit(engine, plan, [key])))
            elif when == tick - 2 and cancelled:
                for _, other, _, collector in callers:
                    if other is key:
                        collector.ticket.cancelled = True
        engine.tick()
    run_to_end(engine)
    for plan, key, cancelled, collector in callers:
        if key not in collector.results:
            assert cancelled or isinstance(collector.fault, Overloaded)
            continue
        lone_engine = _engine(1)
        alone = submit(lone_engine, plan, [key])
        run_to_end(lone_engine)
        together, apart = collector.results[key], alone.results[key]
        assert (together.abandoned, together.probe_scores) == (apart.abandoned, apart.probe_scores)
        assert together.nfe == apart.nfe
        if together.abandoned:
            assert together.pixels is None
            continue
        np.testing.assert_array_equal(floats(together), floats(apart))
        assert together.nfe == lone_engine.cost(plan)


def test_a_draw_is_a_function_of_its_seed_and_number() -> None:
    found = []
    for index, seed, draw in [(0, 42, 1), (5, 42, 1), (0, 42, 2), (0, 43, 1)]:
        engine = _engine(4)
        caller = submit(engine, make_plan(eta=1.0), [DrawKey(index, seed, draw)])
        run_to_end(engine)
        found.append(floats(next(iter(caller.results.values()))))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).all()
    assert (found[0] != found[3]).all()


def test_rows_at_different_timesteps_share_one_call_of_the_denoiser() -> None:
    seen: list[list[int]] = []

    def recorder(x_t: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep.tolist())
        return x_t

    engine = make_engine(recorder, make_schedule(), max_batch=3)
    submit(engine, make_plan(num_inference_steps=4), [DrawKey(0, 0, 0)])
    engine.tick()
    submit(engine, make_plan(num_inference_steps=2), [DrawKey(0, 1, 0)])
    submit(engine, make_plan(num_inference_steps=1), [DrawKey(0, 2, 0)])
    submit(engine, make_plan(num_inference_steps=1), [DrawKey(0, 3, 0)])
    run_to_end(engine)
    # The third draw leaves after one tick, and the fourth takes its slot at the next.
    assert [sorted(row) for row in seen] == [[999], [749, 999, 999], [499, 499, 999], [249]]


def test_a_row_of_nan_is_no_image_and_harms_no_other() -> None:
    """The denoiser breaks for one seed alone, at the first step."""
    bad = torch.from_numpy(normal(1, 0, Purpose.INITIAL, (1, 2, 3)))

    def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
        output = _denoiser(x_t, timestep)
        output[(x_t == bad).flatten(1).all(1)] = float("nan")
        return output

    schedule = make_schedule("v_prediction")
    broken = draw_all(make_engine(breaks, schedule, codec=PixelShuffle()), make_plan(), [0, 1, 2])
    whole = draw_all(make_engine(_denoiser, schedule, codec=PixelShuffle()), make_plan(), [0, 1, 2])
    assert broken[1].pixels is None
    for row in (0, 2):
        np.testing.assert_array_equal(broken[row].pixels, whole[row].pixels)


def test_a_slot_is_free_at_the_tick_after_its_caller_went_away() -> None:
    engine = _engine(max_batch=2)
    leaver = submit(engine, make_plan(num_inference_steps=10), [DrawKey(i, i, 0) for i in range(4)])
    stayer = submit(engine, make_plan(num_inference_steps=1), [DrawKey(0, 9, 0)])
    engine.tick()
    assert len(engine.scheduler.running) == 2
    assert len(engine.scheduler.waiting) == 3
    leaver.ticket.cancelled = True
    engine.tick()
    assert len(stayer.results) == 1
    assert engine.idle
    assert not leaver.results


def test_a_slot_is_free_at_the_tick_after_the_deadline() -> None:
    engine = _engine(max_batch=1)
    late = submit(engine, make_plan(num_inference_steps=10), [DrawKey(i, i, 0) for i in range(2)])
    engine.tick()
    assert len(engine.scheduler.running) == 1
    late.ticket.deadline = 0.0
    engine.tick()
    assert engine.idle
    assert not late.results


def test_a_queue_place_is_free_too_while_others_hold_all_slots() -> None:
    engine = _engine(max_batch=1)
    holder = submit(engine, make_plan(num_inference_steps=10), [DrawKey(0, 0, 0)])
    leaver = submit(engine, make_plan(), [DrawKey(0, 1, 0)])
    engine.tick()
    leaver.ticket.cancelled = True
    engine.tick()
    assert [draw.ticket for draw in engine.scheduler.running] == [holder.ticket]
    assert not engine.scheduler.waiting


def test_the_tick_after_a_caller_went_away_denoises_none_of_its_rows() -> None:
    """It goes between two ticks, or while the denoiser works: the next call is without it."""
    seen: list[list[int]] = []
    leavers: list[Collector] = []

    def recorder(x_t: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep.tolist())
        if len(seen) == 3:
            leavers[1].ticket.cancelled = True
        return x_t

    engine = make_engine(recorder, make_schedule(), max_batch=3)
    leavers += [submit(engine, make_plan(num_inference_steps=10), [DrawKey(0, 0, 0)])]
    submit(engine, make_plan(num_inference_steps=4), [DrawKey(0, 1, 0)])
    leavers += [submit(engine, make_plan(num_inference_steps=8), [DrawKey(0, 2, 0)])]
    engine.tick()
    leavers[0].ticket.cancelled = True
    run_to_end(engine)
    # After 999 the first leaver's would be 899, and after 749 the second's 624.
    assert [sorted(row) for row in seen] == [[999] * 3, [749, 874], [499, 749], [249]]


def _spare(seed: int = 0, ahead: int = 1) -> DrawKey:
    return DrawKey(0, seed, ahead, ahead=ahead)


def test_a_speculative_draw_takes_a_free_slot_and_never_waits_for_one() -> None:
    engine = _engine(max_batch=2)
    plan = make_plan(num_inference_steps=3, acceptance=0.5)
    needed = submit(engine, plan, [DrawKey(0, 0, 0)])
    first, second = submit(engine, plan, [_spare()]), submit(engine, plan, [_spare(ahead=2)])
    engine.tick()
    assert len(engine.scheduler.running) == 2
    assert isinstance(second.fault, Overloaded)
    run_to_end(engine)
    assert len(needed.results) == len(first.results) == 1
    assert first.fault is None


def test_speculative_draws_make_room_at_once_for_those_that_are_needed() -> None:
    engine = _engine(max_batch=3)
    plan = make_plan(num_inference_steps=6, acceptance=0.5)
    submit(engine, plan, [DrawKey(0, 0, 0)])
    spares = [submit(engine, plan, [_spare(ahead=ahead)]) for ahead in (1, 2)]
    engine.tick()
    assert len(engine.scheduler.running) == 3
    newcomer = submit(engine, plan, [DrawKey(0, 7, 0)])
    engine.tick()
    # One slot was wanted, so one speculative draw went, the one that came last.
    assert [isinstance(spare.fault, Overloaded) for spare in spares] == [False, True]
    run_to_end(engine)
    (result,) = newcomer.results.values()
    alone = draw_all(_engine(1), plan, [7])[0]
    np.testing.assert_array_equal(floats(result), floats(alone))


def test_no_speculation_where_a_row_costs_what_it_may_save() -> None:
    plan = make_plan(num_inference_steps=3, acceptance=0.9)
    for fixed_s, row_s, made in [(0.01, 0.0001, True), (0.0, 0.001, False)]:
        engine = _engine(max_batch=4)
        submit(engine, plan, [DrawKey(0, 0, 0)])
        engine.tick()
        for rows in (1, 2, 3, 4) * 500:
            engine.pace.observe(rows, fixed_s + row_s * rows)
        spare = submit(engine, plan, [_spare()])
        engine.tick()
        assert (spare.fault is None) == made


def test_what_runs_stands_for_its_reservation_less_what_it_has_spent() -> None:
    engine = _engine(max_batch=2)
    plan, caller = make_plan(num_inference_steps=5), Collector()
    for reserved in (12.0, 0.0):
        engine.scheduler.add([Draw(plan, DrawKey(0, 0, 0), caller.ticket, reserved)])
    engine.tick()
    engine.tick()
    assert engine.running_nfe == 10


def test_an_unknown_guide_is_refused() -> None:
    engine = _engine(1)
    caller = submit(engine, make_plan(guide="sha256:unknown"), [DrawKey(0, 0, 0)])
    with pytest.raises(BackendUnavailable, match="sha256:unknown is not loaded"):
        engine.check(list(engine.scheduler.waiting))
    assert not caller.results


def test_a_backbone_that_cannot_draw_fails_its_canary() -> None:
    healthy = make_engine(_denoiser, SCHEDULE, guides=GUIDES, codec=PixelShuffle())
    healthy.warm_up()
    assert healthy.idle

    def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
        return torch.full_like(x_t, float("nan"))

    with pytest.raises(BackendUnavailable, match="canary"):
        make_engine(breaks, make_schedule(), codec=PixelShuffle()).warm_up()


def test_what_warming_up_took_says_nothing_of_later_ticks() -> None:
    """With torch.compile the first tick may take a minute: all requests would be refused."""
    engine = make_engine(_denoiser, SCHEDULE, guides=GUIDES, codec=PixelShuffle())
    engine.warm_up()
    assert engine.pace.tick_s(1) == 0


def test_the_meter_hears_of_every_tick() -> None:
    class Meter:
        def __init__(self) -> None:
            self.ticks: list[tuple[int, int]] = []

        def tick(
            self, rows: int, guided: int, gradient: int, negative: int, seconds: float
        ) -> None:
            assert seconds >= 0
            assert gradient == negative == 0
            self.ticks.append((rows, guided))

        def offered(self, nfe: float) -> None:
            raise AssertionError("nothing was asked for by a call")

        def decoded(self, rows: int, seconds: float) -> None:
            raise AssertionError("set when the engine was made")

        def saved(self, reason: str, nfe: float) -> None:
            raise AssertionError("no draw ended early")

    meter = Meter()
    engine = _engine(max_batch=2)
    engine._meter = meter
    guided = make_plan(num_inference_steps=2, guide="up", censor_scale=1.0, guide_interval=(0, 500))
    submit(engine, guided, [DrawKey(i, i, 0) for i in range(3)])
    run_to_end(engine)
    # Timesteps 999 (not guided) and 499 (guided), first for two draws, then for the third.
    assert meter.ticks == [(2, 0), (2, 2), (1, 0), (1, 1)]


def test_what_draws_had_left_when_they_ended_early_is_counted() -> None:
    metrics = BackboneMetrics("tiny", 2)
    engine = make_engine(_denoiser, SCHEDULE, max_batch=2, probes={"dark": FirstPixel()})
    engine._meter = metrics
    hopeless = make_plan(
        num_inference_steps=4, probe="dark", probes=(0.5,), probe_thresholds=(2.0,)
    )
    submit(engine, hopeless, [DrawKey(0, 0, 0)])
    gone = submit(engine, make_plan(num_inference_steps=10), [DrawKey(0, 1, 0)])
    for _ in range(3):
        engine.tick()
    gone.ticket.cancelled = True
    run_to_end(engine)
    page = parse(render(metrics.registry))
    assert value(page, "winnow_nfe_saved_total", reason="probe") == 2
    assert value(page, "winnow_nfe_saved_total", reason="cancelled") == 7


def test_capacity_is_measured() -> None:
    engine = _engine(max_batch=2)
    assert engine.capacity == 0
    for _ in range(5):
        engine.pace.observe(2, 0.1)
    assert engine.capacity == pytest.approx(20)


def test_a_hopeless_draw_is_abandoned_and_its_slot_refilled_before_the_next_step() -> None:
    rows: list[int] = []

    def recorder(x_t: Tensor, timestep: Tensor) -> Tensor:
        rows.append(len(x_t))
        return _denoiser(x_t, timestep)

    engine = make_engine(recorder, SCHEDULE, max_batch=1, probes={"dark": FirstPixel()})
    # At step 2 of 4; no score reaches 2, so every draw is hopeless, and none falls below 0.
    shared = {"num_inference_steps": 4, "probe": "dark", "probes": (0.5,)}
    hopeless = submit(engine, make_plan(**shared, probe_thresholds=(2.0,)), [DrawKey(0, 0, 0)])
    good = submit(engine, make_plan(**shared, probe_thresholds=(0.0,)), [DrawKey(0, 1, 0)])
    run_to_end(engine)
    (ended,), (finished,) = hopeless.results.values(), good.results.values()
    assert (ended.abandoned, ended.pixels, ended.nfe) == (True, None, 2)
    assert (finished.abandoned, finished.nfe, len(finished.probe_scores)) == (False, 4, 1)
    assert finished.pixels is not None
    assert rows == [1] * 6


def test_a_probe_that_answers_nan_abandons_nothing() -> None:
    class Broken(FirstPixel):
        def score(self, x_0: Tensor) -> NDArray[np.float64]:
            return np.full(len(x_0), np.nan)

    engine = make_engine(_denoiser, SCHEDULE, probes={"dark": Broken()})
    plan = make_plan(probe="dark", probes=(0.5,), probe_thresholds=(0.9,))
    (result,) = draw_all(engine, plan, [0])
    assert result.pixels is not None
    assert result.probe_scores == ()


def test_rows_that_ask_for_no_gradient_and_no_probe_pay_for_none() -> None:
    asked: list[tuple[str, int]] = []

    class Counting(FirstPixel):
        def gradient(self, x_t: Tensor, *_: object) -> Tensor:
            asked.append(("gradient", len(x_t)))
            return torch.zeros_like(x_t)

        def score(self, x_0: Tensor) -> NDArray[np.float64]:
            asked.append(("score", len(x_0)))
            return super().score(x_0)

    counting = Counting()
    engine = make_engine(_denoiser, SCHEDULE, guides={"g": counting}, probes={"p": counting})
    submit(engine, make_plan(), [DrawKey(i, i, 0) for i in range(3)])
    submit(
        engine,
        make_plan(guide="g", censor_scale=1.0, guide_interval=(300, 600)),
        [DrawKey(0, 7, 0)],
    )
    probed = make_plan(probe="p", probes=(0.75,), probe_thresholds=(0.0,))
    submit(engine, probed, [DrawKey(i, i, 0) for i in range(2)])
    run_to_end(engine)
    # Timesteps 999, 749, 499, 249: one is in the interval, and the third is probed.
    assert asked == [("gradient", 1), ("score", 2)]


def test_nothing_of_the_draw_before_is_left_in_a_slot() -> None:
    """Timestep 99 is the last of ten steps and none of sixteen: the first draw alone breaks."""

    def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
        output = _denoiser(x_t, timestep)
        return torch.full_like(output, float("nan")) if int(timestep[0]) == 99 else output

    plan = make_plan(num_inference_steps=16, sampler="dpmsolver++")
    engine = make_engine(breaks, SCHEDULE, max_batch=1, codec=PixelShuffle())
    shorter = make_plan(num_inference_steps=10, sampler="dpmsolver++")
    broken = submit(engine, shorter, [DrawKey(0, 0, 0)])
    whole = submit(engine, plan, [DrawKey(0, 1, 0)])
    run_to_end(engine)
    (alone,) = draw_all(make_engine(_denoiser, SCHEDULE, codec=PixelShuffle()), plan, [1])
    assert next(iter(broken.results.values())).pixels is None
    np.testing.assert_array_equal(next(iter(whole.results.values())).pixels, alone.pixels)


def test_no_noise_and_no_threshold_of_the_draw_before_is_left_in_a_slot() -> None:
    """The first draw breaks at every step, with noise and under a threshold that none reaches."""
    broken = True

    def denoiser(x_t: Tensor, timestep: Tensor) -> Tensor:
        return torch.full_like(x_t, float("nan")) if broken else _denoiser(x_t, timestep)

    probes = {"dark": FirstPixel()}
    engine = make_engine(denoiser, SCHEDULE, max_batch=1, probes=probes)
    submit(
        engine,
        _probed((0.2, 0.8), 2.0, num_inference_steps=10, eta=1.0, probe="dark"),
        [DrawKey(0, 0, 0)],
    )
    run_to_end(engine)
    engine._batches[None]._noise.fill_(float("nan"))
    broken = False
    plain = make_plan(num_inference_steps=5)
    (found,) = draw_all(engine, plain, [1])
    (alone,) = draw_all(make_engine(_denoiser, SCHEDULE), plain, [1])
    np.testing.assert_array_equal(floats(found), floats(alone))
    # A plan that lacks a threshold does not stop by that of another.
    lacking = make_plan(num_inference_steps=10, probe="dark", probes=(0.2,))
    (found,) = draw_all(engine, lacking, [1])
    assert not found.abandoned


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_probes_without_a_threshold_each_are_refused(thresholds: tuple[float, ...]) -> None:
    engine = _engine(1)
    plan = make_plan(probe="dark", probes=(0.3, 0.6), probe_thresholds=thresholds)
    submit(engine, plan, [DrawKey(0, 0, 0)])
    with pytest.raises(BackendUnavailable, match=f"2 probes have {len(thresholds)} thresholds"):
        engine.check(list(engine.scheduler.waiting))


def test_probes_that_fall_on_one_step_are_refused() -> None:
    """Otherwise only the last of them would look, and its score pass for the first one's."""
    engine = _engine(1)
    plan = _probed((0.1, 0.2), 0.5, num_inference_steps=4, probe="dark")
    submit(engine, plan, [DrawKey(0, 0, 0)])
    with pytest.raises(BackendUnavailable, match="fall on the same step"):
        engine.check(list(engine.scheduler.waiting))


def test_scores_come_in_the_order_of_the_probes_up_to_the_one_that_stops() -> None:
    class Counting(FirstPixel):
        looks = 0

        def score(self, x_0: Tensor) -> NDArray[np.float64]:
            self.looks += 1
            return np.full(len(x_0), self.looks / 10)

    engine = make_engine(_denoiser, SCHEDULE, probes={"dark": Counting()})
    plan = make_plan(
        num_inference_steps=10, probe="dark", probes=(0.2, 0.4, 0.9),
        probe_thresholds=(0.1, 0.25, 0.0),
    )  # fmt: skip
    (result,) = draw_all(engine, plan, [0])
    # A score at its threshold passes; the second is below its own, after 4 of 10 steps.
    assert (result.abandoned, result.probe_scores, result.nfe) == (True, (0.1, 0.2), 4)
