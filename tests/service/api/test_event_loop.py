"""Large images are encoded beside the event loop, which has other requests to answer; and what
happens meanwhile counts."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundles.bundle import Bundle
from service.images.encode import from_png, to_png
from service.ports import DrawKey, DrawResult, Pixels, SamplingPlan
from tests.service.api.conftest import client, refused
from tests.service.api.server import KEYS, Served, serve

ROUTE = "/v1/images/generations"
SIDE, IMAGES = 1024, 16
LIMITS = {"n": IMAGES, "deadline_s": 120}
ROUNDS = 3
SHORTER = 4
"""JSON of the whole answer holds Python's lock 200 to 260 ms in one call; so many times shorter is
any stall here. A stall is a ratio on one machine, in time of the CPU, and the shortest of rounds:
what else runs on the machine lengthens it, and no holder of the lock is shorter in any round."""


def picture(seed: int) -> Pixels:
    """An image that compresses badly, and that the judge takes for benign."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pixels[0, 0, 0] = 255
    return pixels


@dataclass
class Stalls:
    """How long one thread worked while the event loop had no turn: the loop's own, or an encoder's.

    In seconds of that thread's CPU: what other processes take of the machine is no stall, and what
    several threads do side by side without Python's lock does not add up.
    """

    longest_s: float = 0.0
    ended: bool = False

    def start(self) -> None:
        """Watch the running loop."""
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        before = _cpu_s()
        while not self.ended:
            await asyncio.sleep(0.001)
            now = _cpu_s()
            worked = [now[thread] - before.get(thread, 0.0) for thread in now]
            self.longest_s = max(self.longest_s, *worked)
            before = now


def _cpu_s() -> dict[int, float]:
    """The CPU time of this thread and of those that encode; they outlive the look at them."""
    threads = [thread.ident for thread in threading.enumerate() if thread.name.startswith("encode")]
    clocks = {one: time.pthread_getcpuclockid(one) for one in threads if one is not None}
    here = {threading.get_ident(): time.thread_time()}
    return {one: time.clock_gettime(clock) for one, clock in clocks.items()} | here


@dataclass
class LargeImages:
    """A backbone that has all images at once; from then on the loop it runs in is watched."""

    stalls: Stalls = field(default_factory=lambda: Stalls())
    drawn: list[weakref.ref[Pixels]] = field(default_factory=list)

    async def draw(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[list[DrawResult], None]:
        results = [DrawResult(key, picture(key.seed), 1, 0.0, 0.0) for key in keys]
        self.drawn += [
            weakref.ref(result.pixels) for result in results if result.pixels is not None
        ]
        self.stalls = Stalls()
        self.stalls.start()
        yield results
        del results

    def check(
        self, plan: SamplingPlan, keys: Sequence[DrawKey], timeout_s: float, tenant: str = ""
    ) -> None: ...

    async def ready(self) -> None: ...


def large(bundle: Bundle) -> Bundle:
    """The bundle, as if its backbone made large images."""
    size = {"height": SIDE, "width": SIDE, "channels": 3}
    backbone = bundle.manifest.backbone.model_copy(update=size)
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"backbone": backbone}))


def test_the_loop_does_not_wait_while_sixteen_large_images_are_encoded(bundle: Bundle) -> None:
    backbone, measured = LargeImages(), []
    with serve(large(bundle), backbone_client=backbone, limits=LIMITS) as served:
        for _ in range(ROUNDS):
            answer = _answer(served, backbone)
            measured.append(backbone.stalls.longest_s)
            allowed_s = _stall_of_json_in_one_call(answer) / SHORTER
            if measured[-1] < allowed_s:
                break
    data = answer["data"]
    assert [entry["seed"] for entry in data] == list(range(IMAGES))
    last = base64.b64decode(data[-1]["b64_json"])
    assert (from_png(last) == picture(IMAGES - 1)).all()
    assert min(measured) < allowed_s, measured


def _answer(served: Served, backbone: LargeImages) -> dict[str, Any]:
    """The JSON of sixteen images; `backbone.stalls` is of the time until the last byte."""
    body = {"n": IMAGES, "seed": 0}
    with client(served) as http, http.stream("POST", ROUTE, json=body, timeout=120) as answer:
        # Nothing is read as JSON yet: that would hold the loop up, which runs in this process.
        pieces = list(answer.iter_raw())
    backbone.stalls.ended = True
    assert answer.status_code == 200, pieces
    found: dict[str, Any] = json.loads(b"".join(pieces))
    return found


def _stall_of_json_in_one_call(answer: dict[str, Any]) -> float:
    """What a loop sees of a thread that writes the whole answer in one call, in seconds."""

    async def watched() -> float:
        stalls = Stalls()
        with ThreadPoolExecutor(1, "encode") as encoder:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(encoder, int)
            stalls.start()
            await loop.run_in_executor(encoder, json.dumps, answer)
            await asyncio.sleep(0.01)
            stalls.ended = True
            await asyncio.sleep(0.01)
        return stalls.longest_s

    return asyncio.run(watched())


def test_the_pixels_go_before_a_slow_reader_has_its_answer(bundle: Bundle) -> None:
    backbone = LargeImages()
    with (
        serve(large(bundle), backbone_client=backbone, limits=LIMITS) as served,
        client(served) as http,
        http.stream("POST", ROUTE, json={"n": IMAGES, "seed": 0}, timeout=120) as answer,
    ):
        backbone.stalls.ended = True
        deadline = time.monotonic() + 120
        while any(pixels() is not None for pixels in backbone.drawn):
            assert time.monotonic() < deadline, "pixels are kept while their answer is sent"
            time.sleep(0.01)
        size = sum(len(piece) for piece in answer.iter_raw())
    assert len(backbone.drawn) == IMAGES
    assert size == int(answer.headers["content-length"])


def test_a_thread_encodes_no_further_image_once_its_caller_has_left(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, gone = threading.Event(), threading.Event()
    encoded: list[Pixels] = []

    def slow(pixels: Pixels) -> bytes:
        encoded.append(pixels)
        encoding.set()
        gone.wait(60)
        return to_png(pixels)

    monkeypatch.setattr("service.api.generation_body.to_png", slow)
    with serve(large(bundle), backbone_client=LargeImages(), limits=LIMITS) as served:
        ask_and_leave(served, 4, encoding)
        assert delivered(served) == ("cancelled", ["cancelled"] * 4)
        gone.set()
    for thread in threading.enumerate():
        if thread.name.startswith("encode"):
            thread.join(60)
    assert len(encoded) == 1


def test_what_is_switched_off_while_it_is_encoded_does_not_leave(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def switched_off(pixels: Pixels) -> bytes:
        served.store.policies.disable("bright", "test")
        served.policy_registry.refresh()
        return to_png(pixels)

    monkeypatch.setattr("service.api.generation_body.to_png", switched_off)
    with serve(large(bundle), backbone_client=LargeImages()) as served, client(served) as http:
        refused(http.post(ROUTE, json={"seed": 0}, timeout=120), 403, "policy_disabled")
        assert delivered(served) == ("policy_disabled", ["cancelled"])


def test_whoever_leaves_while_it_is_encoded_has_got_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, gone = threading.Event(), threading.Event()

    def slow(pixels: Pixels) -> bytes:
        encoding.set()
        gone.wait(30)
        return to_png(pixels)

    monkeypatch.setattr("service.api.generation_body.to_png", slow)
    with serve(large(bundle), backbone_client=LargeImages()) as served:
        ask_and_leave(served, 1, encoding)
        assert delivered(served) == ("cancelled", ["cancelled"])
        gone.set()


def ask_and_leave(served: Served, n: int, begun: threading.Event) -> None:
    """Ask for n images, and hang up once something has begun."""
    body = json.dumps({"n": n, "seed": 0})
    head = (
        f"POST {ROUTE} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {KEYS['PLAIN_KEY']}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    address = httpx.URL(served.url)
    with socket.create_connection((address.host, address.port or 80)) as caller:
        caller.sendall("\r\n".join((*head, "", body)).encode())
        assert begun.wait(60)


def delivered(served: Served) -> tuple[str, list[str]]:
    """How the latest decision ended that did not end well, and each of its entries."""
    deadline = time.monotonic() + 120
    # What was recorded before the last look at the policy is recorded anew soon after the answer.
    while not (rows := served.store.decisions.rows(1, {})) or rows[0].outcome == "ok":
        assert time.monotonic() < deadline, "no decision was recorded"
        time.sleep(0.01)
    return rows[0].outcome, [image["finish_reason"] for image in rows[0].document["images"]]
