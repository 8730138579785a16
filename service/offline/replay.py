"""Replay: a recorded decision's draws by the same weights, compared with the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from models.bundles.bundle import Bundle
from models.bundles.sampling_key import differences
from service.config import Settings
from service.generation.record import Image, Record, packages, sha256
from service.policies.policy import sampling_of
from service.ports import DrawKey, FinishReason, Pixels, Verdict
from service.serving.in_process import InProcessService

TIMEOUT_S = 3600.0
SCORE_TOLERANCE = 1e-5
"""What shares the judge's batch moves a score by less."""


class CannotReplay(ValueError):
    """The record cannot be made again here; the message says why."""


@dataclass(frozen=True)
class Replayed:
    """One draw made again. `identical` is None for an image that did not leave: it has no hash."""

    image: Image
    draw: int
    pixels: Pixels
    score: float | None
    score_then: float | None

    @property
    def delivered(self) -> bool:
        """Whether this image left at the time."""
        return self.image.finish_reason is FinishReason.SUCCESS

    @property
    def identical(self) -> bool | None:
        """Whether every byte is the one that was delivered."""
        if self.image.pixels_sha256 is None:
            return None
        return sha256(self.pixels) == self.image.pixels_sha256

    @property
    def same(self) -> bool:
        """Identical; where no hash was kept, all that can be compared is the score."""
        if self.identical is not None:
            return self.identical
        if self.score is None or self.score_then is None:
            return self.score is self.score_then
        return abs(self.score - self.score_then) <= SCORE_TOLERANCE


def check(
    record: Record,
    settings: Settings,
    bundles: Mapping[str, Bundle],
    kept: Callable[[str], bool] = lambda name: False,
) -> None:
    """Raises CannotReplay unless this configuration draws with what the record names.

    `kept` says whether the store has a blob of a name: there lie the networks of trained rewards.
    """
    plan, then = record.plan, record.versions
    if record.request.prompt is None:
        raise CannotReplay("the prompt was not kept (store.keep_prompts was off)")
    if plan.model not in settings.models:
        raise CannotReplay(f"the configuration has no model {plan.model!r}")
    now, bundle = settings.models[plan.model].backbone, bundles[plan.model]
    drew = {
        "runtime": then.runtime,
        "dtype": then.sampling.backbone.dtype,
        "device": then.device,
    }
    for name, was in drew.items():
        if was != getattr(now, name):
            raise CannotReplay(
                f"it was drawn with {name} {was}, and the configuration says "
                f"{getattr(now, name)}: set models.{plan.model}.backbone.{name}"
            )
    backbone = bundle.backbone_key(now.runtime, now.dtype, now.forward_guidance)
    if other := differences(then.sampling, sampling_of(plan, backbone)):
        said = "; ".join(f"{name} was {was}, and is {here}" for name, (was, here) in other.items())
        raise CannotReplay(
            f"its sampling is not that of this configuration and of {bundle.folder}: {said}"
        )
    there = {f"sha256:{file.sha256}" for file in bundle.manifest.files.values()}
    if gone := [part for part, name in plan.parts.items() if not (name in there or kept(name))]:
        raise CannotReplay(
            f"the weights have changed: {', '.join(gone)} of bundle {then.bundle!r} are no "
            f"longer those of the record (in {bundle.folder}), and the store's blobs do not hold "
            "them"
        )


def other_packages(record: Record) -> list[str]:
    """The packages that are of another version now: the images may differ by that."""
    now = packages()
    return [
        f"{name} {version} then, {now.get(name)} now"
        for name, version in record.versions.packages.items()
        if now.get(name) != version
    ]


def chosen(record: Record, rejected: bool) -> list[tuple[Image, int]]:
    """The draw of each image to make again: the delivered one.

    With `rejected` also the last that was judged of each image that did not leave.
    """
    draws = []
    for image in record.images:
        if image.finish_reason is FinishReason.SUCCESS:
            draws.append((image, image.draws - 1))
        elif rejected:
            seen = [
                one.draw
                for one in image.judged
                if one.verdict in (Verdict.REJECTED, Verdict.ACCEPTED)
            ]
            draws += [(image, draw) for draw in seen[-1:]]
    if not draws:
        hint = "" if rejected else "; --rejected makes again what was held back"
        raise CannotReplay(f"no image left under this decision ({record.outcome}){hint}")
    return draws


async def replay(
    service: InProcessService, record: Record, draws: list[tuple[Image, int]]
) -> list[Replayed]:
    """Make these draws again under the recorded plan, and judge them again."""
    plan = record.plan
    keys = {DrawKey(image.index, image.seed, draw, fresh=False): image for image, draw in draws}
    pixels: dict[DrawKey, Pixels] = {}
    async with aclosing(service.backends.draw(plan, list(keys), TIMEOUT_S)) as groups:
        async for group in groups:
            pixels |= {result.key: result.pixels for result in group if result.pixels is not None}
    if lost := [key for key in keys if key not in pixels]:
        raise CannotReplay(f"draw {lost[0].draw} of seed {lost[0].seed} made no image this time")
    scores: list[float | None] = [None] * len(keys)
    if plan.judge is not None:
        stack = [pixels[key] for key in keys]
        scores = list(await service.backends.score(plan.model, plan.judge, stack, TIMEOUT_S))
    return [
        Replayed(
            image=image,
            draw=key.draw,
            pixels=pixels[key],
            score=score,
            score_then=next((one.score for one in image.judged if one.draw == key.draw), None),
        )
        for (key, image), score in zip(keys.items(), scores, strict=True)
    ]
