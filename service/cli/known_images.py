"""Canary and control: images of known class, on which a judge is tried.

`winnow judge images` makes them, `winnow judge canary` gives them to a judge of a bundle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from models.bundles.bundle import Bundle
from models.bundles.manifest import Manifest, Reward
from models.bundles.parts import IMAGES
from service.cli.common import Threads, bars, say
from service.cli.network_options import BundleName

if TYPE_CHECKING:
    from models.rewards.judge_check import KnownImages
    from service.ports import Pixels

Canary = Annotated[
    Path | None, typer.Option(help="A PNG of the bundle's size that is surely malign.")
]
Control = Annotated[
    Path | None, typer.Option(help="A PNG of the bundle's size that is surely benign.")
]
Threshold = Annotated[
    float, typer.Option(min=0.0001, max=0.9999, help="The judge's, in its policy.")
]
RewardName = Annotated[str, typer.Option(help="The reward of the bundle whose judge it is.")]
DEFAULT_THRESHOLD = 0.5
SEED = 9_000_000
"""Where draws to choose from begin: no other purpose of `models.offline.seed_ranges` has these."""


def canary(
    bundle: BundleName,
    reward: RewardName,
    canary: Canary = None,
    control: Control = None,
    threshold: Threshold = DEFAULT_THRESHOLD,
) -> None:
    """Give a judge of a bundle its canary, its control, or both; the judge must tell them.

    `winnow judge images` makes such files.
    """
    from models.bundles import bundle as bundles
    from models.rewards.judge_check import KnownImages
    from service.policies.judge_trial import pixels_of, run_trial

    with tempfile.TemporaryDirectory() as scratch:
        loaded = bundles.load(bundle)
        entry = _reward(loaded, reward)
        if canary is None and control is None:
            raise ValueError("give --canary FILE, --control FILE, or both")
        image = loaded.manifest.backbone.image
        given = read(canary, control, image)
        # What is not given stays as it was.
        then = [pixels_of(loaded, entry.parts.get(part)) for part in IMAGES]
        shown = KnownImages(
            then[0] if given.canary is None else given.canary,
            then[1] if given.control is None else given.control,
        )
        seen = run_trial(loaded, reward, shown)
        if fault := seen.fault([threshold]):
            raise ValueError(f"--reward {reward}: of its judge, {fault}")
        files, parts = write(given, reward, Path(scratch))

        def change(manifest: Manifest) -> Manifest:
            fresh = manifest.rewards[reward].with_parts(parts)
            return manifest.model_copy(update={"rewards": {**manifest.rewards, reward: fresh}})

        bundles.add_files(loaded.folder, files, change)
    for part, score in (("canary", seen.canary), ("control", seen.control)):
        if part in parts:
            say(
                f"{loaded.folder / parts[part]}: the judge scores it {score:.4g}, threshold "
                f"{threshold:g}"
            )
    say(
        "Serve the bundle again. A policy that is in force already keeps what it has: "
        "`winnow policies add NAME`, then `winnow policies promote NAME VERSION`"
    )


def images(
    bundle: BundleName,
    out: Annotated[Path, typer.Option(help="A new folder for them.")],
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(help="PNGs of yours, of any size. Without any, the bundle's model draws."),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Scored by this reward's judge, the lowest first.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, max=10_000, help="Draws.")] = 32,
    prompt: Annotated[str, typer.Option(help="What the draws are to show.")] = "",
    class_label: Annotated[int | None, typer.Option(min=0, help="Their class.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="DDIM steps of each draw.")] = 50,
    threads: Threads = 1,
) -> None:
    """Make images of the bundle's size to choose a canary and a control from.

    Pictures of yours are cropped to the middle and resized; a grey bundle's become grey. Otherwise
    the model draws, without any censor: look at the files yourself.
    """
    from models.bundles import bundle as bundles
    from models.rewards.onnx_judge import OnnxJudge
    from service.images.encode import to_png

    loaded = bundles.load(bundle)
    entry = None if reward is None else _reward(loaded, reward)
    if out.exists():
        raise ValueError(f"--out {out}: is there already: name a new folder")
    image = loaded.manifest.backbone.image
    if pictures:
        found = {path.stem: fitted(_png("PICTURES", path), image) for path in pictures}
        if len(found) < len(pictures):
            raise ValueError("PICTURES: two have the same name")
    else:
        found = dict(_draws(loaded, n, prompt, class_label, steps, threads))
    scores = dict.fromkeys(found, "")
    if entry is not None:
        judge = OnnxJudge(loaded.path(entry.parts["judge"]), threads)
        scores = {
            name: f"{float(judge.score(pixels[None])[0]):.6f}-" for name, pixels in found.items()
        }
    out.mkdir(parents=True)
    for name, pixels in found.items():
        (out / f"{scores[name]}{name}.png").write_bytes(to_png(pixels))
    order = ", the lowest score first" if reward else ""
    say(
        f"{out}: {len(found)} images{order}. Look at them: one that is surely malign is a canary, "
        "one that is surely benign a control"
    )


def read(canary: Path | None, control: Path | None, image: tuple[int, int, int]) -> KnownImages:
    """The images in these files. Raises ValueError for one that is not of the bundle's shape."""
    from models.rewards.judge_check import KnownImages

    return KnownImages(
        *(
            None if path is None else _exact(option, path, image)
            for option, path in (("--canary", canary), ("--control", control))
        )
    )


def write(known: KnownImages, reward: str, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(files of a bundle by their names in it, those names by part): what is known, as PNG."""
    from service.images.encode import to_png

    files, parts = {}, {}
    for part, place in (("canary", "canaries"), ("control", "controls")):
        pixels: Pixels | None = getattr(known, part)
        if pixels is not None:
            parts[part] = f"{place}/{reward}.png"
            files[parts[part]] = folder / f"{part}.png"
            files[parts[part]].write_bytes(to_png(pixels))
    return files, parts


def fitted(pixels: Pixels, image: tuple[int, int, int]) -> Pixels:
    """Any image [h, w, 1 or 3] as one of [H, W, C]: the middle of it, resized."""
    from PIL import Image, ImageOps

    height, width, channels = image
    whole = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    mode = "L" if channels == 1 else "RGB"
    resized = ImageOps.fit(whole.convert(mode), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8).reshape(image)


def _reward(loaded: Bundle, reward: str) -> Reward:
    rewards = loaded.manifest.rewards
    if reward not in rewards:
        raise ValueError(
            f"--reward {reward}: bundle {loaded.manifest.name!r} has {', '.join(sorted(rewards))}"
        )
    return rewards[reward]


def _draws(
    loaded: Bundle, n: int, prompt: str, class_label: int | None, steps: int, threads: int
) -> Iterator[tuple[str, Pixels]]:
    """Draws of the bundle's model, by name. Raises ValueError for what it cannot be asked."""
    from models.diffusion.condition import Condition
    from models.offline.generator import load_generator

    backbone = loaded.manifest.backbone
    inputs = backbone.inputs
    if prompt and inputs.kind != "text":
        raise ValueError("--prompt: the bundle's model takes none: leave it out")
    if class_label is not None and class_label not in inputs.drawn_classes:
        raise ValueError(f"--class-label {class_label}: the bundle's model has no such class")
    asked = Condition(
        prompt=prompt,
        class_label=class_label,
        guidance_scale=inputs.guidance_scale if inputs.guidable else 1.0,
        class_labels=inputs.drawn_classes if class_label is None else (),
    )
    generator = replace(
        load_generator(loaded, "torch" if backbone.onnx is None else "onnx", threads=threads),
        condition=lambda seed: asked,
        num_inference_steps=steps,
    )
    with bars() as start:
        bar = start("draw", n)
        found = generator.images(range(SEED, SEED + n), batch_size=4, on_images=bar)
    for i, pixels in enumerate(found):
        yield f"seed-{SEED + i}", pixels


def _png(option: str, path: Path) -> Pixels:
    from service.images.encode import from_png

    try:
        pixels = from_png(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path}: is not a PNG that can be read ({error})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"{option} {path}: must be grey or RGB, 8 bits a channel, without alpha")
    return pixels


def _exact(option: str, path: Path, image: tuple[int, int, int]) -> Pixels:
    pixels = _png(option, path)
    if pixels.shape != image:
        wanted = f"{image[0]}x{image[1]}, {'grey' if image[2] == 1 else 'RGB'}"
        raise ValueError(
            f"{option} {path}: is {'x'.join(str(n) for n in pixels.shape)}, must be as the "
            f"bundle's images: {wanted}. `winnow judge images` makes it so"
        )
    return pixels
