"""The rewards page: from labels to a card, and to a version in force."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.integration.pages.browser import begin, enter, press, turn
from tests.service.api.server import Served


def test_from_labels_to_a_card(open_page: Callable[..., Any], served: Served) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, *["Space", "ArrowRight"] * 4, "Space", "ArrowDown", "u")
    turn(page)
    page.goto(f"/feedback/rewards?dataset={dataset}")
    page.wait_for_selector("#rewards:not([hidden])")
    assert page.input_value("#train select[name=dataset]") == dataset
    assert "5 malign" in page.text_content("#counts")
    page.focus("#train button.act")
    press(page, "Enter")
    page.wait_for_selector(".reward .pill.ready")
    card = page.text_content(".reward")
    for word in (
        dataset, "0.970", "cross-validated", "1 person", "0.5000", "80.0 %",
        "Calibrated for bright, to deliver at most 1 % malign · not in force", "bright version",
    ):  # fmt: skip
        assert word in card, word
    assert page.locator(".curve circle").count() == 3
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pictures img')].every(i => i.naturalWidth > 0)"
    )
    assert page.locator(".pictures img").count() == 3
    # As somebody who may only label sees it.

    def without(route: Any) -> None:
        reward = route.fetch().json()
        for one in reward["card"]["calibrations"].values():
            del one["threshold"], one["probe_thresholds"]
        route.fulfill(json=reward)

    page.route(re.compile("/v1/rewards/rwd_"), without)
    page.reload()
    page.wait_for_selector(".reward .pill.ready")
    assert "–80.0 %" in page.text_content(".reward .table")


def test_a_training_is_cancelled_from_the_page(
    open_page: Callable[..., Any], served: Served
) -> None:
    import threading

    served.training.go = threading.Event()
    try:
        page = open_page()
        dataset = begin(page)
        press(page, *["Space", "ArrowRight"] * 4, "Space")
        turn(page)
        page.goto(f"/feedback/rewards?dataset={dataset}")
        page.click("#train button.act")
        page.wait_for_function("() => document.querySelector('.reward progress')?.value > 0")
        page.click(".reward button >> text=Cancel")
        page.wait_for_selector(".reward .pill.cancelled")
    finally:
        served.training.go = None


def test_a_version_is_made_and_promoted_and_a_refusal_is_told(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, *["Space", "ArrowRight"] * 4, "Space")
    turn(page)
    page.goto(f"/feedback/rewards?dataset={dataset}")
    page.click("#train button.act")
    page.wait_for_selector(".reward .pill.ready")
    asked: list[Any] = []
    refusal = {"error": {"message": "whoever trained it cannot promote it", "code": "conflict"}}

    def policies(route: Any) -> None:
        asked.append((route.request.url.rpartition("/v1/")[2], route.request.post_data_json))
        if len(asked) == 2:
            route.fulfill(status=409, json=refusal)
        else:
            route.fulfill(json={"id": "bright", "version": 2})

    page.route(re.compile(r"/v1/policies(/.*)?$"), policies)
    page.click(".force >> text=Make a version")
    page.click("text=Promote bright version 2")
    page.wait_for_function(
        "() => document.querySelector('.force .wrong').textContent.includes('cannot')"
    )
    page.click("text=Promote bright version 2")
    page.wait_for_function(
        "() => document.querySelector('.force').textContent.includes('now censors')"
    )
    reward = served.store.rewards.of(dataset)[0].id
    assert asked[0] == ("policies", {"name": "bright", "based_on": "bright", "reward": reward})
    assert asked[1] == ("policies/bright/promote", {"version": 2})


def test_labels_that_are_not_there_are_said_to_be_missing(open_page: Callable[..., Any]) -> None:
    page = open_page("/feedback/rewards?dataset=nope")
    enter(page)
    page.wait_for_selector("#rewards:not([hidden])")
    assert "no labels named nope" in page.text_content("#train .wrong")
