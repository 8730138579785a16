from __future__ import annotations

import importlib
import re

import service


def test_every_name_in_the_map_is_a_module() -> None:
    assert service.__doc__
    names = re.findall(r"`(\w+)`", service.__doc__)
    steps = {"http", "api", "policies", "generation", "rpc", "engine", "judge", "images"}
    assert steps < set(names)
    for name in names:
        importlib.import_module(f"service.{name}")


def test_the_map_has_eight_steps_from_the_port_to_the_answer() -> None:
    assert service.__doc__
    steps = re.findall(r"^(\d)\. `(\w+)`", service.__doc__, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 9))
    assert (steps[0][1], steps[-1][1]) == ("http", "images")
