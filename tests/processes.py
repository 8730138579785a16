"""Waiting for conditions, and looking at the processes and ports of this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Poll until the condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """All living processes below a process."""
    return _below(pid, recursive=True)


def children(pid: int) -> list[int]:
    """The living processes that a process has started."""
    return _below(pid, recursive=False)


def _below(pid: int, recursive: bool) -> list[int]:
    try:
        found = psutil.Process(pid).children(recursive)
    except psutil.NoSuchProcess:
        return []
    return [one.pid for one in found if command_line(one.pid)]


def command_line(pid: int) -> str:
    """What `ps` shows of a process, or nothing if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
