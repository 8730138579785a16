"""`winnow bundle classifier`: give a class-conditional model a classifier to be steered by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from service import images as foreign
from service.cli.common import Advance, Threads, bars, say

HELD_OUT = 10
"""One of so many images of each class measures the classifier and does not train it."""


def classifier(
    bundle: Annotated[Path, typer.Argument(help="The folder of a class-conditional bundle.")],
    images: Annotated[Path, typer.Argument(help="A folder with one of images for each class.")],
    iterations: Annotated[int, typer.Option(min=1, help="Of the training.")] = 2000,
    threads: Threads = 1,
) -> None:
    """Train a classifier of x_t on labelled images, and put it into the bundle.

    A policy's `classifier_scale` then steers towards the class that a request asks for. What draws
    has another name from then on, so earlier calibrations hold no longer.
    """
    import torch

    from models.bundles import bundle as bundles
    from models.diffusion.codec import from_uint8
    from models.offline.generator import load_generator
    from models.rewards.timed_classifier import ClassifierRecipe, add_classifier, train_classifier

    torch.set_num_threads(threads)
    loaded = bundles.load(str(bundle))
    backbone = loaded.manifest.backbone
    if backbone.inputs.kind != "class":
        raise ValueError(f"{bundle}: its model draws no classes: there is nothing to classify")
    names, null = backbone.inputs.class_names, backbone.inputs.null_class
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{bundle}: two of its classes are called {twice[0]!r}, and a folder stands for "
            "one: import it again with --class-names of your own"
        )
    wanted = {label: name for label, name in enumerate(names) if label != null}
    with bars() as start:
        advance = start("read the images", len(wanted))
        pixels, labels = read(images, wanted, backbone.image, advance)
        # Every tenth of its class, and never its only one.
        place = np.concatenate([np.arange(count) for count in np.bincount(labels) if count])
        held_out = place % HELD_OUT == HELD_OUT - 1
        if not held_out.any():
            raise ValueError(f"{images}: {HELD_OUT} images of a class at least are needed")
        generator = load_generator(loaded, "torch" if backbone.onnx is None else "onnx")
        bar = start("train the classifier", iterations)
        found = train_classifier(
            pixels[~held_out],
            labels[~held_out],
            max(wanted) + 1,
            generator.schedule,
            generator.codec,
            ClassifierRecipe(iterations=iterations),
            lambda _: bar(1),
        )
    x_0 = generator.codec.encode(from_uint8(pixels[held_out]))
    guess = found.log_probability(x_0, torch.zeros(len(x_0), dtype=torch.int64)).argmax(dim=1)
    right = float((guess.numpy() == labels[held_out]).mean())
    add_classifier(bundle, found)
    say(
        f"{bundle}: the classifier knows {right:.1%} of {int(held_out.sum())} images that it had "
        "not seen, without noise. Give a policy `classifier_scale` to steer by it, and calibrate "
        "again"
    )


def read(
    folder: Path, names: Mapping[int, str], shape: tuple[int, int, int], advance: Advance
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images of `folder/<class name>/`, uint8 [N, H, W, C], and the label of each, [N].

    Raises ValueError for a class without images, a file that is none, or another size.
    """
    pixels, labels = [], []
    for label, name in names.items():
        files = sorted(path for path in (folder / name).glob("*") if path.is_file())
        if not files:
            raise ValueError(f"{folder / name}: no images of class {label}, {name!r}")
        for path in files:
            try:
                pixels.append(foreign.decode(path.read_bytes(), shape))
            except (foreign.ImageRefused, OSError) as error:
                raise ValueError(f"{path}: no image that can be read: {error}") from None
            labels.append(label)
        advance(1)
    return np.stack(pixels), np.array(labels, dtype=np.int64)
