from __future__ import annotations

import numpy as np
import pytest

from models.diffusion.method import Method
from models.diffusion.noise_schedule import NoiseSchedule
from models.diffusion.samplers import levels
from tests.engines import make_schedule


def test_alphas_cumprod_falls_from_almost_one_to_almost_nothing() -> None:
    alphas = make_schedule().alpha ** 2
    assert alphas.shape == (1000,)
    assert (np.diff(alphas) < 0).all()
    assert alphas[0] > 0.999
    assert 0 < alphas[-1] < 1e-6


def test_trailing_timesteps_begin_where_training_ended() -> None:
    assert levels(make_schedule(), Method(4)).timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [({"thresholding": True}, "thresholding"), ({"prediction_type": "score"}, "'score'")],
)
def test_what_the_samplers_do_not_implement_is_refused(
    config: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"scheduler_config\.json.*{complaint}"):
        NoiseSchedule.from_diffusers(config)
