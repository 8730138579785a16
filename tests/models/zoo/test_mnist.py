"""The data sets that the demonstration is made from."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from models.zoo.mnist import (
    DIGITS_COMMAND,
    FASHION_COMMAND,
    digits,
    fashion,
    halves,
    read_idx,
    sevens,
)


def test_sevens_are_what_their_notice_says() -> None:
    data = sevens()
    assert data.images.shape == (6265, 28, 28)
    assert data.images.dtype == np.uint8
    assert int(data.labels.sum()) == 834


def test_halves_are_disjoint_whole_and_alike() -> None:
    data = sevens()
    first, second = halves(data)
    rows = np.concatenate([first.images, second.images]).reshape(len(data), -1)
    assert len(np.unique(rows, axis=0)) == len(
        np.unique(data.images.reshape(len(data), -1), axis=0)
    )
    assert len(first) + len(second) == len(data)
    assert abs(int(first.labels.sum()) - int(second.labels.sum())) <= 1
    np.testing.assert_array_equal(first.images, halves(data)[0].images)
    assert not np.array_equal(first.images[:50], halves(data, seed=1)[0].images[:50])


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim])
    return header + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


def test_idx_files_are_read(tmp_path: Path) -> None:
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7, 1, 2], dtype=np.uint8)))
    data = digits(tmp_path)
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == [7, 1, 2]
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7, 1], dtype=np.uint8)))
    with pytest.raises(ValueError, match="do not match"):
        digits(tmp_path)


def test_missing_digits_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        digits(tmp_path)
    assert DIGITS_COMMAND in str(error.value)


def test_clothes_are_unzipped_and_padded_evenly(tmp_path: Path) -> None:
    images = np.full((2, 28, 28), 9, dtype=np.uint8)
    zipped = {"images-idx3": images, "labels-idx1": np.array([8, 0], dtype=np.uint8)}
    for name, array in zipped.items():
        path = tmp_path / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(idx(array)))
    data = fashion(tmp_path, "t10k")
    assert data.images.shape == (2, 32, 32)
    np.testing.assert_array_equal(data.images[:, 2:-2, 2:-2], images)
    assert int(data.images.sum()) == int(images.sum())
    assert data.labels.tolist() == [8, 0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cut short"):
        fashion(tmp_path, "t10k")


def test_missing_clothes_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        fashion(tmp_path)
    assert FASHION_COMMAND in str(error.value)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"\x1f\x8b\x08\x00zip", "not an IDX file"),
        (idx(np.zeros(3, np.uint8), kind=13), "not an IDX file"),
        (idx(np.zeros(3, np.uint8))[:-1], "cut short"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(ValueError, match=complaint):
        read_idx(tmp_path / "file")
