"""The process that a user starts: it forks the server, watches it, and clears up after it.

It does nothing but handle the user's signals, so that no fault of Ray delays its end. However the
server ends, the supervisor ends all its descendants; however the supervisor ends, the server dies
with it, and a reaper ends what is left.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NoReturn

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

from service.cluster import processes, reaper
from service.cluster import run_folder as session
from service.cluster.run_folder import RunFolder

STOP_S = 0.1
"""The interval at which a start looks for a stop."""
SHUTDOWN_S = 30.0
"""The time limit for Serve to shut down once no request runs."""


class ExitStatus(IntEnum):
    """How a server ended; its exit code."""

    STOPPED = 0
    REFUSED = 78
    """The configuration cannot be served: reported, and there are no logs."""
    FAILED = 70
    """It did not start, or failed: reported, with more in the logs."""
    RAY_FAILED = 75
    """Ray itself did not start: reported, and tried again once."""


class ServerProcess:
    """The server's side of its connection to the supervisor."""

    def __init__(self, session: RunFolder, control: socket.socket) -> None:
        self.session = session
        self._control = control
        self._stop = threading.Event()
        threading.Thread(target=self._wait_for_stop, name="supervisor", daemon=True).start()

    def ready(self, grace_s: float) -> None:
        """Let a stop leave requests `grace_s` to finish; before this call it is immediate."""
        self._control.sendall(f"{grace_s}\n".encode())

    def stop(self) -> None:
        """Let `wait` return."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the service is to stop."""
        return self._stop.is_set()

    def run(self, work: Callable[[], None]) -> None:
        """Run `work`, but return early once the service is to stop. Raises what it raises."""
        raised: list[Exception] = []

        def do() -> None:
            try:
                work()
            except Exception as error:  # raised where it is waited for
                raised.append(error)

        thread = threading.Thread(target=do, name="start", daemon=True)
        thread.start()
        while thread.is_alive() and not self.stopping:
            thread.join(STOP_S)
        if raised:
            raise raised[0]

    def wait(self) -> None:
        """Wait until the service is to stop."""
        self._stop.wait()

    def _wait_for_stop(self) -> None:
        while self._control.recv(64):
            self.stop()


Serve = Callable[[ServerProcess], ExitStatus]


def supervise(serve: Serve, console: Console, keep_logs: bool = False) -> int:
    """Run `serve` in a process of its own until it ends or a signal ends it; the exit code.

    SIGINT, SIGTERM or SIGHUP: what runs is finished. A second one: everything ends at once.
    """
    processes.adopt_orphans()
    with _signals() as signals:
        outcome = _Run(serve, console, signals, keep_logs).run()
        if outcome is ExitStatus.RAY_FAILED:
            print_line(console, "Trying once more.")
            outcome = _Run(serve, console, signals, keep_logs).run()
    return 0 if outcome is ExitStatus.STOPPED else 1


@dataclass
class _Run:
    """One server, from fork to the end of its last descendant."""

    serve: Serve
    console: Console
    signals: int
    keep_logs: bool
    grace_s: float | None = None
    deadline: float | None = field(default=None, init=False)

    def run(self) -> ExitStatus:
        own = session.begin(os.environ)
        ours, theirs = socket.socketpair()
        reaper_pipe = _start_reaper()
        self.console.file.flush()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(reaper_pipe)
            _run_server(self.serve, own, theirs, supervisor)
        theirs.close()
        os.write(reaper_pipe, str(pid).encode())
        outcome = ExitStatus.FAILED
        try:
            outcome = self._watch(pid, ours)
        finally:
            ended = processes.end_all()
            self._clear_line()
            ours.close()
            os.close(reaper_pipe)
            failed = outcome in (ExitStatus.FAILED, ExitStatus.RAY_FAILED)
            own.end(keep_logs=self.keep_logs or failed)
        if not ended:
            print_line(self.console, "Some processes could not be ended: see `ps`.")
        if failed or self.keep_logs:
            print_line(self.console, f"Logs: {own.folder}")
        if outcome is ExitStatus.STOPPED:
            print_line(self.console, "Stopped.")
        return outcome

    def _watch(self, pid: int, control: socket.socket) -> ExitStatus:
        """Wait for the end of the server, or for a signal, and then no longer than it may take."""
        with selectors.DefaultSelector() as ready, open(os.pidfd_open(pid), "rb") as end:
            ready.register(end, selectors.EVENT_READ, "end")
            ready.register(self.signals, selectors.EVENT_READ, "signal")
            ready.register(control, selectors.EVENT_READ, "control")
            while True:
                left = None if self.deadline is None else self.deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._say("The stop took too long: what was left has been killed.")
                    return ExitStatus.FAILED
                happened = {key.data: key for key, _ in ready.select(left)}
                if "control" in happened and not self._read_grace(control):
                    ready.unregister(control)
                if "end" in happened:
                    return self._ended(os.waitpid(pid, 0)[1])
                if "signal" in happened:
                    for _ in os.read(self.signals, 64):
                        if self.grace_s is None:
                            return ExitStatus.STOPPED
                        if self.deadline is not None:
                            self._say("Stopped at once: what still ran was cut off.")
                            return ExitStatus.FAILED
                        self._stop(control, self.grace_s)

    def _read_grace(self, control: socket.socket) -> bool:
        text = control.recv(64)
        if text:
            self.grace_s = float(text)
        return bool(text)

    def _stop(self, control: socket.socket, grace_s: float) -> None:
        self._say(
            f"Stopping: no new requests; those that run have {grace_s:g} s to finish. "
            "Once more (Ctrl-C) cuts them off."
        )
        self.deadline = time.monotonic() + grace_s + SHUTDOWN_S
        with suppress(OSError):  # it has just ended by itself
            control.sendall(b"stop\n")

    def _ended(self, status: int) -> ExitStatus:
        code = os.waitstatus_to_exitcode(status)
        if code in set(ExitStatus):
            return ExitStatus(code)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._say(f"The service ended unexpectedly, {how}.")
        return ExitStatus.FAILED if self.grace_s is not None else ExitStatus.RAY_FAILED

    def _say(self, text: str) -> None:
        self._clear_line()
        print_line(self.console, text)

    def _clear_line(self) -> None:
        """Erase the progress line of a server that was killed."""
        if self.console.is_terminal:
            with suppress(OSError):
                self.console.control(
                    Control(
                        ControlType.CARRIAGE_RETURN,
                        (ControlType.ERASE_IN_LINE, 2),
                        ControlType.SHOW_CURSOR,
                    )
                )


def print_line(console: Console, text: str) -> None:
    """Print a line; ignore a terminal that was closed."""
    with suppress(OSError, SystemExit):  # rich exits when a pipe is broken
        console.print(text, soft_wrap=True, markup=False)


def _start_reaper() -> int:
    """A pipe to the reaper, which acts when all that hold it have ended."""
    readable, writable = os.pipe()
    subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__],
        stdin=readable,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    os.close(readable)
    return writable


def _run_server(serve: Serve, own: RunFolder, control: socket.socket, supervisor: int) -> NoReturn:
    """Run the server in the forked process, and exit."""
    code = int(ExitStatus.FAILED)
    try:
        # Out of the terminal's reach: its Ctrl-C is for the supervisor alone.
        os.setsid()
        processes.die_with_parent(supervisor)
        signal.set_wakeup_fd(-1)
        errors = os.open(own.errors, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        code = int(serve(ServerProcess(own, control)))
    except BaseException as error:
        traceback.print_exc()
        text = f"The service broke off: {type(error).__name__}: {error}"
        with suppress(OSError):
            sys.stdout.write(text.splitlines()[0] + "\n")
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor with a byte for each signal that asks for the end."""
    readable, writable = socket.socketpair()
    writable.setblocking(False)
    old_descriptor = signal.set_wakeup_fd(writable.fileno())
    # `nohup` has SIGHUP ignored, and that is respected.
    wanted = [signal.SIGINT, signal.SIGTERM]
    wanted += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    old = {signum: signal.signal(signum, lambda *_: None) for signum in wanted}
    try:
        yield readable.fileno()
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(old_descriptor)
        readable.close()
        writable.close()
