"""A certificate's page, up to its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration.pages.browser import certify, enter, middle, press, ready, turn
from tests.service.api.server import Served


def test_a_certificates_page_shows_four_digits(open_page: Callable[..., Any]) -> None:
    page = open_page("/feedback")
    enter(page)
    covered = {
        "question": "?", "threshold": 0.43859649122807015, "max_draws": 20250,
        "probe_thresholds": [0.0123456789, 0.5], "conditions": [{"w": 0.123456789}],
    }  # fmt: skip
    found = {
        "policy": "bright", "policy_version": 1, "status": "failed", "statement": "?",
        "question": "?", "result": {"k": 1, "n": 4, "bound": 0.4}, "not_covered": [],
        "terms": {"epsilon": 0.3, "attempt": 1, "allowed": 0, "n": 4},
        "progress": {"drawn": 4, "blocked": 0, "labelled": 4}, "covered": covered,
    }  # fmt: skip
    page.route("**/v1/certificates/*", lambda route: route.fulfill(json=found))
    page.goto(f"/certificates/cert_{'0' * 32}")
    page.wait_for_selector("#certificate:not([hidden])")
    page.wait_for_selector("#covers dd")
    shown = page.eval_on_selector_all("#covers dd", "all => all.map(one => one.textContent)")
    assert shown == ["?", "0.4386", "0.01235, 0.5", "20250", '{"w":0.1235}']


def test_a_certificate_is_finished_only_after_a_second_yes(
    open_page: Callable[..., Any], served: Served
) -> None:
    begun = certify(served)
    page = open_page(f"/certificates/{begun}")
    enter(page)
    ready(page)
    assert page.text_content("#next").startswith("Finish: this fixes the result")
    assert "confidence 50 %" in page.text_content("#came"), "what it will say stands there before"
    assert "at most 30 % malign" in page.text_content("#statement")
    prints = page.text_content("#prints")
    assert served.store.certificates.read(begun).fingerprint in prints
    assert "public key" in prints
    page.mouse.move(*middle(page, 1))
    page.mouse.move(*middle(page, 2))
    press(page, "Space")
    assert page.get_attribute("button.cell >> nth=2", "data-mark") == "malign"

    def status() -> str:
        found: str = served.store.certificates.read(begun).status
        return found

    press(page, "Enter")
    page.wait_for_selector("dialog[open]")
    assert "1 is marked malign" in page.text_content("dialog")
    press(page, "Escape")
    page.wait_for_selector("dialog", state="detached")
    assert status() == "labelling"
    assert page.evaluate("document.activeElement.className") == "cell"
    page.keyboard.down("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.down("Enter")  # held down: no second yes
    page.wait_for_timeout(200)
    assert status() == "labelling"
    page.keyboard.up("Enter")
    press(page, "Enter")
    page.wait_for_selector("#status.failed")
    assert status() == "failed"


def test_a_page_in_the_middle_of_a_certificate_asks_nothing(
    open_page: Callable[..., Any], served: Served
) -> None:
    begun = certify(served, epsilon=0.05, delta=0.4)
    page = open_page(f"/certificates/{begun}")
    enter(page)
    ready(page)
    n = served.store.certificates.read(begun).terms["n"]
    assert 25 < n <= 50
    assert page.text_content("#next").startswith("Next page")
    turn(page)
    assert page.text_content("#next").startswith("Finish")
    assert f"25 of {n} labelled" in page.text_content("#left")
    page.focus("#ending button")
    press(page, "Enter")
    page.wait_for_selector("dialog[open]")
    press(page, "Enter")  # without a reason nothing ends
    assert page.locator("dialog[open]").is_visible()
    page.keyboard.type("a clearer question")
    press(page, "Enter")
    page.wait_for_selector("#status.abandoned")
    assert served.store.certificates.read(begun).result["reason"] == "a clearer question"
    assert page.locator("#ending").is_hidden()
