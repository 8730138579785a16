"""What is sent, as data: who calls in each scenario, how many, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Ask:
    """One request of an ordinary caller, and how often it stands among the others."""

    policy: str
    n: int = 1
    deadline_s: float = 30.0
    weight: int = 1

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent; the seed is the service's."""
        return {"policy": self.policy, "n": self.n, "censor": {"deadline_s": self.deadline_s}}


@dataclass(frozen=True)
class Scenario:
    """A load: stages of (share of the time, users), and the weight of each class of users.

    A caller asks once in `every_s` seconds, or as soon as it has its answer if that takes longer.
    """

    says: str
    users: Mapping[str, int]
    stages: tuple[tuple[float, int], ...]
    asks: tuple[Ask, ...] = (Ask("no-crossbar"),)
    every_s: float = field(default=1.0)

    def users_at(self, share: float) -> int:
        """Users when that share of the time has passed; 0 once it is over."""
        for length, users in self.stages:
            share -= length
            if share < 0:
                return users
        return 0


def _steps(*users: int) -> tuple[tuple[float, int], ...]:
    return tuple((1 / len(users), count) for count in users)


_POLICIES = (
    Ask("no-crossbar", weight=6),
    Ask("no-crossbar", n=4, weight=2),
    Ask("no-crossbar-guided", weight=2),
    Ask("only-crossbar", weight=2),
)

SCENARIOS: dict[str, Scenario] = {
    "steady": Scenario(
        "four callers, one request a second each: the load that the SLO is written for",
        {"Caller": 1}, _steps(4)),
    "ramp": Scenario(
        "from 1 caller to 32 in six steps: where latency leaves the ground",
        {"Caller": 1}, _steps(1, 2, 4, 8, 16, 32)),
    "spike": Scenario(
        "two callers, then 120 for a fifth of the time, then two; all want an answer in 3 s",
        {"Caller": 1}, ((0.4, 2), (0.2, 120), (0.4, 2)), (Ask("no-crossbar", deadline_s=3.0),)),
    "mixed": Scenario(
        "three policies, one image or four, among them somebody hostile, slow, or impatient",
        {"Caller": 5, "Attacker": 1, "SlowReader": 1, "Quitter": 1}, _steps(8), _POLICIES,
        every_s=2.0),
    "hostile": Scenario(
        "requests that must be refused, while two callers ask for images",
        {"Caller": 1, "Attacker": 2}, _steps(6)),
    "slow-readers": Scenario(
        "sockets that send a few bytes at a time and read one, while two callers ask for images",
        {"Caller": 1, "SlowReader": 4}, _steps(10)),
    "disconnects": Scenario(
        "callers that hang up halfway, while two others ask for images",
        {"Caller": 1, "Quitter": 2}, _steps(6)),
}  # fmt: skip


def policies() -> Iterator[str]:
    """Every policy that some scenario asks for, once."""
    asked = (ask.policy for scenario in SCENARIOS.values() for ask in scenario.asks)
    return iter(dict.fromkeys(asked))
