"""Labelled images, and which side learns from each: judge and guide never share one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.rewards.platt import fold
from service.ports import Pixels

LEAST = 5
"""Labels of either kind that a reward needs: some for the judge, which is cross-validated, and some
for the guide. Below it nothing is trained, and pages stay random."""

MEMBERS = 5
"""Of a judge: each is kept from a fold of its labels."""

JUDGE_SHARE = {False: 0.75, True: 0.5}
"""Of the labels, by whether a time-dependent guide is wanted. A probe alone, whose thresholds lose
next to nothing however poor it is, needs few."""

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
        """Whether it counts as malign; an unsure label does."""
        return self.label != "benign"


def sides(malign: Mapping[str, bool], share: float, known: Mapping[str, str]) -> dict[str, str]:
    """Who learns from which label, `judge` or `guide`, by id: of each class `share` the judge.

    It gets them in the order of their ids' hashes, those first that bring it a fold of which it has
    none: its members need two. What is `known`, id to side, stays where it was.
    """
    found = {name: known[name] for name in malign if name in known}
    for kind in (False, True):
        own = sorted((name for name in malign if malign[name] == kind), key=_hash)
        placed = [name for name in own if found.get(name) == "judge"]
        had = {_fold(name) for name in placed}
        fresh = [name for name in own if name not in known]
        firsts = {_fold(name): name for name in reversed(fresh)}
        fresh.sort(key=lambda name: _fold(name) in had or firsts[_fold(name)] != name)
        count = max(round(share * len(own)) - len(placed), 0)
        found |= dict.fromkeys(fresh[:count], "judge") | dict.fromkeys(fresh[count:], "guide")
    return found


def refuse_too_few(malign: Mapping[str, bool], share: float, known: Mapping[str, str]) -> None:
    """Raises ValueError, which says how many more, unless judge and guide both have enough."""
    side = sides(malign, share, known)
    counts, lacks = [], []
    for word, kind in (("benign", False), ("malign", True)):
        own = [name for name in malign if malign[name] == kind]
        folds = {_fold(name) for name in own if side[name] == "judge"}
        guided = sum(side[name] == "guide" for name in own)
        more = max(LEAST - len(own), 2 - len(folds), 1 - guided)
        counts.append(f"{len(own)} {word}")
        lacks += [f"{more} more {word}"] if more > 0 else []
    if lacks:
        raise ValueError(
            f"{' and '.join(counts)} images are labelled: label at least {' and '.join(lacks)} "
            f"ones. A reward needs {LEAST} of each, for judge and guide learn from different ones, "
            "and the judge is cross-validated"
        )


def split(
    examples: Sequence[Example], share: float, known: Mapping[str, str]
) -> tuple[list[Example], list[Example]]:
    """(the judge's, the guide's), as `sides` says, each in the order of their ids' hashes."""
    side = sides({example.id: example.malign for example in examples}, share, known)
    ordered = sorted(examples, key=lambda example: _hash(example.id))
    judged = [example for example in ordered if side[example.id] == "judge"]
    return judged, [example for example in ordered if side[example.id] == "guide"]


def arrays(examples: Sequence[Example]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels [N, H, W, C], and which are malign, [N]."""
    pixels = np.stack([example.pixels for example in examples])
    return pixels, np.array([example.malign for example in examples])


def ids(examples: Sequence[Example]) -> list[str]:
    """Their ids, in order."""
    return [example.id for example in examples]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _fold(name: str) -> int:
    return fold(name, MEMBERS)
