"""`winnow train`: make the demonstration bundle from real MNIST, one step at a time."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from models.zoo.questions import QUESTIONS
from service.cli.common import PARTS_OF_ONE, Threads, bars, console, faults, fractions, losses

app = typer.Typer(
    help="Make the bundle mnist-sevens from real MNIST: run the commands in the order below.",
    no_args_is_help=True,
)

BuildFolder = Annotated[Path, typer.Option("--build", help="Work folder of all the steps.")]
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

    from models.backbones.training import train
    from models.backbones.training_loop import Recipe
    from models.backbones.unet import PIXEL_SHUFFLE, SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
    from models.diffusion.codec import PixelShuffle, from_uint8
    from models.zoo.mnist import sevens
    from models.zoo.work_folder import Build

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

    from models.backbones.runtime import OnnxDenoiser, TorchDenoiser
    from models.backbones.unet import PIXEL_SHUFFLE
    from models.diffusion.codec import PixelShuffle
    from models.diffusion.noise_schedule import NoiseSchedule, read_config
    from models.onnx.export import export_fp32, noised_inputs, quantise
    from models.zoo.mnist import sevens
    from models.zoo.work_folder import Build, needed, weights, write_record

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
    iterations: Annotated[
        int, typer.Option(min=1, help="Training steps of annotator and oracle.")
    ] = 1000,
    threads: Threads = 1,
) -> None:
    """Train who knows the truth: annotator, oracle, and the digit features of the evaluation."""
    import torch

    from models.rewards.ensemble import Ensemble
    from models.zoo import mnist
    from models.zoo.evaluation.features import FeatureRecipe, save_features, train_features
    from models.zoo.evaluation.features import load_features as reload_features
    from models.zoo.evaluation.features import steps as feature_steps
    from models.zoo.evaluation.referees import REFEREE, held_out_error, referee_data, train_referee
    from models.zoo.work_folder import Build, write_record

    torch.set_num_threads(threads)
    work = Build(build).evaluation
    referee = replace(REFEREE, iterations=iterations)
    record: dict[str, object] = {
        "command": "winnow train referees --digits DIR",
        "recipe": asdict(referee),
    }
    with faults(), bars() as start:
        train_digits, test_digits = mnist.digits(digits), mnist.digits(digits, "t10k")
        for name, (own, other) in referee_data(mnist.sevens()).items():
            bar = start(f"train the {name}", iterations)
            train_referee(own, referee, lambda _, bar=bar: bar(1)).save(  # type: ignore[misc]
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
    viewed: Annotated[int, typer.Option(min=20, help="Images that the annotator labels.")] = 600,
    effort: Annotated[
        float, typer.Option(min=0.001, max=10, help="Scales the number of training steps.")
    ] = 1.0,
    threads: Threads = 1,
) -> None:
    """Draw images, have the annotator label them, and train judge and guides on the labels.

    The training is the one that a person's labels go through; judge and guides never share a
    label. 600 labels are charged as three minutes of a person's time.
    """
    import torch

    from models.bundles.bundle import sha256_name
    from models.zoo.evaluation.referees import load_referee
    from models.zoo.work_folder import Build, needed, write_record
    from service.offline.shipped_rewards import HYPERPARAMETERS, make_reward

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
                    start(f"{name}: draw images to label", viewed),
                    fractions(start(f"{name}: train", PARTS_OF_ONE)),
                    viewed=viewed,
                    hyperparameters=HYPERPARAMETERS.scaled(effort),
                    threads=threads,
                )
            write_record(work.reward(name) / "reward.json", made.model_dump(mode="json"))
            labels = [part for part in (made.guide_labels, made.judge_labels) if part]
            console.print(
                f"{name}: looked at {sum(part.viewed for part in labels)} images "
                f"({sum(part.seconds for part in labels):.0f} s of a person), "
                f"{sum(part.malign for part in labels)} malign; "
                f"took {time.monotonic() - began:.0f} s. "
                f"Look at {work.reward(name)}/canaries/*.png"
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

    from models.bundles.bundle import sha256_name
    from models.offline import seed_ranges
    from models.zoo.evaluation.viewed import Viewed, grids, read_answers, save_viewed, sha256
    from models.zoo.work_folder import Build, needed

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
        first = seed_ranges.first(seed_ranges.VIEWED)
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
        soft_wrap=True,
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
    from models.zoo.packing import pack as assemble
    from models.zoo.work_folder import Build

    with faults():
        manifest = assemble(Build(build), out)
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    console.print(f"{out}: {len(manifest.files)} files, {size:.2f} MB")
    if not manifest.calibrations:
        console.print("No calibration rests on these weights: run `winnow calibrate`", markup=False)
