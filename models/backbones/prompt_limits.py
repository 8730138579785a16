"""How long a prompt a pipeline reads, as its own calls of its tokenizers show.

Pipelines cut what is too long, with a line in a log. Here a tokenizer refuses instead.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from models.backbones.encoders import Unreadable, reading
from models.diffusion.condition import Condition, ConditionError

MARKERS: Mapping[str, str] = {"prompt": "winnowed", "negative_prompt": "chaffed"}
"""What the prompts of a trial say, by the field that they stand for. They are of small letters,
since some pipelines clean what they read."""
SHAPES = ("truncation", "padding", "max_length", "return_tensors")
"""Arguments of a tokenizer's call that change how much, or as what, it returns."""


@dataclass(frozen=True)
class Reading:
    """One call of a tokenizer: `text` as it was given, `most` tokens of it are read."""

    tokenizer: Any
    text: str
    arguments: Mapping[str, Any]
    most: int

    def tokens(self, text: str) -> int:
        """How many a text has, uncut."""
        kept = {name: value for name, value in self.arguments.items() if name not in SHAPES}
        return len(self.tokenizer(text, **kept, truncation=False, verbose=False)["input_ids"])


class PromptLimits:
    """Those of a loaded pipeline, whose tokenizers from now on refuse what they would cut."""

    def __init__(self, pipeline: Any) -> None:
        self._readings: list[tuple[str, Reading]] = []
        self._seen: list[Reading] | None = None
        self._working = threading.Lock()
        for component in pipeline.components.values():
            inner = getattr(component, "tokenizer", component)  # a processor holds one
            if hasattr(inner, "convert_ids_to_tokens"):
                _watch(inner, self._see)

    @contextmanager
    def trial(self) -> Iterator[Mapping[str, str]]:
        """Yields the prompts to draw with; what tokenizers are asked meanwhile gives the limits."""
        self._seen = []
        try:
            yield MARKERS
            for one in self._seen:
                for field, marker in MARKERS.items():
                    if marker in one.text:
                        self._readings.append((field, one))
        finally:
            self._seen = None

    def check(self, condition: Condition) -> None:
        """Raises ConditionError where a prompt is too long, or no text."""
        for field, one in self._readings:
            try:
                # A tokenizer keeps settings from one call to the next.
                with self._working, reading():
                    said = one.text.replace(MARKERS[field], getattr(condition, field))
                    _refuse_long(one.tokens(said), one.most)
            except Unreadable as error:
                raise ConditionError(str(error), field) from None

    def _see(self, one: Reading) -> None:
        if self._seen is not None:
            self._seen.append(one)
            return
        with self._working:
            found = one.tokens(one.text)
        _refuse_long(found, one.most)


def _refuse_long(found: int, most: int) -> None:
    if found > most:
        raise Unreadable(
            f"has {found} tokens, {found - most} more than the {most} that this model's text "
            "encoder reads (all that its pipeline adds counts): shorten it"
        )


def _watch(tokenizer: Any, see: Callable[[Reading], None]) -> None:
    """Let `see` hear of every call that would cut. The copy that it gets is nobody else's."""
    cls, own = type(tokenizer), copy.deepcopy(tokenizer)

    def call(self: Any, text: Any = None, *others: Any, **arguments: Any) -> Any:
        if arguments.get("truncation"):
            # Without a max_length it is the tokenizer's own.
            most = int(arguments.get("max_length") or self.model_max_length)
            for one in [text] if isinstance(text, str) else text or []:
                if isinstance(one, str):
                    see(Reading(own, one, arguments, most))
        return cls.__call__(self, text, *others, **arguments)

    tokenizer.__class__ = type(cls.__name__, (cls,), {"__call__": call})
