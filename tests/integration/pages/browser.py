"""What people do on the pages, and what they see."""

from __future__ import annotations

from typing import Any

import httpx

from tests.processes import wait_for
from tests.service.api.server import Served

_count = iter(range(1000))


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def enter(page: Any, name: str = "Ada") -> None:
    """Give a name, with the keyboard alone: the field has the focus."""
    page.wait_for_selector("#enter:not([hidden])")
    page.keyboard.type(name)
    press(page, "Enter")
    page.wait_for_selector("#enter", state="hidden")


def begin(page: Any, name: str = "Ada") -> str:
    """From the door to the first page of a new dataset, with the keyboard alone."""
    dataset = f"web-{next(_count)}"
    enter(page, name)
    page.wait_for_selector("#choose:not([hidden])")
    while page.evaluate("document.activeElement.name") != "question":
        press(page, "Tab")
    page.keyboard.type("Is the first pixel dark?")
    press(page, "Tab")
    page.keyboard.type(dataset)
    press(page, "Enter")
    ready(page)
    return dataset


def ready(page: Any) -> None:
    """Images are there, and nothing is being saved."""
    page.wait_for_selector("button.cell")
    page.wait_for_function("() => !document.querySelector('.grid').hasAttribute('aria-busy')")


def images(page: Any) -> list[str]:
    found: list[str] = page.eval_on_selector_all("button.cell img", "all => all.map(i => i.src)")
    return found


def marks(page: Any) -> dict[int, str]:
    found = page.eval_on_selector_all(
        "button.cell", "all => all.map(c => c.dataset.mark || 'benign')"
    )
    return {place: mark for place, mark in enumerate(found) if mark != "benign"}


def turn(page: Any) -> None:
    """Enter, and wait for the next page."""
    before = images(page)
    press(page, "Enter")
    page.wait_for_function(
        "before => { const i = document.querySelector('button.cell img');"
        "return i && i.src !== before; }",
        arg=before[0],
    )
    ready(page)


def counter(page: Any, kind: str) -> int:
    return int(page.text_content(f"#{kind} b"))


def middle(page: Any, index: int) -> tuple[float, float]:
    box = page.locator("button.cell").nth(index).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def certify(served: Served, policy: str = "bright", **terms: Any) -> str:
    """A certificate that waits for labels: four of them, unless the terms say otherwise."""
    body = {"epsilon": 0.3, "delta": 0.5} | terms
    answer = httpx.post(f"{served.url}/v1/policies/{policy}/certify", json=body)
    assert answer.status_code == 202, answer.text
    begun: str = answer.json()["id"]
    wait_for(lambda: served.store.certificates.read(begun).status == "labelling")
    return begun


def abandon(served: Served, certificate_id: str) -> None:
    served.store.certificates.abandon(certificate_id, "test", "the test is over")
