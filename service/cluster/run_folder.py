"""The folder of one run: Ray's session, its logs, and the temporary files of all replicas.

Only its user can read it. A run holds a lock on a file in it, which the kernel releases with the
process, so that the next run knows which folders are left over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.config import ConfigError

PREFIX = "winnow-"
LOCK = "lock"
ERRORS = "serve.err"
# Ray lets everybody write into its folder, so it gets one inside. There it makes sockets, whose
# paths the kernel bounds at 107 bytes.
RAY = "ray"
_SOCKET = f"/{RAY}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1"
_LONGEST_ROOT = 107 - len(_SOCKET) - len(f"/{PREFIX}12345678")


@dataclass(frozen=True)
class RunFolder:
    """A folder, locked while this process or a forked child lives."""

    folder: Path
    lock: int

    @property
    def ray(self) -> Path:
        """Where Ray makes its own folder."""
        return self.folder / RAY

    @property
    def errors(self) -> Path:
        """Where the server's stderr goes."""
        return self.folder / ERRORS

    def end(self, keep_logs: bool) -> None:
        """Remove the folder, or all but the logs in it."""
        if keep_logs:
            _remove_all_but_logs(self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def begin(environment: Mapping[str, str]) -> RunFolder:
    """A new folder of mode 0700, in RAY_TMPDIR or the system's temporary folder.

    Folders of runs that were killed are removed, but for the logs of the last. Raises ConfigError
    where no folder can be made.
    """
    root = _root(environment)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        # Locked before it has its name: nobody sees a lock that is not held.
        lock = os.open(folder / f".{LOCK}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(folder / f".{LOCK}", folder / LOCK)
    except OSError as error:
        raise ConfigError(
            f"no folder can be made for Ray in {root} ({error.strerror}): "
            "name another place by RAY_TMPDIR"
        ) from None
    _remove_left_over(root)
    return RunFolder(folder, lock)


def _root(environment: Mapping[str, str]) -> Path:
    if given := environment.get("RAY_TMPDIR"):
        if len(os.fsencode(given)) > _LONGEST_ROOT:
            raise ConfigError(
                f"RAY_TMPDIR: {given!r} is longer than {_LONGEST_ROOT} bytes, and the paths of "
                "Ray's sockets in it would be too long"
            )
        return Path(given)
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual)) <= _LONGEST_ROOT else Path("/tmp")


def _remove_left_over(root: Path) -> None:
    """Remove the folders of runs that are over, but for the logs of the last."""
    over = []
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            # Another run that starts now may be at it too: whoever has the lock removes it.
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
            else:
                over.append((folder.stat().st_mtime, folder, lock))
    for age, (_, folder, lock) in enumerate(sorted(over, reverse=True)):
        RunFolder(folder, lock).end(keep_logs=age == 0)


def _remove_all_but_logs(folder: Path) -> None:
    for path in _all_but_logs(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _all_but_logs(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if path.name not in (LOCK, ERRORS, RAY))
    for path in folder.glob(f"{RAY}/session_2*/*"):
        if path.name != "logs":
            yield path
