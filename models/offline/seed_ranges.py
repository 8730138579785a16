"""Which seeds the demonstration's images are drawn from; no image serves two ends.

A judge scored on its own training images, or a threshold on the images that chose it, would look
better than it is. Every range starts at a round number and stays shorter than a million, so the
manifest's seeds can be checked by eye.
"""

from __future__ import annotations

from typing import Final

LABELS: Final = 1_000_000
"""Images whose labels train rewards; 2_000_000 labelled the judges of the bundle that ships."""
VIEWED: Final = 3_000_000
"""Images that a person looked at, to measure the annotator and the oracle."""
CALIBRATION: Final = 4_000_000
"""Images whose labels choose thresholds."""
EVALUATION: Final = 5_000_000
"""Images that the evaluation table is made from."""
DISTILLATION: Final = 6_000_000
"""Draws on which students are fitted to their teachers; they have no labels."""
POOL: Final = 8_000_000
"""Unlabelled draws that thresholds of rewards from people's labels are chosen on."""

_PER_REWARD: Final = 100_000


def first(purpose: int, reward: int = 0) -> int:
    """The first seed of `purpose` for the `reward`-th question or policy (from 0).

    Raises ValueError past the tenth, which would reach into the next purpose.
    """
    if not 0 <= reward < 10:
        raise ValueError(f"there are seeds for ten of a purpose, not for number {reward + 1}")
    return purpose + reward * _PER_REWARD
