"""The folder of a run: ours alone, and gone when the run is over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from service.cluster import run_folder
from service.config import ConfigError


@pytest.fixture
def root() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def begin(root: Path) -> run_folder.RunFolder:
    return run_folder.begin({"RAY_TMPDIR": str(root)})


def fill(folder: Path) -> None:
    for name in ("logs/serve", "sockets", "runtime_resources"):
        (folder / "ray/session_2" / name).mkdir(parents=True)
    (folder / "ray/session_2/logs/raylet.out").write_text("it began")
    (folder / "session_latest").symlink_to(folder / "ray/session_2")
    (folder / "winnow-weights-1").mkdir()
    (folder / run_folder.ERRORS).write_text("")


def test_only_its_user_can_look_into_it(root: Path) -> None:
    own = begin(root)
    assert own.folder.stat().st_mode & 0o777 == 0o700
    own.end(keep_logs=False)
    assert list(root.iterdir()) == []


def test_logs_alone_are_kept(root: Path) -> None:
    own = begin(root)
    fill(own.folder)
    own.end(keep_logs=True)
    kept = {str(path.relative_to(own.folder)) for path in own.folder.rglob("*") if path.is_file()}
    assert kept == {"lock", run_folder.ERRORS, "ray/session_2/logs/raylet.out"}
    assert not (own.folder / "ray/session_2/sockets").exists()


def test_the_next_run_keeps_the_logs_of_the_last_alone(root: Path) -> None:
    for name in ("a", "b"):  # as `kill -9` leaves them
        killed = begin(root)
        fill(killed.folder)
        killed.folder.rename(root / f"{run_folder.PREFIX}{name}")
        os.close(killed.lock)
    running = begin(root)
    assert {path.name for path in root.iterdir()} == {f"{run_folder.PREFIX}b", running.folder.name}
    assert [path.name for path in (root / f"{run_folder.PREFIX}b/ray/session_2").iterdir()] == [
        "logs"
    ]


def test_a_folder_in_use_or_of_somebody_else_stays(root: Path) -> None:
    running = begin(root)
    fill(running.folder)
    (root / f"{run_folder.PREFIX}weights").mkdir()
    (root / f"{run_folder.PREFIX}link").symlink_to(root / f"{run_folder.PREFIX}weights")
    for _ in range(3):
        begin(root).end(keep_logs=False)
    assert (running.folder / "ray/session_2/sockets").exists()
    assert (root / f"{run_folder.PREFIX}weights").exists()


def test_what_another_user_left_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = begin(root)
    fill(left.folder)
    os.close(left.lock)
    monkeypatch.setattr(os, "geteuid", lambda: left.folder.stat().st_uid + 1)
    begin(root)
    begin(root)
    assert (left.folder / "ray/session_2/sockets").exists()


def test_rays_sockets_fit_below_the_longest_root() -> None:
    root = Path("/tmp") / ("t" * (run_folder._LONGEST_ROOT - len("/tmp/")))
    root.mkdir()
    try:
        own = begin(root)
        path = f"{own.folder}{run_folder._SOCKET}"
        Path(path).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as plasma:
            plasma.bind(path)
        own.end(keep_logs=False)
    finally:
        root.rmdir()


def test_a_place_that_cannot_be_used_is_named() -> None:
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR: .* longer than"):
        run_folder.begin({"RAY_TMPDIR": "/tmp/" + "t" * 80})
    with pytest.raises(ConfigError, match=r"/nowhere .*RAY_TMPDIR"):
        run_folder.begin({"RAY_TMPDIR": "/nowhere"})
