"""Servers under test: started as a user starts them, waited for, and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from service.cli.serve import QUICK_START

START_S = 180.0
ADMIN_KEY = "a-key-for-benchmarks-alone"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@dataclass(frozen=True)
class Server:
    """One that answers: its name, how to ask it for one image, and the process that started it."""

    name: str
    url: str
    path: str
    body: dict[str, Any]
    pid: int = 0

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a Serve deployment's replicas below that process."""
        found = []
        for child in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.Error):
                if deployment in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found


@contextmanager
def winnow(config: Path = Path("deploy/local.yaml")) -> Iterator[Server]:
    """Winnow under a configuration, with its store in a folder of its own."""
    with TemporaryDirectory() as folder:
        env = {"WINNOW_ADMIN_KEY": ADMIN_KEY, "XDG_STATE_HOME": folder}
        command = [str(Path(sys.executable).with_name("winnow")), "serve", str(config)]
        with _running(command, env, "/health/ready") as (url, pid):
            body = {"policy": "no-crossbar", "num_inference_steps": 50}
            yield Server("Winnow", url, "/v1/images/generations", body, pid)


@contextmanager
def peer(name: str, module: str) -> Iterator[Server]:
    """A peer from `loadtest.peers`."""
    with _running([sys.executable, "-m", module], {}, "/docs") as (url, pid):
        yield Server(name, url, "/images", {}, pid)


@contextmanager
def _running(command: list[str], env: dict[str, str], ready: str) -> Iterator[tuple[str, int]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=FAST_RAY | os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_S
        while not answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start: run it by hand to see why")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


FAST_RAY = QUICK_START | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
"""What `winnow serve` sets for itself, for the peer on Ray as well."""


def answers(url: str) -> bool:
    """Whether a GET is a success."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
