"""How many backbones a load needs: by NFE, the unit that engines work in.

Requests are a poor measure: one may be for 16 images of 50 steps or for one of 20, and under a
censoring policy each image costs several draws. NFE counts all of that, refused requests too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.serve.config import AutoscalingContext

OFFERED, CAPACITY = "nfe_offered_per_s", "nfe_capacity_per_s"


def replicas(
    offered: Sequence[float], capacities: Sequence[float], utilization: float
) -> int | None:
    """ceil(offered NFE/s ÷ (utilization × measured NFE/s of a replica)).

    `offered` has what each replica was asked for, admitted or refused; of the `capacities` of those
    that have worked already the median counts. None where none has: then nobody can tell.
    """
    known = [capacity for capacity in capacities if capacity > 0]
    if not known:
        return None
    return math.ceil(sum(offered) / (utilization * statistics.median(known)))


class ByNfe:
    """Serve's autoscaling policy of the backbones; bounds and delays are Serve's own."""

    def __init__(self, utilization: float) -> None:
        self._utilization = utilization

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas that is wanted, before bounds and delays."""
        found: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        wanted = replicas(
            list(found.get(OFFERED, {}).values()),
            list(found.get(CAPACITY, {}).values()),
            self._utilization,
        )
        return context.target_num_replicas if wanted is None else wanted, {}


class Rate:
    """What a running total grew by in a second, since it was last asked."""

    def __init__(self, total: Callable[[], float]) -> None:
        self._total = total
        self._before = total(), time.monotonic()

    def __call__(self) -> float:
        """The mean rate since the last call."""
        now = self._total(), time.monotonic()
        (was, then), self._before = self._before, now
        return max(now[0] - was, 0.0) / max(now[1] - then, 1e-3)
