"""Real ports, read over HTTP."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from service.metrics.backbone import BackboneMetrics
from service.metrics.exporter import export, gather
from service.metrics.exposition import render
from service.metrics.judge import JudgeMetrics
from tests.metrics import parse, value
from tests.processes import free_port, wait_for


@pytest.fixture
def ports() -> tuple[int, int]:
    first = free_port()
    return first, min(first + 3, 65535)


def _page(ports: tuple[int, int]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return parse(render(gather(ports)))


def test_nothing_listens_and_the_page_is_there(ports: tuple[int, int]) -> None:
    assert _page(ports) == {}


def test_replicas_take_ports_of_their_own_and_one_page_has_them_all(
    ports: tuple[int, int],
) -> None:
    backbones = [BackboneMetrics("tiny", max_batch=8) for _ in range(2)]
    judge = JudgeMetrics("tiny")
    for count, one in enumerate(backbones, start=1):
        for _ in range(count):
            one.tick(rows=4, guided=0, gradient=0, negative=0, seconds=0.01)
        export(one.registry, "Backbone-tiny", ports)
    judge.duration.observe(0.002)
    export(judge.registry, "RewardModel-tiny", ports)
    wait_for(lambda: len({dict(labels)["replica"] for _, labels in _page(ports)}) == 3)
    page = _page(ports)
    names = {dict(labels)["replica"] for _, labels in page}
    assert all(name.rpartition("-")[0] in ("Backbone-tiny", "RewardModel-tiny") for name in names)
    assert value(page, "winnow_nfe_total", kind="plain") == 12
    assert value(page, "winnow_judge_duration_seconds_count") == 1
    # One family each, as Prometheus asks for, whatever the number of replicas.
    text = render(gather(ports))
    assert text.count("# TYPE winnow_nfe_total counter") == 1


@pytest.fixture
def stranger(ports: tuple[int, int]) -> Iterator[int]:
    """Something else that listens in the range, and has metrics too."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'node_load1 3\n{ , ="""a=LEH')

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", ports[0]), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ports[0]
    server.shutdown()
    server.server_close()


def test_a_strangers_port_is_passed_over(ports: tuple[int, int], stranger: int) -> None:
    export(JudgeMetrics("tiny").registry, "RewardModel-tiny", ports)
    wait_for(lambda: bool(_page(ports)))
    assert all(name.startswith("winnow_") for name, _ in _page(ports))


def test_a_replica_waits_for_a_port_that_is_still_taken(
    stranger: int, caplog: pytest.LogCaptureFixture
) -> None:
    only = stranger, stranger
    export(JudgeMetrics("tiny").registry, "RewardModel-tiny", only)
    wait_for(lambda: "are taken" in caplog.text)
    time.sleep(0.1)
    assert _page(only) == {}
