"""`winnow train`: make the demonstration bundle from real MNIST, one step at a time."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.questions import QUESTIONS
from service.cli.canary import canary
from service.cli.common import bars, console, faults, losses
from service.cli.distil import distil

app = typer.Typer(
    help="Make the bundle mnist-sevens from real MNIST: run the commands in the order below.",
    no_args_is_help=True,
)

BuildFolder = Annotated[Path, typer.Option("--build", help="Work folder of all the steps.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="DDIM steps of each image.")]
DEFAULT_BUILD = Path("build/mnist-sevens")


@app.command()
def backbone(
    build: BuildFolder = DEFAULT_BUILD,
    steps: Annotated[int, typer.Option(min=1, help="Training steps in all.")] = 10_000,
    threads: Threads = 2,
) -> None:
    """Train the diffusion model on the real sevens. Stop it and run it again: it goes on."""
    import torch

    from models.backbones.loop import Recipe
    from models.backbones.training import train
    from models.backbones.unet import PIXEL_SHUFFLE, SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
    from models.build import Build
    from models.codec import PixelShuffle, from_uint8
    from models.data import sevens

    torch.set_num_threads(threads)
    work = Build(build)
    with faults(), bars() as start:
        train(
            PixelShuffle(PIXEL_SHUFFLE).encode(from_uint8(sevens().images)),
            work.folder,
            Recipe(steps=steps),
            UNET_CONFIG,
            SCHEDULER_CONFIG,
            save=lambda unet: save_pipeline(unet, work.backbone),
            on_step=losses(start("train the backbone", steps)),
        )
    console.print(f"Backbone: {work.backbone}")


@app.command()
def export(
    build: BuildFolder = DEFAULT_BUILD,
    threads: Threads = 1,
    samples: Annotated[int, typer.Option(min=32, help="Calibration inputs.")] = 256,
) -> None:
    """Export the backbone to ONNX for CPUs: int8, calibrated on noised real sevens."""
    import torch
    from diffusers import UNet2DModel

    from models.backbones.export import export_fp32, noised_inputs, quantise
    from models.backbones.runtime import OnnxDenoiser, TorchDenoiser
    from models.backbones.unet import PIXEL_SHUFFLE
    from models.build import Build, needed, weights, write_record
    from models.codec import PixelShuffle
    from models.data import sevens
    from models.schedule import NoiseSchedule, read_config

    torch.set_num_threads(threads)
    work = Build(build)
    with faults():
        needed(weights(work.backbone), "winnow train backbone")
        schedule = NoiseSchedule.from_diffusers(read_config(work.backbone))
        codec, images = PixelShuffle(PIXEL_SHUFFLE), sevens().images
        unet = UNet2DModel.from_pretrained(work.backbone / "unet", use_safetensors=True)
        export_fp32(unet, work.fp32)
        quantise(work.fp32, work.int8, *noised_inputs(images, schedule, codec, samples, seed=0))
        x_t, timestep = noised_inputs(images, schedule, codec, 256, seed=1)
        wanted = TorchDenoiser(work.backbone)(x_t, timestep)
        error = {
            name: float((OnnxDenoiser(path)(x_t, timestep) - wanted).norm() / wanted.norm())
            for name, path in (("fp32", work.fp32), ("int8", work.int8))
        }
        record = {
            "command": "winnow train export",
            "quantisation": "static QDQ, int8 weights per channel, uint8 activations",
            "calibration_inputs": samples,
            "relative_error": error,
        }
        write_record(work.int8.with_suffix(".json"), record)
    console.print(
        f"{work.int8}: {work.int8.stat().st_size / 1e6:.2f} MB; relative error of a forward: "
        f"fp32 {error['fp32']:.1e}, int8 {error['int8']:.1%}"
    )


@app.command()
def referees(
    digits: Annotated[Path, typer.Option(help="Folder of MNIST's four IDX files.")],
    build: BuildFolder = DEFAULT_BUILD,
    threads: Threads = 1,
) -> None:
    """Train who knows the truth: annotator, oracle, and the digit features of the evaluation."""
    import torch

    from models import data
    from models.build import Build, write_record
    from models.evaluation.features import FeatureRecipe, save_features, train_features
    from models.evaluation.features import load_features as reload_features
    from models.evaluation.features import steps as feature_steps
    from models.evaluation.referees import REFEREE, held_out_error, referee_data, train_referee
    from models.rewards.ensemble import Ensemble

    torch.set_num_threads(threads)
    work = Build(build).evaluation
    record: dict[str, object] = {
        "command": "winnow train referees --digits DIR",
        "recipe": asdict(REFEREE),
    }
    with faults(), bars() as start:
        train_digits, test_digits = data.digits(digits), data.digits(digits, "t10k")
        for name, (own, other) in referee_data(data.sevens()).items():
            bar = start(f"train the {name}", REFEREE.iterations)
            train_referee(own, on_iteration=lambda _, bar=bar: bar(1)).save(  # type: ignore[misc]
                work / f"{name}.safetensors"
            )
            error = held_out_error(Ensemble.load(work / f"{name}.safetensors"), other)
            record[name] = {"trained_on": len(own), "tested_on": len(other), "error": error}
        recipe = FeatureRecipe()
        bar = start("train the digit features", feature_steps(train_digits, recipe))
        model = train_features(train_digits, recipe, lambda _: bar(1))
        save_features(model, recipe, work / "features.safetensors")
        error = reload_features(work / "features.safetensors").error(test_digits)
        record["features"] = {"recipe": asdict(recipe), "error": error}
        write_record(work / "referees.json", record)
    for name in ("annotator", "oracle", "features"):
        console.print(f"{name}: {record[name]}", markup=False)


@app.command()
def rewards(
    reward: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeat the option. Default: all.")
    ] = None,
    build: BuildFolder = DEFAULT_BUILD,
    num_inference_steps: Steps = 50,
    threads: Threads = 1,
) -> None:
    """Draw images, have the annotator label them, and train guides and judge on the labels.

    Guides and judge get images of their own. The annotator looks at 600 images for each reward,
    which is charged as three minutes of a person's time.
    """
    import torch

    from models.build import Build, needed, write_record
    from models.bundle import sha256_name
    from models.evaluation.referees import load_referee
    from models.rewards.making import make_reward

    torch.set_num_threads(threads)
    chosen = reward or list(QUESTIONS)
    for name in chosen:
        if name not in QUESTIONS:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(QUESTIONS)}", param_hint="--reward"
            )
    work = Build(build)
    with faults():
        annotator = needed(
            work.evaluation / "annotator.safetensors", "winnow train referees --digits DIR"
        )
        generator = work.generator(num_inference_steps, threads)
        for name in chosen:
            began = time.monotonic()
            with bars() as start:
                made = make_reward(
                    generator,
                    load_referee(annotator, QUESTIONS[name]),
                    sha256_name(annotator),
                    sha256_name(work.int8),
                    list(QUESTIONS).index(name),
                    work.reward(name),
                    start,
                )
            write_record(work.reward(name) / "reward.json", made.model_dump(mode="json"))
            labels = [part for part in (made.guide_labels, made.judge_labels) if part]
            console.print(
                f"{name}: looked at {sum(part.viewed for part in labels)} images "
                f"({sum(part.seconds for part in labels):.0f} s of a person), "
                f"{sum(part.malign for part in labels)} malign; "
                f"took {time.monotonic() - began:.0f} s"
            )


@app.command()
def viewed(
    build: BuildFolder = DEFAULT_BUILD,
    labels: Annotated[
        Path | None, typer.Option(help="JSON of what a person saw on the sheets.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, max=10_000, help="Images to look at.")] = 300,
    num_inference_steps: Steps = 50,
    threads: Threads = 1,
) -> None:
    """Draw sheets of images for a person to look at, then take in what the person saw.

    Without --labels: draws and writes PNG sheets. With --labels: stores images and answers for
    the bundle, which then states how often annotator and oracle are wrong.
    """
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    from models import seeds
    from models.build import Build, needed
    from models.bundle import sha256_name
    from models.evaluation.viewed import Viewed, grids, read_answers, save_viewed, sha256

    work = Build(build)
    path = work.viewed_images
    with faults():
        if labels is not None:
            pixels = load_file(needed(path, "winnow train viewed"))["images"]
            with safe_open(path, framework="np") as file:
                source = dict(file.metadata())
            result = Viewed(pixels, read_answers(labels, pixels), source)
            save_viewed(result, work.evaluation / "viewed.safetensors")
            console.print(f"{len(pixels)} answers: {work.evaluation / 'viewed.safetensors'}")
            return
        generator = work.generator(num_inference_steps, threads)
        first = seeds.first(seeds.VIEWED)
        with bars() as start:
            bar = start("draw images to look at", n)
            pixels = generator.images(range(first, first + n), on_images=bar)
        path.parent.mkdir(parents=True, exist_ok=True)
        source = {
            "denoiser": sha256_name(work.int8),
            "first_seed": str(first),
            "num_inference_steps": str(num_inference_steps),
            "images_sha256": sha256(pixels),
        }
        save_file({"images": pixels}, path, metadata=source)
        for number, sheet in enumerate(grids(pixels)):
            sheet.save(path.parent / f"sheet-{number}.png")
    console.print(
        f"Look at {path.parent}/sheet-*.png and write a JSON file\n"
        f'{{"images_sha256": "{sha256(pixels)}", "crossed": [indices], "unsure": [indices]}}\n'
        "then run: winnow train viewed --labels FILE",
        markup=False,
    )


@app.command()
def compare(build: BuildFolder = DEFAULT_BUILD, threads: Threads = 1) -> None:
    """Draw the viewed images once more in fp32, and record what int8 changed."""
    from safetensors import safe_open
    from safetensors.numpy import load_file

    from models.build import Build, needed, read_record, write_record
    from models.data import sevens
    from models.evaluation.features import load_features
    from models.evaluation.frechet import frechet_distance
    from models.evaluation.referees import load_referee

    work = Build(build)
    with faults():
        path = needed(work.viewed_images, "winnow train viewed")
        int8 = load_file(path)["images"]
        with safe_open(path, framework="np") as file:
            source = file.metadata()
        first, count = int(source["first_seed"]), len(int8)
        generator = work.generator(int(source["num_inference_steps"]), threads, fp32=True)
        with bars() as start:
            bar = start("draw the same seeds in fp32", count)
            fp32 = generator.images(range(first, first + count), on_images=bar)
        oracle = load_referee(
            needed(work.evaluation / "oracle.safetensors", "winnow train referees")
        )
        features = load_features(work.evaluation / "features.safetensors").features
        real = features(sevens().images[..., None])
        found = {
            "images": count,
            "same_verdict": int((oracle.crossed(int8) == oracle.crossed(fp32)).sum()),
            "frechet_int8": round(frechet_distance(features(int8), real), 3),
            "frechet_fp32": round(frechet_distance(features(fp32), real), 3),
        }
        record = work.int8.with_suffix(".json")
        write_record(record, read_record(record, "winnow train export") | {"against_fp32": found})
    console.print(
        f"Of {count} images, {found['same_verdict']} get the oracle's same verdict in int8 as in "
        f"fp32; Fréchet distance to real sevens {found['frechet_int8']} and "
        f"{found['frechet_fp32']}"
    )


@app.command()
def pack(
    build: BuildFolder = DEFAULT_BUILD,
    out: Annotated[
        Path, typer.Option(help="The bundle's folder; its name is the bundle's.")
    ] = Path("models/zoo/mnist-sevens"),
) -> None:
    """Assemble the bundle: copy the files and write a manifest that vouches for each of them.

    Calibrations of an older manifest stay only where their weights are unchanged.
    """
    from models.build import Build
    from models.pack import pack as assemble

    with faults():
        manifest = assemble(Build(build), out)
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    console.print(f"{out}: {len(manifest.files)} files, {size:.2f} MB")
    if not manifest.calibrations:
        console.print("No calibration rests on these weights: run `winnow calibrate`", markup=False)


app.command()(distil)
app.command()(canary)
