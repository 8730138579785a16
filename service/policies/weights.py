"""The files of weights by sha256 name: from the bundle, or else from the store's blobs."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from models.bundles.bundle import Bundle, sha256_name
from service.errors import StoreUnavailable
from service.store.blobs import Blobs


class Weights:
    """Finds weights, and vouches for every byte of them. Any thread may ask; it blocks."""

    def __init__(self, bundle: Bundle, blobs_url: str) -> None:
        """Blobs, and a temporary folder for them, are opened once they are needed."""
        self._bundle = bundle
        self._blobs_url = blobs_url
        self._fetched: tuple[Blobs, tempfile.TemporaryDirectory[str]] | None = None
        self._opening = threading.Lock()

    def find(self, name: str, suffix: str) -> Path:
        """The file of this name. Raises StoreUnavailable when it is missing or was changed."""
        for file, entry in self._bundle.manifest.files.items():
            if f"sha256:{entry.sha256}" == name:
                path = self._bundle.path(file)
                if sha256_name(path) != name:
                    raise StoreUnavailable(f"{path} was changed since the service started")
                return path
        with self._opening:
            if self._fetched is None:
                folder = tempfile.TemporaryDirectory(prefix="winnow-weights-")
                self._fetched = Blobs(self._blobs_url), folder
            blobs, folder = self._fetched
        return blobs.fetch(name, Path(folder.name), suffix)
