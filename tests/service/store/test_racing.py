"""Several processes that open one store at the same moment, and a pooler before PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.store.database import Database
from service.store.decisions import Decisions
from service.store.store import Store
from tests.records import make_row
from tests.service.store.conftest import empty

INGRESSES = 4
ROUNDS = 20
WAIT_S = 120


@pytest.fixture(scope="module")
def openers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that each open a store when told to."""
    command = [sys.executable, "-m", "tests.service.store.opener"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(INGRESSES)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "up\n"
    yield started
    for one in started:
        one.communicate()


SERVERS = [pytest.param(one, marks=pytest.mark.postgres) for one in ("postgresql", "pgbouncer")]


@pytest.fixture(params=["sqlite", *SERVERS])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes an empty database; returns its URL."""
    if request.param == "sqlite":
        numbers = iter(range(ROUNDS))
        return lambda: f"sqlite:///{tmp_path}/{next(numbers)}.sqlite"
    server: str = request.getfixturevalue("postgres")
    url: str = server if request.param == "postgresql" else request.getfixturevalue("pooled")

    def made() -> str:
        empty(server)
        return url

    return made


def _race(openers: list[subprocess.Popen[str]], url: str, slow_s: float = 0.0) -> list[str]:
    """What each process answers that opens this store now."""
    for number, one in enumerate(openers):
        assert one.stdin is not None
        one.stdin.write(json.dumps({"url": url, "slow_s": slow_s, "number": number}) + "\n")
    for one in openers:
        assert one.stdin is not None
        one.stdin.flush()
    return [one.stdout.readline().strip() for one in openers if one.stdout is not None]


def test_all_of_those_that_race_to_make_the_tables_start(
    openers: list[subprocess.Popen[str]], fresh: Callable[[], str]
) -> None:
    for _ in range(ROUNDS):
        url = fresh()
        assert _race(openers, url) == [""] * INGRESSES
        found = Decisions(Database(url, create=False)).recent(99)
        assert len(found) == INGRESSES


def test_all_start_while_a_migration_takes_long(
    openers: list[subprocess.Popen[str]], fresh: Callable[[], str]
) -> None:
    assert _race(openers, fresh(), slow_s=11.0) == [""] * INGRESSES


def test_a_pooler_may_give_each_transaction_another_session(
    fresh: Callable[[], str], tmp_path: Path
) -> None:
    store = Store(fresh(), str(tmp_path / "blobs"))
    store.policies.seed({"bright": {}}, "configuration")

    def work(number: int) -> int:
        store.decisions.insert([make_row(number)])
        assert store.policies.add(f"policy-{number}", {}, None, "somebody") == 1
        return len(store.policies.pointers()) + len(store.decisions.recent(1))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(80))) == [2] * 80
    assert len(store.decisions.recent(99)) == 80
    store.close()
