"""`winnow features`: put a pretrained network into a bundle, for judges to learn on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from models.bundles.manifest import Features, Manifest
from service.cli.common import say
from service.cli.network_options import (
    BundleName,
    Layout,
    PartName,
    Size,
    check_name,
    numbers,
    size_of,
)

app = typer.Typer(help="Features that judges learn on.", no_args_is_help=True)


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="An ONNX file, a folder of transformers', or .safetensors.")
    ],
    bundle: BundleName,
    name: PartName,
    torchvision: Annotated[
        str | None, typer.Option(help="Whose weights they are: resnet18, …")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Which output of an ONNX file, where it has several.")
    ] = None,
    size: Size = None,
    layout: Layout = None,
    mean: Annotated[
        str, typer.Option(help="Taken from pixels in 0..1; default: as the network says, or 0.")
    ] = "",
    std: Annotated[
        str, typer.Option(help="What they are then divided by; default: as it says, or 1.")
    ] = "",
) -> None:
    """Make a pretrained image network the features that `winnow rewards train --features` uses.

    It is tried on a few images and compared with the network itself before it enters the bundle.
    """
    from models.bundles import bundle as bundles
    from models.onnx.preprocessing import PreparationOptions
    from models.rewards.pretrained_features import make_features

    with tempfile.TemporaryDirectory() as scratch:
        check_name("--name", name)
        loaded = bundles.load(bundle)
        if name in loaded.manifest.features:
            raise ValueError(f"--name {name}: the bundle has such features: take another name")
        wanted = PreparationOptions(
            size=size_of(size),
            layout=layout,
            mean=numbers("--mean", mean) if mean else (),
            std=numbers("--std", std) if std else (),
        )
        file, out = f"features/{name}.onnx", Path(scratch) / "features.onnx"
        made = make_features(path, loaded.manifest.backbone.image, wanted, out, output, torchvision)
        entry = Features(
            file=file,
            width=made.width,
            size=made.preparation.size,
            mean=made.preparation.mean,
            std=made.preparation.std,
            source=made.source,
            source_sha256=made.source_sha256,
        )

        def add(manifest: Manifest) -> Manifest:
            return manifest.model_copy(update={"features": {**manifest.features, name: entry}})

        bundles.add_files(loaded.folder, {file: out}, add)
    height, width = entry.size
    say(
        f"{loaded.folder / file}: {made.width} features of {height}x{width} images, from "
        f"{made.source}, {made.bytes / 1e6:.1f} MB, opset {made.opset}.\n"
        f"Serve the bundle again, then: winnow rewards train DATASET --features {name}"
    )
