"""`winnow train distil`: give a bundle's guides the form in which they cost least."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.manifest import Manifest
from service.cli.common import bars, console, faults


def distil(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped one.")],
    reward: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeat the option. Default: all.")
    ] = None,
    draws: Annotated[int, typer.Option(min=8, help="Draws to watch at each scale.")] = 512,
    iterations: Annotated[int, typer.Option(min=1, help="Training steps of a student.")] = 5000,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Fit a student to each time-dependent guide, export it and the probe, and add both.

    Six minutes a reward. Calibrations of policies that use `guidance: distilled` or probes hold for
    the old files alone: run `winnow calibrate` for them afterwards.
    """
    import torch

    from models import bundle as bundles
    from models import seeds
    from models.conditioning import predict
    from models.generate import load_generator
    from models.rewards.distil import DistilRecipe, observe
    from models.rewards.distil import distil as fit
    from models.rewards.ensemble import Ensemble
    from models.rewards.export import export_probe, export_student

    torch.set_num_threads(threads)
    recipe = DistilRecipe(draws=draws, iterations=iterations)
    with faults(), tempfile.TemporaryDirectory() as scratch:
        loaded = bundles.load(bundle)
        rewards = loaded.manifest.rewards
        for name in reward or []:
            if name not in rewards:
                raise ValueError(f"--reward {name}: the bundle has {', '.join(sorted(rewards))}")
            if rewards[name].guide is None:
                raise ValueError(f"--reward {name}: it is a judge alone: there is no guide")
        backbone = load_generator(loaded, "onnx", threads=threads)
        schedule, shape = backbone.schedule, backbone.shape

        def denoise(x_t: Any, timestep: Any, seeds: Any) -> Any:
            return predict(backbone.denoiser, x_t, timestep, backbone.conditions(seeds))

        for place, name in enumerate(rewards):
            if reward and name not in reward:
                continue
            guide, clean_guide = rewards[name].guide, rewards[name].clean_guide
            if guide is None or clean_guide is None:
                continue
            teacher = Ensemble.load(loaded.path(guide))
            first = seeds.first(seeds.DISTILLATION, place)
            with bars() as start:
                bar = start(f"{name}: watch the teacher", draws * len(recipe.censor_scales))
                examples = observe(teacher, denoise, schedule, shape, recipe, first, bar)
                bar = start(f"{name}: fit the student", iterations)
                student, found = fit(examples, recipe, bar)
            made = {
                f"guides/{name}.distilled.onnx": Path(scratch) / f"{name}.distilled.onnx",
                f"guides/{name}.probe.onnx": Path(scratch) / f"{name}.probe.onnx",
            }
            distilled, probe = made
            export_student(student, shape, made[distilled])
            clean = Ensemble.load(loaded.path(clean_guide))
            export_probe(clean, backbone.codec, shape, made[probe])
            card: dict[str, Any] = {
                "command": f"winnow train distil --reward {name}",
                "teacher": loaded.sha256(guide),
                "probe_of": loaded.sha256(clean_guide),
                "denoiser": loaded.backbone_sha256("onnx"),
                "first_seed": first,
                "recipe": asdict(recipe),
                "student": asdict(student.config),
                "held_out": found,
            }
            change = {"distilled": distilled, "probe": probe, "distillation": card}

            def add(manifest: Manifest, name: str = name, change: Any = change) -> Manifest:
                changed = manifest.rewards[name].model_copy(update=change)
                return manifest.model_copy(update={"rewards": {**manifest.rewards, name: changed}})

            bundles.add_files(loaded.folder, made, add)
            console.print(
                f"{name}: on draws that it had not seen, the student's gradient has cosine "
                f"{found['cosine']:.2f} with its teacher's (R² {found['r2']:.2f})"
            )
