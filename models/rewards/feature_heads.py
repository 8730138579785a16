"""Heads on frozen features: judges that learn from few labels what a pretrained network sees.

K members, each one linear map of the standardised features, side by side. The loss is that of
`training`: halves of benign and malign, cross-entropy, weight α on benign. It is convex, so the
labels alone decide what is found; members differ by the labels that they may see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import optimize
from scipy.special import expit, log_expit
from torch import Tensor

from models.diffusion.codec import from_uint8, to_uint8
from models.onnx.graph import Nodes
from models.rewards.features import BATCH, OnnxFeatures
from models.rewards.training import RewardRecipe, augment, bootstraps

COPIES = 4
"""Augmented copies of an image beside itself: each costs a pass of the pretrained network."""

DECAY = 3e-4
"""Of the squared weights of standardised features, each of which has a share of 1/D in a logit."""

FLAT = 0.1
"""A feature's deviation counts as at least this share of the mean one: what hardly varies among the
labels may vary wildly elsewhere."""

ITERATIONS = 500

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """`weight` [K, D] and `bias` [K] on features of `mean` [D] and `std` [D], all float32.

    `features` is the sha256 name of the graph that they belong to.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    features: str

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Each member's logit of features [N, D], [N, K]."""
        z = _standardised(torch.from_numpy(vectors), self.mean, self.std)
        found: NDArray[np.float64] = (z @ self.weight.T + self.bias).double().numpy()
        return found

    def save(self, path: Path) -> None:
        """Write safetensors."""
        tensors = {"weight": self.weight, "bias": self.bias, "mean": self.mean, "std": self.std}
        save_file(tensors, path, metadata={"features": self.features})

    @classmethod
    def load(cls, path: Path) -> Heads:
        """Read what `save` wrote. Raises ValueError when the file holds something else."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "features" not in metadata:
            raise ValueError(f"{path}: no `features` in the metadata: not heads on features")
        return cls(**load_file(path), features=metadata["features"])


def copies(
    features: OnnxFeatures,
    pixels: NDArray[np.uint8],
    recipe: RewardRecipe,
    on_images: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Features [1 + COPIES, N, D] of pixels [N, H, W, C]: as they are, then augmented.

    `on_images` gets the number of the (1 + COPIES)·N passes done since its last call.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    done = 0
    rounds = []
    for number in range(1 + COPIES):
        parts = []
        for i in range(0, len(pixels), BATCH):
            batch = pixels[i : i + BATCH]
            if number:
                batch = to_uint8(augment(from_uint8(batch), recipe, generator))[0]
            parts.append(features.of(batch))
            done += len(batch)
            on_images(done)
        rounds.append(np.concatenate(parts))
    return np.stack(rounds)


def train_heads(
    vectors: NDArray[np.float32],
    benign: NDArray[np.bool_],
    recipe: RewardRecipe,
    features: str,
    *,
    seen: NDArray[np.bool_] | None = None,
    start: Heads | None = None,
) -> Heads:
    """Train on features `vectors` [A, N, D] of A looks at each image, with labels `benign` [N].

    Of the recipe `members`, `benign_weight`, `per_class` and `seed` count. `seen` [K, N] says which
    labels each member may learn from (default: all). With `start`, heads on the same features, the
    search begins there; it ends where it would. Raises ValueError when a class has too few labels.
    """
    rng = np.random.default_rng(recipe.seed)
    allowed = np.ones((recipe.members, len(benign)), dtype=np.bool_) if seen is None else seen
    looks, labels, width = vectors.shape
    weight = torch.zeros(recipe.members, labels)
    for wanted, share in ((False, 0.5), (True, 0.5 * recipe.benign_weight)):
        mask = (benign == wanted) & allowed
        pool = bootstraps(mask, recipe, rng)
        counts = torch.stack([torch.bincount(rows, minlength=labels) for rows in pool]).float()
        if recipe.per_class is None:
            # Rows that were filled up to the longest would count some labels twice.
            counts = torch.from_numpy(mask).float()
        weight += share * counts / counts.sum(dim=1, keepdim=True)
    flat = torch.from_numpy(vectors.reshape(-1, width))
    mean, std = flat.mean(dim=0), flat.std(dim=0)
    std = std.clamp(min=max(FLAT * float(std.mean()), 1e-6))
    z = _standardised(flat, mean, std)
    target = np.tile(benign, looks).astype(np.float64)
    each = weight.repeat(1, looks) / looks  # [K, A·N]
    begin = np.zeros((recipe.members, width + 1))
    if start is not None:
        # The same map of features as before, whatever they are standardised by now.
        begin[:, :-1] = start.weight * (std / start.std)
        begin[:, -1] = start.bias + start.weight @ ((mean - start.mean) / start.std / width**0.5)
    # One by one: a common search would let members see by its steps what they may not learn from.
    found = [
        _fit(z.double().numpy(), target, rows.double().numpy(), first)
        for rows, first in zip(each, begin, strict=True)
    ]
    solved = torch.from_numpy(np.stack(found)).float()
    return Heads(solved[:, :-1].clone(), solved[:, -1].clone(), mean, std, features)


def _fit(z: Numbers, target: Numbers, weights: Numbers, begin: Numbers) -> Numbers:
    """The weights and the bias [D + 1] of logistic regression on z [M, D], searched from `begin`.

    `target` [M] is 1 for benign; rows of weight 0 count for nothing.
    """

    def loss(parameters: Numbers) -> tuple[float, Numbers]:
        logits = z @ parameters[:-1] + parameters[-1]
        value = -(weights * (target * log_expit(logits) + (1 - target) * log_expit(-logits))).sum()
        error = weights * (expit(logits) - target)
        slope = np.append(error @ z + DECAY * parameters[:-1], error.sum())
        return float(value + DECAY / 2 * (parameters[:-1] ** 2).sum()), slope

    found = optimize.minimize(
        loss, begin, jac=True, method="L-BFGS-B",
        options={"maxiter": ITERATIONS, "ftol": 0, "gtol": 1e-7},
    )  # fmt: skip
    return np.asarray(found.x)


def export_heads(heads: Heads, graph: Path, path: Path, **metadata: str) -> None:
    """Write one ONNX file: `pixels` uint8 [batch, H, W, C] in, the members' mean `logit` float32
    [batch] out; `graph`, the features' own, is in it. `metadata` goes into the file as it is.
    """
    model = onnx.load(graph)
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    # One linear map does what standardising and the mean of K maps do; in float64, once.
    scale = heads.std.double() * heads.mean.shape[0] ** 0.5
    weight = heads.weight.double().mean(dim=0) / scale
    bias = heads.bias.double().mean() - weight @ heads.mean.double()
    nodes = Nodes(opset, "head/")
    summed = nodes.add("MatMul", "features", weight[:, None].float().numpy())
    logit = nodes.reduce("ReduceSum", summed, [1])
    logit = nodes.add("Add", logit, np.array(float(bias), np.float32))
    finish = onnx.helper.make_node("Identity", [logit], ["logit"])
    model.graph.node.extend([*nodes.nodes, finish])
    model.graph.initializer.extend(nodes.constants)
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("logit", onnx.TensorProto.FLOAT, ["batch"])
    )
    if metadata:
        onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _standardised(vectors: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[N, D] of about unit length, whatever D is."""
    scale: Tensor = std * vectors.shape[1] ** 0.5
    return (vectors - mean) / scale
