"""More is asked for than can be made: what is still delivered, and what a refusal costs.

The peak first, by callers in turn; then two, four and ten times as much at a steady rate; then a
crowd at once, of whom those who are refused come back when they were told.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from loadtest import callers
from loadtest.bench.servers import Server
from loadtest.callers import Answer
from loadtest.chaos import generators
from loadtest.chaos.generators import Sent
from loadtest.chaos.processes import MODEL, idle, spent, usage
from loadtest.lines import Line, at_least, at_most, none

AT_ONCE = 8
TIMES = (2, 4, 10)
DEADLINE_S = 3.0
BODY: dict[str, Any] = {"policy": "no-crossbar", "num_inference_steps": 50,
                        "censor": {"deadline_s": DEADLINE_S}}  # fmt: skip
REFUSED = (429, 503)
MANY = 2
"""Refusals for each accepted request, from which on their cost can be told apart."""

DELIVERED, REFUSAL_S, REFUSAL_MS, LATE_S, TRUE = 0.9, 0.25, 3.0, 0.5, 0.9
BESIDE_MS = 25.0
"""The goals. The last is CPU beside the model for an accepted request: half of what it was."""


def run(server: Server, seconds: float, times: Sequence[int] = TIMES) -> list[Line]:
    """Measure the peak, then offer its multiples, each for so many seconds."""
    generators.in_turn(server, AT_ONCE, min(seconds, 5.0), BODY)
    polling = idle(server).get("ingress", 0.0)
    sent, cost, took = _measured(server, lambda: generators.in_turn(server, AT_ONCE, seconds, BODY))
    images = sum(one.status == 200 for one in sent)
    if not images:
        raise RuntimeError("no image at peak: look at the service's log")
    # The higher of two estimates: the second counts the end, where fewer callers are left.
    peak = max(images_a_second(sent), images / max(one.done for one in sent))
    each = {role: 1000 * used / images for role, used in cost.items()}
    beside = sum(ms for role, ms in each.items() if role != MODEL)
    roles = ", ".join(f"{role} {ms:.1f}" for role, ms in sorted(each.items()) if ms >= 0.05)
    lines = [
        Line("overload", "generator", generators.NAME),
        Line("overload", f"peak, {AT_ONCE} callers in turn", f"{peak:.2f} images/s"),
        at_most("overload", "CPU beside the model, an image at peak", beside, BESIDE_MS,
                "{:.1f} ms"),
        Line("overload", "… by role, ms", roles),
    ]  # fmt: skip
    own_ms = max(1000 * (cost["ingress"] - polling * took) / images, 0.0)
    for factor in times:
        lines += _flooded(server, factor, peak, seconds, polling, own_ms)
    crowd = asyncio.run(returned(server, [0.0] * math.ceil(2 * peak * DEADLINE_S)))
    return [*lines, *_truth(f"a crowd of {len(crowd)}", crowd, TRUE)]


def _measured(
    server: Server, load: Callable[[], list[Sent]]
) -> tuple[list[Sent], dict[str, float], float]:
    """What was sent, the CPU of each role meanwhile, and how long it took, both in seconds."""
    before, began = usage(server), time.monotonic()
    sent = load()
    return sent, spent(before, usage(server)), time.monotonic() - began


def _flooded(
    server: Server, factor: int, peak: float, seconds: float, polling: float, own_ms: float
) -> list[Line]:
    """What a flood came to. The ingresses use `polling` cores when nobody asks, and `own_ms` more
    for an accepted request."""
    who, rate = f"overload {factor} ×", max(factor * peak, 1.0)
    with ThreadPoolExecutor(1) as pool:
        sample = pool.submit(asyncio.run, returned(server, range(1, max(2, int(seconds) - 3))))
        sent, cost, took = _measured(server, lambda: generators.flood(server, rate, seconds, BODY))
        comings = sample.result()
    if not sent:
        raise RuntimeError("no request of the flood was answered: look at the service's log")
    counts = Counter(one.status for one in sent)
    refused = [one.seconds for one in sent if one.status in REFUSED]
    accepted = [one.seconds for one in sent if one.status not in REFUSED]
    spread = max(one.at for one in sent) - min(one.at for one in sent)
    lines = [
        Line(who, "offered", f"{len(sent) / max(spread, 1.0):.1f}/s, wanted {rate:.1f}/s"),
        Line(who, "answers", ", ".join(f"{n} × {code}" for code, n in counts.most_common())),
        at_least(who, "delivered/s ÷ peak", images_a_second(sent) / peak, DELIVERED, "{:.2f}"),
        at_most(who, "latest answer but refusals, after its deadline",
                max(accepted, default=0.0) - DEADLINE_S, LATE_S, "{:.2f} s"),
    ]  # fmt: skip
    if refused:
        refusals_ms = 1000 * (cost["ingress"] - polling * took) - own_ms * len(accepted)
        each_ms = max(refusals_ms, 0.0) / len(refused)
        # Of few among many it is the difference of two large numbers.
        counts_here = len(refused) > MANY * len(accepted)
        p50, p95 = np.quantile(refused, (0.5, 0.95))
        lines += [
            Line(who, "refusal, p50", f"{1000 * p50:.0f} ms"),
            at_most(who, "refusal, p95", 1000 * p95, 1000 * REFUSAL_S, "{:.0f} ms"),
            at_most(who, "ingress CPU of a refusal", each_ms, REFUSAL_MS, "{:.1f} ms")
            if counts_here
            else Line(who, "ingress CPU of a refusal", "too few to tell"),
            Line(who, "ingress CPU ÷ requests", f"{1000 * cost['ingress'] / len(sent):.1f} ms"),
        ]  # fmt: skip
    # While the others come on as before, nobody can promise room.
    return lines + _truth(who, comings, None)


def images_a_second(sent: list[Sent]) -> float:
    """Images that were answered a second, once the first quarter of the time has passed and until
    the last request was sent."""
    begin, end = min(one.at for one in sent), max(one.at for one in sent)
    begin += 0.25 * (end - begin)
    if begin == end:
        return 0.0
    return sum(one.status == 200 and begin <= one.done < end for one in sent) / (end - begin)


Coming = tuple[Answer, Answer | None]
"""The first answer, and the one to coming back as told, if it told."""


async def returned(server: Server, times: Iterable[float]) -> list[Coming]:
    """Who comes at these seconds, and once more after Retry-After if refused."""
    async with callers.client(server.url, generators.TIMEOUT_S) as client:

        async def one(_: int) -> Coming:
            first = await callers.ask(client, BODY)
            wait = first.headers.get("retry-after", "")
            if first.status not in REFUSED or not wait.isdecimal():
                return first, None
            await asyncio.sleep(int(wait))
            return first, await callers.ask(client, BODY)

        return await callers.at_times(one, times)


def _truth(who: str, comings: list[Coming], goal: float | None) -> list[Line]:
    """Whether those who came back when they were told were accepted."""
    again = [second.settled for _, second in comings if second is not None]
    untold = [first.code for first, second in comings if first.status in REFUSED and second is None]
    lines = [none(who, "refusals without Retry-After", untold)]
    if again:
        figure, share = f"accepted, of {len(again)} who came back as told", sum(again) / len(again)
        lines += [
            Line(who, figure, f"{share:.2f}")
            if goal is None
            else at_least(who, figure, share, goal, "{:.2f}")
        ]
    return lines
