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
import yaml

from service.cluster.ray_environment import ONE_MACHINE
from service.store.store import Store

START_S = 600.0
STOP_S = 60.0
ADMIN_KEY = "a-key-for-benchmarks-alone"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@dataclass(frozen=True)
class Server:
    """One that answers: its name, how to ask it for one image, and the process that started it.

    `folder` holds what it writes: its log and, if it is Winnow, its store.
    """

    name: str
    url: str
    path: str
    body: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    folder: Path = Path()

    def processes(self) -> list[psutil.Process]:
        """All living processes of its session or below its process, orphans included."""
        assert self.process is not None
        return _session(self.process.pid)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Winnow's store, which it may be writing to meanwhile."""
        state = self.folder / "winnow"
        store = Store(f"sqlite:///{state}/decisions.sqlite", str(state / "blobs"), create=False)
        try:
            yield store
        finally:
            store.close()

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a Serve deployment's replicas."""
        found = []
        for one in self.processes():
            with suppress(psutil.Error):
                if deployment in " ".join(one.cmdline()):
                    found.append(one.pid)
        return found


@contextmanager
def winnow(config: Path | dict[str, Any] = Path("deploy/local.yaml")) -> Iterator[Server]:
    """Winnow under a configuration, with its store in a folder of its own."""
    with TemporaryDirectory(prefix="wn-") as folder:
        if isinstance(config, dict):
            file = Path(folder, "winnow.yaml")
            file.write_text(yaml.safe_dump(config))
            config = file
        env = {"WINNOW_ADMIN_KEY": ADMIN_KEY, "XDG_STATE_HOME": folder}
        command = [str(Path(sys.executable).with_name("winnow")), "serve", str(config)]
        with _running(command, env, "/health/ready", Path(folder, "log")) as (url, process):
            body = {"policy": "no-crossbar", "num_inference_steps": 50}
            yield Server("Winnow", url, "/v1/images/generations", body, process, Path(folder))


def replicated(count: int = 2, backbones: int | None = None) -> dict[str, Any]:
    """The laptop's configuration with `count` replicas of everything, or so many backbones."""
    file: dict[str, Any] = yaml.safe_load(Path("deploy/local.yaml").read_text())
    args = file["applications"][0]["args"]
    each = {"num_replicas": count, "ray_actor_options": {"num_cpus": 0.1}}
    for model in args["models"].values():
        model["judge"]["replicas"] = each
        model["backbone"]["replicas"] = each | {"num_replicas": backbones or count}
    args["ingress"] |= each
    return file


@contextmanager
def peer(name: str, module: str) -> Iterator[Server]:
    """A peer from `loadtest.peers`."""
    command = [sys.executable, "-m", module]
    with _running(command, {}, "/docs", Path(os.devnull)) as (url, process):
        yield Server(name, url, "/images", {}, process)


@contextmanager
def _running(
    command: list[str], env: dict[str, str], ready: str, log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=FAST_RAY | os.environ | env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while not answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                said = "" if log.is_char_device() else f":\n{log.read_text()[-2000:]}"
                raise RuntimeError(f"{' '.join(command)} did not start{said}")
            time.sleep(0.2)
        yield url, process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        # Whatever a test did to it: nothing outlives the test.
        for one in _session(process.pid):
            with suppress(psutil.Error):
                one.kill()
        process.wait()


def _session(pid: int) -> list[psutil.Process]:
    """Living processes of the session that a process began, and those below it."""
    found = {}
    with suppress(psutil.Error):
        found = {one.pid: one for one in psutil.Process(pid).children(recursive=True)}
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) == pid:
                found[one.pid] = one
    living = []
    for one in found.values():
        with suppress(psutil.Error):
            if one.status() != psutil.STATUS_ZOMBIE:
                living.append(one)
    return living


FAST_RAY = ONE_MACHINE | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
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
