"""What holds for all pages, and the lists: policies, certificates, decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from tests.integration.pages.browser import abandon, certify, enter, press
from tests.processes import wait_for
from tests.rewards import put_reward
from tests.service.api.server import Served, serve


def test_every_page_leads_to_every_other(open_page: Callable[..., Any], served: Served) -> None:
    page = open_page("/")
    enter(page)
    for word, path in (
        ("Policies", "/policies"),
        ("Certificates", "/certificates"),
        ("Decisions", "/decisions"),
        ("Rewards", "/feedback/rewards"),
        ("Label", "/feedback"),
    ):
        page.click(f".bar nav >> text={word}")
        page.wait_for_selector("h1:visible")
        assert page.url == f"{served.url}{path}"
        assert page.text_content(".bar nav [aria-current]") == word
        assert page.text_content("#person .name") == "Ada"


def test_without_labelling_no_page_leads_there(chromium: Any, bundle: Bundle) -> None:
    with serve(bundle, feedback={"enabled": False}) as server:
        context = chromium.new_context(base_url=server.url)
        page = context.new_page()
        page.goto("/")
        page.wait_for_selector("#enter:not([hidden])")
        assert page.url == f"{server.url}/policies"
        links = page.eval_on_selector_all(".bar nav a", "all => all.map(a => a.textContent)")
        assert links == ["Policies", "Certificates", "Decisions"]
        assert page.text_content("#enter .scopes") == "approve"
        context.close()


def test_a_policy_is_promoted_rolled_back_and_switched_off_with_the_keyboard(
    open_page: Callable[..., Any], served: Served
) -> None:
    policy = served.policy_registry.seeds["bright"]
    put_reward(served.store, "rwd_page", policy, {"judge": b"0.9"}, {50: 0.55, 20: 0.65})
    body = {"name": "bright", "based_on": "bright", "reward": "rwd_page"}
    made = httpx.post(f"{served.url}/v1/policies", json=body).json()["version"]
    page = open_page("/policies")
    enter(page)
    bright = page.locator(".policy", has=page.locator("h2 >> text=bright"))

    def changed(button: str, version: int, disabled: bool, *keys: str) -> None:
        bright.get_by_role("button", name=button, exact=True).first.focus()
        press(page, "Enter")
        page.wait_for_selector("dialog[open]")
        page.wait_for_timeout(50)
        press(page, *keys)
        page.wait_for_selector("dialog", state="detached")
        wait_for(
            lambda: (
                (now := served.policy_registry.pointers["bright"]).version == version
                and now.disabled is disabled
            )
        )

    bright.locator("summary").first.click()
    assert "Is this a dark first pixel?" in bright.text_content()
    assert "0.5500 at 50 steps" in bright.text_content()
    changed("Promote", 1, False, "Escape")
    changed("Promote", made, False, "Enter")
    bright.locator(f"header >> text=version {made}").wait_for()
    assert bright.locator("details").first.get_attribute("open") is not None, "it stays open"
    changed("Roll back", 1, False, "Enter")
    bright.locator("header >> text=version 1").wait_for()
    changed("Switch off", 1, True, "Enter")
    bright.locator("header .pill.failed").wait_for()
    bright.locator("summary").nth(1).click()
    assert "anonymous/Ada" in bright.locator(".happened").text_content()
    changed("Switch on", 1, False, "Enter")
    bright.locator("header .pill.failed").wait_for(state="detached")


def test_certificates_and_decisions_are_listed_and_lead_to_their_pages(
    open_page: Callable[..., Any], served: Served
) -> None:
    begun = certify(served)
    abandon(served, begun)
    asked = {"n": 2, "seed": 1, "censor": {"on_filtered": "never"}}
    decided = httpx.post(f"{served.url}/v1/images/generations", json=asked).json()["id"]
    page = open_page("/certificates")
    enter(page)
    line = f"a[href='/certificates/{begun}']"
    page.wait_for_selector(line)
    assert "abandoned" in page.text_content(line)
    assert "the test is over" in page.text_content(line)
    page.focus(line)
    press(page, "Enter")
    page.wait_for_selector("#status.abandoned")
    assert page.text_content(".bar nav [aria-current]") == "Certificates"
    page.goto("/decisions")
    line = f"a[href='/decisions/{decided}']"
    page.wait_for_selector(line)
    assert "bright version" in page.text_content(line)
    page.select_option("select[name=outcome]", "deadline_exceeded")
    page.wait_for_selector("text=None is like that.")
    page.reload()
    page.wait_for_selector("text=None is like that.")
    page.select_option("select[name=outcome]", "")
    page.click(line)
    page.wait_for_selector("#decision:not([hidden])")
    assert page.text_content(".bar nav [aria-current]") == "Decisions"


@pytest.mark.parametrize("path", ["/policies", "/certificates", "/decisions", "/feedback/rewards"])
def test_no_page_scrolls_sideways_on_a_phone(open_page: Callable[..., Any], path: str) -> None:
    page = open_page(path, viewport={"width": 390, "height": 844}, is_mobile=True)
    enter(page)
    page.wait_for_selector("main > section:not([hidden]) h1")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.locator("#person .name").is_visible()


def test_the_api_describes_itself_without_any_other_server(chromium: Any, served: Served) -> None:
    context = chromium.new_context(base_url=served.url)
    page = context.new_page()
    faults: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("request", lambda asked: elsewhere.append(asked.url))
    page.goto("/docs")
    page.click("[data-path='/v1/images/generations']")
    page.wait_for_selector("text=num_inference_steps")
    assert faults == []
    assert [url for url in elsewhere if not url.startswith((served.url, "data:"))] == []
    context.close()


@pytest.mark.parametrize("path", ["/certificates/cert_nope", "/decisions/img_nope"])
def test_what_is_not_there_is_said_in_its_place(open_page: Callable[..., Any], path: str) -> None:
    page = open_page(path)
    enter(page)
    page.wait_for_selector("main h1 >> text=There is none")
    assert "_nope" in page.text_content("main")
    page.click("main a.button")
    page.wait_for_selector("#list")


def test_a_report_names_its_question_once_and_is_remembered(
    open_page: Callable[..., Any], served: Served
) -> None:
    asked = {"n": 3, "seed": 3, "censor": {"on_filtered": "never"}}
    decided = httpx.post(f"{served.url}/v1/images/generations", json=asked).json()
    for name, question in (("a-first", "Is it a cat?"), ("into", "Is this a dark first pixel?")):
        httpx.post(f"{served.url}/v1/datasets", json={"name": name, "question": question})
    page = open_page(f"/decisions/{decided['id']}")
    enter(page)
    page.wait_for_selector("#decision:not([hidden])")
    assert page.text_content("#outcome") == "Answered"
    assert page.locator("select").count() == 1, "one for all images"
    assert page.input_value("#into select") == "into", "the question of the policy"
    assert "Is it a cat? (a-first)" in page.text_content("#into")
    page.locator("[data-index='1'] >> text=Draw it again").focus()
    press(page, "Enter")
    page.wait_for_selector("[data-index='1'] .again img")
    button = page.locator("[data-index='1'] button.wrongly")
    button.focus()
    press(page, "Enter")
    page.wait_for_selector("[data-index='1'] >> text=Reported into into")
    assert button.is_disabled()
    page.reload()
    page.wait_for_selector("[data-index='1'] >> text=Reported into into")
    assert page.locator("[data-index='1'] button.wrongly").is_disabled()
    assert page.locator("[data-index='0'] .reported").is_hidden()
    page.select_option("#into select", "a-first")
    assert page.locator("[data-index='1'] button.wrongly").is_enabled()
