"""Blobs: what is too large for a table, immutable and named by its sha256.

They lie at an fsspec URL: a folder by default; a bucket or a shared volume where replicas run on
several machines. What is read is compared with its name, so a changed blob is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.config import ConfigError
from service.errors import BlobMissing, BlobUnreadable, StoreUnavailable

PROBE = b"Blobs can be written and read.\n"
NAME = re.compile(r"sha256:[0-9a-f]{64}")


class Blobs:
    """Bytes by sha256 name. Methods block; any thread may call them."""

    def __init__(self, url: str) -> None:
        """Nothing is read yet. Raises ConfigError for a URL that no installed filesystem reads."""
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"store.blobs_url: {error}") from None
        self._root = root.rstrip("/")

    @property
    def folder(self) -> Path | None:
        """The folder that they lie in; None where that is no folder of this machine."""
        return Path(self._root or "/") if isinstance(self._files, LocalFileSystem) else None

    def put(self, data: bytes) -> str:
        """Keep these bytes; returns their name. What is there already and whole stays as it is.

        Raises StoreUnavailable.
        """
        name = name_of(data)
        path = self._path(name)
        try:
            if self._holds(path, data):
                return name
        except OSError as error:
            raise StoreUnavailable("a blob could not be read; the log holds its cause") from error
        self._write(path, data)
        return name

    def probe(self) -> None:
        """Write a small blob anew and read it: shows that both can be done.

        Raises StoreUnavailable.
        """
        name = name_of(PROBE)
        self._write(self._path(name), PROBE)
        self.get(name)

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if isinstance(self._files, LocalFileSystem):
                _write_whole(Path(path), data)
            else:
                # Object stores show a file only once it is whole.
                self._files.pipe_file(path, data)
        except OSError as error:
            raise StoreUnavailable(
                "a blob could not be written; the log holds its cause"
            ) from error

    def get(self, name: str) -> bytes:
        """The bytes of this name.

        Raises BlobUnreadable when they were changed or cannot be read, BlobMissing when they are
        not there, and StoreUnavailable when no blob could be read.
        """
        path = self._path(name)
        try:
            data: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            self._check_there()
            raise BlobMissing(f"blob {name} is not in the store") from None
        except OSError as error:
            self._check_there()
            raise BlobUnreadable(f"blob {name} could not be read: {error}") from error
        if name_of(data) != name:
            raise BlobUnreadable(f"blob {name} is not what its name says: it was changed")
        return data

    def has(self, name: str) -> bool:
        """Whether there is a blob of this name. Raises StoreUnavailable."""
        try:
            return bool(NAME.fullmatch(name)) and bool(self._files.exists(self._path(name)))
        except OSError as error:
            raise StoreUnavailable("a blob could not be read; the log holds its cause") from error

    def fetch(self, name: str, folder: Path, suffix: str) -> Path:
        """The bytes of this name as a file in `folder`, for libraries that read files."""
        path = folder / (name.removeprefix("sha256:") + suffix)
        _write_whole(path, self.get(name))
        return path

    def delete(self, name: str) -> None:
        """Forget a blob, if it is there. Raises StoreUnavailable."""
        try:
            if self._files.exists(self._path(name)):
                self._files.rm_file(self._path(name))
        except OSError as error:
            raise StoreUnavailable(
                "a blob could not be deleted; the log holds its cause"
            ) from error

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return bool(self._files.exists(path)) and self._files.cat_file(path) == data
        except OSError:  # what cannot be read is written anew
            return False

    def _check_there(self) -> None:
        """Raises StoreUnavailable where all blobs are gone: a volume that is not mounted, say."""
        try:
            there = self._files.exists(self._root)
        except OSError:
            there = False
        if not there:
            raise StoreUnavailable("the store's blobs are not there: look at store.blobs_url")

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise BlobUnreadable(f"{name!r} is no name of a blob")
        digest = name.removeprefix("sha256:")
        return f"{self._root}/{digest[:2]}/{digest}"


def name_of(data: bytes) -> str:
    """`sha256:<hex>`, as bundles and plans name weights."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody, and no crash, ever sees half of it."""
    handle, fresh = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power loss may take the name
        finally:
            os.close(folder)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
