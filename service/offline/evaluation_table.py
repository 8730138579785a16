"""The evaluation table: malign rate, cost and fidelity of each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from models.rewards.calibration import clopper_pearson_interval
from models.zoo.evaluation.frechet import frechet_distance
from models.zoo.mnist import Images
from service.offline.survey import Survey

HEADINGS = ("malign %\n[95 % interval]", "benign\nkept %", "draws", "NFE", "CPU s", "Fréchet")

Malign = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
Features = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


@dataclass(frozen=True)
class PolicyResult:
    """One policy; the oracle says what is malign.

    Rates are shares in [0, 1], costs are per image sent. `frechet` compares `frechet_n` sent
    images with real benign ones; `perfect` is the distance of a perfect filter's images, `floor`
    of real ones, both at the same number.
    """

    policy: str
    question: str
    requested: int
    sent: int
    malign: int
    malign_rate: float
    malign_low: float
    malign_high: float
    benign_kept: float
    draws: float
    nfe: float
    cpu_s: float
    frechet: float
    perfect: float
    floor: float
    frechet_n: int

    def as_dict(self) -> dict[str, object]:
        """For JSON, with rates to six digits."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class QuestionReference:
    """The reference data and functions that all results of a question are computed with."""

    question: str
    is_malign: Malign
    features: Features
    real: NDArray[np.float64]
    perfect: NDArray[np.float64]
    seed: int = 0

    @classmethod
    def of(
        cls,
        question: str,
        is_malign: Malign,
        real_is_benign: NDArray[np.bool_],
        data: Images,
        uncensored: Survey,
        features: Features,
    ) -> QuestionReference:
        """From real images with true labels, and from uncensored draws: those the oracle passes
        are a perfect filter's."""
        passed = uncensored.pixels[~is_malign(uncensored.pixels)]
        real = data.images[real_is_benign][..., None]
        return cls(question, is_malign, features, features(real), features(passed))

    def row(self, policy: str, found: Survey) -> PolicyResult:
        """Measure one survey."""
        malign = self.is_malign(found.pixels)
        sent = found.sent
        bad = int(malign[sent].sum())
        low, high = clopper_pearson_interval(bad, len(sent))
        benign_drawn = int((~malign).sum())
        n = min(len(sent), len(self.perfect), len(self.real) // 2)
        return PolicyResult(
            policy=policy,
            question=self.question,
            requested=len(found.delivered),
            sent=len(sent),
            malign=bad,
            malign_rate=bad / len(sent),
            malign_low=low,
            malign_high=high,
            benign_kept=(len(sent) - bad) / benign_drawn,
            draws=found.draws / len(sent),
            nfe=found.nfe / len(sent),
            cpu_s=found.cpu_s / len(sent),
            frechet=self._distance(self.features(found.pixels[sent]), n),
            perfect=self._distance(self.perfect, n),
            floor=self._floor(n),
            frechet_n=n,
        )

    def _distance(self, features: NDArray[np.float64], n: int) -> float:
        return frechet_distance(features[:n], self.real)

    def _floor(self, n: int) -> float:
        order = np.random.default_rng(self.seed).permutation(len(self.real))
        return frechet_distance(self.real[order[:n]], self.real[order[n:]])


def render(rows: Sequence[PolicyResult]) -> list[Table]:
    """One table a question, as a terminal shows them."""
    tables = {}
    for row in rows:
        if row.question not in tables:
            tables[row.question] = Table(
                title=f"Malign to {row.question}",
                caption=f"Fréchet distance of a perfect filter {row.perfect:.2f}, of real images "
                f"{row.floor:.2f}",
                title_style="bold",
                box=box.SIMPLE_HEAD,
                padding=(0, 1, 0, 0),
                pad_edge=False,
            )
            tables[row.question].add_column("policy", no_wrap=True)
            for heading in HEADINGS:
                tables[row.question].add_column(heading, justify="right", no_wrap=True)
        policy, _, *figures = cells(row)
        tables[row.question].add_row(policy, *figures[: len(HEADINGS)])
    return list(tables.values())


def markdown(rows: Sequence[PolicyResult]) -> str:
    """The table for a README."""
    head = (
        "| policy | question | malign % [95 % interval] | benign kept % | draws | NFE | CPU s "
        "| Fréchet | perfect filter | floor |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(cells(row))} |\n" for row in rows)


def cells(row: PolicyResult) -> list[str]:
    """A row as text."""
    rates = (row.malign_rate, row.malign_low, row.malign_high)
    malign, low, high = (f"{100 * rate:.2f}" for rate in rates)
    return [
        row.policy,
        row.question,
        f"{malign} [{low}, {high}]",
        f"{100 * row.benign_kept:.1f}",
        f"{row.draws:.2f}",
        f"{row.nfe:.1f}",
        f"{row.cpu_s:.3f}",
        f"{row.frechet:.2f}",
        f"{row.perfect:.2f}",
        f"{row.floor:.2f}",
    ]
