"""The judges as `ports.JudgeClient`: the one with the fewest calls scores.

Every fault is raised as CensorUnavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from service.errors import CensorUnavailable, WinnowError
from service.ports import Pixels
from service.rpc.codec import NUMBERS, SCORES, ScoreCall
from service.rpc.replicas import Replica, ReplicaPool, ReplicaTimeout, ReplicaUnavailable

READY_S = 5.0

Judge = Replica[bool]
"""Its state: whether it accepts new calls, or is draining."""


class GrpcJudgeClient:
    """The judges of each model."""

    def __init__(self, judges: Mapping[str, ReplicaPool[bool]]) -> None:
        self._judges = judges

    async def score(
        self, model: str, judge: str, pixels: Sequence[Pixels], timeout_s: float
    ) -> Sequence[float]:
        """See `ports.JudgeClient`. Where one replica fails, another is asked, once."""

        def request(left_s: float) -> bytes:
            return SCORES.pack(ScoreCall(judge, left_s), pixels)

        answer = await self._ask(model, "score", request, timeout_s)
        try:
            return NUMBERS.unpack(answer)[0]
        except ValueError as error:
            raise CensorUnavailable("the judge answered something else than scores") from error

    async def ready(self) -> None:
        """See `ports.JudgeClient`."""
        for model in self._judges:
            await self._ask(model, "ready", lambda left_s: b"", READY_S)

    async def _ask(
        self, model: str, method: str, request: Callable[[float], bytes], timeout_s: float
    ) -> bytes:
        """The answer of the least busy judge; of one other where that fails, within the timeout."""
        deadline = time.monotonic() + timeout_s
        found = await self._judges[model].all()
        if not found:
            raise CensorUnavailable(f"no judge of {model} answers; it is restarted by itself")
        fault = CensorUnavailable("the judge did not answer (not in time)")
        for judge in sorted(found, key=_first)[:2]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            try:
                return await judge.ask(method, request(left_s), left_s)
            except (ReplicaUnavailable, WinnowError) as error:
                judge.record_failure()
                fault = _fault(error)
        raise fault


def _first(judge: Judge) -> tuple[bool, bool, int, float]:
    """Sort key: the least busy first, then the least recently called; those that failed recently or
    are draining come last."""
    return judge.failed_recently, not judge.state, judge.calls, judge.last_called


def _fault(error: ReplicaUnavailable | WinnowError) -> CensorUnavailable:
    if isinstance(error, CensorUnavailable):
        return error
    why = "not in time" if isinstance(error, ReplicaTimeout) else error
    fault = CensorUnavailable(f"the judge did not answer ({why})")
    fault.__cause__ = error
    return fault
