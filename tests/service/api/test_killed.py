"""An ingress that is killed while it draws a certificate's images: another one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.bundles.bundle import Bundle
from tests.service.api.conftest import client
from tests.service.api.server import KEYS, serve
from tests.stores import open_store

WAIT_S = 120
TERMS = {"epsilon": 0.06, "delta": 0.5}
"""Which need 23 labels: three rounds of drawing."""


@pytest.fixture
def killed(bundle: Bundle, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.service.api.drawer", str(bundle.folder), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_certificate_is_drawn_to_its_end_by_another_ingress_with_the_same_seeds(
    bundle: Bundle,
    tmp_path: Path,
    killed: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert killed.stdout is not None
    url = killed.stdout.readline().strip()
    headers = {"Authorization": f"Bearer {KEYS['APPROVE_KEY']}"}
    begun = httpx.post(
        f"{url}/v1/policies/bright/certify", json=TERMS, headers=headers, timeout=WAIT_S
    ).json()
    name, n = begun["id"], begun["terms"]["n"]
    store = open_store(f"sqlite:///{tmp_path}/winnow/decisions.sqlite", create=False)
    deadline = time.monotonic() + WAIT_S
    while True:
        left = store.certificates.read(name).result
        if left["drawn"] and left["pending"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(WAIT_S)
    # It may have gone on for a moment.
    left, before = store.certificates.read(name).result, store.certificates.images(name)
    assert 0 < len(before) < n
    assert left["pending"]

    monkeypatch.setattr("service.store.jobs.LEASE_S", 2.0)
    monkeypatch.setattr("service.jobs.runner.BEAT_S", 0.2)
    asked: set[int] = set()
    with serve(bundle, folder=tmp_path) as served, client(served, "APPROVE_KEY") as http:
        served.judge.answer = 1.0
        served.backends.on_results = lambda results: asked.update(one.key.seed for one in results)
        while (found := http.get(f"/v1/certificates/{name}").json())["status"] == "drawing":
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        assert (found["status"], found["progress"]["drawn"]) == ("labelling", n)
        after = served.store.certificates.images(name)
    store.close()
    assert after[: len(before)] == before, "none is lost"
    assert [one.position for one in after] == list(range(n))
    assert len({one.seed for one in after}) == n
    assert not asked & {one.seed for one in before}, "what is there is not asked for again"
    assert set(left["pending"]) <= {one.seed for one in after}, "its death picked among images"
