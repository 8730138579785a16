"""A survey: many images under a policy through the real sampling loop, engine and judge.

It keeps what a caller never sees, the rejected draws, because only they tell what censoring costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.diffusion.condition import Size
from service.generation.sampling_loop import Outcome
from service.policies.inputs import RequestedInputs
from service.policies.policy import Overrides, Policy, resolve
from service.ports import DrawResult, Pixels, SamplingPlan
from service.serving.in_process import InProcessService

CHUNK = 64
IN_FLIGHT = 2
DEADLINE_S = 3600.0


@dataclass(frozen=True)
class Survey:
    """The finished draws of a survey and which of them left.

    `delivered[i]` indexes into `pixels` [N, H, W, C]; None where entry i stayed empty.
    `probe_scores` [N, P] are those of the same draws. `draws`, `nfe` and `cpu_s` are the whole
    survey's, with draws that probes abandoned.
    """

    pixels: NDArray[np.uint8]
    delivered: list[int | None]
    probe_scores: NDArray[np.float64]
    draws: int
    nfe: int
    cpu_s: float

    @property
    def sent(self) -> list[int]:
        """The draws that left, in the order of their seeds."""
        return [index for index in self.delivered if index is not None]


def survey(
    service: InProcessService,
    policy: Policy,
    n: int,
    first_seed: int,
    num_inference_steps: int | None = None,
    on_images: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Ask for `n` images with seeds `first_seed`, `first_seed` + 1, … under a policy."""
    overrides = Overrides(num_inference_steps=num_inference_steps)
    plan = resolve(policy, overrides, first_seed, admin=True)
    return asyncio.run(_survey(service, plan, n, on_images))


def merge(surveys: Sequence[Survey]) -> Survey:
    """Surveys one after another, as one."""
    offsets = np.cumsum([0, *(len(part.pixels) for part in surveys)])
    return Survey(
        pixels=np.concatenate([part.pixels for part in surveys]),
        delivered=[
            None if index is None else index + int(offset)
            for part, offset in zip(surveys, offsets, strict=False)
            for index in part.delivered
        ],
        probe_scores=np.concatenate([part.probe_scores for part in surveys]),
        draws=sum(part.draws for part in surveys),
        nfe=sum(part.nfe for part in surveys),
        cpu_s=sum(part.cpu_s for part in surveys),
    )


def raw_draws(
    service: InProcessService,
    policy: Policy,
    n: int,
    first_seed: int,
    num_inference_steps: int,
    on_images: Callable[[int], None] = lambda done: None,
    size: Size = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """(pixels [n, H, W, C], scores [n], probe scores [n, P]) of first draws, all finished.

    They are made by the policy's sampling, but neither probe nor judge ends any. Draws of
    different seeds are independent, so these are what calibration needs.
    """
    assert policy.judge is not None, "only a policy with a judge is calibrated"
    plan = replace(
        resolve(
            policy.without_judge(),
            Overrides(num_inference_steps=num_inference_steps, asked=RequestedInputs(size=size)),
            first_seed,
            True,
        ),
        max_draws=1,
        probe_thresholds=(0.0,) * len(policy.settings.probes),
    )
    found = asyncio.run(_survey(service, plan, n, on_images))
    judges = service.backends.judges
    scores: list[float] = []
    for start in range(0, n, CHUNK):
        scores += judges.score(policy.judge, list(found.pixels[start : start + CHUNK]))
    return found.pixels, np.array(scores), found.probe_scores


async def _survey(
    service: InProcessService, plan: SamplingPlan, n: int, on_images: Callable[[int], None]
) -> Survey:
    drawn: dict[tuple[int, int], tuple[Pixels, tuple[float, ...]]] = {}

    def keep(results: list[DrawResult]) -> None:
        for result in results:
            if result.pixels is not None:
                drawn[result.key.seed, result.key.draw] = result.pixels, result.probe_scores

    service.backends.on_results = keep
    gate = asyncio.Semaphore(IN_FLIGHT)
    started = time.process_time()

    async def chunk(start: int) -> Outcome:
        async with gate:
            size = min(CHUNK, n - start)
            outcome = await service.sampling_loop.generate(
                replace(plan, seed=plan.seed + start), size, DEADLINE_S
            )
            on_images(size)
            return outcome

    outcomes = await asyncio.gather(*(chunk(start) for start in range(0, n, CHUNK)))
    cpu_s = time.process_time() - started
    order = {key: index for index, key in enumerate(sorted(drawn))}
    images = [image for outcome in outcomes for image in outcome.images]
    return Survey(
        pixels=np.stack([drawn[key][0] for key in sorted(drawn)]),
        probe_scores=np.array([drawn[key][1] for key in sorted(drawn)]),
        draws=sum(outcome.draws for outcome in outcomes),
        delivered=[
            None if image.pixels is None else order[image.seed, image.draws - 1] for image in images
        ],
        nfe=sum(outcome.nfe for outcome in outcomes),
        cpu_s=cpu_s,
    )
