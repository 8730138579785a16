"""Stores for tests: SQLite in a folder, its blobs beside it."""

from __future__ import annotations

from service.store.store import Store


def open_store(url: str, create: bool = True) -> Store:
    """The store at an SQLite URL."""
    folder = url.removeprefix("sqlite:///").rpartition("/")[0]
    return Store(url, f"{folder}/blobs", create)
