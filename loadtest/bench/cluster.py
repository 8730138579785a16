"""A Ray cluster of one machine that is told what to serve as KubeRay tells it: over REST."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from loadtest.bench.servers import ADMIN_KEY, FAST_RAY, START_S, Server, answers, free_port


@dataclass(frozen=True)
class Cluster:
    """A head that runs, where its dashboard listens, and what it serves."""

    dashboard: str
    server: Server

    def apply(self, document: dict[str, Any]) -> None:
        """Hand over a Serve config file; returns when all of it runs and is healthy."""
        url = f"{self.dashboard}/api/serve/applications/"
        httpx.put(url, json=document, timeout=30).raise_for_status()
        deadline = time.monotonic() + START_S
        time.sleep(1)  # what is asked at once still tells of what was before
        while True:
            (application,) = httpx.get(url, timeout=30).json()["applications"].values()
            if application["status"] == "RUNNING":
                return
            if application["status"] == "DEPLOY_FAILED" or time.monotonic() > deadline:
                raise RuntimeError(f"{application['status']}: {application['message']}")
            time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Ray as a pod starts it, with a store in a folder of its own."""
    port, dashboard = free_port(), free_port()
    with TemporaryDirectory(prefix="wn-") as folder:
        ports = {
            "--port": free_port(),
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": free_port(),
            "--num-cpus": 8,
        }
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block",
                   "--temp-dir", folder, "--disable-usage-stats",
                   *(str(part) for pair in ports.items() for part in pair)]  # fmt: skip
        process = subprocess.Popen(
            command,
            env=FAST_RAY
            | os.environ
            | {"WINNOW_ADMIN_KEY": ADMIN_KEY, "XDG_STATE_HOME": f"{folder}/state"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            listens = f"http://127.0.0.1:{dashboard}"
            deadline = time.monotonic() + START_S
            while not answers(f"{listens}/api/version"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("Ray did not start")
                time.sleep(0.2)
            yield Cluster(listens, Server("Winnow", url, "/v1/images/generations", {}, process.pid))
        finally:
            ours = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
            for child in ours:
                if child.is_running():
                    child.kill()
