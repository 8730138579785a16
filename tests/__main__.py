"""All tests, as `make test` runs them: those that start Ray beside those that do not.

A Ray cluster mostly waits, and two at once would choke a small machine: so its tests run one
after another in one process, and the others meanwhile in as many as there are cores.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from types import FrameType

ON_RAY = ["-m", "cluster"]
# A file's tests share a server, so a file stays in one process.
OTHERS = [
    "-m", "not cluster",
    "--numprocesses", "logical", "--dist", "loadfile", "--no-loadscope-reorder",
]  # fmt: skip


def main() -> int:
    """Run both parts, show the output of the first after that of the second; 0 if both passed."""
    running: list[subprocess.Popen[bytes]] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for part in running:
            if part.poll() is None:
                os.killpg(part.pid, signal.SIGINT)

    # Also where SIGINT was ignored before, as it is in a shell's background.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    started = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="winnow-tests-on-ray-", suffix=".log") as log:
        said = f"Tests on Ray run meanwhile, and are shown at the end: tail -f {log.name}"
        print(said, flush=True)  # noqa: T201
        for arguments, output in ((ON_RAY, log), (OTHERS, None)):
            command = [sys.executable, "-m", "pytest", *arguments]
            running.append(
                subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT if output else None,
                    process_group=0,
                )
            )  # fmt: skip
        on_ray, others = [part.wait() for part in running]
        log.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(log.read())
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    told = {0: "passed"}
    print(  # noqa: T201
        f"On Ray: {told.get(on_ray, f'FAILED ({on_ray})')}. "
        f"The others, above: {told.get(others, f'FAILED ({others})')}. {minutes} min {seconds} s."
    )
    return int(bool(on_ray or others))


if __name__ == "__main__":
    sys.exit(main())
