"""One real service for all integration tests: `winnow serve`, as the README starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtest.bench.servers import ADMIN_KEY
from tests.processes import ROOT, command_line, descendants, free_port, wait_for

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@dataclass(frozen=True)
class Service:
    """A running `winnow serve` and the client to talk to it."""

    url: str
    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    @property
    def store_url(self) -> str:
        return f"sqlite:///{self.log.parent}/state/winnow/decisions.sqlite"

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas on this service's Ray."""
        return [pid for pid in descendants(self.process.pid) if deployment in command_line(pid)]

    def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def wait_ready(self, timeout_s: float = 180) -> None:
        """Return when backbone and judge answer again."""
        wait_for(lambda: self.client.get("/health/ready").status_code == 200, timeout_s)


def start(config: Path, log: Path, started: Callable[[Service], bool] | None = None) -> Service:
    """Start `winnow serve` and wait until it says that it is ready, or until `started`."""
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
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    service = Service(url, process, httpx.Client(base_url=url, timeout=120), log)
    try:
        said = started or (lambda _: "Winnow is ready" in log.read_text())
        wait_for(lambda: said(service) or process.poll() is not None, 600)
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
        service.process.wait(180)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shipped bundle under the local configuration."""
    log = tmp_path_factory.mktemp("service") / "log"
    running = start(ROOT / "deploy/local.yaml", log)
    yield running
    stop(running)
