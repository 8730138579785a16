"""A recorded decision made again: the same draws by the same weights, compared with the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from models.bundle import Bundle
from service.config import Settings
from service.decisions import Image, Record, packages, sha256
from service.local import LocalService
from service.ports import DrawKey, FinishReason, Pixels, Verdict

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
    for name in ("runtime", "dtype", "device"):
        if getattr(then, name) != getattr(now, name):
            raise CannotReplay(
                f"it was drawn with {name} {getattr(then, name)}, and the configuration says "
                f"{getattr(now, name)}: set models.{plan.model}.backbone.{name}"
            )
    here = {f"sha256:{file.sha256}" for file in bundle.manifest.files.values()}
    used = {"backbone": bundle.backbone_sha256(now.runtime), "schedule": bundle.schedule_sha256}
    changed = [
        part
        for part, weights in then.weights.items()
        if weights != used.get(part, weights)
        or not (part in used or weights in here or kept(weights))
    ]
    if changed:
        raise CannotReplay(
            f"the weights have changed: {', '.join(changed)} of bundle {then.bundle!r} are no "
            f"longer those of the record (in {bundle.folder}), and the store's blobs do not hold "
            "them"
        )


def other_packages(record: Record) -> list[str]:
    """The packages that are of another version now: the images may differ by that."""
    return [
        f"{name} {version} then, {packages()[name]} now"
        for name, version in record.versions.packages.items()
        if packages().get(name, version) != version
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
    service: LocalService, record: Record, draws: list[tuple[Image, int]]
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
