"""The descendants of this process: find, watch and end them. Linux alone."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own (PR_SET_CHILD_SUBREAPER).

    So none escapes `end_all`. Raises OSError.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def end_all(timeout_s: float = 20.0) -> bool:
    """Kill every process below this one, and wait; False when some outlive `timeout_s`.

    It also reaps children that other code may be waiting for.
    """
    deadline = time.monotonic() + timeout_s
    while living := descendants():
        for pid in living:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    _reap()
    return True


def descendants() -> list[int]:
    """The living processes below this one."""
    children: dict[int, list[int]] = {}
    dead = set()
    for pid, parent, state in _processes():
        children.setdefault(parent, []).append(pid)
        if state in "ZX":
            dead.add(pid)
    found, queue = [], [os.getpid()]
    while queue:
        # Dead ones are followed too: their children may have been read before they were handed on.
        below = children.get(queue.pop(), [])
        found += [pid for pid in below if pid not in dead]
        queue += below
    return found


def children(names: Mapping[str, str]) -> dict[int, str]:
    """This process's living children whose program is in `names`, and what `names` calls it."""
    found = {}
    for pid, parent, state in _processes():
        if parent == os.getpid() and state not in "ZX":
            with suppress(OSError):
                program = Path(os.readlink(f"/proc/{pid}/exe")).name
                if program in names:
                    found[pid] = names[program]
    return found


def wait_for_end(pids: Mapping[int, str]) -> str:
    """Wait until the first of these has ended; returns its name."""
    with ExitStack() as stack:
        ends = {}
        for pid, name in pids.items():
            try:
                end = os.pidfd_open(pid)
            except ProcessLookupError:
                return name
            stack.callback(os.close, end)
            ends[end] = name
        ended, _, _ = select.select(list(ends), [], [])
        return ends[ended[0]]


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent's id and state of each process of the machine."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                text = Path(entry.path, "stat").read_text(errors="replace")
                # The name, in brackets, may hold anything.
                state, parent = text.rsplit(")", 1)[1].split()[:2]
                yield int(entry.name), int(parent), state


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
