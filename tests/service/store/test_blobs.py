"""Blobs: named by what they hold, written whole, and refused when changed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from service.config import ConfigError
from service.errors import BlobMissing, BlobUnreadable, StoreUnavailable
from service.store.blobs import Blobs, name_of


@pytest.fixture(params=["folder", "object store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return Blobs(str(tmp_path / "blobs"))
    return Blobs(f"memory://{uuid.uuid4().hex}")


def test_what_was_put_is_got_by_its_hash(blobs: Blobs, tmp_path: Path) -> None:
    name = blobs.put(b"some bytes")
    assert name == name_of(b"some bytes")
    assert blobs.put(b"some bytes") == name
    assert blobs.get(name) == b"some bytes"
    assert blobs.fetch(name, tmp_path, ".onnx").read_bytes() == b"some bytes"
    blobs.delete(name)
    blobs.delete(name)
    with pytest.raises(StoreUnavailable, match="not in the store"):
        blobs.get(name)


def test_a_changed_blob_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    name = blobs.put(b"weights")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(b"other weights")
    with pytest.raises(StoreUnavailable, match="it was changed"):
        blobs.get(name)


def test_a_blob_that_was_cut_short_is_mended_by_putting_it_again(blobs: Blobs) -> None:
    name = blobs.put(b"some bytes")
    blobs._files.pipe_file(blobs._path(name), b"some")
    assert blobs.put(b"some bytes") == name
    assert blobs.get(name) == b"some bytes"


@pytest.mark.parametrize("name", ["../../etc/passwd", "sha256:zz", "", "sha256:" + "a" * 63])
def test_only_hashes_are_names(blobs: Blobs, name: str) -> None:
    with pytest.raises(StoreUnavailable, match="no name"):
        blobs.get(name)


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable, match="written"):
        Blobs(str(tmp_path / "blobs")).put(b"x")


def test_an_unknown_filesystem_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="blobs_url"):
        Blobs("nosuch://place")


def test_one_file_that_cannot_be_read_is_told_from_a_store_that_is_gone(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    one, other = blobs.put(b"one"), blobs.put(b"other")
    path = Path(blobs._path(one))
    path.unlink()
    path.mkdir()
    with pytest.raises(BlobUnreadable) as fault:
        blobs.get(one)
    assert not isinstance(fault.value, BlobMissing)
    assert not fault.value.retryable
    assert blobs.get(other) == b"other"
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    for name in (one, other):
        with pytest.raises(StoreUnavailable, match="not there") as gone:
            blobs.get(name)
        assert not isinstance(gone.value, BlobUnreadable)
        assert gone.value.retryable
