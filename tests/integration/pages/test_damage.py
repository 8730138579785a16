"""What a page shows where something in the store cannot be read: all the rest, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.damage import NO_JSON, change_blob, write_column
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
from tests.processes import wait_for
from tests.service.api.server import Served


def test_a_page_goes_on_without_a_damaged_image_and_keeps_the_marks(
    open_page: Callable[..., Any], served: Served
) -> None:
    page = open_page()
    dataset = begin(page)
    press(page, "Space", *["ArrowRight"] * 3, "Space", "ArrowRight", "u")
    assert marks(page) == {0: "malign", 3: "malign", 4: "unsure"}
    with httpx.Client(base_url=served.url) as http:
        session = {one["name"]: one["value"] for one in page.context.cookies()}
        http.cookies.update(session)
        csrf = http.get("/v1/session").json()["csrf"]
        open_batch = http.post(
            f"/v1/datasets/{dataset}/batches", json={}, headers={"X-CSRF-Token": csrf}
        ).json()
    lost = open_batch["images"][3]["id"]
    change_blob(served.store, served.store.datasets.image(dataset, lost).blob)
    page.reload()
    page.wait_for_selector("text=1 image can no longer be shown, and was passed over.")
    ready(page)
    assert len(images(page)) == 24
    assert marks(page) == {0: "malign", 3: "unsure"}, "as they were, of the images that are left"
    turn(page)
    wait_for(lambda: len(served.store.datasets.labelled(dataset)) == 24)
    assert len(images(page)) == 25
    press(page, "z")
    page.wait_for_function("() => document.querySelectorAll('button.cell').length === 24")


def test_lists_show_the_rest_and_name_what_is_damaged(
    open_page: Callable[..., Any], served: Served
) -> None:
    asked = {"seed": 1}
    good, bad = (
        httpx.post(f"{served.url}/v1/images/generations", json=asked).json()["id"] for _ in range(2)
    )
    write_column(served.store, "decisions", "document", NO_JSON, id=bad)
    begun = certify(served)
    abandon(served, begun)
    write_column(served.store, "certificates", "terms", NO_JSON, id=begun)
    number = served.store.policies.add("broken", {}, None, "test")
    served.store.policies.point("broken", None, number, "test", "policy.promote")
    served.policy_registry.refresh()
    page = open_page("/decisions")
    enter(page)
    page.wait_for_selector(f"a[href='/decisions/{good}']")
    assert "cannot be read" in page.text_content(f"a[href='/decisions/{bad}']")
    page.goto(f"/decisions/{bad}")
    page.wait_for_selector("text=damaged")
    page.goto("/certificates")
    page.wait_for_selector(f"text={begun}")
    assert "cannot be read" in page.text_content("#list")
    page.goto("/policies")
    page.wait_for_selector("h2:text('bright')")
    page.wait_for_selector("h2:text('broken')")
    assert "Nothing leaves under it" in page.text_content("article:has(h2:text('broken'))")
