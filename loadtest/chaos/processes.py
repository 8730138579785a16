"""The processes of a running service by their role, and what each one uses."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.bench.servers import Server

ROLES = (
    ("ingress", r"ray::ServeReplica:[^:]+:Ingress"),
    ("backbone", r"ray::ServeReplica:[^:]+:Backbone"),
    ("judge", r"ray::ServeReplica:[^:]+:RewardModel"),
    ("labelling", r"ray::ServeReplica:[^:]+:Labelling"),
    ("controller", r"ray::ServeController"),
    ("gcs", r"\S*/gcs_server "),
    ("raylet", r"\S*/raylet "),
    ("winnow", r"\S*python\S* \S*/winnow serve"),
)
"""How the command line of each begins; the first that fits. What fits none is `rest`."""

LOOK_S, QUIET_S, CALM = 3.0, 30.0, 0.05
MODEL = "model"
"""The busiest thread of a backbone: its engine's, which calls the denoiser."""


@dataclass(frozen=True)
class Usage:
    """What one process has used: seconds of CPU by thread, resident bytes, descriptors."""

    role: str
    threads: dict[int, float]
    resident: int
    descriptors: int


def by_role(server: Server, role: str) -> list[psutil.Process]:
    """The living processes of a role."""
    return [one for one in server.processes() if _role(one) == role]


def usage(server: Server) -> dict[int, Usage]:
    """What each living process has used, by its id."""
    found = {}
    for one in server.processes():
        with suppress(psutil.Error), one.oneshot():
            threads = {each.id: each.user_time + each.system_time for each in one.threads()}
            found[one.pid] = Usage(_role(one), threads, one.memory_info().rss, one.num_fds())
    return found


def spent(before: dict[int, Usage], after: dict[int, Usage]) -> dict[str, float]:
    """Seconds of CPU between two looks, by role; a backbone's engine thread counts as `model`.

    What a process used that died in between is lost, and of a thread as well.
    """
    seconds: dict[str, float] = defaultdict(float)
    for pid, now in after.items():
        then = before[pid].threads if pid in before else {}
        used = [each - then.get(thread, 0.0) for thread, each in now.threads.items()]
        if now.role == "backbone" and used:
            busiest = max(used)
            seconds[MODEL] += busiest
            seconds["backbone"] += sum(used) - busiest
        else:
            seconds[now.role] += sum(used)
    return seconds


def idle(server: Server) -> dict[str, float]:
    """CPU by role, in cores, of a service that nobody asks, once it has done what follows a start.

    It waits half a minute at most for that: a page for labelling is drawn ahead, for one.
    """
    while_idle: dict[str, float] = {}
    until = time.monotonic() + QUIET_S
    last = float("inf")
    while last > CALM and time.monotonic() < until:
        before, began = usage(server), time.monotonic()
        time.sleep(LOOK_S)
        used = spent(before, usage(server))
        while_idle = {role: each / (time.monotonic() - began) for role, each in used.items()}
        last = while_idle.get(MODEL, 0.0) + while_idle.get("labelling", 0.0)
    return while_idle


def named(process: psutil.Process) -> str:
    """What to call a process in a table: its role, or how its command line begins."""
    role = _role(process)
    with suppress(psutil.Error):
        return role if role != "rest" else " ".join(process.cmdline())[:80].strip()
    return role


def session_folder(server: Server) -> Path | None:
    """Ray's folder of sockets and logs for this service, as its processes name it."""
    for one in server.processes():
        with suppress(psutil.Error):
            if found := re.search(r"(/[^\s=]*?/session_\d[^/\s]*)", " ".join(one.cmdline())):
                return Path(found[1])
    return None


def disk(folder: Path | None) -> int:
    """Bytes of all files below a folder; 0 without one."""
    total = 0
    for path in folder.rglob("*") if folder else ():
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def role_of(command: str) -> str:
    """The role of a process by its command line."""
    return next((role for role, begins in ROLES if re.match(begins, f"{command} ")), "rest")


def _role(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return role_of(" ".join(process.cmdline()))
    return "gone"
