"""`winnow train canary`: give a bundle's rewards an image that is surely malign."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from models.manifest import Manifest
from service.cli.common import console, faults


def canary(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped one.")],
) -> None:
    """Pick, of the images that a person viewed, the surest malign one for each reward."""
    from models import bundle as bundles
    from models.canary import pick
    from service.encode import to_png

    with faults(), tempfile.TemporaryDirectory() as scratch:
        loaded = bundles.load(bundle)
        # A judge that was imported got its canary with it, or has none.
        names = {
            name: f"canaries/{name}.png"
            for name, reward in loaded.manifest.rewards.items()
            if reward.judge_labels is not None
        }
        made = {file: Path(scratch) / f"{name}.png" for name, file in names.items()}
        for name, file in names.items():
            made[file].write_bytes(to_png(pick(loaded, name)))

        def add(manifest: Manifest) -> Manifest:
            rewards = {
                name: reward.model_copy(update={"canary": names.get(name, reward.canary)})
                for name, reward in manifest.rewards.items()
            }
            return manifest.model_copy(update={"rewards": rewards})

        bundles.add_files(loaded.folder, made, add)
        for file in made:
            console.print(f"{loaded.folder / file}: look at it")
