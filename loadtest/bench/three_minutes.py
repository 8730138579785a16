"""Three minutes, start to end: an empty dataset, a person in a browser, a policy in force.

A scripted person sits before the real pages of a running service, in Chromium with the keyboard
alone. What is malign is decided by the bundle's annotator; before and after, the oracle, which
knows other labels, says how many of 2,000 delivered images are malign. The person's time counts at
0.3 s an image, since the script needs less. `python -m loadtest.bench.three_minutes` (needs
chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.bench.report import OUT, save, show
from loadtest.bench.servers import ADMIN, winnow
from models.bundles import bundle as bundles
from models.offline import seed_ranges
from models.rewards.calibration import clopper_pearson_interval
from models.zoo.evaluation.referees import SECONDS_PER_IMAGE, Referee, load_referee
from models.zoo.questions import NO_CROSSBAR

MODEL, POLICY, DATASET = "mnist-sevens", "no-crossbar", "crossbars"
PAGE, ACROSS = 25, 5
QUIET = ("background-networking", "component-update", "gpu", "quic", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in QUIET)]
WAIT_MS = 300_000
QUIET_S = 10


def main() -> None:
    """Run it, print one table, write JSON and a screenshot of each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=200, help="at most so many")
    parser.add_argument("--images", type=int, default=2000, help="to measure on")
    arguments = parser.parse_args()
    bundle = bundles.load(MODEL)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    annotator = load_referee(bundle.path(evaluation.annotator), NO_CROSSBAR)
    oracle = load_referee(bundle.path(evaluation.oracle), NO_CROSSBAR)
    shots = OUT / "three_minutes"
    shots.mkdir(parents=True, exist_ok=True)
    with winnow() as server, httpx.Client(base_url=server.url, headers=ADMIN) as client:
        before = asyncio.run(_rate(server.url, oracle, "none", arguments.images))
        took = _person(server.url, annotator, arguments.labels // PAGE, shots)
        reward = client.get("/v1/rewards").json()["data"][0]
        card = client.get(f"/v1/rewards/{reward['id']}").json()["card"]
        force = client.get(f"/v1/policies/{POLICY}").json()
        after = asyncio.run(_rate(server.url, oracle, POLICY, arguments.images))
    counts = card["counts"]
    labels = sum(counts.values())
    figures: dict[str, Any] = {
        "labels": labels,
        "malign labels": counts["malign"],
        "a person's seconds at 0.3 s an image": labels * SECONDS_PER_IMAGE,
        "first label to policy in force, s (script)": took["first label to force"],
        "… with the person's time": took["first label to force"]
        - took["labelling"]
        + labels * SECONDS_PER_IMAGE,
        "training, s": card["trained_seconds"],
        "serving: p95 before, ms": 1000 * took["p95 before"],
        "serving: p95 while training ÷ before": f"{took['p95 training'] / took['p95 before']:.2f}",
        "version in force": force["version"],
        "judge": force["judge"],
        "malign % before": before,
        "malign % after": after,
    }
    rows = [[name, _said(value)] for name, value in figures.items()]
    show("From an empty dataset to a live policy", ["what", "figure"], rows)
    save("three_minutes", figures)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        low, high = value["interval"]
        rate = f"{value['rate']:.2f} [{low:.2f}, {high:.2f}]"
        return f"{rate} of {value['delivered']}, {value['draws']:.2f} draws an image"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _person(url: str, annotator: Referee, pages: int, shots: Path) -> dict[str, float]:
    """Label so many pages, train, make a version and promote it; returns seconds."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "no chromium: apt-get install chromium"
    # Before anybody labels: the labelling service draws pages ahead.
    with _asking(url) as quiet:
        time.sleep(QUIET_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(base_url=url, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.goto("/feedback")
        page.wait_for_selector("#enter:not([hidden])")
        page.keyboard.type("Ada")
        page.keyboard.press("Enter")
        page.wait_for_selector("#choose:not([hidden])")
        page.fill("#choose input[name=question]", "Does the seven carry a crossbar?")
        page.fill("#choose input[name=name]", DATASET)
        page.keyboard.press("Enter")
        _ready(page)
        began = time.monotonic()
        for number in range(pages):
            _label(page, annotator)
            if number in (0, pages - 1):
                page.screenshot(path=shots / f"label-{number + 1}.png")
            before = page.get_attribute("button.cell img", "src")
            page.keyboard.press("Enter")
            page.wait_for_function(
                "before => { const i = document.querySelector('button.cell img');"
                "return i && i.src !== before; }",
                arg=before,
            )
            _ready(page)
        labelled = time.monotonic()
        page.goto(f"/feedback/rewards?dataset={DATASET}")
        with _asking(url) as busy:
            page.click("#train button.act")
            page.wait_for_selector("progress, .progress, .track")
            page.screenshot(path=shots / "training.png")
            page.wait_for_selector("text=Make a version")
        page.click("text=Make a version")
        page.click("button.act:has-text('Promote')")
        page.wait_for_selector(f"text={POLICY} is in force")
        done = time.monotonic()
        page.screenshot(path=shots / "promoted.png", full_page=True)
        browser.close()
    return {
        "labelling": labelled - began,
        "first label to force": done - began,
        "p95 before": float(np.quantile(quiet, 0.95)),
        "p95 training": float(np.quantile(busy, 0.95)),
    }


@contextmanager
def _asking(url: str) -> Iterator[list[float]]:
    """Ask for one image after another meanwhile; yields the list that their seconds go into."""
    seconds: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, headers=ADMIN, timeout=60) as client:
            while not stop.wait(0.1):
                started = time.perf_counter()
                body = {"policy": "none", "seed": len(seconds)}
                client.post("/v1/images/generations", json=body).raise_for_status()
                seconds.append(time.perf_counter() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()


def _ready(page: Any) -> None:
    page.wait_for_selector("button.cell img")
    page.wait_for_function("() => !document.querySelector('.grid').hasAttribute('aria-busy')")


def _label(page: Any, annotator: Referee) -> None:
    """Walk the grid row by row, back and forth, and mark what the annotator calls malign."""
    sources = page.eval_on_selector_all("button.cell img", "all => all.map(i => i.src)")
    pixels = np.stack([_pixels_of(source) for source in sources])
    malign = annotator.malign(pixels)
    page.focus("button.cell >> nth=0")
    for place in range(len(malign)):
        row, column = divmod(place, ACROSS)
        index = row * ACROSS + (column if row % 2 == 0 else ACROSS - 1 - column)
        if malign[index]:
            page.keyboard.press("Space")
        if place + 1 < len(malign):
            last = column == ACROSS - 1
            page.keyboard.press("j" if last else ("l" if row % 2 == 0 else "h"))


def _pixels_of(source: str) -> NDArray[np.uint8]:
    """The grey pixels [H, W, 1] of a PNG in base64, bare or as a data URL."""
    png = base64.b64decode(source.rpartition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))[..., None]


async def _rate(url: str, oracle: Referee, policy: str, count: int) -> dict[str, Any]:
    """What the oracle says of `count` images that the service delivers under a policy."""
    first = seed_ranges.first(seed_ranges.EVALUATION)
    pixels, draws = [], 0
    gate = asyncio.Semaphore(4)
    async with httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=300) as client:

        async def ask(seed: int) -> dict[str, Any]:
            async with gate:
                body = {"policy": policy, "n": 16, "seed": seed, "censor": {"on_filtered": "never"}}
                answer = await client.post("/v1/images/generations", json=body)
                answer.raise_for_status()
                found: dict[str, Any] = answer.json()
                return found

        for answer in await asyncio.gather(*(ask(first + i) for i in range(0, count, 16))):
            draws += answer["usage"]["draws"]
            pixels += [_pixels_of(one["b64_json"]) for one in answer["data"] if one["b64_json"]]
    malign = int(oracle.malign(np.stack(pixels)).sum())
    interval = clopper_pearson_interval(malign, len(pixels))
    return {
        "rate": 100 * malign / len(pixels),
        "interval": [100 * one for one in interval],
        "delivered": len(pixels),
        "draws": draws / len(pixels),
    }


if __name__ == "__main__":
    main()
