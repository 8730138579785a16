"""Train rewards from a handful of labels (Yoon et al. 2023, sections 3 and 5).

Each of K members sees its own bootstrap of the labels. The loss is binary cross-entropy with
weight α on benign: α < 1 makes a miss of a malign image the dearer error. It shifts the optimal
logit by log α, so σ(logit) is no probability until it has been calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.diffusion.codec import Codec, from_uint8
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.parameterization import add_noise
from models.rewards.descent import descend
from models.rewards.ensemble import Ensemble
from models.rewards.network import RewardConfig, RewardNetwork


@dataclass(frozen=True)
class RewardRecipe:
    """Hyperparameters, as recorded in the manifest.

    `per_class`: images of each class that a member's bootstrap draws, or None for all images of
    both classes. Batches are half benign, half malign, whatever the labels' balance.
    """

    iterations: int
    benign_weight: float
    per_class: int | None
    members: int = 5
    widths: tuple[int, int, int, int] = (8, 16, 24, 24)
    strides: tuple[int, int, int, int] = (1, 2, 2, 1)
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    rotation_degrees: float = 20.0
    shift: float = 0.1
    scale: float = 0.1
    seed: int = 0


# Halving the map at once makes a guide's gradient, paid at every step, a quarter cheaper, and on
# noised images no worse.
TIME_GUIDE = RewardRecipe(iterations=900, benign_weight=0.05, per_class=10, strides=(2, 1, 2, 1))
CLEAN_GUIDE = RewardRecipe(iterations=400, benign_weight=0.1, per_class=10)
VIEWS = 8
"""So often an image is encoded where that takes an autoencoder, each time turned otherwise."""

JUDGE = RewardRecipe(iterations=600, benign_weight=1.0, per_class=None, seed=1)


class Augmentation(Protocol):
    """How far images are turned, shifted and scaled at random, and how many at a time."""

    @property
    def rotation_degrees(self) -> float: ...
    @property
    def shift(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def batch_size(self) -> int: ...


def train_reward(
    pixels: NDArray[np.uint8],
    benign: NDArray[np.bool_],
    recipe: RewardRecipe,
    *,
    noising: tuple[NoiseSchedule, Codec] | None = None,
    within: Codec | None = None,
    seen: NDArray[np.bool_] | None = None,
    start: Ensemble | None = None,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> Ensemble:
    """Train on `pixels` uint8 [N, H, W, C] with labels `benign` [N].

    With `noising`, the members are time-dependent: they see x_t of the augmented image, at
    timesteps uniform over the schedule, in the codec's space. `within` a codec's space they see x_0
    without noise. `seen` [K, N] says which labels each
    member may learn from (default: all). With `start`, training goes on from those weights. Raises
    ValueError when a class has no label for a member, or fewer than the bootstrap asks for, or
    when the network that it starts from has another shape.
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    allowed = np.ones((recipe.members, len(benign)), dtype=np.bool_) if seen is None else seen
    pools = [bootstraps((benign == wanted) & allowed, recipe, rng) for wanted in (False, True)]
    images = from_uint8(pixels)
    codec = within if noising is None else noising[1]
    view, channels = views(images, recipe, codec, generator)
    # As the denoiser sees it: a shuffled image is unfolded again, for its neighbours' sake.
    fold = getattr(codec, "pixel_shuffle", 1)
    config = RewardConfig(
        members=recipe.members,
        channels=channels,
        pixel_shuffle=fold,
        widths=recipe.widths,
        strides=recipe.strides,
        timed=noising is not None,
    )
    network = RewardNetwork(config).train()
    if start is not None:
        if start.config != config:
            raise ValueError("the reward to go on from has networks of another shape")
        network.load_state_dict(start.network.state_dict())
    half = recipe.batch_size // 2
    target = torch.cat([torch.zeros(half), torch.ones(half)])
    weight = torch.cat([torch.ones(half), torch.full((half,), recipe.benign_weight)])

    def loss() -> Tensor:
        rows = torch.cat([_draw(pool, half, generator) for pool in pools])  # [2·half, K]
        batch = view(rows.flatten())
        timestep = None
        if noising is not None:
            batch, timestep = noised(batch, noising[0], generator)
            timestep = timestep.view(rows.shape)
        logits = network(batch.unflatten(0, tuple(rows.shape)), timestep)
        losses = functional.binary_cross_entropy_with_logits(
            logits, target[:, None].expand_as(logits), reduction="none"
        )
        # A sum over members: each has its own weights, so each gets its own mean loss.
        total: Tensor = (losses * weight[:, None]).mean(dim=0).sum()
        return total

    descend(network, recipe, loss, on_iteration)
    return Ensemble(network)


def views(
    images: Tensor, recipe: Augmentation, codec: Codec | None, generator: torch.Generator
) -> tuple[Callable[[Tensor], Tensor], int]:
    """What gives the images of some rows, each turned and shifted at random, as the network is to
    see them; and their channels.

    An autoencoder is too dear to run at every iteration: it encodes VIEWS of each image beforehand.
    """
    if codec is None or codec.exact:

        def turn(rows: Tensor) -> Tensor:
            turned = augment(images[rows], recipe, generator)
            return turned if codec is None else codec.encode(turned)

        return turn, images.shape[1]
    with torch.no_grad():
        seen = [augment(images, recipe, generator) for _ in range(VIEWS - 1)]
        parts = [part for view in (images, *seen) for part in view.split(recipe.batch_size)]
        latents = torch.cat([codec.encode(part) for part in parts]).unflatten(0, (VIEWS, -1))

    def pick(rows: Tensor) -> Tensor:
        picked: Tensor = latents[torch.randint(VIEWS, rows.shape, generator=generator), rows]
        return picked

    return pick, latents.shape[2]


def augment(images: Tensor, recipe: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, shift and scale each image of [B, C, H, W] at random; outside is background −1."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle = uniform(math.radians(recipe.rotation_degrees))
    zoom = 1 + uniform(recipe.scale)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # The unit of an affine grid is half the image: a shift of s images is 2·s.
    rows = [
        torch.stack([cos, -sin, uniform(2 * recipe.shift)], dim=1),
        torch.stack([sin, cos, uniform(2 * recipe.shift)], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    # grid_sample pads with 0: make the background 0 while it works.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def bootstraps(mask: NDArray[np.bool_], recipe: RewardRecipe, rng: np.random.Generator) -> Tensor:
    """[K, n] indices: what each member may see of one class, out of `mask` [K, N]."""
    found = [np.flatnonzero(row) for row in mask]
    fewest = min(len(rows) for rows in found)
    if fewest < (recipe.per_class or 1):
        raise ValueError(
            f"{fewest} labels of one class, and {recipe.per_class or 1} are needed: "
            "label more images"
        )
    if recipe.per_class is None:
        # Members that may see fewer see some twice as often: at most one more round.
        longest = max(len(rows) for rows in found)
        return torch.from_numpy(np.stack([np.resize(rows, longest) for rows in found]))
    draws = [rng.choice(rows, recipe.per_class, replace=True) for rows in found]
    return torch.from_numpy(np.stack(draws))


def _draw(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, K] random entries of [K, n], each member from its own row."""
    picks = torch.randint(pool.shape[1], (pool.shape[0], count), generator=generator)
    return pool.gather(1, picks).T


def noised(
    x_0: Tensor, schedule: NoiseSchedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x_t [B, ...] at timesteps uniform over the schedule, and those timesteps [B]."""
    timestep = torch.randint(schedule.num_train_timesteps, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    return add_noise(x_0, eps, *schedule.at(timestep)), timestep
