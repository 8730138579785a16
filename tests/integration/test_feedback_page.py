"""The pages in a real Chromium, against the real API in this process: no Ray, no weights."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundle import Bundle
from service.feedback.worker import Worker
from service.store.datasets import Dataset
from tests.integration.conftest import wait_for
from tests.rewards import put_reward
from tests.service.api.server import AUTH, KEYS, Served, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("background-networking", "component-update", "gpu", "quic", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in QUIET)]
MODULE = Path(__file__).name
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"{MODULE}: no chromium: apt-get install chromium"
)
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    auth: dict[str, Any] = AUTH | {
        "anonymous": True,
        "anonymous_scopes": ["generate", "scores", "label", "approve"],
    }
    with pytest.MonkeyPatch.context() as patch, serve(bundle, auth=auth) as server:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        worker = Worker(server.store.rewards, server.desk.train)
        yield server
        worker.close()


@pytest.fixture
def open_page(chromium: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens a page in a browser of its own; a script error or a broken rule fails the test."""
    contexts, faults = [], []

    def opened(path: str = "/feedback", **options: Any) -> Any:
        context = chromium.new_context(base_url=served.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda message: (
                faults.append(message.text) if "Content Security" in message.text else None
            ),
        )
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


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
    press(page, "Space", "Enter")
    page.wait_for_selector("#toast.up")
    assert "Your session has ended. Your marks are kept" in page.text_content("#toast")
    ready(page)
    turn(page)
    assert served.store.datasets.counts(dataset)["benign"] > 0, "it saves with the new token"


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


def middle(page: Any, index: int) -> tuple[float, float]:
    box = page.locator("button.cell").nth(index).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


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
    policy = served.live.seeds["bright"]
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
                (now := served.live.pointers["bright"]).version == version
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


def test_labels_that_are_not_there_are_said_to_be_missing(open_page: Callable[..., Any]) -> None:
    page = open_page("/feedback/rewards?dataset=nope")
    enter(page)
    page.wait_for_selector("#rewards:not([hidden])")
    assert "no labels named nope" in page.text_content("#train .wrong")
