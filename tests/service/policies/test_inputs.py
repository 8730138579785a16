"""What may be asked of a model, and what people read of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition, Mix
from service.errors import InvalidValue
from service.policies import inputs
from service.policies.inputs import (
    Choices,
    RequestedInputs,
    caption,
    drawn,
    in_words,
    listed,
    mix,
    of_model,
    parse,
)

CLASSES = Inputs(kind="class", class_names=("zero", "one", "crane", "crane", "none"), null_class=4)
UNGUIDED = Inputs(kind="class", class_names=("zero", "one"))
TEXT = Inputs(kind="text", max_tokens=77, guidance_scale=7.5)
NONE = Inputs()


def choices(kind: Inputs, scales: tuple[float, ...] = (4.0, 1.0), **more: Any) -> Choices:
    labels = kind.drawn_classes if kind.kind == "class" else ()
    return Choices("tiny", "policy 'bright'", kind, scales, labels, **more)


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        (NONE, RequestedInputs(), Condition(guidance_scale=4.0)),
        (CLASSES, RequestedInputs(), Condition(guidance_scale=4.0, class_labels=(0, 1, 2, 3))),
        (CLASSES, RequestedInputs(class_label=0), Condition(class_label=0, guidance_scale=4.0)),
        (CLASSES, RequestedInputs(class_label="one", guidance_scale=1), Condition(class_label=1)),
        (TEXT, RequestedInputs("a cat"), Condition("a cat", guidance_scale=4.0)),
        (TEXT, RequestedInputs("a cat", "a dog"), Condition("a cat", "a dog", guidance_scale=4.0)),
    ],
)
def test_what_is_asked_becomes_a_condition(
    kind: Inputs, asked: RequestedInputs, expected: Condition
) -> None:
    assert choices(kind).condition(asked) == expected


REFUSED: list[tuple[Inputs, dict[str, Any], str, str]] = [
    (NONE, {"prompt": "a cat"}, "prompt", "takes no input, and draws by the seed alone"),
    (NONE, {"negative_prompt": "x"}, "negative_prompt", "takes none"),
    (NONE, {"class_label": 0}, "class_label", "takes none"),
    (NONE, {"guidance_scale": 4.0}, "guidance_scale", "cannot be guided.*no input"),
    (CLASSES, {"prompt": "a cat"}, "prompt", "it takes a class_label"),
    (CLASSES, {"negative_prompt": "a cat"}, "negative_prompt", "it takes a class_label"),
    (CLASSES, {"class_label": 5}, "class_label", r"is 5, policy 'bright' has 0 \(zero\), 1 \(one"),
    (CLASSES, {"class_label": -1}, "class_label", "is -1"),
    (CLASSES, {"class_label": 4}, "class_label", "is 4"),
    (CLASSES, {"class_label": "none"}, "class_label", "is 'none'"),
    (CLASSES, {"class_label": "two"}, "class_label", "is 'two'"),
    (CLASSES, {"class_label": "crane"}, "class_label", "several classes.*2 or 3"),
    (CLASSES, {"guidance_scale": 5.0}, "guidance_scale", "is 5, policy 'bright' allows 4, 1"),
    (UNGUIDED, {"guidance_scale": 4.0}, "guidance_scale", "cannot be guided.*no class that"),
    (TEXT, {"class_label": 0}, "class_label", "it takes a prompt"),
    (TEXT, {"negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt", "be ignored"),
]


@pytest.mark.parametrize(("kind", "asked", "field", "words"), REFUSED)
def test_what_cannot_be_drawn_is_refused_by_its_field(
    kind: Inputs, asked: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidValue, match=words) as fault:
        choices(kind).condition(RequestedInputs(**asked))
    assert fault.value.param == field


def test_an_admin_may_ask_for_any_guidance_but_for_none_below_1() -> None:
    free = choices(TEXT, any_scale=True)
    assert free.condition(RequestedInputs("a", guidance_scale=33.3)).guidance_scale == 33.3
    with pytest.raises(InvalidValue, match=re.escape("allows 1 (none) or more")):
        free.condition(RequestedInputs("a", guidance_scale=0.5))


def test_a_model_offers_all_it_has() -> None:
    assert of_model("tiny", TEXT).condition(RequestedInputs("a")).guidance_scale == 7.5
    assert of_model("tiny", CLASSES).class_labels == (0, 1, 2, 3)
    assert of_model("tiny", NONE).condition(RequestedInputs()) == Condition()
    odd = Inputs(kind="class", class_names=("a", "b"), guidance_scale=4.0)
    assert of_model("tiny", odd).condition(RequestedInputs()).guidance_scale == 1.0, (
        "nothing to guide with"
    )


def test_a_long_list_of_classes_ends_in_an_ellipsis() -> None:
    assert listed(range(20)).endswith(", 18, 19")
    assert listed(range(1000)).endswith(", 18, 19, …")


def test_inputs_are_kept_as_what_was_said() -> None:
    given = [
        {"prompt": "", "class_label": "one", "guidance_scale": None, "weight": 1.0},
        {"class_label": None, "negative_prompt": "", "guidance_scale": 2.0, "weight": 3.0},
    ]
    kept = parse(given, of_model("tiny", CLASSES), 20)
    assert kept == [{"class_label": 1}, {"guidance_scale": 2.0, "weight": 3.0}]
    json.dumps(kept)
    mixed = mix(kept, of_model("tiny", CLASSES))
    assert mixed.weights == (1.0, 3.0)
    assert mixed.conditions == (
        Condition(class_label=1, guidance_scale=1.0),
        Condition(guidance_scale=2.0, class_labels=(0, 1, 2, 3)),
    )


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        (NONE, [{}], "inputs"),
        (CLASSES, [{"class_label": 1}, {"prompt": "a"}], "inputs.1.prompt"),
        (TEXT, [{"prompt": "a" * 21}], "inputs.0.prompt"),
        (TEXT, [{"prompt": "a"}, {"negative_prompt": "a" * 21}], "inputs.1.negative_prompt"),
    ],
)
def test_an_input_that_cannot_be_drawn_names_its_place(
    kind: Inputs, given: list[dict[str, Any]], field: str
) -> None:
    with pytest.raises(InvalidValue) as fault:
        parse(given, of_model("tiny", kind), 20)
    assert fault.value.param == field


def test_what_names_no_guidance_takes_the_policys() -> None:
    kept = parse([{"prompt": "a"}, {"prompt": "b", "guidance_scale": 9.0}],
                 of_model("tiny", TEXT), 20)  # fmt: skip
    scales = [one.guidance_scale for one in mix(kept, choices(TEXT, any_scale=True)).conditions]
    assert scales == [4.0, 9.0]


def test_a_law_of_inputs_has_one_spelling() -> None:
    a, b = Condition("a", guidance_scale=2.0), Condition("b")
    one = inputs.to_json(Mix((a, b, a), (1.0, 2.0, 1.0)))
    assert one == inputs.to_json(Mix((b, a), (1.0, 1.0)))
    assert one == [
        {"prompt": "a", "guidance_scale": 2.0, "weight": 0.5},
        {"prompt": "b", "weight": 0.5},
    ]
    assert inputs.to_json(Mix()) == [], "a certificate of a model without inputs stays as it was"


def _words(*conditions: Condition, weights: tuple[float, ...] | None = None) -> str:
    mixed = Mix(conditions, weights or (1.0,) * len(conditions))
    return in_words(inputs.to_json(mixed))


def test_a_law_of_inputs_in_words() -> None:
    assert _words(Condition()) == ""
    assert _words(Condition(class_labels=(1, 2, 3), guidance_scale=4.0)) == (
        "of classes drawn uniformly from 1, 2, 3"
    )
    three = [Condition(class_label=label) for label in (3, 10, 2)]
    assert _words(*three) == "of classes drawn uniformly from 2, 3, 10"
    assert _words(*three, weights=(1, 1, 2)) == "of classes drawn by weight from 2, 3, 10"
    assert _words(three[1]) == "of class 10"
    prompts = [Condition(f"prompt {number}") for number in range(40)]
    assert _words(*prompts) == "of these 40 prompts, drawn uniformly"
    assert _words(prompts[0], prompts[1], weights=(1, 2)) == "of these 2 prompts, drawn by weight"
    assert _words(Condition("a", guidance_scale=4.0)) == "of this prompt"
    assert _words(Condition(guidance_scale=4.0)) == "of the empty prompt"
    twice = Condition("prompt 0", guidance_scale=4.0)
    assert _words(prompts[0], twice) == "of these 2 inputs, drawn uniformly"
    every = Condition(class_labels=(1, 2))
    assert _words(every, three[0]) == "of these 2 inputs, drawn uniformly"


def test_an_image_tells_what_it_was_drawn_under() -> None:
    assert drawn(Condition(), 7, NONE) is None
    every = Condition(class_labels=(0, 1, 2, 3), guidance_scale=4.0)
    found = drawn(every, 7, CLASSES)
    assert found == {"class_label": every.label(7), "guidance_scale": 4.0}
    assert drawn(Condition(class_label=1), 7, UNGUIDED) == {"class_label": 1}
    assert drawn(Condition("a", "b", guidance_scale=2.0), 7, TEXT) == {
        "prompt": "a",
        "negative_prompt": "b",
        "guidance_scale": 2.0,
    }
    assert drawn(Condition(), 7, TEXT) == {"prompt": "", "guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (None, None),
        ({"class_label": 1}, "one"),
        ({"class_label": 99}, "class 99"),
        ({"prompt": "a cat", "negative_prompt": "a dog"}, "a cat"),
        ({"prompt": ""}, "no prompt"),
    ],
)
def test_captions(image: dict[str, Any] | None, expected: str | None) -> None:
    assert caption(image, CLASSES) == expected
