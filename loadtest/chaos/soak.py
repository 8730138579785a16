"""A steady load for long, with a promotion at each look: what grows with the number of requests.

Slopes are least squares over looks at equal distances, for 1,000 requests. The first fifth is left
out: caches and arenas fill then.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import httpx
import numpy as np

from loadtest.bench.servers import ADMIN, Server
from loadtest.callers import asking
from loadtest.chaos.processes import disk, idle, session_folder, usage
from loadtest.lines import Line, at_least, at_most

CALLERS, DEADLINE_S, POLICY = 4, 30.0, "no-crossbar"
LOOKS = 40
MIB = 2**20
GOALS = {
    "memory, MiB: ": 8.0,
    "descriptors: ": 2.0,
    "disk, MiB: store": 6.0,
    "disk, MiB: logs": 1.0,
    "disk, MiB: session folder": 1.0,
    "series of Prometheus": 2.0,
}
"""For 1,000 requests, by how a figure begins; after the colon stands the role."""
GOOD = 0.999


def run(server: Server, seconds: float) -> list[Line]:
    """Ask for so many seconds, and look at what is used meanwhile."""
    idle(server)
    looks: list[tuple[int, dict[str, float]]] = []
    with asking(server.url, CALLERS, _asked, ADMIN) as answers:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            looks.append((len(answers), _look(server)))
            _promote(server)
            time.sleep(max(0.0, now + seconds / LOOKS - time.monotonic()))
        looks.append((len(answers), _look(server)))
    counted = looks[len(looks) // 5 :]
    done = counted[-1][0] - counted[0][0]
    good = sum(one.settled for one in answers) / len(answers)
    lines = [
        at_least("soak", f"succeeded, of {len(answers)} requests", good, GOOD, "{:.2%}"),
        Line("soak", "slopes are over", f"{done} requests, {len(counted)} looks"),
    ]
    for figure in sorted({figure for _, look in counted for figure in look}):
        slope = per_thousand([(number, look[figure]) for number, look in counted])
        goal = next(goal for begins, goal in GOALS.items() if figure.startswith(begins))
        lines.append(at_most("soak, for 1,000 requests", figure, slope, goal, "{:+.2f}"))
    return lines


def per_thousand(points: list[tuple[int, float]]) -> float:
    """The least-squares slope of value against requests, times 1,000; 0 without any."""
    numbers, values = np.array(points, float).T
    spread = numbers - numbers.mean()
    square = float(spread @ spread)
    return 1000 * float(spread @ values) / square if square else 0.0


def _promote(server: Server) -> None:
    """Put a new version of the policy in force that differs in nothing from the last."""
    with httpx.Client(base_url=server.url, headers=ADMIN, timeout=60) as client:
        made = client.post("/v1/policies", json={"name": POLICY, "based_on": POLICY})
        version = made.raise_for_status().json()["version"]
        path = f"/v1/policies/{POLICY}/promote"
        client.post(path, json={"version": version}).raise_for_status()


def _look(server: Server) -> dict[str, float]:
    """What is used now."""
    found: dict[str, float] = defaultdict(float)
    for one in usage(server).values():
        found[f"memory, MiB: {one.role}"] += one.resident / MIB
        found[f"descriptors: {one.role}"] += one.descriptors
    session = session_folder(server)
    logs = disk(session / "logs") if session else 0
    found["disk, MiB: logs"] = logs / MIB
    found["disk, MiB: session folder"] = (disk(session) - logs) / MIB
    found["disk, MiB: store"] = disk(server.folder / "winnow") / MIB
    page = httpx.get(f"{server.url}/metrics", headers=ADMIN, timeout=30).text
    found["series of Prometheus"] = sum(
        not line.startswith("#") for line in page.splitlines() if line
    )
    return found


def _asked(number: int) -> dict[str, Any]:
    return {"policy": POLICY, "num_inference_steps": 50, "seed": number,
            "censor": {"deadline_s": DEADLINE_S}}  # fmt: skip
