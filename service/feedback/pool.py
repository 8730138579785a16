"""Fresh draws of a policy's own sampling, which nobody labels: what a threshold is chosen on.

They are made by the engine that serves, one tick at a time, with the networks that were just
trained. Probes look and stop nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.generate import Generator
from models.guidance import CleanReward, ForwardGuide, Guide
from models.method import Guidance, Method
from models.rewards.ensemble import Ensemble
from models.rewards.graphs import DistilledGuide, Probe
from service.engine.batch import Batch
from service.engine.engine import Engine
from service.engine.runner import Runner
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey, DrawResult, SamplingPlan

MAX_BATCH = 16
GUIDES: dict[Guidance, str] = {"time": "guide", "distilled": "distilled", "forward": "clean_guide"}
"""Which part each kind of guidance takes its gradient from."""


@dataclass(frozen=True)
class Pool:
    """Draws in the order of their seeds: pixels [N, H, W, C], and probe scores [N, P]."""

    pixels: NDArray[np.uint8]
    probe_scores: NDArray[np.float64]


def parts_of(method: Method, generator: Generator) -> set[str]:
    """The parts of a reward that draws of this method need, beside the judge.

    Raises ValueError for forward guidance where the denoiser was loaded without gradients, and for
    classifier guidance where the bundle has no classifier.
    """
    if method.classifier_scale and generator.classifier is None:
        raise ValueError("draws with classifier_scale need a classifier in the bundle")
    if method.censor_scale and method.guidance == "forward" and generator.differentiable is None:
        raise ValueError("draws with forward guidance need backbone.forward_guidance: true")
    wanted = {GUIDES[method.guidance]} if method.censor_scale else set()
    wanted |= {"clean_guide"} if method.backward_steps else set()
    return wanted | ({"probe"} if method.probes else set())


def draw_pool(
    generator: Generator,
    parts: Mapping[str, Path],
    method: Method,
    seeds: Sequence[int],
    threads: int,
    on_tick: Callable[[int], None],
) -> Pool:
    """Draw number 0 of each seed, by this method and these parts (files of a reward, by name).

    `on_tick` hears how many are done, after every step of the batch. Raises ValueError when a part
    that the method needs is missing, or the backbone makes NaN.
    """
    if missing := parts_of(method, generator) - set(parts):
        raise ValueError(f"draws of this policy need a {', '.join(sorted(missing))}")
    guides: dict[str, Guide] = {}
    if "guide" in parts:
        guides["guide"] = Ensemble.load(parts["guide"])
    if "distilled" in parts:
        guides["distilled"] = DistilledGuide(parts["distilled"], threads)
    clean: dict[str, CleanReward] = {}
    if "clean_guide" in parts:
        clean["clean_guide"] = CleanReward(Ensemble.load(parts["clean_guide"]), generator.codec)
        if generator.differentiable is not None:
            guides["clean_guide"] = ForwardGuide(
                generator.differentiable, generator.schedule, clean["clean_guide"]
            )
    probes: dict[str, Probe] = {}
    if "probe" in parts:
        probes["probe"] = Probe(parts["probe"], threads)
    engine = Engine(
        Runner(
            "",
            generator.denoiser,
            generator.schedule,
            guides,
            clean,
            probes,
            generator.classifier,
        ),
        Batch(
            generator.schedule,
            generator.shape,
            MAX_BATCH,
            "cpu",
            generator.encoder.encode(generator.encoder.example, 0),
        ),
        generator.codec,
        MAX_BATCH,
        encoder=generator.encoder,
    )
    plan = SamplingPlan(
        model="",
        policy="",
        policy_version=0,
        backbone="",
        guide=GUIDES[method.guidance] if method.censor_scale else None,
        clean_guide="clean_guide" if method.backward_steps else None,
        probe="probe" if method.probes else None,
        judge=None,
        method=method,
        probe_thresholds=(0.0,) * len(method.probes),
        threshold=None,
        max_draws=1,
        acceptance=1.0,
        seed=0,
    )
    drawn: dict[int, DrawResult] = {}

    faults: list[Exception] = []

    def deliver(item: list[DrawResult] | Exception) -> None:
        # Not raised here: this may be the decoder's thread.
        if isinstance(item, Exception):
            faults.append(item)
            return
        drawn.update({result.key.index: result for result in item})

    ticket = Ticket(deliver, deadline=float("inf"))
    draws = [
        Draw(replace(plan, condition=generator.condition(seed)), DrawKey(index, seed, 0), ticket)
        for index, seed in enumerate(seeds)
    ]
    engine.check(draws)
    engine.scheduler.add(draws)
    try:
        engine.run_to_end(lambda: on_tick(len(drawn)))
    finally:
        engine.decoder.close()
    if faults:
        raise ValueError(f"draws could not be finished: {faults[0]}") from faults[0]
    pixels = [drawn[index].pixels for index in range(len(seeds))]
    if any(image is None for image in pixels):
        raise ValueError("the backbone made NaN")
    return Pool(
        np.stack([image for image in pixels if image is not None]),
        np.array([drawn[index].probe_scores for index in range(len(seeds))], dtype=np.float64),
    )
