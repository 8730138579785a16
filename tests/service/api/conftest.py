"""One server for most tests of the API; whoever breaks a part of it finds it whole afterwards."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Iterator

import httpx
import pytest

from models.bundles.bundle import Bundle
from tests.service.api.server import KEYS, Brightness, Served, serve

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without it each client reads all certificate authorities, in more time than most tests take."""
JSONL = {"Content-Type": "application/jsonl"}
FILES = {"jsonl": JSONL, "csv": {"Content-Type": "text/csv"}}
"""The headers of a file of labels, by its form."""


@pytest.fixture(scope="session")
def _server(bundle: Bundle) -> Iterator[Served]:
    limits = {"n": 5, "body_bytes": 8192, "prompt_chars": 20, "moderation_inputs": 2}
    with serve(bundle, limits=limits) as served:
        yield served


@pytest.fixture
def impatient_server(bundle: Bundle) -> Iterator[Served]:
    """A server that gives its judge a fifth of a second, and a judge that takes longer."""
    models = {"tiny": {"bundle": str(bundle.folder), "judge": {"timeout_s": 0.2}}}
    with serve(bundle, models=models) as served:
        served.judge.delay_s = 1.0
        yield served


@pytest.fixture
def server(_server: Served) -> Iterator[Served]:
    """The server, mended after the test."""
    _server.paths.clear()
    yield _server
    vars(_server.judge).update(vars(Brightness()))
    _server.backbone.delay_s = 0.0
    _server.backends.on_results = lambda results: None


def client(server: Served, key: str | None = "SCORES_KEY") -> httpx.Client:
    """An HTTP client with one of the server's keys, or with none."""
    headers = {} if key is None else {"Authorization": f"Bearer {KEYS.get(key, key)}"}
    return httpx.Client(
        base_url=server.url, headers=headers, timeout=30, trust_env=False, verify=NO_TLS
    )


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    """A client whose key may generate and see scores."""
    with client(server) as opened:
        yield opened


@pytest.fixture
def labeller(server: Served) -> Iterator[httpx.Client]:
    """A client whose key may label, and nothing else."""
    with client(server, "LABEL_KEY") as opened:
        yield opened


@pytest.fixture
def reviewer(server: Served) -> Iterator[httpx.Client]:
    """A client whose key may label and approve, and so choose what images are of."""
    with client(server, "REVIEW_KEY") as opened:
        yield opened


@pytest.fixture
def dataset(labeller: httpx.Client) -> str:
    """The name of a fresh dataset."""
    name = f"set-{next(_NUMBERS)}"
    answer = labeller.post("/v1/datasets", json={"name": name, "question": "Is it dark?"})
    assert answer.status_code == 201, answer.text
    return name


_NUMBERS = itertools.count()


def refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    """The response is this error, in the shape of all errors."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error
