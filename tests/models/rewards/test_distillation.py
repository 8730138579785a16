"""Students and probes against what they stand for: an ensemble's own gradient and logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.diffusion.codec import PixelShuffle
from models.diffusion.conditioning import Named
from models.offline.generator import Generator
from models.offline.teaching import observe
from models.rewards.distillation import DistilRecipe, Examples, distil
from models.rewards.ensemble import Ensemble
from models.rewards.export import export_probe, export_student
from models.rewards.network import RewardConfig, RewardNetwork
from models.rewards.onnx_guides import DistilledGuide, Probe
from models.rewards.student import Student, StudentConfig
from tests.engines import make_schedule

SHAPE = (4, 6, 6)
RECIPE = DistilRecipe(draws=16, censor_scales=(0.0, 4.0), num_inference_steps=10, iterations=300)


class Towards:
    """A guide whose gradient is known: it pulls x_t to a point, less where there is more noise."""

    def gradient(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        return (0.5 - x_t) * (1 - timestep.view(-1, 1, 1, 1) / 1000)


def _shrinks(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    return 0.5 * x_t


GENERATOR = Generator(_shrinks, make_schedule(clip_sample=True), PixelShuffle(2), SHAPE)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return observe(Towards(), GENERATOR, RECIPE, first_seed=7)


def test_examples_are_what_the_teacher_says_where_samplers_go(examples: Examples) -> None:
    assert len(examples.x_t) == 2 * 16 * 10
    wanted = Towards().gradient(examples.x_t.float(), examples.timestep)
    torch.testing.assert_close(examples.gradient.float(), wanted, atol=2e-3, rtol=2e-3)
    # One draw's examples stand together, from noise to image.
    assert examples.timestep[:10].tolist() == sorted(examples.timestep[:10].tolist())[::-1]
    # Half of the draws were steered: they end where the teacher pulls to.
    plain, steered = examples.x_t.float().view(2, 16, 10, -1)[:, :, -1]
    assert steered.mean() > plain.mean() + 0.2


@pytest.mark.slow
def test_a_student_learns_its_teachers_field(examples: Examples) -> None:
    student, held_out = distil(examples, RECIPE)
    assert held_out["cosine"] > 0.95
    x_t, timestep = torch.randn(64, *SHAPE) * 0.5, torch.full((64,), 100)
    wanted, found = Towards().gradient(x_t, timestep), student(x_t, timestep).detach()
    assert float((wanted * found).sum() / (wanted.norm() * found.norm())) > 0.9


@pytest.mark.slow
def test_the_held_out_figure_is_of_draws_that_the_student_never_saw(examples: Examples) -> None:
    """A teacher of pure noise can be learnt by heart, and not foretold."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(examples.gradient.shape, generator=generator).half()
    _, held_out = distil(Examples(examples.x_t, examples.timestep, noise), RECIPE)
    assert held_out["r2"] < 0.05


def test_an_odd_size_is_refused() -> None:
    odd = torch.zeros(10, 4, 5, 6)
    with pytest.raises(ValueError, match="even size, and this is 5 by 6"):
        distil(Examples(odd, torch.zeros(10), odd), RECIPE)


def test_a_students_graph_says_what_the_student_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(StudentConfig(channels=4)).eval()
    torch.nn.init.normal_(student.film.weight, std=0.3)
    student.half().float()  # as graphs are stored
    export_student(student, SHAPE, tmp_path / "student.onnx")
    guide = DistilledGuide(tmp_path / "student.onnx")
    x_t, timestep = torch.randn(9, *SHAPE), torch.randint(0, 1000, (9,))
    together = guide.gradient(x_t, timestep)
    torch.testing.assert_close(together, student(x_t, timestep).detach(), atol=1e-5, rtol=1e-4)
    for row in range(9):
        alone = guide.gradient(x_t[row : row + 1], timestep[row : row + 1])
        assert torch.equal(alone[0], together[row]), "who shares the batch changes nothing"


@pytest.fixture(scope="module")
def clean() -> Ensemble:
    torch.manual_seed(0)
    network = RewardNetwork(RewardConfig(members=3, widths=(4, 4, 8, 8), groups=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Ensemble(network.half().float())  # as graphs are stored


def test_a_probe_is_sigma_of_the_mean_logit_of_the_decoded_image(
    clean: Ensemble, tmp_path: Path
) -> None:
    export_probe(clean, PixelShuffle(2), SHAPE, tmp_path / "probe.onnx")
    probe = Probe(tmp_path / "probe.onnx")
    x_0 = torch.randn(9, *SHAPE)
    logits = clean.logits(torch.nn.functional.pixel_shuffle(x_0, 2)).double().mean(dim=1)
    together = probe.score(x_0)
    assert together.dtype == np.float64
    np.testing.assert_allclose(together, torch.sigmoid(logits).numpy(), atol=1e-5)
    alone = [probe.score(x_0[row : row + 1])[0] for row in range(9)]
    np.testing.assert_array_equal(alone, together)


def test_a_timed_ensemble_is_no_probe(tmp_path: Path) -> None:
    timed = Ensemble(RewardNetwork(RewardConfig(members=1, timed=True)))
    with pytest.raises(ValueError, match="time-dependent"):
        export_probe(timed, PixelShuffle(2), SHAPE, tmp_path / "probe.onnx")
