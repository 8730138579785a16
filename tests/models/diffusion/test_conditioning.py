"""Classifier-free guidance against its formula, row by row."""

from __future__ import annotations

import numpy as np
import pytest
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
            _denoise(x_t[here], timestep[here], {k: v[None] for k, v in half.items()})
            for half in (encoded[row].inputs, encoded[row].negative)
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
    encoded = [Encoded({"prompts": prompt}, {}) for prompt in prompts.unbind()]
    gathered.clear()
    some = Conditions.stack(encoded, [1.0] * 4)[np.array([2, 0])]
    assert some.guidance_scale.shape == (2,)
    assert len(some.encoded) == 2
    assert not gathered
    assert some.inputs["prompts"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert gathered


def _attend(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
    """Cross-attention of every pixel, as a denoiser that takes a mask has it."""
    text = inputs["text"] - inputs["places"][..., None]
    mask = inputs.get("text_mask")
    query = x_t.flatten(2).transpose(1, 2)
    if mask is not None:
        mask = mask[:, None]
    found = torch.nn.functional.scaled_dot_product_attention(query, text, text, attn_mask=mask)
    return found.transpose(1, 2).reshape(x_t.shape)


def _sequence(length: int) -> dict[str, Tensor]:
    text = torch.linspace(-1, 2, 3 * length).view(length, 3).cos()
    return {"text": text, "places": torch.arange(length) / 7, "pooled": text.mean(0)}


MASKS = {"text": "text_mask", "places": "text_mask"}


@given(
    rows=st.lists(st.tuples(SCALES, st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=7)
)
def test_rows_of_several_lengths_are_each_as_alone(rows: list[tuple[float, int, int]]) -> None:
    """The prompt of a row, its negative prompt, and those beside it may all differ in length."""
    called: list[Named] = []

    def denoise(x_t: Tensor, timestep: Tensor, inputs: Named) -> Tensor:
        called.append(inputs)
        return _attend(x_t, timestep, inputs)

    encoded = [Encoded(_sequence(one), _sequence(other), MASKS) for _, one, other in rows]
    scales = [scale for scale, *_ in rows]
    x_t = torch.linspace(-2, 2, len(rows) * 12).view(len(rows), 3, 2, 2)
    timestep = torch.zeros(len(rows))
    found = predict(denoise, x_t, timestep, Conditions.stack(encoded, scales))

    (told,) = called
    asked = {one for _, one, _ in rows}
    asked |= {other for scale, _, other in rows if np.float32(scale) > 1}
    assert told["text"].shape[1] == max(asked), "no wider than this call needs"
    assert ("text_mask" in told) == (len(asked) > 1), "and no mask where it masks nothing"
    for row, (scale, *_) in enumerate(rows):
        here = slice(row, row + 1)
        with_it, without = (
            _attend(x_t[here], timestep[here], {k: v[None] for k, v in half.items()})
            for half in (encoded[row].inputs, encoded[row].negative)
        )
        wanted = without + scale * (with_it - without) if scale > 1 else with_it
        torch.testing.assert_close(found[here], wanted, rtol=1e-5, atol=2e-5)


def test_only_what_is_declared_a_sequence_may_differ_in_length() -> None:
    encoded = [Encoded(_sequence(length), {}, {}) for length in (1, 2)]
    with pytest.raises(RuntimeError, match="equal size"):
        _ = Conditions.stack(encoded, [1.0, 1.0]).inputs
