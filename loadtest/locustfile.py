"""Winnow's load tests for Locust: `locust -f loadtest/locustfile.py --scenario mixed --host …`.

`make loadtest` starts a service, runs one scenario without Locust's page and holds it against the
SLO. Each request is counted by what became of it: the Type column is the outcome, the Name the
policy. A policy's no and a 429 are answers, not failures. WINNOW_KEY is sent as the bearer key.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from locust import FastHttpUser, LoadTestShape, User, events, task
from locust.env import Environment

from loadtest import sockets
from loadtest.hostile import CASES
from loadtest.outcomes import Found, Outcome, of_ask, of_hostile
from loadtest.scenarios import PATH, SCENARIOS, Ask, Scenario
from loadtest.watch import fire

KEY = os.environ.get("WINNOW_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}
LONGEST_WAIT_S = 5.0
AT_ONCE = 100.0
SLOW, QUIT = Ask("no-crossbar", n=4), Ask("no-crossbar", n=16)
_numbers = count()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="steady")
    parser.add_argument("--seconds", type=float, default=60.0)


def _scenario(environment: Environment) -> Scenario:
    return SCENARIOS[environment.parsed_options.scenario]


class _Paced(User):  # type: ignore[misc]
    """Somebody who acts once in `every_s` seconds, and not at the same moment as all others.

    Locust's `constant_pacing` would bring them together again: it makes up for a late start.
    """

    abstract = True
    every_s: float | None = None

    def on_start(self) -> None:
        """Begin at a moment of one's own."""
        if self.every_s is None:
            self.every_s = _scenario(self.environment).every_s
        self._due = time.monotonic() + random.uniform(0, self.every_s)
        time.sleep(self._due - time.monotonic())

    def wait_time(self) -> float:
        """Seconds until the next act is due, none if that has passed."""
        now = time.monotonic()
        self._due = max(now, self._due + self.every_s)
        return self._due - now


class _Client(_Paced, FastHttpUser):  # type: ignore[misc]
    """Somebody over HTTP, whose request is counted in the row that its outcome says."""

    abstract = True
    network_timeout = connection_timeout = 60.0

    def send(self, name: str, found: Callable[[Any], Found], **request: Any) -> tuple[Outcome, Any]:
        """Send a request, count it under `name` and its outcome; returns that and the answer."""
        with self.client.request(name=name, catch_response=True, **request) as answer:
            outcome, why = found(answer)
            answer.request_meta["request_type"] = outcome.value
            if why:
                answer.failure(why)
            else:
                answer.success()
        return outcome, answer


class Caller(_Client):
    """Asks for images as the scenario says, and waits after a 429 for as long as it was told."""

    @task
    def ask(self) -> None:
        """One of the scenario's requests, by weight."""
        asks = _scenario(self.environment).asks
        (ask,) = random.choices(asks, [one.weight for one in asks])

        def found(it: Any) -> Found:
            said = it.status_code, it.headers or {}, it.content or b""
            return of_ask(*said, ask.policy, ask.n, Outcome.IMAGE)

        outcome, answer = self.send(
            ask.policy, found, method="POST", url=PATH, json=ask.body, headers=HEADERS
        )
        if outcome is Outcome.OVERLOADED:
            time.sleep(min(float(answer.headers["Retry-After"]), LONGEST_WAIT_S))


class Attacker(_Client):
    """Sends what must be refused, one case after another."""

    every_s = 0.5

    @task
    def attack(self) -> None:
        """The next hostile request."""
        case = CASES[next(_numbers) % len(CASES)]
        self.send(
            "hostile request",
            lambda it: of_hostile(case, it.status_code, it.content or b""),
            method=case.method, url=case.path, data=case.body, headers=HEADERS | dict(case.headers),
        )  # fmt: skip


class _Raw(_Paced):
    """Somebody on a bare socket."""

    abstract = True

    def count(self, name: str, act: Callable[[], Found]) -> None:
        """Count what the act came to, a broken connection as a failure."""
        started = time.perf_counter()
        try:
            outcome, why = act()
        except (OSError, ValueError) as error:
            outcome, why = Outcome.FAILED, repr(error)
        fire(self.environment, name, outcome, why, time.perf_counter() - started)


class SlowReader(_Raw):
    """Sends a few bytes at a time, reads one, and must get the whole answer all the same."""

    every_s = 2.0

    @task
    def read(self) -> None:
        """One request for four images."""

        def act() -> Found:
            answer = sockets.read_slowly(self.host, SLOW.body, HEADERS)
            return of_ask(*answer, SLOW.policy, SLOW.n, Outcome.READ_SLOWLY)

        self.count("slow reader", act)


class Quitter(_Raw):
    """Hangs up while its images are drawn, waited for, or judged."""

    every_s = 1.0

    @task
    def quit(self) -> None:
        """One request for sixteen images that nobody waits for."""

        def act() -> Found:
            sockets.hang_up(self.host, QUIT.body, HEADERS, random.uniform(0.0, 0.4))
            return Outcome.HUNG_UP, None

        self.count("quitter", act)


class Stages(LoadTestShape):  # type: ignore[misc]
    """The scenario's stages over the seconds that were asked for, by its classes of users."""

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        """Users now, of which classes; who is missing starts at once, who is too many leaves."""
        environment = self.runner.environment
        scenario = _scenario(environment)
        users = scenario.users_at(self.get_run_time() / environment.parsed_options.seconds)
        classes = [one for one in environment.user_classes if one.__name__ in scenario.users]
        return (users, AT_ONCE, classes) if users else None


@events.init.add_listener
def _weigh(environment: Environment, **_: Any) -> None:
    for one in environment.user_classes:
        one.weight = _scenario(environment).users.get(one.__name__, 1)
