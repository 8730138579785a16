"""What crosses between processes arrives as it was sent, or not at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.diffusion.condition import Condition
from service import errors
from service.engine.admission import Backlog, TickTimes, Workload
from service.ports import DrawKey, DrawResult
from service.rpc import codec
from service.rpc.codec import DrawCall, DrawReply
from tests.plans import JUDGED, vary

PLAN = vary(
    JUDGED,
    num_inference_steps=7,
    probes=(0.25, 0.1 + 0.2),
    condition=Condition("ein Bär", class_labels=(1, 2)),
)
CALL = DrawCall(PLAN, (DrawKey(1, 2**63 - 1, 3, False, 2),), 1 / 3, "schlüssel", True, 0.1)


def test_a_call_arrives_to_the_last_digit() -> None:
    found, images = codec.DRAWS.unpack(codec.DRAWS.pack(CALL))
    assert found == CALL
    assert found.keys[0].fresh is False
    assert images == []


def test_results_arrive_with_their_pixels_and_without() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sent = [
        DrawResult(DrawKey(0, 1, 0), None, 5, 0.1, 0.2, True, (0.5,)),
        DrawResult(DrawKey(0, 1, 1), pixels[:, ::2], 5, 0.1, 0.2),
    ]
    load = Workload(4, 256, 3, 99.5)
    arrived = codec.unpack_reply(codec.pack_reply(DrawReply(sent, load)))
    first, second = arrived.results
    assert first == sent[0]
    assert arrived.workload == load
    assert second.pixels is not None
    np.testing.assert_array_equal(second.pixels, pixels[:, ::2])
    assert second.pixels.dtype == np.uint8


def test_what_is_no_number_arrives_as_that() -> None:
    (found, fine), _ = codec.NUMBERS.unpack(codec.NUMBERS.pack([math.nan, 0.1 + 0.2]))
    assert math.isnan(found)
    assert fine == 0.1 + 0.2


def test_a_workload_arrives() -> None:
    pace = TickTimes()
    pace.observe(3, 0.1)
    load = Workload(4, 256, 3, 99.5, {"a": Backlog(2, 100.0)}, pace, draining=True)
    assert codec.WORKLOAD.unpack(codec.WORKLOAD.pack(load))[0] == load


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:3],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data.replace(b'"timeout_s"', b'"time_outs"'),
        lambda data: data.replace(b'"sampler":"ddim"', b'"sampler":"dddd"'),
    ],
)
def test_a_damaged_message_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(ValueError, match=r".+"):
        codec.DRAWS.unpack(damage(codec.DRAWS.pack(CALL, [np.zeros((2, 2, 1), np.uint8)])))


def test_every_fault_arrives_as_what_it_was() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.WinnowError):
            found = codec.unpack_fault(codec.pack_fault(kind("because é", "n", 1.5)))
            assert type(found) is kind
            assert (str(found), found.param, found.retry_after_s) == ("because é", "n", 1.5)
    for text in ("", "{}", "[1,2]", '["Exception", "", null, null]', "Unavailable"):
        assert codec.unpack_fault(text) is None
