"""What the labels of a dataset teach: an image of the store beside each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from service.errors import BlobMissing, BlobUnreadable
from service.images.encode import from_png
from service.labelling.examples import Example
from service.store.datasets import Label, LabelledImage
from service.store.store import Store

log = logging.getLogger("winnow.labelling")


def labelled_once(store: Store, dataset: str) -> list[LabelledImage]:
    """The labels of a dataset, one for each image: of equal pixels the last label counts."""
    return list({one.image.blob: one for one in store.datasets.labelled(dataset)}.values())


def stored_examples(
    store: Store, labelled: Sequence[LabelledImage], shape: tuple[int, int, int]
) -> tuple[list[tuple[LabelledImage, Example]], dict[str, int]]:
    """What a training learns from, each beside its label, and how many images were left out:
    `purged` ones, and `unreadable` ones that were changed or are not of `shape` [H, W, C].

    Pixels name an example, so that equal ones are on one side and in one fold. Raises
    StoreUnavailable where no image can be read.
    """
    examples, lost = [], {"purged": 0, "unreadable": 0}
    for one in labelled:
        image = one.image
        try:
            pixels = from_png(store.blobs.get(image.blob))
            if pixels.shape != shape:
                raise ValueError(f"it is {pixels.shape}, the model's are {shape}")
        except (BlobUnreadable, ValueError) as error:
            lost["purged" if isinstance(error, BlobMissing) else "unreadable"] += 1
            log.warning("label of image %s is left out: %s", image.id, error)
            continue
        label = as_counted(one.label)
        examples.append((one, Example(image.blob, pixels, label, image.inclusion, image.strategy)))
    return examples, lost


def as_counted(label: str) -> Label:
    """A stored label; an unknown word counts as unsure."""
    return label if label in ("benign", "malign") else "unsure"  # type: ignore[return-value]
