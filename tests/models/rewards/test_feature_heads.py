"""Heads on features: what they learn, what they may see, and their graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from models.onnx.preprocessing import PreparationOptions
from models.rewards.feature_heads import COPIES, Heads, copies, export_heads, train_heads
from models.rewards.features import OnnxFeatures
from models.rewards.onnx_judge import OnnxJudge
from models.rewards.pretrained_features import make_features
from models.rewards.training import JUDGE
from tests import classifiers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

D = 12
IMAGE = (10, 14, 1)


def vectors(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [1, n, D] far from 0 and of unlike scales, and who is benign: one direction says."""
    rng = np.random.default_rng(seed)
    benign = np.arange(n) % 4 != 0
    z = rng.normal(size=(n, D))
    z[:, 3] += np.where(benign, 2.5, -2.5)
    return (100 + z * np.geomspace(0.5, 40, D)).astype(np.float32)[None], benign


def test_heads_learn_what_separates_and_pass_over_scales() -> None:
    x, benign = vectors(80)
    heads = train_heads(x, benign, JUDGE, "sha256:f")
    fresh, truth = vectors(400, seed=1)
    logits = heads.logits(fresh[0])
    assert logits.shape == (400, JUDGE.members)
    wrong = (logits.mean(axis=1) > 0) != truth
    assert wrong.mean() < 0.03
    assert np.abs(logits).max() < 30


def test_a_member_learns_nothing_from_what_it_may_not_see() -> None:
    x, benign = vectors(60)
    seen = np.ones((JUDGE.members, 60), dtype=bool)
    seen[0, :20] = False
    heads = train_heads(x, benign, JUDGE, "f", seen=seen)
    turned = benign.copy()
    turned[:20] = ~turned[:20]
    others = train_heads(x, turned, JUDGE, "f", seen=seen)
    torch.testing.assert_close(heads.weight[0], others.weight[0], atol=1e-3, rtol=1e-3)
    assert (heads.weight[1] - others.weight[1]).abs().max() > 0.1
    again = train_heads(x, benign, JUDGE, "f", seen=seen)
    assert (again.weight == heads.weight).all()


def test_benign_weight_and_bootstraps_are_as_in_training() -> None:
    from dataclasses import replace

    x, benign = vectors(60)
    even = train_heads(x, benign, JUDGE, "f").logits(x[0]).mean()
    wary = train_heads(x, benign, replace(JUDGE, benign_weight=0.05), "f").logits(x[0]).mean()
    assert wary < even - 0.5
    few = train_heads(x, benign, replace(JUDGE, per_class=10), "f")
    assert (few.weight[0] - few.weight[1]).abs().max() > 0.05
    with pytest.raises(ValueError, match="labels of one class, and 10 are needed"):
        train_heads(x[:, :20], benign[:20], replace(JUDGE, per_class=10), "f")


def test_a_start_changes_nothing_but_the_way() -> None:
    x, benign = vectors(60)
    more, labels = vectors(90, seed=4)
    before = train_heads(x, benign, JUDGE, "f")
    cold = train_heads(more, labels, JUDGE, "f")
    warm = train_heads(more, labels, JUDGE, "f", start=before)
    np.testing.assert_allclose(warm.logits(more[0]), cold.logits(more[0]), atol=0.02)


def test_a_feature_that_hardly_varied_does_not_decide_later() -> None:
    x, benign = vectors(60)
    x[..., 0] = 5 + 1e-6 * np.random.default_rng(0).normal(size=60)
    heads = train_heads(x, benign, JUDGE, "f")
    moved = x[0].copy()
    moved[:, 0] += 0.5
    assert np.abs(heads.logits(moved) - heads.logits(x[0])).max() < 1


def test_heads_are_kept_in_a_file(tmp_path: Path) -> None:
    x, benign = vectors(40)
    heads = train_heads(x, benign, JUDGE, "sha256:f")
    heads.save(tmp_path / "heads.safetensors")
    read = Heads.load(tmp_path / "heads.safetensors")
    assert read.features == "sha256:f"
    np.testing.assert_array_equal(read.logits(x[0]), heads.logits(x[0]))


class Seen(nn.Module):
    """A map of features, [B, D, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, D, 3, stride=2), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        """Features of [B, 3, h, w]."""
        found: Tensor = self.body(images)
        return found


@pytest.fixture(params=[12, 18])
def features(tmp_path: Path, request: pytest.FixtureRequest) -> OnnxFeatures:
    path = classifiers.write(
        tmp_path / "seen.onnx", Seen(), torch.rand(1, 3, 12, 12), opset=request.param
    )
    make_features(path, IMAGE, PreparationOptions(), tmp_path / "features.onnx")
    return OnnxFeatures(tmp_path / "features.onnx")


def test_a_judges_graph_is_features_and_the_mean_of_its_heads(
    features: OnnxFeatures, tmp_path: Path
) -> None:
    pixels = classifiers.pixels(40, *IMAGE)
    benign = np.arange(40) % 3 != 0
    pixels[~benign, :, :7] //= 4
    looks = copies(features, pixels, JUDGE)
    assert looks.shape == (1 + COPIES, 40, D)
    np.testing.assert_array_equal(looks[0], features.of(pixels))
    assert all(np.abs(look - looks[0]).max() > 0.01 for look in looks[1:])
    heads = train_heads(looks, benign, JUDGE, "f")
    export_heads(heads, features.path, tmp_path / "judge.onnx", labels="[]")
    judge = OnnxJudge(tmp_path / "judge.onnx")
    assert judge.shape == IMAGE
    assert judge.session.get_modelmeta().custom_metadata_map == {"labels": "[]"}
    fresh = classifiers.pixels(7, *IMAGE, seed=8)
    expected = expit(heads.logits(features.of(fresh)).mean(axis=1))
    np.testing.assert_allclose(judge.score(fresh), expected, atol=1e-5)
    assert np.ptp(judge.score(pixels)) > 0.1
    assert [one.name for one in onnx.load(tmp_path / "judge.onnx").graph.output] == ["logit"]
    assert features.of(pixels[:0]).shape == (0, D)
