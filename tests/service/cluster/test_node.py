"""Ray's own limit for a start, which is no setting, is longer here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("ray")
from ray._private import node as rays_node
from ray._private import services

from service.cluster import node, processes


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A raylet that registers at the third time of asking."""
    asked: list[int] = []

    def get_node(*_: Any) -> str:
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError("not yet")
        return "here"

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(processes, "children", lambda _: {1: "GCS", 2: "raylet"})
    return asked


def test_ray_asks_as_we_think() -> None:
    source = inspect.getsource(rays_node.Node.__init__)
    assert "ray._private.services.get_node(" in source
    assert "raylet_start_wait_time_s = 30" in source, "a setting by now? Then use it"


def test_a_slow_raylet_is_waited_for(slow: list[int]) -> None:
    node._allow_slow_raylet()
    assert services.get_node("address", "id") == "here"
    assert len(slow) == 3


def test_a_dead_one_is_not(slow: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "children", lambda _: {1: "GCS"})
    node._allow_slow_raylet()
    with pytest.raises(RuntimeError, match="not yet"):
        services.get_node("address", "id")


def test_an_error_is_one_line() -> None:
    assert node.one_line(ValueError("\n  first\nsecond\n")) == "first"
    assert node.one_line(ValueError()) == "ValueError"
