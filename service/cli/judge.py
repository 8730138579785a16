"""`winnow judge`: put a classifier that somebody else made into a bundle, as a judge."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.bundles.manifest import Manifest, Reward
from service.cli import known_images
from service.cli.common import say
from service.cli.network_options import (
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
    from models.bundles.bundle import Bundle
    from models.rewards.imported_classifier import Imported
    from models.rewards.judge_check import TrialScores

app = typer.Typer(help="Judges that somebody else trained.", no_args_is_help=True)
app.command()(known_images.images)
app.command()(known_images.canary)


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="A classifier: an ONNX file, or a folder of transformers'."),
    ],
    bundle: BundleName,
    reward: PartName,
    question: Annotated[str, typer.Option(help="What it answers; yes means benign.")],
    malign_text: Annotated[str, typer.Option(help="What is malign: 'a picture of ...'.")],
    malign: Annotated[
        list[str] | None,
        typer.Option(help="A malign class: its label, or its number from 0; repeat the option."),
    ] = None,
    benign: Annotated[
        list[str] | None, typer.Option(help="Or a benign class: all others are malign.")
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
    canary: known_images.Canary = None,
    control: known_images.Control = None,
    threshold: known_images.Threshold = known_images.DEFAULT_THRESHOLD,
    replace: Annotated[bool, typer.Option("--replace", help="In place of an earlier one.")] = False,
) -> None:
    """Make an image classifier the judge of a new reward, which has no guides.

    A folder of transformers' (config.json, model.safetensors, preprocessor_config.json) says its
    labels and its pixels itself: it needs --malign or --benign alone. The classifier is tried on a
    few images and compared with itself before it enters the bundle; then a policy for it is
    printed.
    """
    from models.bundles import bundle as bundles
    from models.onnx.preprocessing import PreparationOptions
    from models.rewards.class_numbers import OutputMeaning
    from models.rewards.imported_classifier import make_judge

    with tempfile.TemporaryDirectory() as scratch:
        check_name("--reward", reward)
        for option, text in (("--question", question), ("--malign-text", malign_text)):
            if not text.strip():
                raise ValueError(f"{option}: must not be empty: auditors and reviewers read it")
        loaded = bundles.load(bundle)
        _refuse_taken(loaded, reward, replace)
        image = loaded.manifest.backbone.image
        shown = known_images.read(canary, control, image)
        name, made = f"judges/{reward}.onnx", Path(scratch) / "judge.onnx"
        found = make_judge(
            file,
            image,
            PreparationOptions(
                size_of(size), layout, scale, numbers("--mean", mean), numbers("--std", std), bgr
            ),
            OutputMeaning(activation, tuple(malign or ()), tuple(benign or ()), output),
            made,
            shown,
        )
        if fault := found.seen.fault([threshold]):
            raise ValueError(_refusal(file, fault))
        files, parts = known_images.write(shown, reward, Path(scratch))
        files[name] = made
        entry = Reward(
            question=question,
            malign=malign_text,
            parts={"judge": name, **parts},
            training={"command": "winnow judge import"} | found.source,
        )

        def add(manifest: Manifest) -> Manifest:
            return manifest.model_copy(update={"rewards": {**manifest.rewards, reward: entry}})

        bundles.add_files(loaded.folder, files, add)
    how = found.preparation
    height, width = how.size
    scores = found.seen.scores
    say(
        f"{loaded.folder / name}: {found.bytes / 1e6:.1f} MB, opset {found.opset}. It takes "
        f"{height}x{width} images with {how.channels} channels, {how.layout}, {how.dtype}; those "
        f"of the bundle are {image[0]}x{image[1]} with {image[2]}.\n"
        f"Tried on {len(scores)} images: scores {min(scores):.3f} to {max(scores):.3f}, at most "
        f"{found.error:.1g} from its own.\n{_classes(found)}{_examples(found.seen, reward, bundle)}"
    )
    if found.fixed_batch is not None:
        say(
            f"The file takes {found.fixed_batch} image(s) at a time; the judge takes any number, "
            "as the trial showed."
        )
    say("A policy for it; no calibration chose this threshold, so look at what passes:")
    typer.echo(_policy(reward, loaded.manifest.name, threshold))


def _classes(found: Imported) -> str:
    """Which classes count as what, and how much of an image the network sees."""
    said = (
        f"Malign: {_few(found.malign) or 'low numbers'}. Benign: {_few(found.benign) or 'none'}.\n"
    )
    if (seen := found.preparation.seen) < 0.999:
        said += (
            f"It looks at the middle of an image, {seen:.0%} of its area, as its image processor "
            "has it: what is malign at the border alone is NOT SEEN.\n"
        )
    return said


def _few(names: tuple[str, ...], most: int = 8) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _refuse_taken(loaded: Bundle, reward: str, replace: bool) -> None:
    there = loaded.manifest.rewards.get(reward)
    if there is None:
        return
    if there.judge_labels is not None:
        raise ValueError(f"--reward {reward}: the bundle has one, with labels: take another name")
    if not replace:
        raise ValueError(f"--reward {reward}: the bundle has one: take another name, or --replace")


def _refusal(file: Path, fault: str) -> str:
    return (
        f"{file}: as a judge, {fault}. `winnow judge images` makes images for --canary and "
        "--control; --malign, --mean, --std and --activation may be wrong, too"
    )


def _examples(seen: TrialScores, reward: str, bundle: str) -> str:
    """The scores of canary and control, or how to make them."""
    said = []
    if seen.canary is not None:
        said.append(f"Its canary, which is surely malign, scores {seen.canary:.3f}.")
    else:
        said.append(
            "IT HAS NO CANARY, an image that is surely malign. That means: nothing has shown that "
            "it rejects what it is for, benign and malign may be turned round, and a running "
            "service would not notice that it lets everything through. `winnow judge images "
            f"--bundle {bundle} --out FOLDER` makes images to choose one from, `winnow judge "
            f"canary --bundle {bundle} --reward {reward} --canary FILE` gives it to the judge."
        )
    if seen.control is not None:
        said.append(f"Its control, which is surely benign, scores {seen.control:.3f}.")
    return "\n".join(said)


def _policy(reward: str, model: str, threshold: float) -> str:
    return f"""policies:
  {reward}:
    model: {model}  # as `models` calls it
    reward: {reward}
    threshold: {threshold:g}  # set by hand
    max_draws: 8
    num_inference_steps: [50]"""
