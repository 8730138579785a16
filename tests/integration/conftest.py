"""One real service for all integration tests: `winnow serve`, as the README starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "an-admin-key-for-tests"


@dataclass(frozen=True)
class Service:
    """A running `winnow serve` and the client to talk to it."""

    url: str
    process: subprocess.Popen[str]
    client: httpx.Client
    store_url: str

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas on this service's Ray."""
        return [pid for pid in descendants(self.process.pid) if deployment in command_line(pid)]

    def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Return when backbone and judge answer again."""
        wait_for(lambda: self.client.get("/health/ready").status_code == 200, timeout_s)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Poll until the condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """All living processes below a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def command_line(pid: int) -> str:
    """What `ps` shows of a process, or nothing if it is gone."""
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


def start(config: Path, log: Path) -> Service:
    """Start `winnow serve` and wait until it is ready."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("winnow"), "serve", config, "--port", str(port)],
            cwd=ROOT,
            # The store goes beside the log, not into the home of whoever runs the tests.
            env=os.environ
            | {"WINNOW_ADMIN_KEY": ADMIN_KEY, "XDG_STATE_HOME": str(log.parent / "state")},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    url = f"http://127.0.0.1:{port}"
    store_url = f"sqlite:///{log.parent}/state/winnow/decisions.sqlite"
    service = Service(url, process, httpx.Client(base_url=url, timeout=120), store_url)
    try:
        wait_for(lambda: "Winnow is ready" in log.read_text() or process.poll() is not None, 180)
        assert process.poll() is None, log.read_text()
    except BaseException:
        stop(service)
        raise
    return service


def stop(service: Service, signum: int = signal.SIGINT) -> None:
    """End the service as Ctrl-C does, or with another signal."""
    service.client.close()
    if service.process.poll() is None:
        service.process.send_signal(signum)
        service.process.wait(60)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shipped bundle under the local configuration."""
    log = tmp_path_factory.mktemp("service") / "log"
    running = start(ROOT / "deploy/local.yaml", log)
    yield running
    stop(running)
