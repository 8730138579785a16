"""Fixtures for all tests. Those that start a Ray cluster live in `tests/integration`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from models.bundles.bundle import Bundle, load
from tests.bundles import write_bundle

# The tensors here are tiny: on a busy machine a second thread costs ten times what it does.
torch.set_num_threads(1)
# An example's time is the machine's, and no fault of what it tries.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


MARKS = {"chromium": "browser", "postgres": "postgres"}
"""What a test that uses this fixture is marked with."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKS[fixture])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of stand-in files: right in every byte, with no weights to load."""
    return load(str(write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")))


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """The folder of a bundle that a test may damage."""
    return write_bundle(tmp_path / "tiny")
