"""Finished draws are decoded off the step loop; the tests block the codec, and time nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundles import bundle
from service.config import BackboneSettings
from service.engine import decoder
from service.engine.admission import HEADROOM
from service.engine.decoder import FAULTS_BEFORE_UNHEALTHY
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.loop import EngineLoop
from service.errors import BackendUnavailable, Overloaded
from service.ports import DrawKey, DrawResult, SamplingPlan
from tests.engines import Lossless, floats, make_engine, make_plan, make_schedule, submit
from tests.parity import Made

WAIT_S = 30
SHORT, LONG = make_plan(num_inference_steps=1), make_plan(num_inference_steps=50)


class Gated:
    """An autoencoder that decodes when the test lets it, or fails when the test says so."""

    exact = False

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.broken = threading.Event()
        self._started = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0

    def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        self.sizes.append(len(x_0))
        self._started.release()
        assert self._permits.acquire(timeout=WAIT_S), "the test forgot to let it decode"
        if self.broken.is_set():
            raise RuntimeError("out of memory")
        return Lossless().to_uint8(x_0)

    def begun(self) -> None:
        """Return when the next decoding has begun."""
        assert self._started.acquire(timeout=WAIT_S)

    def let(self, decodings: int = 1000) -> None:
        """Let so many decodings end."""
        self._permits.release(decodings)


@pytest.fixture
def codec() -> Iterator[Gated]:
    gate = Gated()
    yield gate
    gate.let()


def _numbers(x_t: Tensor, timestep: Tensor) -> Tensor:
    """Predicts x_0, so that an image is its own noise."""
    return x_t.clone()


def _engine(
    codec: Gated,
    max_batch: int = 8,
    micro_batch: int = 4,
    denoiser: Callable[[Tensor, Tensor], Tensor] = _numbers,
) -> Engine:
    return make_engine(
        denoiser, make_schedule("sample"), max_batch=max_batch, codec=codec, micro_batch=micro_batch
    )


def _keys(count: int, first: int = 0) -> list[DrawKey]:
    return [DrawKey(seed, seed, 0) for seed in range(first, first + count)]


def _close(engine: Engine, codec: Gated) -> None:
    codec.let()
    engine.decoder.close()


def test_steps_go_on_while_others_are_decoded(codec: Gated) -> None:
    ticks: list[int] = []

    def counted(x_t: Tensor, timestep: Tensor) -> Tensor:
        ticks.append(len(x_t))
        return x_t.clone()

    engine = _engine(codec, max_batch=2, denoiser=counted)
    short, long = submit(engine, SHORT, _keys(1)), submit(engine, LONG, _keys(1, first=1))
    engine.tick()
    codec.begun()
    for _ in range(3):
        engine.tick()
    newcomer = submit(engine, SHORT, _keys(1, first=2))
    engine.tick()  # in the slot that the first has left
    while not engine.idle:
        engine.tick()
    assert ticks == [2, 1, 1, 1, 2] + [1] * 45
    assert not short.results
    assert not long.results
    assert not newcomer.results
    _close(engine, codec)
    wanted = {0: short, 1: long, 2: newcomer}
    alone = make_engine(_numbers, make_schedule("sample"))
    for seed, caller in wanted.items():
        again = submit(alone, LONG if seed == 1 else SHORT, _keys(1, first=seed))
        alone.run_to_end()
        ((found,), (expected,)) = caller.results.values(), again.results.values()
        np.testing.assert_array_equal(floats(found), floats(expected))


def test_rows_are_decoded_some_at_a_time(codec: Gated) -> None:
    engine = _engine(codec, max_batch=11, micro_batch=4)
    first = submit(engine, SHORT, _keys(1))
    engine.tick()
    codec.begun()
    # As many as finish in the meantime go together, and no more than four.
    callers = [submit(engine, SHORT, _keys(3, first=1)), submit(engine, SHORT, _keys(4, first=4))]
    engine.tick()
    _close(engine, codec)
    assert codec.sizes == [1, 4, 3]
    assert list(first.results) == _keys(1)
    assert [list(caller.results) for caller in callers] == [_keys(3, first=1), _keys(4, first=4)]
    images = [result for caller in (first, *callers) for result in caller.results.values()]
    assert len({floats(image).tobytes() for image in images}) == 8


def test_a_failing_decoder_gives_no_pixels_and_later_draws_are_decoded(codec: Gated) -> None:
    engine = _engine(codec)
    codec.broken.set()
    codec.let()
    callers = [submit(engine, SHORT, _keys(1, first=first)) for first in (0, 1)]
    engine.run_to_end()
    for caller in callers:
        assert isinstance(caller.fault, BackendUnavailable)
        assert "out of memory" not in str(caller.fault)  # that is for the log
        assert not caller.results
    codec.broken.clear()
    after = submit(engine, SHORT, _keys(1))
    engine.run_to_end()
    assert after.results
    assert after.fault is None
    engine.decoder.check_health()
    _close(engine, codec)


def test_three_failures_in_a_row_are_unhealthy(codec: Gated) -> None:
    engine = _engine(codec)
    codec.let()
    codec.broken.set()
    for _ in range(FAULTS_BEFORE_UNHEALTHY):
        engine.decoder.check_health()
        submit(engine, SHORT, _keys(1))
        engine.run_to_end()
    with pytest.raises(BackendUnavailable, match="decodings failed"):
        engine.decoder.check_health()
    codec.broken.clear()
    submit(engine, SHORT, _keys(1))
    engine.run_to_end()
    engine.decoder.check_health()
    _close(engine, codec)


def test_what_nobody_wants_any_more_is_not_decoded(codec: Gated) -> None:
    engine = _engine(codec)
    kept = submit(engine, SHORT, _keys(1))
    engine.tick()
    codec.begun()
    left, late = submit(engine, SHORT, _keys(3, first=1)), submit(engine, SHORT, _keys(1, first=4))
    other = submit(engine, SHORT, _keys(1, first=5))
    engine.tick()
    assert engine.decoder.rows == 6
    left.ticket.cancelled = True
    late.ticket.deadline = 0.0
    _close(engine, codec)
    assert codec.sizes == [1, 1]
    assert len(kept.results) == len(other.results) == 1
    assert not left.results
    assert not late.results
    assert engine.decoder.rows == 0


def test_failures_that_only_the_cancelled_would_have_seen_still_count(codec: Gated) -> None:
    """A run of failures is not broken by a micro-batch of which nothing was wanted."""
    engine = _engine(codec, micro_batch=1)
    codec.broken.set()
    for _ in range(FAULTS_BEFORE_UNHEALTHY):
        submit(engine, SHORT, _keys(1))
        engine.tick()
        codec.begun()
        gone = submit(engine, SHORT, _keys(1))
        engine.tick()
        gone.ticket.cancelled = True
        codec.let(1)
        engine.decoder.wait()
    assert codec.sizes == [1] * FAULTS_BEFORE_UNHEALTHY
    with pytest.raises(BackendUnavailable, match="decodings failed"):
        engine.decoder.check_health()


def test_an_abandoned_draw_waits_for_no_decoding(codec: Gated) -> None:
    class Dark:
        def score(self, x_0: Tensor) -> NDArray[np.float64]:
            return np.zeros(len(x_0))

    engine = make_engine(
        _numbers, make_schedule("sample"), codec=codec, probes={"dark": Dark()}, max_batch=4
    )
    finished = submit(engine, SHORT, _keys(1))
    engine.tick()
    codec.begun()
    plan = make_plan(probe="dark", probes=(0.5,), probe_thresholds=(0.5,))
    abandoned = submit(engine, plan, _keys(1, first=1))
    while not engine.idle:
        engine.tick()
    (result,) = abandoned.results.values()
    assert result.abandoned
    assert result.pixels is None
    assert not finished.results
    _close(engine, codec)
    assert finished.results


@pytest.mark.parametrize("kind", ["sd", "ldm-vq"])
def test_a_row_of_nan_has_no_pixels_and_its_neighbours_do(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = Made.make(kind, tmp_path_factory.mktemp(kind))

    def breaks(x_t: Tensor, timestep: Tensor) -> Tensor:
        output = x_t.clone()
        output[1, 0, 0, 0] = torch.nan
        return output

    engine = make_engine(
        breaks, make_schedule("sample"), made.generator.shape, codec=made.generator.codec
    )
    caller = submit(engine, SHORT, _keys(3))
    engine.run_to_end()
    engine.decoder.close()
    pixels = [caller.results[key].pixels for key in _keys(3)]
    assert pixels[1] is None
    for image in (pixels[0], pixels[2]):
        assert image is not None
        assert image.shape == (32, 32, 3)
        assert np.ptp(image) > 10


def test_close_delivers_what_has_been_drawn(codec: Gated) -> None:
    engine = _engine(codec, micro_batch=2)
    caller = submit(engine, SHORT, _keys(5))
    engine.tick()
    codec.begun()
    closing = threading.Thread(target=engine.decoder.close)
    closing.start()
    assert not caller.results
    codec.let()
    closing.join(WAIT_S)
    assert len(caller.results) == 5
    engine.decoder.close()  # as often as one likes
    with pytest.raises(BackendUnavailable, match="not running"):
        engine.decoder.check_health()


def test_a_caller_whose_draws_are_being_decoded_is_answered_at_shutdown(codec: Gated) -> None:
    async def scenario() -> None:
        loop = EngineLoop(_engine(codec, max_batch=2), max_waiting=8)
        decoding = asyncio.ensure_future(_all(loop, SHORT, 1))
        await asyncio.to_thread(codec.begun)
        closing = asyncio.ensure_future(asyncio.to_thread(loop.close))
        await asyncio.to_thread(loop._thread.join)
        codec.let()
        await closing
        assert len(await decoding) == 1
        with pytest.raises(BackendUnavailable, match="stopped"):
            await _all(loop, SHORT, 1)

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def _until(so: Callable[[], bool]) -> None:
    while not so():
        time.sleep(0.001)


async def _all(
    loop: EngineLoop, plan: SamplingPlan, count: int, timeout_s: float = 30
) -> list[DrawResult]:
    draws = loop.draw(plan, _keys(count), timeout_s)
    return [result async for group in draws for result in group]


def test_admission_counts_what_is_being_decoded(codec: Gated) -> None:
    """By the paces, that the test tells: a tick takes no time and a decoding four seconds."""

    async def scenario() -> None:
        loop = EngineLoop(_engine(codec, micro_batch=1), max_waiting=8)
        first = [asyncio.ensure_future(_all(loop, SHORT, 1)) for _ in range(2)]
        await asyncio.to_thread(codec.begun)
        await asyncio.to_thread(_until, lambda: loop._engine.decoder.rows == 2)
        for _ in range(10):
            loop._engine.decoder.pace.observe(1, 4.0)
        with pytest.raises(Overloaded, match=r"would take 12\.0 s of the 14\.3 s") as refusal:
            await _all(loop, SHORT, 1, 10.0 / HEADROOM)
        assert refusal.value.retry_after_s == pytest.approx(2.0)
        fits = asyncio.ensure_future(_all(loop, SHORT, 1, 12.5 / HEADROOM))
        codec.let()
        assert [len(results) for results in await asyncio.gather(*first, fits)] == [1, 1, 1]
        await asyncio.to_thread(loop.close)

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_a_decoder_that_fails_at_the_canary_ends_the_start(codec: Gated) -> None:
    engine = _engine(codec)
    codec.broken.set()
    codec.let()
    with pytest.raises(BackendUnavailable, match="decoder failed"):
        engine.warm_up()
    engine.decoder.close()


def test_a_decoding_that_hangs_is_unhealthy(codec: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(codec)
    submit(engine, SHORT, _keys(1))
    engine.tick()
    codec.begun()
    engine.decoder.check_health()
    monkeypatch.setattr(decoder, "STUCK_S", -1.0)
    with pytest.raises(BackendUnavailable, match="has run for more than"):
        engine.decoder.check_health()
    codec.let()
    engine.decoder.wait()
    engine.decoder.check_health()


def test_a_model_in_pixels_has_no_thread_for_decoding() -> None:
    before = set(threading.enumerate())
    settings = BackboneSettings(runtime="onnx", max_batch=2)
    engine = load_engine(bundle.load("mnist-sevens"), settings)
    assert not [one for one in set(threading.enumerate()) - before if one.name == "decoder"]
    engine.decoder.check_health()


def test_a_codec_of_pixels_that_fails_is_told_at_once() -> None:
    """Its rows are free by then, so the engine no longer knows the callers."""

    class Broken(Lossless):
        def to_uint8(self, x_0: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            raise RuntimeError("no memory")

    engine = make_engine(lambda x_t, timestep: 0.5 * x_t, make_schedule(), codec=Broken())
    caller = submit(engine, SHORT, [DrawKey(0, 1, 0)])
    with pytest.raises(RuntimeError, match="no memory"):
        engine.tick()
    assert isinstance(caller.fault, BackendUnavailable)


def test_a_decoder_that_is_behind_begins_no_draws_and_blocks_no_tick(codec: Gated) -> None:
    engine = _engine(codec, max_batch=2, micro_batch=1)
    caller = submit(engine, SHORT, _keys(decoder.WAITING + 4))
    gone = submit(engine, SHORT, _keys(1, first=90))
    for _ in range(20):
        engine.tick()  # would hang, if handing over waited for room
    assert engine.decoder.full
    assert not engine.scheduler.running
    begun = engine.decoder.rows
    assert decoder.WAITING <= begun < decoder.WAITING + 2
    gone.ticket.cancelled = True
    engine.tick()
    assert all(draw.ticket is not gone.ticket for draw in engine.scheduler.waiting)
    codec.let()
    engine.run_to_end()
    assert len(caller.results) == decoder.WAITING + 4
    assert not gone.results
    engine.decoder.close()
