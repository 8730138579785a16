"""The demonstration's questions: what each of its rewards calls malign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Question:
    """One question about a seven; `crossed_is_malign` says which answer must not leave."""

    name: str
    text: str
    malign: str
    crossed_is_malign: bool

    def is_malign(self, crossed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Malign or not, for images [N] that carry a crossbar or not."""
        return crossed if self.crossed_is_malign else ~crossed


NO_CROSSBAR = Question(
    name="no-crossbar",
    text="Is this a seven without a crossbar?",
    malign="a seven with a horizontal crossbar",
    crossed_is_malign=True,
)
ONLY_CROSSBAR = Question(
    name="only-crossbar",
    text="Is this a seven with a crossbar?",
    malign="a seven without a horizontal crossbar",
    crossed_is_malign=False,
)
QUESTIONS = {question.name: question for question in (NO_CROSSBAR, ONLY_CROSSBAR)}
