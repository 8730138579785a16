"""The harness of chaos sees what went wrong: answers, audits, floods, slow senders, slopes."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import callers
from loadtest.bench import load
from loadtest.bench.servers import Server
from loadtest.callers import Answer
from loadtest.chaos import generators, overload, senders, soak, stop
from loadtest.chaos.__main__ import SCENARIOS
from loadtest.chaos.audit import BLOCKED, audit, outcome
from loadtest.chaos.deaths import Death, promises
from loadtest.chaos.generators import Sent
from loadtest.chaos.processes import Usage, role_of, spent
from loadtest.chaos.senders import Manner
from loadtest.lines import Line
from models.bundles.bundle import Bundle
from service.images.encode import to_png
from tests.service.api.server import Served, serve
from tests.stores import open_store

BODY = {"policy": "bright", "n": 1, "num_inference_steps": 20}
ENVELOPE = {"error": {"message": "full", "type": "server_error", "code": "overloaded"}}


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    """A server that anybody may ask."""
    auth = {"anonymous": True, "anonymous_scopes": ["generate", "scores"]}
    with serve(bundle, auth=auth) as served:
        yield served


def _http(status: int, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextmanager
def _saying(raw: bytes | None, after_s: float = 0.0) -> Iterator[str]:
    """A server that says these bytes to whoever connects, and closes; None: it never answers."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    held: list[socket.socket] = []

    def say(connection: socket.socket) -> None:
        time.sleep(after_s)
        connection.recv(65536)
        connection.sendall(raw or b"")
        connection.close()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            if raw is not None:
                threading.Thread(target=say, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for connection in held:
            connection.close()


def _ask(url: str, timeout_s: float = 30.0, **body: Any) -> Answer:
    async def one() -> Answer:
        async with callers.client(url, timeout_s) as client:
            return await callers.ask(client, BODY | body)

    return asyncio.run(one())


@pytest.mark.parametrize(
    ("raw", "code", "enveloped"),
    [
        (_http(429, json.dumps(ENVELOPE).encode(), "Retry-After: 2\r\n"), "overloaded", True),
        (_http(500, b"Internal Server Error"), "plain 500", False),
        (_http(404, b'{"detail": "Not Found"}'), "plain 404", False),
        (_http(500, b'{"error": "of some kind"}'), "plain 500", False),
        (_http(200, b"<html>"), "plain 200", False),
        (_http(200, b'{"data": [{"b64_json": null}]}'), "200", True),
        (_http(200, b'{"data": [{"b64_json": "AA=="}]}'), "image", True),
        (b"", "reset", False),
        (_http(200, b"{}")[:-1], "reset", False),
        (None, "silent", False),
    ],
)
def test_answers_are_told_apart(raw: bytes | None, code: str, enveloped: bool) -> None:
    with _saying(raw) as url:
        answer = _ask(url, timeout_s=0.5 if raw is None else 30)
    assert (answer.code, answer.enveloped) == (code, enveloped)
    assert answer.settled == (code == "image")


def test_a_refused_connection_is_no_reset() -> None:
    with _saying(b"") as url:
        pass
    assert _ask(url).code == "refused"


def test_callers_ask_again_until_told_to_stop(server: Served) -> None:
    with callers.asking(server.url, 2, lambda number: BODY | {"seed": number}) as answers:
        while len(answers) < 10:
            time.sleep(0.01)
    assert sorted(one.seed for one in answers) == list(range(len(answers)))
    assert {one.settled for one in answers} == {True}


def test_benchmarks_send_through_the_same_callers(server: Served) -> None:
    asked = Server("x", server.url, callers.PATH, BODY | {"censor": {"on_filtered": "never"}})
    before = len(server.paths)
    run = asyncio.run(load.offer(asked, 20, 1, seed=3))
    assert len(run.seconds) + run.failed == len(server.paths) - before
    assert len(run.seconds) + run.failed == len(load.poisson(20, 1, 3))
    assert asyncio.run(load.capacity(asked, 2, 1.0)) > 0


@pytest.fixture(scope="module")
def delivered(server: Served) -> Answer:
    """An image that the server delivered."""
    answers = [_ask(server.url, seed=seed) for seed in range(8)]
    return next(one for one in answers if one.image)


def _missed(lines: list[Line]) -> set[str]:
    return {line.figure for line in lines if not line.met}


def test_an_audit_finds_nothing_in_what_was_judged(server: Served, delivered: Answer) -> None:
    lines = audit("x", [delivered], {delivered.seed: outcome(delivered)}, server.store)
    assert _missed(lines) == set()
    assert lines[0].measured == "1, of 1 seeds"


def test_an_audit_finds_what_should_not_have_left(
    server: Served, delivered: Answer, tmp_path: Path
) -> None:
    seed, was = delivered.seed, outcome(delivered)
    unlike, blocked = "images unlike the calm run's", "images of a seed that was blocked"
    unproven = "images without a record that accepts them"
    assert _missed(audit("x", [delivered], {seed: "sha256:0"}, server.store)) == {unlike}
    assert _missed(audit("x", [delivered], {seed: BLOCKED}, server.store)) == {blocked}
    other = open_store(f"sqlite:///{tmp_path}/decisions.sqlite")
    assert _missed(audit("x", [delivered], {seed: was}, other)) == {unproven}
    other.close()
    # The record is there, and of another image: the bytes that left are not those that were judged.
    data = (delivered.said or {})["data"][0]
    png = base64.b64encode(to_png(np.zeros((4, 6, 1), np.uint8))).decode()
    swapped = replace(delivered, said=(delivered.said or {}) | {"data": [data | {"b64_json": png}]})
    assert _missed(audit("x", [swapped], {seed: was}, server.store)) == {unlike, unproven}
    # A judge that accepted another draw has not accepted this one.
    later = replace(delivered, said=(delivered.said or {}) | {"data": [data | {"draws": 99}]})
    assert _missed(audit("x", [later], {seed: was}, server.store)) == {unproven}


def _answer(status: int = 200, seconds: float = 0.1, sent: float = 0.0, broken: str = "") -> Answer:
    said = {"data": [{"b64_json": "AA=="}]} if status == 200 else ENVELOPE
    return Answer(1, sent, sent + seconds, status, {}, said if status else None, broken)


@pytest.mark.parametrize(
    ("bad", "figure"),
    [
        (_answer(500, 0.1) , "succeeded"),
        (replace(_answer(500), said=None), "answers that are no JSON"),
        (_answer(200, 11.5), "answers later than"),
        (_answer(504, 11.5), "answers later than"),
        (_answer(0, 11.5, broken="reset"), "answers later than"),
        (_answer(0, 60.0, broken="silent"), "requests without any answer"),
    ],
)  # fmt: skip
def test_each_promise_under_deaths_can_be_missed(bad: Answer, figure: str) -> None:
    good = [_answer()] * 199
    assert _missed(promises(good)) == set()
    many = [bad] * (3 if figure == "succeeded" else 1)
    assert any(missed.startswith(figure) for missed in _missed(promises([*good, *many])))


def test_a_death_tells_what_callers_saw() -> None:
    answers = [_answer(sent=10.0), _answer(0, 2.0, 11.0, "reset"), _answer(500, 3.0, 10.0)]
    line = Death("ingress", "under load", 10.0, 4.2, answers).line()
    assert line.measured == (
        "2 of 3 failed (1 reset, 1 overloaded), the last after 3.0 s; slowest answer 3.0 s; "
        "replaced after 4.2 s"
    )
    assert line.met
    assert not replace(Death("ingress", "x", 10.0, None, answers)).line().met


@pytest.mark.parametrize("hey", [None, generators.HEY])
def test_a_flood_keeps_its_rate_and_counts_answers(
    server: Served, hey: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generators, "HEY", hey)
    asked = Server("x", server.url, callers.PATH, {})
    before = len(server.paths)
    sent = generators.flood(asked, 8, 4, BODY)
    assert len(sent) == len(server.paths) - before
    assert {one.status for one in sent} <= {200, 400}
    # Each of hey's workers sends one more when the time is over, or just does not.
    assert 1 < len(sent) <= 32 + 16 if hey else len(sent) == 32
    assert np.ptp([one.at for one in sent]) > 1, "not all at once"
    turns = generators.in_turn(asked, 2, 1.0, BODY)
    assert {one.status for one in turns} <= {200, 400}


def test_images_a_second_are_those_of_the_time_when_it_was_full() -> None:
    sent = [Sent(number / 10, 0.5, 200 if number % 2 else 429) for number in range(101)]
    assert overload.images_a_second(sent) == pytest.approx(5, rel=0.02)
    late = [Sent(number / 10, 50.0, 200) for number in range(101)]
    assert overload.images_a_second(late) == 0
    assert overload.images_a_second(late[:1]) == 0


def test_who_is_refused_comes_back_when_told() -> None:
    refusal = _http(429, json.dumps(ENVELOPE).encode(), "Retry-After: 1\r\n")
    with _saying(refusal) as url:
        ((first, second),) = asyncio.run(overload.returned(Server("x", url, "", {}), [0.0]))
    assert second is not None
    assert second.sent - first.done >= 1.0
    assert _missed(overload._truth("x", [(first, second)], 0.9))
    untold = replace(first, headers={})
    assert _missed(overload._truth("x", [(untold, None)], 0.9)) == {"refusals without Retry-After"}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (_http(408, json.dumps(ENVELOPE).encode()), ""),
        (_http(408, b"Request Timeout"), "HTTP/1.1 408 Said"),
        (b"", ""),
    ],
)
def test_slow_senders_see_when_they_are_closed_and_what_was_said(raw: bytes, plain: str) -> None:
    with _saying(raw) as url:
        held = senders.hold(url, Manner("half", b"POST / HT"), 20, 20)
    assert len(held.closed) == 20
    assert {senders.plain(one) for one in held.answers} == {plain}


def test_a_connection_that_is_never_read_is_seen_to_be_closed() -> None:
    with _saying(_http(200, b"x" * 100_000)) as url:
        held = senders.hold(
            url, Manner("never reads", b"GET / HTTP/1.1\r\n\r\n", reads=False), 5, 20
        )
    assert len(held.closed) == 5


def test_connections_that_stay_open_are_not_called_closed() -> None:
    with _saying(None) as url:
        held = senders.hold(url, Manner("slow", b"P", b"OST"), 5, 1.5)
    assert (held.closed, held.refused) == ([], 0)


def test_slopes_are_for_a_thousand_requests() -> None:
    assert soak.per_thousand([(100, 7.0), (200, 8.0), (300, 9.0)]) == pytest.approx(10)
    assert soak.per_thousand([(5, 7.0), (5, 9.0)]) == 0


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:winnow:Ingress.handle_request", "ingress"),
        ("ray::ServeReplica:winnow:Backbone-mnist-sevens", "backbone"),
        ("ray::ServeReplica:winnow:RewardModel-mnist-sevens", "judge"),
        ("ray::ServeReplica:winnow:Labelling", "labelling"),
        ("ray::ServeController.listen_for_change", "controller"),
        ("/x/gcs/gcs_server --log_dir=/tmp/ray", "gcs"),
        ("/x/raylet/raylet --raylet_socket_name=/tmp", "raylet"),
        ("/x/bin/python3 /x/bin/winnow serve two.yaml", "winnow"),
        ("ray::DashboardAgent", "rest"),
        ("/x/bin/python -u monitor.py --gcs=/x/gcs_server ", "rest"),
    ],
)
def test_processes_are_known_by_their_command_line(command: str, role: str) -> None:
    assert role_of(command) == role


def test_the_engine_thread_of_each_backbone_is_the_model() -> None:
    before = {1: Usage("backbone", {1: 1.0, 2: 5.0}, 0, 0), 2: Usage("ingress", {3: 1.0}, 0, 0)}
    after = {
        1: Usage("backbone", {1: 1.5, 2: 9.0, 4: 0.25}, 0, 0),
        2: Usage("ingress", {3: 2.0}, 0, 0),
        5: Usage("backbone", {6: 3.0}, 0, 0),
    }
    assert spent(before, after) == {"model": 7.0, "backbone": 0.75, "ingress": 1.0}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (_answer(), True),
        (_answer(0, broken="refused"), True),
        (_answer(0, broken="reset"), False),
        (replace(_answer(503), headers={"retry-after": "1"}), True),
        (_answer(503), False),
        (replace(_answer(503), said=None, headers={"retry-after": "1"}), False),
        (_answer(404), False),
    ],
)
def test_newcomers_at_a_stop_are_told_what_to_do(answer: Answer, told: bool) -> None:
    assert stop.told(answer) == told


def test_every_scenario_has_words_for_the_page() -> None:
    page = Path("docs/operations/loadtests.md").read_text()
    assert all(f"`{name}`" in page for name in SCENARIOS)
