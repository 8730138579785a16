"""What a supervised server leaves behind: nothing, however it or its supervisor ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from service.cluster import run_folder
from tests.processes import command_line, descendants, wait_for
from tests.service.cluster.runs import line_of, supervised

SERVES = """
    leave()
    leave(escape=True)
    os.makedirs(server.session.folder / "ray/session_2/logs")
    os.makedirs(server.session.folder / "ray/session_2/sockets")
    server.ready(5)
    print("serving", os.getpid(), flush=True)
    server.wait()
    print("draining", flush=True)
    return ExitStatus.STOPPED
"""
HANGS = SERVES.replace("return", "time.sleep(3600)\n    return")


@pytest.fixture
def root() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def sessions(root: Path) -> list[Path]:
    return sorted(root.glob(f"{run_folder.PREFIX}*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_server_finish_and_leaves_nothing(root: Path, signum: int) -> None:
    process = supervised(SERVES, root)
    line_of(process, "serving")
    [folder] = sessions(root)
    assert folder.stat().st_mode & 0o777 == 0o700
    below = descendants(process.pid)
    assert len(below) == 4, "a keeper, the server and what it left"
    process.send_signal(signum)
    assert "5 s to finish" in line_of(process, "Stopping")
    line_of(process, "draining")
    line_of(process, "Stopped.")
    assert process.wait(30) == 0
    assert not [pid for pid in below if command_line(pid)]
    assert sessions(root) == []


def test_a_killed_server_is_told_and_leaves_no_process(root: Path) -> None:
    process = supervised(SERVES, root)
    server = int(line_of(process, "serving"))
    below = descendants(process.pid)
    os.kill(server, signal.SIGKILL)
    assert line_of(process, "The service ended unexpectedly") == ", by SIGKILL."
    [folder] = sessions(root)
    assert line_of(process, "Logs:") == str(folder)
    assert process.wait(30) == 1
    assert not [pid for pid in below if command_line(pid)]


@pytest.mark.parametrize("both", [False, True])
def test_a_killed_supervisor_leaves_no_process(root: Path, both: bool) -> None:
    process = supervised(SERVES.replace("leave(escape=True)", "leave()"), root)
    server = int(line_of(process, "serving"))
    below = descendants(process.pid)
    process.kill()
    if both:
        os.kill(server, signal.SIGKILL)
    wait_for(lambda: not [pid for pid in below if command_line(pid)])
    [folder] = sessions(root)
    run_folder.begin({"RAY_TMPDIR": str(root)})
    assert [path.name for path in (folder / "ray/session_2").iterdir()] == ["logs"]


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
def test_requests_finish_where_nobody_reads_what_it_says(root: Path, signum: int) -> None:
    """As when the terminal was closed, or the other end of a pipe."""
    drained = root / "drained"
    touch = f"open({str(drained)!r}, 'w').close()"
    process = supervised(SERVES.replace('print("draining", flush=True)', touch), root)
    line_of(process, "serving")
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signum)
    assert process.wait(30) == 0
    assert drained.exists()
    assert sessions(root) == []


def test_a_second_signal_ends_at_once(root: Path) -> None:
    process = supervised(HANGS, root)
    line_of(process, "serving")
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    line_of(process, "draining")
    process.send_signal(signal.SIGTERM)
    line_of(process, "Stopped at once")
    assert process.wait(30) == 1
    assert not [pid for pid in below if command_line(pid)]


def test_a_stop_that_hangs_is_cut_off(root: Path) -> None:
    process = supervised(
        HANGS.replace("server.ready(5)", "server.ready(0.5)"),
        root,
        before="from service.cluster import supervisor; supervisor.SHUTDOWN_S = 0.0",
    )
    line_of(process, "serving")
    process.send_signal(signal.SIGTERM)
    line_of(process, "The stop took too long")
    assert process.wait(30) == 1


def test_a_signal_during_the_start_ends_it_at_once(root: Path) -> None:
    process = supervised('leave(); print("starting", flush=True); time.sleep(3600)', root)
    line_of(process, "starting")
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    line_of(process, "Stopped.")
    assert process.wait(30) == 0
    assert not [pid for pid in below if command_line(pid)]
    assert sessions(root) == []


@pytest.mark.parametrize("how", ["return ExitStatus.RAY_FAILED", "os.abort()", "os._exit(1)"])
def test_what_does_not_start_is_tried_once_more(root: Path, how: str) -> None:
    process = supervised(f'leave(); print("try", flush=True); {how}', root)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert shown.count("try\n") == 2
    assert shown.count("Trying once more.") == 1
    assert {f"Logs: {folder}" in shown for folder in sessions(root)} == {True}
    assert "Traceback" not in shown


def test_a_fault_of_ours_is_one_line_and_a_log(root: Path) -> None:
    process = supervised('server.ready(5); raise OSError("broken")', root)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    [folder] = sessions(root)
    assert shown == f"The service broke off: OSError: broken\nLogs: {folder}\n"
    assert "OSError: broken" in (folder / run_folder.ERRORS).read_text()


def test_a_refused_configuration_leaves_no_folder(root: Path) -> None:
    process = supervised('print("no", flush=True); return ExitStatus.REFUSED', root)
    shown, _ = process.communicate(timeout=60)
    assert (process.returncode, shown) == (1, "no\n")
    assert sessions(root) == []
