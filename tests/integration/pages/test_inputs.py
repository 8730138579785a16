"""Pages of a model that takes a prompt: which prompts to draw, and what each image is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from models.bundles.bundle import Bundle
from tests.integration.pages.browser import certify, enter, marks, press, ready, turn
from tests.processes import wait_for
from tests.service.api.asking import TEXT, serve_asked
from tests.service.api.server import AUTH, Served

LONG = "a-cat-of-a-name-that-fits-no-cell " * 4


def test_prompts_are_asked_for_and_stand_under_their_images(
    open_page: Callable[..., Any], asked: Served
) -> None:
    page = open_page(f"{asked.url}/feedback")
    enter(page)
    page.wait_for_selector("#prompts:not([hidden])")
    page.fill("#choose [name=question]", "Is it dark?")
    page.fill("#choose [name=name]", "prompts")
    page.fill("#choose [name=prompts]", "a cat\n\n  a dog \n")
    page.click("#choose form button")
    ready(page)
    assert asked.store.datasets.read("prompts").inputs == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    captions = page.eval_on_selector_all("button.cell .caption", "all => all.map(o => o.innerText)")
    assert len(captions) == 25
    assert set(captions) == {"a cat", "a dog"}
    assert page.text_content("#caption") == captions[0]
    press(page, "ArrowRight", "Space")
    assert marks(page) == {1: "malign"}, "the keys act on images as ever"
    assert page.text_content("#caption") == captions[1]
    name = page.get_attribute("button.cell >> nth=1", "aria-label")
    assert name == f"Row 1, column 2, {captions[1]}: malign"
    image = page.locator("button.cell img").nth(1).bounding_box()
    caption = page.locator("button.cell .caption").nth(1).bounding_box()
    assert caption["y"] >= image["y"] + image["height"] - 1, "a caption hides no pixel"
    turn(page)
    labelled = asked.store.datasets.labelled("prompts")
    assert [one.image.input["prompt"] for one in labelled if one.image.input] == captions


def test_whoever_may_not_choose_prompts_is_told_so(
    open_page: Callable[..., Any], bundle: Bundle
) -> None:
    auth = AUTH | {"anonymous": True, "anonymous_scopes": ["label"]}
    with serve_asked(bundle, TEXT, auth=auth) as (served, _):
        page = open_page(f"{served.url}/feedback")
        enter(page)
        page.wait_for_selector("#reviewers:not([hidden])")
        assert "choosing prompts is a reviewer's business" in page.text_content("#reviewers")
        assert page.is_hidden("#prompts")
        assert page.is_disabled("#choose form button")


def test_a_model_without_inputs_shows_no_caption(open_page: Callable[..., Any]) -> None:
    page = open_page()
    enter(page)
    page.wait_for_selector("#choose:not([hidden])")
    assert page.is_hidden("#prompts")
    assert page.is_hidden("#reviewers")
    page.fill("#choose [name=question]", "Is it dark?")
    page.fill("#choose [name=name]", "captionless")
    page.click("#choose form button")
    ready(page)
    assert page.locator(".caption").count() == 0
    assert page.is_hidden("#caption")


def test_a_certificates_page_says_what_its_images_are_of(
    open_page: Callable[..., Any], asked: Served
) -> None:
    prompts = [{"prompt": LONG}, {"prompt": "a dog"}]
    begun = certify(asked, inputs=prompts)
    page = open_page(f"{asked.url}/certificates/{begun}")
    enter(page)
    ready(page)
    assert "4 images of these 2 prompts, drawn uniformly, of which" in page.text_content("#came")
    assert page.text_content("#caption") in {LONG, "a dog"}
    assert "a dog" in page.text_content("#covers")


def test_a_decisions_page_says_what_was_asked(open_page: Callable[..., Any], asked: Served) -> None:
    body = {"prompt": "a walrus", "censor": {"on_filtered": "never"}}
    made = httpx.post(f"{asked.url}/v1/images/generations", json=body).json()
    wait_for(lambda: asked.store.decisions.read(made["id"]) is not None)
    page = open_page(f"{asked.url}/decisions/{made['id']}")
    enter(page)
    page.wait_for_selector("#decision:not([hidden])")
    assert page.text_content("#prompt") == "The prompt was not kept · guidance scale 7.5"
