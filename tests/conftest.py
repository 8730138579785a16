"""Fixtures for all tests. Those that start a Ray cluster live in `tests/integration`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import Bundle, load
from tests.bundles import write_bundle

# The tensors here are tiny: on a busy machine a second thread costs ten times what it does.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of stand-in files: right in every byte, with no weights to load."""
    return load(str(write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")))


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """The folder of a bundle that a test may damage."""
    return write_bundle(tmp_path / "tiny")
