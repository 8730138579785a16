"""Ends the server's processes when the supervisor is gone: a program of its own.

The supervisor holds the other end of its stdin, which the kernel closes with it, and has written
the id of the server's session, as POSIX means it: Ray's processes are all in it. The server and
Ray's daemons die with their parents by themselves, and workers with those; but Ray's agents try for
more than a minute to report it. It imports the standard library alone, since it runs all the time.
"""

import os
import signal
import sys
import time
from contextlib import suppress


def main() -> None:
    """Wait for the end of stdin."""
    line = sys.stdin.read()
    if line:
        _end(int(line))


def _end(session: int) -> None:
    deadline = time.monotonic() + 20
    while (living := _members(session)) and time.monotonic() < deadline:
        for pid in living:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _members(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as stat:
                # The name, in brackets, may hold anything.
                state, _, _, of = stat.read().rsplit(")", 1)[1].split()[:4]
                if int(of) == session and state not in "ZX":
                    found.append(int(name))
    return found


if __name__ == "__main__":
    main()
