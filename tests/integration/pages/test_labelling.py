"""The labelling page."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from service.store.datasets import Dataset
from tests.integration.pages.browser import (
    begin,
    counter,
    enter,
    images,
    marks,
    middle,
    press,
    ready,
    turn,
)
from tests.integration.pages.conftest import WAIT_MS
from tests.processes import wait_for
from tests.service.api.server import KEYS, Served, serve


def test_two_pages_with_the_keyboard_alone(open_page: Callable[..., Any], served: Served) -> None:
    page = open_page()
    dataset = begin(page)
    assert page.text_content("#question") == "Is the first pixel dark?"
    assert len(images(page)) == 25
    # Right, down, down: row 3, column 2; vi's keys move as well.
    press(page, "ArrowRight", "Space", "ArrowDown", "ArrowDown", "Space", "l", "u", "h", "k")
    assert marks(page) == {1: "malign", 11: "malign", 12: "unsure"}
    page.wait_for_function("() => document.querySelector('#clock').textContent < '3:00'")
    assert page.evaluate("document.activeElement.dataset.index") == "6"
    assert page.get_attribute("button.cell >> nth=11", "aria-label") == "Row 3, column 2: malign"
    assert page.get_attribute("button.cell >> nth=11", "aria-pressed") == "true"
    assert "unsure, row 3, column 3" in page.text_content("#live")
    assert page.text_content("#said") == "2 malign, 1 unsure"
    turn(page)
    counts = served.store.datasets.counts(dataset)
    assert (counts["benign"], counts["malign"], counts["unsure"]) == (22, 2, 1)
    assert 1000 <= counts["elapsed_ms"] <= 1000 * WAIT_MS, "a second was on the clock"
    assert (counter(page, "benign"), counter(page, "malign")) == (22, 3), "unsure counts"
    assert marks(page) == {}
    turn(page)
    labelled = served.store.datasets.labelled(dataset)
    assert len(labelled) == 50
    assert {one.annotator for one in labelled} == {"anonymous/Ada"}
    assert {one.image.strategy for one in labelled[:25]} == {"random"}


def test_space_twice_is_benign_and_z_undoes_marks_then_pages(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, "Space", "Space")
    assert marks(page) == {}
    press(page, "u", "Space")
    assert marks(page) == {0: "malign"}
    press(page, "z")
    assert marks(page) == {0: "unsure"}
    first = images(page)
    turn(page)
    second = images(page)
    press(page, "z")
    page.wait_for_function(
        "first => document.querySelector('button.cell img').src === first", arg=first[0]
    )
    assert images(page) == first
    assert marks(page) == {0: "unsure"}
    assert served.store.datasets.labelled(dataset) == []
    press(page, "z")
    page.wait_for_selector("#toast.up")
    assert "left to undo" in page.text_content("#toast")
    press(page, "Space", "Enter")
    page.wait_for_function(
        "second => document.querySelector('button.cell img')?.src === second", arg=second[0]
    )
    assert served.store.datasets.counts(dataset)["malign"] == 1


def test_an_undone_mark_stays_undone_after_a_reload(open_page: Callable[..., Any]) -> None:
    page = open_page()
    begin(page)
    press(page, "Space", "ArrowRight", "Space", "z")
    assert marks(page) == {0: "malign"}
    page.reload()
    ready(page)
    assert marks(page) == {0: "malign"}


@pytest.mark.parametrize(("key", "call"), [("", "batches"), ("Enter", "labels"), ("z", "undo")])
def test_another_dataset_that_is_opened_meanwhile_shows_its_own_images(
    open_page: Callable[..., Any], served: Served, key: str, call: str
) -> None:
    """The old one's images, or what became of its labels, arrive once the other is open."""
    page = open_page()
    one = begin(page)
    turn(page)
    wait_for(lambda: served.paths.count(f"/v1/datasets/{one}/batches") >= 3)
    page.wait_for_timeout(300)  # nothing is fetched ahead any more
    page.evaluate(
        """call => {
            const real = window.fetch;
            window.fetch = async (path, options) => {
                if (path.endsWith(call)) {
                    window.fetch = real;
                    await new Promise((resolve) => { window.go = resolve; });
                }
                return real(path, options);
            };
        }""",
        call,
    )
    if key:
        press(page, key)
    else:
        page.click("#other")
        page.click(f".tile:has-text('{one}')")
    page.wait_for_function("() => window.go")
    page.click("#other")
    page.wait_for_selector("#choose:not([hidden])")
    page.fill("#choose [name=question]", "Is it another?")
    page.fill("#choose [name=name]", f"{one}-other")
    press(page, "Enter")
    page.wait_for_selector("#label:not([hidden])")
    page.evaluate("window.go()")
    ready(page)
    assert page.text_content("#question") == "Is it another?"
    assert counter(page, "benign") == 0
    turn(page)
    assert served.store.datasets.counts(f"{one}-other")["benign"] == 25


def test_the_cursor_stays_on_the_grid(open_page: Callable[..., Any]) -> None:
    page = open_page()
    begin(page)

    def at() -> str:
        found: str = page.evaluate("document.activeElement.dataset.index")
        return found

    press(page, "ArrowLeft", "ArrowUp")
    assert at() == "0"
    press(page, *["ArrowRight"] * 7)
    assert at() == "4"
    press(page, *["j"] * 9)
    assert at() == "24"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus must be seen"


def test_a_reload_resumes_with_images_marks_and_clock(open_page: Callable[..., Any]) -> None:
    page = open_page()
    begin(page)
    turn(page)
    press(page, "ArrowRight", "Space", "ArrowDown", "u")
    before, marked = images(page), marks(page)
    page.wait_for_function("() => document.querySelector('#clock').textContent < '2:59'")
    page.reload()
    ready(page)
    assert images(page) == before
    assert marks(page) == marked == {1: "malign", 6: "unsure"}
    assert page.text_content("#clock") < "3:00"
    assert counter(page, "benign") == 25
    press(page, "z")
    assert marks(page) == {1: "malign"}
    page.reload()
    ready(page)
    assert marks(page) == {1: "malign"}
    press(page, "z")
    assert marks(page) == {}, "a reload takes no mark out of reach"


def test_the_clock_starts_with_the_first_page_and_stops_while_hidden(
    open_page: Callable[..., Any],
) -> None:
    page = open_page()
    begin(page)
    page.wait_for_function("() => document.querySelector('#clock').textContent === '2:58'")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})"
    )
    time.sleep(0.5)
    stopped = page.text_content("#clock")
    time.sleep(1.5)
    assert page.text_content("#clock") == stopped
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => false})")
    page.wait_for_function("now => document.querySelector('#clock').textContent < now", arg=stopped)


def test_the_next_page_is_there_before_it_is_wanted(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    url = f"/v1/datasets/{dataset}/batches"
    wait_for(lambda: served.paths.count(url) >= 2)
    page.wait_for_timeout(300)
    served.backbone.delay_s = 0.5  # five seconds for a page
    started = time.monotonic()
    try:
        turn(page)
        assert time.monotonic() - started < 3
    finally:
        served.backbone.delay_s = 0.0


def test_a_page_that_cannot_be_saved_is_kept_and_saved_again(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, "Space")
    page.context.set_offline(True)
    press(page, "Enter")
    page.wait_for_selector("#toast.up")
    assert "Not saved" in page.text_content("#toast")
    assert marks(page) == {0: "malign"}
    page.context.set_offline(False)
    press(page, "Enter")
    wait_for(lambda: served.store.datasets.counts(dataset)["malign"] == 1)


def test_two_people_at_once_see_different_images(
    open_page: Callable[..., Any], served: Served
) -> None:
    ada, bob = open_page(), open_page()
    dataset = begin(ada)
    enter(bob, "Bob")
    bob.goto(f"/feedback?dataset={dataset}")
    ready(bob)
    press(ada, "Space", "Enter")
    press(bob, "u", "Enter")
    wait_for(lambda: len(served.store.datasets.labelled(dataset)) == 50)
    labelled = served.store.datasets.labelled(dataset)
    assert len({one.image.id for one in labelled}) == 50
    assert {one.annotator for one in labelled} == {"anonymous/Ada", "anonymous/Bob"}


def test_a_phone_taps_and_holds(open_page: Callable[..., Any]) -> None:
    page = open_page(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )
    begin(page)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "the page must not scroll sideways"
    cell = page.locator("button.cell").nth(7)
    assert cell.bounding_box()["width"] >= 44, "a finger needs room"
    cell.tap()
    assert marks(page) == {7: "malign"}
    cell.tap()
    held = page.locator("button.cell").nth(8)
    touch = {"pointerType": "touch", "bubbles": True}
    held.dispatch_event("pointerdown", touch)
    page.wait_for_timeout(600)
    held.dispatch_event("pointerup", touch)
    held.dispatch_event("click")
    assert marks(page) == {8: "unsure"}
    button = page.locator("#next").bounding_box()
    assert button["y"] + button["height"] <= 844, "the next page must be in reach of a thumb"


def test_blur_until_looked_at(open_page: Callable[..., Any]) -> None:
    page = open_page()
    begin(page)
    blurred = "i => getComputedStyle(document.querySelectorAll('.cell img')[i]).filter"
    press(page, "b")
    page.wait_for_function(f"() => ({blurred})(3).includes('blur') && ({blurred})(0) === 'none'")
    press(page, "ArrowRight", "b")
    page.wait_for_function(f"() => ({blurred})(3) === 'none'")


def test_motion_and_darkness_follow_the_system(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark", reduced_motion="reduce")
    begin(page)
    style = "getComputedStyle(document.querySelector('.cell')).transitionDuration"
    assert page.evaluate(style) in ("0s", "")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper))) < 60


def test_without_a_session_the_page_asks_for_a_key(chromium: Any, bundle: Bundle) -> None:
    with serve(bundle) as server:
        context = chromium.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/feedback")
        page.wait_for_selector("#enter:not([hidden])")
        page.keyboard.type("Ada")
        press(page, "Tab")
        page.keyboard.type("wn-wrong-0123456789")
        press(page, "Enter")
        page.wait_for_function("() => document.querySelector('#enter .wrong').textContent")
        page.fill("input[name=key]", KEYS["LABEL_KEY"])
        press(page, "Enter")
        page.wait_for_selector("#choose:not([hidden])")
        assert page.evaluate("document.cookie") == "", "scripts must not see the session"
        context.close()


def test_a_session_that_another_tab_opened_anew_is_taken_up(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    page.evaluate(
        """() => fetch("/v1/session", {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({name: "Ada"}),
        })"""
    )
    press(page, "Space")
    turn(page)
    assert served.store.datasets.counts(dataset)["malign"] == 1, "it saves with the new token"


def test_a_certificates_dataset_is_not_offered(
    open_page: Callable[..., Any], served: Served
) -> None:
    proof = Dataset("proof", "tiny", "Is it dark?", [], "certificate", datetime.now(UTC), "x")
    served.store.datasets.create(proof)
    page = open_page("/feedback?dataset=proof")
    enter(page)
    page.wait_for_selector("#choose:not([hidden])")
    assert "label it on its own page" in page.text_content("#toast")
    assert "proof" not in page.text_content(".tiles")
    page.goto("/feedback/rewards")
    page.wait_for_selector("#rewards:not([hidden])")
    assert "proof" not in page.text_content("#train select[name=dataset]")


def test_mouse_and_keys_act_on_the_same_image(open_page: Callable[..., Any]) -> None:
    page = open_page()
    begin(page)
    press(page, "b")
    page.mouse.move(*middle(page, 15))
    page.mouse.move(*middle(page, 16))
    assert page.evaluate("document.activeElement.dataset.index") == "16"
    clear = "document.querySelector('.loupe img').src"
    assert page.evaluate(clear) == images(page)[16], "the preview shows what the keys mark"
    press(page, "Space")
    assert marks(page) == {16: "malign"}
    press(page, "ArrowRight", "u")  # the mouse rests on 16
    assert marks(page) == {16: "malign", 17: "unsure"}
    assert page.evaluate(clear) == images(page)[17]
    page.wait_for_timeout(300)
    sharp = page.eval_on_selector_all(
        ".cell img",
        "all => all.flatMap((i, n) => getComputedStyle(i).filter === 'none' ? [n] : [])",
    )
    assert sharp == [17]
    turn(page)
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.dataset.index") == "0", "nobody moved the mouse"


def test_enough_labels_move_no_image(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    begin(page)
    top = page.locator(".grid").bounding_box()["y"]
    for _ in range(4):
        for index in range(12):
            page.locator("button.cell").nth(index).tap()
        turn(page)
    while counter(page, "benign") < 80:
        turn(page)
    page.wait_for_selector("#reached:not([hidden])")
    assert abs(page.locator(".grid").bounding_box()["y"] - top) < 2
