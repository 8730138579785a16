"""`winnow judge`: put a classifier that somebody else made into a bundle, as a judge."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.manifest import Manifest, Reward
from service.cli.common import console, faults
from service.cli.pretrained import (
    BundleName,
    Layout,
    Mean,
    PartName,
    Size,
    Std,
    check_name,
    numbers,
    size_of,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.rewards.judge import OnnxJudge
    from service.ports import Pixels

app = typer.Typer(help="Judges that somebody else trained.", no_args_is_help=True)
SURE = 0.5
"""A canary that scores this or more is not surely malign."""


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An image classifier: an ONNX file.")],
    bundle: BundleName,
    reward: PartName,
    question: Annotated[str, typer.Option(help="What it answers; yes means benign.")],
    malign_text: Annotated[str, typer.Option(help="What is malign: 'a picture of ...'.")],
    malign: Annotated[
        list[int] | None, typer.Option(help="A malign class, from 0; repeat the option.")
    ] = None,
    benign: Annotated[
        list[int] | None, typer.Option(help="Or a benign class: all others are malign.")
    ] = None,
    activation: Annotated[
        Literal["logits", "probabilities", "sigmoid", "sigmoid-logits"],
        typer.Option(help="What it gives; 'probabilities' are a softmax's, and sum to 1."),
    ] = "logits",
    output: Annotated[str | None, typer.Option(help="Which output, where it has several.")] = None,
    size: Size = None,
    layout: Layout = None,
    mean: Mean = "0",
    std: Std = "1",
    scale: Annotated[float, typer.Option(help="White, before mean and std: 1 or 255.")] = 1.0,
    bgr: Annotated[bool, typer.Option("--bgr", help="It takes blue first.")] = False,
    canary: Annotated[
        Path | None, typer.Option(help="A PNG of the bundle's size that is surely malign.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of an earlier one.")] = False,
) -> None:
    """Make an ONNX image classifier the judge of a new reward, which has no guides.

    It is tried on a few images and compared with the file before it enters the bundle; then a
    policy for it is printed.
    """
    from models import bundle as bundles
    from models.preparation import Wanted
    from models.rewards.classifier import Meaning, make_judge
    from models.rewards.judge import OnnxJudge
    from service.encode import to_png

    with faults(), tempfile.TemporaryDirectory() as scratch:
        check_name("--reward", reward)
        for option, text in (("--question", question), ("--malign-text", malign_text)):
            if not text.strip():
                raise ValueError(f"{option}: must not be empty: auditors and reviewers read it")
        loaded = bundles.load(bundle)
        _refuse_taken(loaded, reward, replace)
        backbone = loaded.manifest.backbone
        image = (backbone.height, backbone.width, backbone.channels)
        name, made = f"judges/{reward}.onnx", Path(scratch) / "judge.onnx"
        found = make_judge(
            file,
            image,
            Wanted(
                size_of(size), layout, scale, numbers("--mean", mean), numbers("--std", std), bgr
            ),
            Meaning(activation, tuple(malign or ()), tuple(benign or ()), output),
            made,
        )
        files = {name: made}
        entry = Reward(
            question=question,
            malign=malign_text,
            judge=name,
            training={"command": "winnow judge import"} | found.source,
        )
        if canary is not None:
            pixels = _canary(canary, image, OnnxJudge(made))
            files[f"canaries/{reward}.png"] = Path(scratch) / "canary.png"
            files[f"canaries/{reward}.png"].write_bytes(to_png(pixels))
            entry = entry.model_copy(update={"canary": f"canaries/{reward}.png"})

        def add(manifest: Manifest) -> Manifest:
            return manifest.model_copy(update={"rewards": {**manifest.rewards, reward: entry}})

        bundles.add_files(loaded.folder, files, add)
    how = found.preparation
    height, width = how.size
    low, high = min(found.scores), max(found.scores)
    console.print(
        f"{loaded.folder / name}: {found.bytes / 1e6:.1f} MB, opset {found.opset}. It takes "
        f"{height}x{width} images with {how.channels} channels, {how.layout}, {how.dtype}; those "
        f"of the bundle are {image[0]}x{image[1]} with {image[2]}.\n"
        f"Tried on {len(found.scores)} images: scores {low:.3f} to {high:.3f}, at most "
        f"{found.error:.1g} from the file's own.",
        markup=False,
        soft_wrap=True,
    )
    if found.fixed_batch is not None:
        console.print(
            f"The file takes {found.fixed_batch} image(s) at a time; the judge takes any number, "
            "as the trial showed.",
            soft_wrap=True,
        )
    console.print("A policy for it; no calibration chose this threshold, so look at what passes:")
    typer.echo(_policy(reward, loaded.manifest.name))


def _refuse_taken(loaded: Bundle, reward: str, replace: bool) -> None:
    there = loaded.manifest.rewards.get(reward)
    if there is None:
        return
    if there.judge_labels is not None:
        raise ValueError(f"--reward {reward}: the bundle has one, with labels: take another name")
    if not replace:
        raise ValueError(f"--reward {reward}: the bundle has one: take another name, or --replace")


def _canary(path: Path, image: tuple[int, int, int], judge: OnnxJudge) -> Pixels:
    """The pixels of a PNG that the judge calls malign. Raises ValueError."""
    from PIL import UnidentifiedImageError

    from service.encode import from_png

    try:
        pixels = from_png(path.read_bytes())
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--canary {path}: is not a PNG that can be read ({error})") from None
    if pixels.shape != image or pixels.dtype != "uint8":
        wanted = f"{image[0]}x{image[1]}, {'grey' if image[2] == 1 else 'RGB'}, 8 bits a channel"
        raise ValueError(
            f"--canary {path}: is {'x'.join(str(n) for n in pixels.shape)}, must be as the "
            f"bundle's images: {wanted}, without alpha"
        )
    score = float(judge.score(pixels[None])[0])
    if not score < SURE:
        raise ValueError(
            f"--canary {path}: the judge scores it {score:.3f}, so it would not be blocked at "
            f"{SURE}: check --malign, --mean, --std and --activation, or take another image"
        )
    return pixels


def _policy(reward: str, model: str) -> str:
    return f"""policies:
  {reward}:
    model: {model}  # as `models` calls it
    reward: {reward}
    threshold: 0.5  # set by hand
    max_draws: 8
    num_inference_steps: [50]"""
