"""`winnow serve` from start to Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import (
    ROOT,
    Service,
    command_line,
    descendants,
    start,
    stop,
    wait_for,
)

pytestmark = pytest.mark.cluster
WINNOW = Path(sys.executable).with_name("winnow")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_no_process(tmp_path: Path, signum: int) -> None:
    log = tmp_path / "log"
    own = start(ROOT / "deploy/local.yaml", log)
    below = descendants(own.process.pid)
    assert len(below) > 4, "Ray runs below the command"
    stop(own, signum)
    assert own.process.returncode == 0
    wait_for(lambda: not [pid for pid in below if command_line(pid)], 20)
    shown = log.read_text()
    assert "curl" in shown
    assert "Stopped." in shown
    assert "wn-" not in shown, "a key is printed to a terminal only"


def test_a_taken_port_is_refused_at_once(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    answer = subprocess.run(
        [WINNOW, "serve", "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1
    assert f"port {port}" in answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr


def test_an_unknown_key_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    text = (ROOT / "deploy/local.yaml").read_text()
    config.write_text(text.replace("max_draws: 16", "max_draw: 16"))
    answer = subprocess.run(
        [WINNOW, "serve", config], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1
    assert "applications.0.args.policies.only-crossbar.max_draw" in answer.stdout


def test_more_replicas_than_cpus_are_refused_at_once(tmp_path: Path) -> None:
    """Ray would wait for them for ever, without a word."""
    config = tmp_path / "large.yaml"
    text = (ROOT / "deploy/local.yaml").read_text()
    config.write_text(text.replace("{num_cpus: 1}", "{num_cpus: 1000}"))
    answer = subprocess.run(
        [WINNOW, "serve", config], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1
    assert "the replicas ask for 1000.2 CPUs, and this machine has" in answer.stdout
