"""Supervised servers that need no Ray: real processes, which leave others behind them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.processes import ROOT

LEAVE = """
def leave(escape=False):
    # As Ray's agents may: its parent gone, deaf to polite signals.
    if os.fork() == 0:
        if os.fork() == 0:
            if escape:
                os.setsid()
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            while True:
                time.sleep(1)
        os._exit(0)
    os.wait()
"""


def supervised(serve: str, folder: Path, before: str = "") -> subprocess.Popen[str]:
    """A supervisor whose server runs the body `serve`, with `server` and `leave()` at hand.

    The supervisor itself runs `before`.
    """
    program = (
        "import os, signal, sys, time\n"
        # Whoever runs the tests under nohup has it ignored, and that is inherited.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from rich.console import Console\n"
        "from service.cluster.supervisor import ExitStatus, supervise\n"
        + LEAVE
        + "def serve(server):\n"
        + textwrap.indent(textwrap.dedent(serve), "    ")
        + f"\n{before}\nsys.exit(supervise(serve, Console(file=sys.stdout)))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"RAY_TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def line_of(process: subprocess.Popen[str], beginning: str) -> str:
    """Read what it prints up to the line that begins so; returns the rest of that line."""
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        shown.append(line)
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"no line {beginning!r} in: {''.join(shown)}")
