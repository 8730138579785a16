"""`winnow replay`: make the images of a decision again, or say why that cannot be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from service.cli.common import DEFAULT_CONFIG, ConfigFile, read_settings
from service.cli.decisions import DecisionId, Url, parse, read
from service.config import blobs_url

if TYPE_CHECKING:
    from service.offline.replay import Replayed


def replay(
    decision_id: DecisionId,
    config: ConfigFile = DEFAULT_CONFIG,
    url: Url = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the images, as PNG.")] = None,
    rejected: Annotated[
        bool,
        typer.Option("--rejected", help="Also images that were held back: these may be malign."),
    ] = False,
) -> None:
    """Draw the images of a decision again, judge them again, and compare with the record.

    Exit code 0 only if every image is identical to the byte. Of an image that was held back no
    hash is kept: there only the score is compared.
    """
    from models.bundles import bundle as bundles
    from service.offline import replay as again
    from service.serving.in_process import InProcessService
    from service.store.blobs import Blobs

    console = Console(highlight=False, soft_wrap=True)
    settings = read_settings(config)
    record = parse(read(settings, decision_id, url))
    loaded = {name: bundles.load(model.bundle) for name, model in settings.models.items()}
    blobs_at = blobs_url(settings.store, os.environ)
    again.check(record, settings, loaded, Blobs(blobs_at).has)
    draws = again.chosen(record, rejected)
    for difference in again.other_packages(record):
        console.print(f"Images may differ: {difference}", style="yellow", markup=False)
    # The recorded plan holds its thresholds: today's calibrations do not matter.
    model = record.plan.model
    with InProcessService(settings, model, calibrated=False, blobs_url=blobs_at) as service:
        found = asyncio.run(again.replay(service, record, draws))
    for one in found:
        console.print(_line(one), markup=False)
    if out is not None:
        _write(found, out)
        console.print(f"Images: {out}", markup=False)
    if not all(one.same for one in found):
        raise typer.Exit(1)


def _line(one: Replayed) -> str:
    what = {
        True: "identical to what was delivered",
        False: "NOT identical; how much differs cannot be known, as only the hash is kept",
        None: "was held back: no hash is kept, so only the score can be compared",
    }[one.identical]
    score = f"score {_number(one.score_then)} then, {_number(one.score)} now"
    return f"image {one.image.index} (seed {one.image.seed}, draw {one.draw}): {what}; {score}"


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.6f}"


def _write(found: list[Replayed], folder: Path) -> None:
    from service.images.encode import to_png

    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        suffix = "" if one.delivered else "-held-back"
        (folder / f"image-{one.image.index}{suffix}.png").write_bytes(to_png(one.pixels))
