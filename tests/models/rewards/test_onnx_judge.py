"""The judge's graph against the networks that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.diffusion.codec import from_uint8
from models.rewards.ensemble import Ensemble
from models.rewards.export import export_judge
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.onnx_judge import OnnxJudge
from tests.brightness import write_judge


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    torch.manual_seed(0)
    network = RewardNetwork(RewardConfig(members=3, widths=(4, 4, 8, 8), groups=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Ensemble(network)


@pytest.fixture(scope="module")
def judge(ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> OnnxJudge:
    path: Path = tmp_path_factory.mktemp("judge") / "judge.onnx"
    export_judge(ensemble, 28, 28, path)
    return OnnxJudge(path)


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 28, 28, 1)).astype(np.uint8)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_scores_are_sigma_of_the_mean_logit(ensemble: Ensemble, judge: OnnxJudge, n: int) -> None:
    images = pixels(n)
    logits = ensemble.logits(from_uint8(images)).mean(dim=1).double()
    scores = judge.score(images)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, torch.sigmoid(logits).numpy(), atol=1e-5)
    assert np.ptp(judge.score(pixels(7))) > 1e-3


def test_score_does_not_depend_on_the_batch(judge: OnnxJudge) -> None:
    images = pixels(5)
    alone = np.concatenate([judge.score(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(judge.score(images), alone, atol=1e-6)


def test_empty_batch_has_no_scores(judge: OnnxJudge) -> None:
    assert judge.score(pixels(0)).shape == (0,)


@pytest.mark.parametrize(
    "wrong",
    [pixels(2).astype(np.float32), pixels(2)[0], pixels(2)[:, :14], np.repeat(pixels(2), 3, 3)],
)
def test_other_shapes_and_dtypes_are_refused(judge: OnnxJudge, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the judge wants pixels uint8"):
        judge.score(wrong)


def test_nan_stays_nan_and_large_logits_do_not_overflow(
    judge: OnnxJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def run(self, *_: object) -> list[np.ndarray]:
            return [np.array([np.nan, 1000.0, -1000.0, 0.0], dtype=np.float32)]

    monkeypatch.setattr(judge, "session", Broken())
    with np.errstate(over="raise"):
        scores = judge.score(pixels(4))
    assert np.isnan(scores[0])
    np.testing.assert_array_equal(scores[1:], [1.0, 0.0, 0.5])


def test_timed_networks_cannot_judge(tmp_path: Path) -> None:
    timed = Ensemble(RewardNetwork(RewardConfig(members=1, pixel_shuffle=2, timed=True)))
    with pytest.raises(ValueError, match="finished images"):
        export_judge(timed, 28, 28, tmp_path / "judge.onnx")


def test_a_graph_of_any_height_and_width_takes_them_and_no_other_channels(tmp_path: Path) -> None:
    judge = OnnxJudge(write_judge(tmp_path / "judge.onnx"))
    assert judge.shape == (None, None, 1)
    for height, width in ((28, 28), (4, 30)):
        image = np.full((2, height, width, 1), 51, dtype=np.uint8)
        assert judge.takes(image.shape[1:])
        np.testing.assert_allclose(judge.score(image), 0.5, atol=1e-6)
    assert not judge.takes((28, 28, 3))
    assert not judge.takes((28, 28))
    with pytest.raises(ValueError, match=r"\[B, any, any, 1\]"):
        judge.score(np.zeros((1, 28, 28, 3), dtype=np.uint8))


def test_a_judge_sees_the_other_sizes_of_its_model_at_its_own(
    ensemble: Ensemble, judge: OnnxJudge, tmp_path: Path
) -> None:
    export_judge(ensemble, 28, 28, tmp_path / "judge.onnx")
    fitting = OnnxJudge(tmp_path / "judge.onnx", fits=[(56, 28, 1), (28, 28, 3)])
    images = pixels(3)
    np.testing.assert_array_equal(fitting.score(images), judge.score(images))
    # Each row twice, which is one row again; not to the byte at the edges of what is averaged.
    smooth = np.tile(np.linspace(0, 255, 28).astype(np.uint8)[None, None, :, None], (2, 28, 1, 1))
    tall = smooth.repeat(2, axis=1)
    np.testing.assert_allclose(fitting.score(tall), judge.score(smooth), atol=1e-6)
    # What is no size of the model is refused, and so are other channels.
    for wrong in (images[:, :14], images.repeat(3, axis=3)):
        with pytest.raises(ValueError, match="the judge wants"):
            fitting.score(wrong)
