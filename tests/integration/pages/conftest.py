"""A real Chromium, against the real API in this process: no Ray, no weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from service.jobs.runner import JobRunner
from tests.service.api.asking import TEXT, serve_asked
from tests.service.api.server import AUTH, Served, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("background-networking", "component-update", "gpu", "quic", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{one}" for one in QUIET)]
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("the pages are not tested: no chromium: apt-get install chromium")
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
        runner = JobRunner(server.store.jobs, [server.trainings.kind])
        yield server
        runner.close()


@pytest.fixture(scope="module")
def asked(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a model that takes a prompt."""
    auth = AUTH | {"anonymous": True, "anonymous_scopes": ["generate", "label", "approve"]}
    with pytest.MonkeyPatch.context() as patch, serve_asked(bundle, TEXT, auth=auth) as (server, _):
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield server


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
