"""How a service ends, on services that other tests are done with: a start takes half a minute."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.cluster.node import DAEMONS
from tests.integration.conftest import Service
from tests.processes import children, command_line, descendants, wait_for

REQUESTS, IMAGES = 6, 4


def folder_of(log: Path) -> Path:
    """The folder in which a run's processes write."""
    [line] = [line for line in log.read_text().splitlines() if line.startswith("Logs     ")]
    return Path(line.split()[1])


def alive(pids: list[int]) -> list[str]:
    """The command lines of those that still run."""
    return [text for pid in pids if (text := command_line(pid))]


def interrupted(service: Service) -> None:
    """SIGINT while requests run: they are finished, and nothing is left."""
    below, folder = descendants(service.process.pid), folder_of(service.log)
    assert len(below) > 4, "Ray runs below the command"
    assert folder.stat().st_mode & 0o777 == 0o700, "nobody else may look into it"
    body = {"n": IMAGES, "num_inference_steps": 50}

    def ask(seed: int) -> int:
        answer = service.client.post("/v1/images/generations", json=body | {"seed": seed})
        return answer.status_code

    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = pool.map(ask, range(REQUESTS))
        drawn = ("winnow_slots_running", "winnow_draws_waiting")
        wait_for(lambda: sum(map(service.metric, drawn)) > IMAGES * (REQUESTS - 1))
        service.process.send_signal(signal.SIGINT)
    assert list(answers) == [200] * REQUESTS
    assert service.process.wait(120) == 0
    assert alive(below) == []
    assert not folder.exists()
    store = Path(service.store_url.removeprefix("sqlite:///"))
    assert store.exists()
    assert not Path(f"{store}-wal").exists(), "all that was written is in the file"
    shown = service.log.read_text()
    assert "curl" in shown
    assert "Stopping: no new requests" in shown
    assert shown.endswith("Stopped.\n")
    assert "wn-" not in shown, "a key is printed to a terminal only"


def killed(service: Service, *victims: str) -> None:
    """`supervisor`, `server` or both are killed: no process is left."""
    supervisor, folder = service.process.pid, folder_of(service.log)
    [server] = [pid for pid in children(supervisor) if "serve" in command_line(pid)]
    below = descendants(supervisor)
    for victim in victims:
        os.kill({"supervisor": supervisor, "server": server}[victim], signal.SIGKILL)
    wait_for(lambda: not alive(below))
    if victims == ("server",):
        assert service.process.wait(180) == 1
        shown = service.log.read_text()
        assert "The service ended unexpectedly, by SIGKILL." in shown
        assert shown.splitlines()[-1] == f"Logs: {folder}"


def without(service: Service, daemon: str) -> None:
    """One of Ray's own processes is killed: the service ends and says so."""
    below, folder = descendants(service.process.pid), folder_of(service.log)
    [victim] = [pid for pid in below if command_line(pid).split(" ")[0].endswith(f"/{daemon}")]
    os.kill(victim, signal.SIGKILL)
    assert service.process.wait(180) == 1
    assert alive(below) == []
    shown = service.log.read_text().split("Ctrl-C stops it.")[1].split("\n")
    # Ray may have said so in its own words before.
    assert [line for line in shown if line][-2:] == [
        f"Ray's {DAEMONS[daemon]} has ended, and nothing runs without it.",
        f"Logs: {folder}",
    ]
