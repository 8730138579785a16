"""Classifier-free guidance against its formula, row by row."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.diffusion.conditioning import Conditions, Encoded, Named, predict

SCALES = st.sampled_from([1.0, 1.0, 1.0 + 1e-6, 1.5, 7.5, 30.0])


def _denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    """Elementwise: no row sees another."""
    label = inputs["class_labels"].view(-1, 1, 1, 1)
    width = inputs["encoder_hidden_states"].sum((1, 2)).view(-1, 1, 1, 1)
    return torch.tanh(x_t * (1 + label) + timestep.view(-1, 1, 1, 1) / 1000) + width


def _encoded(label: int, number: float) -> dict[str, Tensor]:
    return {
        "class_labels": torch.tensor(label),
        "encoder_hidden_states": torch.full((2, 3), number),
    }


@given(
    rows=st.lists(
        st.tuples(SCALES, st.integers(0, 9), st.floats(-1, 1), st.integers(0, 999)),
        min_size=1,
        max_size=7,
    )
)
def test_every_row_is_the_formulas_and_only_guided_ones_are_evaluated_twice(
    rows: list[tuple[float, int, float, int]],
) -> None:
    called: list[int] = []

    def denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
        called.append(len(x_t))
        return _denoise(x_t, timestep, inputs)

    encoded = [Encoded(_encoded(label, number), _encoded(9, 0.0)) for _, label, number, _ in rows]
    scales = [scale for scale, *_ in rows]
    conditions = Conditions.stack(encoded, scales)
    timestep = torch.tensor([t for *_, t in rows])
    x_t = torch.linspace(-2, 2, len(rows) * 8).view(len(rows), 2, 2, 2)
    before = x_t.clone()
    found = predict(denoise, x_t, timestep, conditions)
    assert torch.equal(x_t, before)

    guided = [scale for scale in np.float32(scales) if scale > 1]
    assert called == [len(rows) + len(guided)]
    assert conditions.nfe.sum() == called[0]
    for row, (scale, *_) in enumerate(rows):
        here = slice(row, row + 1)
        with_it, without = (
            _denoise(x_t[here], timestep[here], {k: v[here] for k, v in half.items()})
            for half in (conditions.inputs, conditions.negative)
        )
        wanted = without + scale * (with_it - without) if scale > 1 else with_it
        torch.testing.assert_close(found[here], wanted, rtol=1e-5, atol=1e-5)


def test_an_input_that_nobody_reads_is_not_gathered() -> None:
    """Of a batch's rows a guide gets some; most look at none of their inputs, and prompts are
    large."""
    gathered = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            gathered.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    prompts = torch.arange(12.0).view(4, 3).as_subclass(Watched)
    some = Conditions({"prompts": prompts}, {}, np.ones(4, np.float32))[np.array([2, 0])]
    assert some.guidance_scale.shape == (2,)
    assert list(some.inputs) == ["prompts"]
    assert not gathered
    assert some.inputs["prompts"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert gathered
