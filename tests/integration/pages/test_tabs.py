"""The same person in two tabs, on other keyboards, and in browsers that keep nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pages.browser import (
    abandon,
    begin,
    certify,
    enter,
    images,
    marks,
    press,
    ready,
    turn,
)
from tests.integration.pages.conftest import CHROMIUM, FLAGS, WAIT_MS
from tests.processes import wait_for
from tests.service.api.server import Served

BLOCKED = """
    for (const name of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, name, {
            get() { throw new DOMException("Access is denied.", "SecurityError"); },
        });
    }
"""
FULL = """
    Storage.prototype.setItem = () => { throw new DOMException("", "QuotaExceededError"); };
"""

LAYOUTS = {
    "Russian": {"l": "д", "u": "г", "j": "о", "z": "я", " ": " "},
    "Greek": {"l": "λ", "u": "θ", "j": "ξ", "z": "ζ", " ": " "},
    "Arabic": {"l": "م", "u": "ع", "j": "ت", "z": "ئ", " ": "\u00a0"},
    "Hebrew": {"l": "ך", "u": "ו", "j": "ח", "z": "ז", " ": " "},
    "an input method": dict.fromkeys("lujz ", "Process"),
    "wide letters": {"l": "ｌ", "u": "ｕ", "j": "ｊ", "z": "ｚ", " ": "\u3000"},
}


def strike(page: Any, key: str, code: str) -> None:
    """One key as a keyboard of any layout sends it."""
    session = page.context.new_cdp_session(page)
    for kind in ("rawKeyDown", "keyUp"):
        session.send("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": code})
    session.detach()


def code(letter: str) -> str:
    return "Space" if letter == " " else f"Key{letter.upper()}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_keys_work_on_layouts_of_other_letters(
    open_page: Callable[..., Any], layout: str
) -> None:
    page = open_page()
    begin(page)
    for letter in "lu jlu":
        strike(page, LAYOUTS[layout][letter], code(letter))
    assert marks(page) == {1: "malign", 7: "unsure"}
    strike(page, LAYOUTS[layout]["z"], code("z"))
    assert marks(page) == {1: "malign"}


def test_on_a_latin_layout_the_letter_counts_and_not_its_place(
    open_page: Callable[..., Any],
) -> None:
    page = open_page()
    begin(page)
    strike(page, "u", "KeyF")  # Dvorak
    strike(page, ";", "KeyZ")
    strike(page, "y", "KeyZ")  # German
    assert marks(page) == {0: "unsure"}
    strike(page, "Z", "KeyY")
    assert marks(page) == {}


def test_a_certificate_is_labelled_on_a_layout_of_other_letters(
    open_page: Callable[..., Any], served: Served
) -> None:
    certificate = certify(served)
    page = open_page(f"/certificates/{certificate}")
    enter(page)
    ready(page)
    for key, where in (("г", "KeyU"), ("д", "KeyL"), (" ", "Space")):
        strike(page, key, where)
    assert marks(page) == {0: "unsure", 1: "malign"}
    strike(page, "я", "KeyZ")
    assert marks(page) == {0: "unsure"}
    abandon(served, certificate)


@pytest.mark.parametrize("storage", [BLOCKED, FULL])
def test_labelling_needs_no_storage(
    open_page: Callable[..., Any], served: Served, storage: str
) -> None:
    page = open_page("/health/live")
    page.add_init_script(storage)
    page.goto("/feedback")
    dataset = begin(page)
    press(page, "Space", "b")
    assert marks(page) == {0: "malign"}
    first = images(page)
    turn(page)
    assert served.store.datasets.counts(dataset)["malign"] == 1
    press(page, "z")
    page.wait_for_function(
        "first => document.querySelector('button.cell img')?.src === first", arg=first[0]
    )
    assert marks(page) == {0: "malign"}
    page.goto("/policies")
    page.wait_for_selector("article.policy")


def test_a_browser_that_keeps_no_cookie_is_told_so(
    chromium: Any, served: Served, tmp_path: Path
) -> None:
    """As with all data of sites blocked in the browser's settings: storage throws as well."""
    blocked = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    (tmp_path / "Default").mkdir()
    (tmp_path / "Default/Preferences").write_text(json.dumps(blocked))
    context = chromium.browser_type.launch_persistent_context(
        tmp_path, executable_path=CHROMIUM, args=FLAGS, base_url=served.url
    )
    try:
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto("/feedback")
        throws = "() => { try { localStorage; return false; } catch { return true; } }"
        assert page.evaluate(throws)
        page.wait_for_selector("#enter:not([hidden])")
        page.keyboard.type("Ada")
        press(page, "Enter")
        page.wait_for_selector("#enter .wrong:not(:empty)")
        assert "keeps no cookie" in page.text_content("#enter .wrong")
    finally:
        context.close()


def test_two_tabs_of_one_person_share_no_page_and_lose_no_label(
    open_page: Callable[..., Any], served: Served
) -> None:
    one = open_page()
    dataset = begin(one)
    other = one.context.new_page()
    other.goto(f"/feedback?dataset={dataset}")
    ready(other)
    assert not set(images(one)) & set(images(other))
    press(one, "Space")
    press(other, "u")
    first, second = images(one), images(other)
    turn(one)
    turn(other)
    assert not set(images(one)) & set(images(other))
    labelled = served.store.datasets.labelled(dataset)
    assert len(labelled) == len({one.image.id for one in labelled}) == 50
    # Each tab takes back what it has saved itself, though the other saved last.
    press(one, "z")
    one.wait_for_function("s => document.querySelector('button.cell img')?.src === s", arg=first[0])
    ready(one)
    assert marks(one) == {0: "malign"}
    press(one, "z", "z")  # the mark, and then nothing of this tab
    one.wait_for_selector("#toast.up")
    assert [one.label for one in served.store.datasets.labelled(dataset)].count("unsure") == 1
    press(other, "z")
    other.wait_for_function(
        "s => document.querySelector('button.cell img')?.src === s", arg=second[0]
    )
    assert served.store.datasets.labelled(dataset) == []
    other.close()


def test_a_tab_that_is_closed_leaves_its_page_to_the_next(open_page: Callable[..., Any]) -> None:
    one = open_page()
    dataset = begin(one)
    press(one, "ArrowRight", "Space")
    before, context = images(one), one.context
    other = context.new_page()
    one.close()
    other.goto(f"/feedback?dataset={dataset}")
    ready(other)
    assert images(other) == before
    assert marks(other) == {1: "malign"}


def test_entering_anew_in_another_tab_stops_nobody(
    open_page: Callable[..., Any], served: Served
) -> None:
    one = open_page()
    dataset = begin(one)
    press(one, "Space")
    other = one.context.new_page()
    other.goto("/feedback")
    other.wait_for_selector("#person:not([hidden])")

    def enter_anew(name: str) -> None:
        other.click("#person button")
        other.wait_for_selector("#enter:not([hidden])")
        other.fill("#enter [name=name]", name)  # the last one's is there
        press(other, "Enter")
        other.wait_for_selector("#enter", state="hidden")

    enter_anew("Ada")
    turn(one)
    assert served.store.datasets.counts(dataset)["malign"] == 1
    # As somebody else, it is another matter: nobody's labels go under another's name.
    enter_anew("Bob")
    press(one, "Space", "Enter")
    one.wait_for_selector("#toast.up")
    wait_for(lambda: "Bob" in one.text_content("#person"))
    assert {one.annotator for one in served.store.datasets.labelled(dataset)} == {"anonymous/Ada"}


def test_two_tabs_of_one_person_share_no_image_of_a_certificate(
    open_page: Callable[..., Any], served: Served
) -> None:
    certificate = certify(served, epsilon=0.05, delta=0.2)
    one = open_page(f"/certificates/{certificate}")
    enter(one)
    ready(one)
    other = one.context.new_page()
    other.goto(f"/certificates/{certificate}")
    other.wait_for_selector("#label:not([hidden])")
    other.wait_for_function("() => document.querySelector('#said').textContent")
    assert not set(images(one)) & set(images(other))
    abandon(served, certificate)


def test_a_stale_tab_rolls_nothing_back(open_page: Callable[..., Any], served: Served) -> None:
    policies = served.store.policies
    before = policies.pointers()["bright"]
    document = policies.read("bright", before.version).document
    for _ in range(2):
        number = policies.add("bright", document, None, "somebody")
        now = policies.pointers()["bright"]
        policies.point("bright", now, number, "somebody", "policy.promote")
    served.policy_registry.refresh()
    page = open_page("/policies")
    enter(page)
    page.wait_for_selector("article.policy")
    # In another tab somebody has rolled it back already.
    now = policies.pointers()["bright"]
    policies.point("bright", now, number - 1, "somebody", "policy.rollback")
    served.policy_registry.refresh()
    article = page.locator("article.policy", has=page.locator("h2", has_text="bright"))
    article.locator("button", has_text="Roll back").click()
    page.locator("dialog button.act").click()
    page.wait_for_selector("#toast.up")
    assert "changed meanwhile" in page.text_content("#toast")
    assert policies.pointers()["bright"].version == number - 1
