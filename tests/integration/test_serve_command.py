"""`winnow serve` from start to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration import endings
from tests.integration.conftest import Service, start, stop
from tests.processes import ROOT, command_line, descendants, free_port, wait_for

pytestmark = pytest.mark.cluster
WINNOW = Path(sys.executable).with_name("winnow")


def raylets() -> set[int]:
    """The raylets below this test."""
    below = descendants(os.getpid())
    return {pid for pid in below if command_line(pid).split(" ")[0].endswith("/raylet")}


def test_a_request_is_one_line_of_the_logs(service: Service) -> None:
    """Serve would add one for each call between replicas, twice, and Ray's C++ more."""
    body = {"n": 2, "seed": 1, "num_inference_steps": 20}
    answer = service.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200
    logs = endings.folder_of(service.log) / "ray/session_latest/logs"

    def lines(said: str) -> list[str]:
        texts = [path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()]
        return [line for text in texts for line in text.splitlines() if said in line]

    own = answer.headers["x-request-id"]
    # It is written after the answer.
    wait_for(lambda: lines(own) != [])
    [line] = lines(own)
    assert json.loads(line)["event"] == "generation"
    assert lines(" CALL ") == []


def test_what_was_asked_before_the_start_was_over_is_finished(tmp_path: Path) -> None:
    def answers(service: Service) -> bool:
        try:
            return service.client.get("/health/ready").is_success
        except httpx.TransportError:
            return False

    early = start(ROOT / "deploy/local.yaml", tmp_path / "log", answers)
    body = {"n": 4, "num_inference_steps": 50}
    try:
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(early.client.post, "/v1/images/generations", json=body)
            # On a slow machine the page of metrics may come after the images.
            wait_for(lambda: asked.done() or early.metric("winnow_slots_running") > 0)
            early.process.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 200
        assert early.process.wait(120) == 0
    finally:
        stop(early)


def test_a_raylet_may_take_longer_than_ray_allows_but_not_end(tmp_path: Path) -> None:
    """Ray gives up after 30 s, and a busy machine is slower: here the raylet is held up for 35."""
    log = tmp_path / "log"
    before = raylets()

    def hold_up() -> None:
        wait_for(lambda: raylets() > before)
        [raylet] = raylets() - before
        os.kill(raylet, signal.SIGSTOP)
        time.sleep(35)
        os.kill(raylet, signal.SIGCONT)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold_up)
        running = start(ROOT / "deploy/local.yaml", log)
        holding.result()
    try:
        assert "Trying once more" not in log.read_text()
        endings.without(running, "raylet")
    finally:
        stop(running)


def test_a_start_that_fails_is_two_lines_and_a_second_try(tmp_path: Path) -> None:
    """Ray has no port for its GCS: any fault of its own is told in this way."""
    answer = subprocess.run(
        [WINNOW, "serve", "--port", str(free_port())],
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "RAY_gcs_server_port_wait_time_s": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 1
    shown = answer.stdout + answer.stderr
    assert "Traceback" not in shown
    once = ["The service did not start: …", "Logs: …"]
    told = [line.split(":")[0] + ": …" if ":" in line else line for line in shown.splitlines()]
    assert told == [*once, "Trying once more.", *once]
    folders = [Path(line.split()[1]) for line in shown.splitlines() if line.startswith("Logs:")]
    assert "Traceback" in (folders[1] / "serve.err").read_text()


def test_a_taken_port_is_refused_at_once(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    answer = subprocess.run(
        [WINNOW, "serve", "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert answer.returncode == 1
    assert f"port {port}" in answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr


def test_an_unknown_key_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    text = (ROOT / "deploy/local.yaml").read_text()
    config.write_text(text.replace("max_draws: 16", "max_draw: 16"))
    answer = subprocess.run(
        [WINNOW, "serve", config], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert answer.returncode == 1
    assert "applications.0.args.policies.only-crossbar.max_draw" in answer.stdout


def test_more_replicas_than_cpus_are_refused_at_once(tmp_path: Path) -> None:
    """Ray would wait for them for ever, without a word."""
    config = tmp_path / "large.yaml"
    text = (ROOT / "deploy/local.yaml").read_text()
    config.write_text(text.replace("{num_cpus: 1}", "{num_cpus: 1000}"))
    answer = subprocess.run(
        [WINNOW, "serve", config], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert answer.returncode == 1
    assert "replicas.ray_actor_options.num_cpus: the replicas ask for 1000.2 CPU" in answer.stdout
