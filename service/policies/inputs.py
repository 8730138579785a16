"""What may be asked of a model: a caller's words become a Condition, or a sentence says why not.

A request asks within a policy's choices, a dataset within its model's. Here too, what people read
of it: an image's caption, and a distribution of inputs in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from pydantic import TypeAdapter

from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition, Mix, Size, size_text
from service.errors import InvalidValue, shown

SHOWN = 20
"""Classes that a sentence lists; after these comes an ellipsis."""

TAKES = {
    "none": "it takes no input, and draws by the seed alone",
    "class": "it takes a class_label",
    "text": "it takes a prompt",
}
_DEFAULT = Condition()


@dataclass(frozen=True)
class RequestedInputs:
    """A caller's words; None and the empty prompt mean that nothing was said.

    `class_label` is a label or a class's name; `size` is [H, W], None the model's default.
    """

    prompt: str = field(default="", repr=False)
    negative_prompt: str = field(default="", repr=False)
    class_label: int | str | None = None
    guidance_scale: float | None = None
    size: Size = None


NOTHING = RequestedInputs()
NO_INPUTS = Inputs()


@dataclass(frozen=True)
class Choices:
    """What may be asked for, and what is drawn where nothing is asked.

    `said_by` names whose choices they are, for sentences. `guidance_scale` has the default first;
    with `any_scale` another, of 1 or more, may be asked for. Of `class_labels` one is drawn.
    `sizes` are [H, W] of those beside the model's default.
    """

    model: str
    said_by: str
    inputs: Inputs
    guidance_scale: tuple[float, ...]
    class_labels: tuple[int, ...] = ()
    any_scale: bool = False
    sizes: tuple[tuple[int, int], ...] = ()

    def condition(self, asked: RequestedInputs) -> Condition:
        """What these words ask for. Raises InvalidValue naming the field and what there is."""
        for name, kind in (
            ("prompt", "text"),
            ("negative_prompt", "text"),
            ("class_label", "class"),
        ):
            if getattr(asked, name) not in ("", None) and self.inputs.kind != kind:
                raise InvalidValue(
                    f"model {self.model!r} takes none: leave it out, or send it empty; "
                    f"{TAKES[self.inputs.kind]}",
                    name,
                )
        scale = self._scale(asked.guidance_scale)
        if asked.negative_prompt and self.inputs.guidance != "classifier-free":
            raise InvalidValue(
                f"model {self.model!r} compares with no other prompt, as its guidance is "
                "distilled: leave it out",
                "negative_prompt",
            )
        if asked.negative_prompt and scale == 1:
            raise InvalidValue(
                "would be ignored, since guidance_scale is 1, which is no guidance: leave it out, "
                "or ask for more guidance",
                "negative_prompt",
            )
        label = None if asked.class_label is None else self._label(asked.class_label)
        drawn = self.class_labels if label is None else ()
        if asked.size is not None and asked.size not in self.sizes:
            others = ", ".join(map(size_text, self.sizes)) or "none"
            raise InvalidValue(
                f"is {size_text(asked.size)}; beside the model's own size {self.said_by} allows "
                f"{others}",
                "size",
            )
        return Condition(asked.prompt, asked.negative_prompt, label, scale, drawn, asked.size)

    def _scale(self, wanted: float | None) -> float:
        if wanted is None:
            return self.guidance_scale[0]
        if not self.inputs.guidable:
            if wanted in (0, 1):  # as users of models that need none write it
                return 1.0
            lacks = "has no class that stands for none to compare with"
            if self.inputs.guidance == "none":
                lacks = "was distilled to need none"
            why = TAKES["none"] if self.inputs.kind == "none" else f"it {lacks}"
            raise InvalidValue(
                f"model {self.model!r} cannot be guided: leave it out; {why}", "guidance_scale"
            )
        wanted = self.inputs.scale(wanted)
        if not self.inputs.has_scale(wanted) or not (
            self.any_scale or wanted in self.guidance_scale
        ):
            allowed = ", ".join(f"{scale:g}" for scale in self.guidance_scale)
            allowed = self.inputs.scales if self.any_scale else allowed
            raise InvalidValue(f"is {wanted:g}, {self.said_by} allows {allowed}", "guidance_scale")
        return wanted

    def _label(self, wanted: int | str) -> int:
        names = self.inputs.class_names
        if isinstance(wanted, int):
            found = [wanted]
        else:
            found = [label for label, name in enumerate(names) if name == wanted]
            if len(found) > 1:
                raise InvalidValue(
                    f"{shown(wanted)} is the name of several classes: say which by its number, "
                    f"{' or '.join(map(str, found))}",
                    "class_label",
                )
        if not found or found[0] not in self.class_labels:
            said = shown(wanted) if isinstance(wanted, str) else str(wanted)
            raise InvalidValue(
                f"is {said}, {self.said_by} has {listed(self.class_labels, names)}", "class_label"
            )
        return found[0]


def of_model(model: str, inputs: Inputs) -> Choices:
    """All that a model can draw, whatever any policy says: what datasets choose from."""
    scale = inputs.guidance_scale if inputs.guidable else 1.0
    labels = inputs.drawn_classes if inputs.kind == "class" else ()
    return Choices(model, f"model {model!r}", inputs, (scale,), labels, any_scale=True)


def parse(
    given: Sequence[Mapping[str, Any]], choices: Choices, prompt_chars: int
) -> list[dict[str, Any]]:
    """A list of inputs with weights, checked, as a store keeps it: what says nothing is left out.

    Names of classes become labels. Raises InvalidValue, naming the entry and its field.
    """
    if given and choices.inputs.kind == "none":
        raise InvalidValue(
            f"model {choices.model!r} takes none: leave it out; {TAKES['none']}", "inputs"
        )
    found = []
    for number, one in enumerate(given):
        asked, weight = _asked(one)
        with _at(number):
            check_length(asked, prompt_chars)
            label = choices.condition(asked).class_label
        said = {name: value for name, value in asdict(asked).items() if value not in ("", None)}
        said |= {} if label is None else {"class_label": label}
        found.append(said | ({} if weight == 1 else {"weight": weight}))
    return found


def check_length(asked: RequestedInputs, prompt_chars: int) -> None:
    """Raises InvalidValue for a prompt of more characters."""
    for name in ("prompt", "negative_prompt"):
        if (count := len(getattr(asked, name))) > prompt_chars:
            raise InvalidValue(f"has {count} characters, the limit is {prompt_chars}", name)


def mix(inputs: Sequence[Mapping[str, Any]], choices: Choices) -> Mix:
    """The conditions of what `parse` gave; without any, what is drawn where nothing is asked.

    Raises InvalidValue, naming the entry and its field.
    """
    if not inputs:
        return Mix((choices.condition(NOTHING),))
    conditions, weights = [], []
    for number, one in enumerate(inputs):
        asked, weight = _asked(one)
        with _at(number):
            conditions.append(choices.condition(asked))
        weights.append(weight)
    return Mix(tuple(conditions), tuple(weights))


class CalibrationDomain(TypedDict):
    """What of the inputs is part of a sampling key, each rising and once."""

    guidance_scale: tuple[float, ...]
    class_labels: tuple[int, ...]
    size: Size


def calibration_domain(mixed: Mix) -> CalibrationDomain:
    """What of a mix must be a policy's own for its thresholds to hold: the guidance scales, and
    the classes, and the size. Prompts are whatever they are. Raises ValueError for a mix of sizes:
    a threshold holds for one."""
    labels = {
        label
        for one in mixed.conditions
        for label in (one.class_labels if one.class_label is None else (one.class_label,))
    }
    scales = {float(one.guidance_scale) for one in mixed.conditions}
    sizes = {one.size for one in mixed.conditions}
    if len(sizes) > 1:
        raise ValueError("a threshold holds for one size, and these inputs are of several")
    return {
        "guidance_scale": tuple(sorted(scales)),
        "class_labels": tuple(sorted(labels)),
        "size": sizes.pop(),
    }


def to_json(mixed: Mix) -> list[dict[str, Any]]:
    """A law of inputs with one spelling: each condition once, and its share as `weight`.

    Nothing at all for a model that takes nothing.
    """
    if set(mixed.conditions) == {_DEFAULT}:
        return []
    total: dict[Condition, float] = {}
    for condition, weight in zip(mixed.conditions, mixed.weights, strict=True):
        total[condition] = total.get(condition, 0.0) + weight
    whole = sum(mixed.weights)
    said = [
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(condition).items()
            if value != getattr(_DEFAULT, name)
        }
        | {"weight": weight / whole}
        for condition, weight in total.items()
    ]
    return sorted(said, key=repr)


def from_json(conditions: Sequence[Mapping[str, Any]]) -> Mix:
    """The law of inputs that `to_json` wrote."""
    if not conditions:
        return Mix()
    read = TypeAdapter(Condition).validate_python
    found = [read({k: v for k, v in one.items() if k != "weight"}) for one in conditions]
    return Mix(tuple(found), tuple(one["weight"] for one in conditions))


def in_words(conditions: Sequence[Mapping[str, Any]]) -> str:
    """What `to_json` gave, as words after "images"; empty for a model that takes nothing."""
    if not conditions:
        return ""
    how = "uniformly"
    weights = [one["weight"] for one in conditions]
    if max(weights) - min(weights) > 1e-9 * max(weights):
        how = "by weight"
    if len(conditions) == 1 and conditions[0].get("class_labels"):
        return f"of classes drawn uniformly from {listed(conditions[0]['class_labels'])}"
    if all("class_label" in one for one in conditions):
        labels = sorted({one["class_label"] for one in conditions})
        if len(labels) == len(conditions):
            only = f"of class {labels[0]}"
            return only if len(labels) == 1 else f"of classes drawn {how} from {listed(labels)}"
    prompts = [one.get("prompt", "") for one in conditions]
    if len(conditions) == 1:
        return "of this prompt" if prompts[0] else "of the empty prompt"
    what = "prompts" if len(set(prompts)) == len(prompts) and all(prompts) else "inputs"
    return f"of these {len(conditions)} {what}, drawn {how}"


def listed(labels: Sequence[int], names: Sequence[str] = ()) -> str:
    """Classes in a sentence: number and name, as far as there is room."""
    shown = [f"{label} ({names[label]})" if names else str(label) for label in labels[:SHOWN]]
    return ", ".join([*shown, "…"] if len(labels) > SHOWN else shown)


def drawn(condition: Condition, seed: int, inputs: Inputs) -> dict[str, Any] | None:
    """Which input the image with this seed was drawn under, as JSON; None if its model has none."""
    if inputs.kind == "none":
        return None
    found: dict[str, Any] = {"class_label": condition.label(seed)}
    if inputs.kind == "text":
        found = {"prompt": condition.prompt}
        if condition.negative_prompt:
            found["negative_prompt"] = condition.negative_prompt
    if inputs.guidable:
        found["guidance_scale"] = condition.guidance_scale
    if condition.size is not None:
        found["size"] = size_text(condition.size)
    return found


def caption(image: Mapping[str, Any] | None, inputs: Inputs) -> str | None:
    """What `drawn` gave, for people: the prompt, or the class."""
    if not isinstance(image, dict):  # a damaged row's is a text
        return None
    label = image.get("class_label")
    if isinstance(label, int):
        return class_name(label, inputs) or f"class {label}"
    return str(image.get("prompt")) if image.get("prompt") else "no prompt"


def class_name(label: int, inputs: Inputs) -> str | None:
    """The name of a class, None where the model has none for it."""
    return inputs.class_names[label] if label < len(inputs.class_names) else None


def _asked(one: Mapping[str, Any]) -> tuple[RequestedInputs, float]:
    names = [part.name for part in fields(RequestedInputs)]
    said = {name: one[name] for name in names if one.get(name) is not None}
    return RequestedInputs(**said), float(one.get("weight", 1.0))


@contextmanager
def _at(number: int) -> Iterator[None]:
    """Say of a fault in which entry it is."""
    try:
        yield
    except InvalidValue as error:
        raise InvalidValue(error.message, f"inputs.{number}.{error.param}") from None
