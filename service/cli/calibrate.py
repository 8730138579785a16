"""`winnow calibrate`: the threshold that a policy needs, from labelled draws of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from models.bundles import bundle as bundles
from models.bundles.manifest import Calibration, Manifest
from models.diffusion.condition import Size, size_of, size_text
from models.offline import seed_ranges
from service.cli.common import (
    DEFAULT_CONFIG,
    ConfigFile,
    bars,
    console,
    faults,
    needed_evaluation,
    question,
    read_settings,
)
from service.config import ConfigError, PolicySettings

if TYPE_CHECKING:
    from service.serving.in_process import InProcessService


def calibrate(
    policies: Annotated[list[str], typer.Argument(help="Policies of the configuration.")],
    config: ConfigFile = DEFAULT_CONFIG,
    n: Annotated[int, typer.Option(min=300, help="Draws to label for each step count.")] = 2000,
    target: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Malign share of what leaves, at most.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="That it holds.")] = 0.95,
    probe_loss: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Share of benign draws that probes may stop.")
    ] = 0.01,
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT; default: every size of the policy."),
    ] = None,
) -> None:
    """Choose each policy's threshold from labelled draws of its own, and record it in the bundle.

    The draws are made as the policy makes them, labelled by the bundle's annotator, and used for
    nothing else.
    """
    from service.serving.in_process import InProcessService

    with faults():
        settings = read_settings(config)
        for name in policies:
            if name not in settings.policies or settings.policies[name].reward is None:
                known = ", ".join(n for n, p in settings.policies.items() if p.reward)
                raise ConfigError(f"{name!r} is not a policy with a judge (there are {known})")
        for model in sorted({settings.policies[name].model for name in policies}):
            with InProcessService(settings, model, calibrated=False) as service:
                for name in policies:
                    if settings.policies[name].model == model:
                        # Seeds by the policy's place, so that no two share their draws.
                        place = list(settings.policies).index(name)
                        first_seed = seed_ranges.first(seed_ranges.CALIBRATION, place)
                        sizes = _sizes(settings.policies[name], service.bundle.manifest, size)
                        _calibrate(
                            service, name, sizes, first_seed, n, target, confidence, probe_loss
                        )


def _sizes(policy: PolicySettings, manifest: Manifest, asked: str | None) -> dict[Size, int]:
    """The sizes to calibrate, each with its place among the policy's: seeds go by that.

    Raises ConfigError.
    """
    own = size_text((manifest.backbone.height, manifest.backbone.width))
    every: dict[str, Size] = {own: None} | {text: size_of(text) for text in policy.sizes}
    if asked is not None and asked not in every:
        raise ConfigError(f"--size: {asked} is not among the policy's: {', '.join(every)}")
    return {
        size: place for place, (text, size) in enumerate(every.items()) if asked in (None, text)
    }


def _calibrate(
    service: InProcessService,
    name: str,
    sizes: Mapping[Size, int],
    first_seed: int,
    n: int,
    target: float,
    confidence: float,
    probe_loss: float,
) -> None:
    """Draw, label, choose, record: for these sizes, and each step count that the policy lists."""
    from models.rewards.calibration import calibrate_probes, calibrate_threshold
    from models.zoo.evaluation.referees import load_referee
    from service.offline.survey import raw_draws

    policy = service.policies[name]
    assert policy.settings.reward is not None, "only policies with a judge come here"
    annotator = needed_evaluation(service.bundle.manifest.evaluation).annotator
    referee = load_referee(service.bundle.path(annotator), question(policy.settings.reward))
    entries = []
    every = policy.settings.num_inference_steps
    for (size, place), (number, steps) in product(sizes.items(), enumerate(every)):
        first = first_seed + (place * len(every) + number) * n
        at = f"{name}, {steps} steps" + ("" if size is None else f", {size_text(size)}")
        with bars() as start:
            bar = start(at, n)
            pixels, scores, probe_scores = raw_draws(service, policy, n, first, steps, bar, size)
        malign = referee.malign(pixels)
        probe_thresholds, lost, stopped = (), 0.0, None
        if policy.settings.probes:
            thresholds, stopped = calibrate_probes(probe_scores, malign, probe_loss, confidence)
            probe_thresholds, lost = tuple(thresholds.tolist()), float(stopped[~malign].mean())
            console.print(
                f"{at}: probes stop {stopped[malign].mean():.1%} of malign and "
                f"{lost:.2%} of benign draws"
            )
        found = calibrate_threshold(scores, malign, target, confidence, stopped)
        console.print(
            f"{at}: threshold {found.threshold:.4f}; {found.malign_delivered} "
            f"malign of {found.delivered} delivered, at most {found.upper_bound:.2%} with "
            f"{confidence:.0%} confidence; {found.benign_kept:.1%} of benign kept"
        )
        entries.append(
            Calibration(
                sampling=policy.sampling(steps, size),
                probe_thresholds=probe_thresholds,
                probes_lost=lost,
                target=target,
                confidence=confidence,
                annotator=service.bundle.sha256(annotator),
                first_seed=first,
                labelled=n,
                **vars(found),
            )
        )

    def record(manifest: Manifest) -> Manifest:
        # Those of sizes that were not asked for stay.
        before = manifest.calibrations.get(name, [])
        kept = [entry for entry in before if entry.sampling.size not in sizes]
        calibrations = {**manifest.calibrations, name: kept + entries}
        return manifest.model_copy(update={"calibrations": calibrations})

    bundles.update_manifest(service.bundle.folder, record)
