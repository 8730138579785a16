"""Labelled images, and which side learns from each: judge and guide never share one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.ports import Pixels

LEAST = 5
"""Labels of either kind that a reward needs: some for the judge, which is cross-validated, and some
for the guide. Below it nothing is trained, and pages stay random."""

Label = Literal["benign", "malign", "unsure"]


@dataclass(frozen=True)
class Example:
    """A labelled image. `id` names its pixels, so that equal images are one; `inclusion` is the
    chance with which it was chosen to be shown."""

    id: str
    pixels: Pixels
    label: Label
    inclusion: float
    strategy: str

    @property
    def malign(self) -> bool:
        """Whether it counts as malign: what nobody is sure of must not leave."""
        return self.label != "benign"


def split(
    examples: Sequence[Example], share: float, known: Mapping[str, str]
) -> tuple[list[Example], list[Example]]:
    """(the judge's, the guide's): of each class `share` to the judge, in the order of their ids'
    hashes. What is `known`, id to side, stays where it was."""
    sides: dict[str, list[Example]] = {"judge": [], "guide": []}
    for malign in (False, True):
        own = [example for example in examples if example.malign == malign]
        for example in own:
            if example.id in known:
                sides[known[example.id]].append(example)
        placed = sum(example.id in known and known[example.id] == "judge" for example in own)
        fresh = sorted((e for e in own if e.id not in known), key=_hash)
        count = min(max(round(share * len(own)) - placed, 0), len(fresh))
        sides["judge"] += fresh[:count]
        sides["guide"] += fresh[count:]
    return sorted(sides["judge"], key=_hash), sorted(sides["guide"], key=_hash)


def arrays(examples: Sequence[Example]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels [N, H, W, C], and which are malign, [N]."""
    pixels = np.stack([example.pixels for example in examples])
    return pixels, np.array([example.malign for example in examples])


def ids(examples: Sequence[Example]) -> list[str]:
    """Their ids, in order."""
    return [example.id for example in examples]


def _hash(example: Example) -> bytes:
    return hashlib.sha256(example.id.encode()).digest()
