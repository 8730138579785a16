"""Randomness that belongs to a seed: the same (seed, draw, purpose) gives the same noise anywhere.

Counter-based (Philox, Salmon et al. 2011), so no generator is shared between rows, and what else
is in the batch cannot change a draw.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# Seeds stay exact in JSON, whose numbers many clients read as doubles.
MAX_SEED = 2**53 - 1


class Purpose(IntEnum):
    """What a draw's random numbers are for; each purpose is a stream of its own."""

    INITIAL = 0
    STEP = 1
    CLASS = 2
    CONDITION = 3


def normal(seed: int, draw: int, purpose: Purpose, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers of `shape`, keyed by (seed, draw, purpose).

    `seed` in [0, 2**53), `draw` in [0, 2**32). For `Purpose.STEP` the first axis is the step.
    """
    return _generator(seed, draw, purpose).standard_normal(shape, dtype=np.float32)


def choice(seed: int, purpose: Purpose, count: int) -> int:
    """One of 0..count−1, each as likely; every draw of a seed has the same."""
    return int(_generator(seed, 0, purpose).integers(count))


def torch_seed(seed: int, draw: int) -> int:
    """What seeds a `torch.Generator` for a draw that takes all its noise from one.

    Draw 0's is the seed itself, as users of diffusers know it; a later draw's is above every seed.
    """
    if draw == 0:
        return seed
    return 2**62 + int(_generator(seed, draw, Purpose.INITIAL).integers(2**62))


def share(seed: int, purpose: Purpose) -> float:
    """A number in [0, 1), each as likely; every draw of a seed has the same."""
    return float(_generator(seed, 0, purpose).random())


def _generator(seed: int, draw: int, purpose: Purpose) -> np.random.Generator:
    key = np.array([seed, (draw << 8) | purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
