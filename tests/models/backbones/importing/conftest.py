"""Each pipeline is made once; a test gets a copy that it may damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imports import MAKERS

Copy = Callable[[str], Path]


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("pipelines")

    def made(name: str) -> Path:
        if not (root / name).exists():
            MAKERS[name](root / name)
        return root / name

    return made


@pytest.fixture
def pipeline(pipelines: Callable[[str], Path], tmp_path: Path) -> Copy:
    """A pipeline of one's own, by its name in `MAKERS`."""

    def copy(name: str) -> Path:
        return shutil.copytree(pipelines(name), tmp_path / "pipelines" / name)

    return copy
