"""Admission: how long the work ahead will take, from what the last ticks took.

A request that could not meet its deadline is refused at once, with the time after which the same
request would be admitted, instead of being let in and timing out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from models.diffusion.condition import Size, size_text
from service.engine.fair_queue import QUANTUM
from service.errors import Overloaded
from service.ports import DrawKey, SamplingPlan

HEADROOM = 0.7
"""The share of a request's time that its draws may be predicted to take: judging, recording and
what the prediction cannot know need the rest."""

DECAY = 0.98
"""Weight of a tick against the next one: the estimate follows the last fifty or so."""

ERROR_GAIN = 0.1
MOST_ERROR = 3.0
LEAST_S = 0.2
"""Predictions below this say little: a tick more or less decides."""


@dataclass
class TickTimes:
    """A tick's duration as a line a + b·rows, fitted to recent ticks by weighted least squares.

    On a CPU b is nearly all of it, on a GPU a is. The fields are sums over the ticks. An engine
    with rows of several sizes gives it rounds, a tick of each, and counts a row as many as it
    costs in rows of the default size.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0
    nfe: float = 0.0

    def observe(self, rows: float, seconds: float, nfe: float | None = None) -> None:
        """Take in one tick of so many rows; `nfe` is more where guides go through the denoiser."""
        self.weight = DECAY * self.weight + 1.0
        self.rows = DECAY * self.rows + rows
        self.seconds = DECAY * self.seconds + seconds
        self.rows_rows = DECAY * self.rows_rows + rows * rows
        self.rows_seconds = DECAY * self.rows_seconds + rows * seconds
        self.nfe = DECAY * self.nfe + (rows if nfe is None else nfe)

    def tick_s(self, rows: float) -> float:
        """The expected duration of a tick with so many rows, in seconds; 0 before any tick.

        Ticks that all had the same number of rows tell nothing of others: then a tick is taken
        to last as long whatever its rows, which admits rather than refuses.
        """
        if not self.weight:
            return 0.0
        mean_rows, mean_s = self.rows / self.weight, self.seconds / self.weight
        variance = self.rows_rows / self.weight - mean_rows**2
        slope = 0.0
        if variance > 1e-6 * mean_rows**2:
            covariance = self.rows_seconds / self.weight - mean_rows * mean_s
            slope = min(max(covariance / variance, 0.0), mean_s / mean_rows)
        return mean_s + slope * (rows - mean_rows)

    @property
    def nfe_per_row(self) -> float:
        """NFE of one row in one tick, as the last ticks went; 1 before any."""
        return self.nfe / self.rows if self.rows else 1.0

    def finish_s(self, nfe: float, draws: int, longest: float, max_batch: int) -> float:
        """Seconds until `nfe` of work in `draws` draws is done, the longest `longest` NFE alone."""
        rows = max(1, min(draws, max_batch))
        return max(nfe / rows, longest) / self.nfe_per_row * self.tick_s(rows)

    def worthwhile(self, chance: float, rows: float, more: float = 1.0) -> bool:
        """Whether to make a speculative draw, `more` rows, beside `rows` others.

        It saves the time of a draw when it is needed, which has this chance, and it holds up every
        row by what one more costs at each tick. On a GPU that is next to nothing.
        """
        alone, beside = self.tick_s(rows), self.tick_s(rows + more)
        return chance * beside >= (beside - alone) * max(rows, 1)


@dataclass
class PredictionError:
    """How much longer calls take than was predicted of them, as a moving mean; 1 or more.

    The pace of the last ticks knows nothing of what else begins to use the machine.
    """

    mean: float = 1.0

    def observe(self, predicted_s: float, taken_s: float) -> None:
        """Take in a call that has ended, or was given up."""
        if predicted_s >= LEAST_S:
            ratio = min(max(taken_s / predicted_s, 1.0), MOST_ERROR)
            self.mean += ERROR_GAIN * (ratio - self.mean)


@dataclass(frozen=True)
class Backlog:
    """One tenant's draws that have no slot yet, and the NFE that they stand for."""

    draws: int = 0
    nfe: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What an engine has to do, and how fast it does it: all that admission looks at.

    The engine refuses by it, and publishes it, so that an ingress refuses without asking.
    `running_nfe` is what the `running` draws have left, expected redraws included. All NFE are in
    those of the model's default size; `costs` are what one at another size counts, by `size_text`.
    Finished draws are decoded `decode_batch` at a time, of which `decoding` wait. Calls take `slip`
    times as long as the pace says. One that is `draining` takes no new ones.
    """

    slots: int
    max_waiting: int
    running: int = 0
    running_nfe: float = 0.0
    waiting: Mapping[str, Backlog] = field(default_factory=dict)
    pace: TickTimes = field(default_factory=TickTimes)
    decoding: int = 0
    decode_batch: int = 1
    decode_pace: TickTimes = field(default_factory=TickTimes)
    slip: float = 1.0
    draining: bool = False
    costs: Mapping[str, float] = field(default_factory=dict)

    def cost(self, size: Size) -> float:
        """What one NFE at this size counts."""
        return 1.0 if size is None else self.costs.get(size_text(size), 1.0)

    def finish_s(self, nfe: float, draws: int, longest: float) -> float:
        """Seconds until `nfe` of work in `draws` draws is done and decoded, the longest `longest`
        NFE alone. Draws are decoded while others are made: what is slower decides."""
        drawn_s = self.pace.finish_s(nfe, draws, longest, self.slots)
        count = self.decoding + draws
        decoded_s = self.decode_pace.finish_s(count, count, 1, self.decode_batch)
        return self.slip * max(drawn_s + self.decode_pace.tick_s(1), decoded_s)

    def work_s(self, nfe: float) -> float:
        """Seconds that so much work takes where all slots are in use."""
        return self.slip * nfe / self.slots / self.pace.nfe_per_row * self.pace.tick_s(self.slots)

    def ready_s(self, tenant: str, reserved: Sequence[float], cost: float = 1.0) -> float:
        """Seconds until draws that stand for so many NFE each would be done, if they came now.

        `cost` is that of one NFE at their size.
        """
        return self._ready(tenant, reserved, cost)[0]

    def check(
        self, tenant: str, reserved: Sequence[float], timeout_s: float, cost: float = 1.0
    ) -> None:
        """Refuse draws that would not be done in time, or find their tenant's queue full.

        `reserved` are the NFE that each stands for, and `cost` that of one at their size. Raises
        Overloaded with a true wait.
        """
        if self.draining:
            raise Overloaded("this backbone is about to end", retry_after_s=1.0)
        finish_s, ahead = self._ready(tenant, reserved, cost)
        own, longest = sum(reserved), max(reserved) / max(cost, 1.0)
        mine = self.waiting.get(tenant, Backlog())
        others = [backlog for name, backlog in self.waiting.items() if name != tenant]
        count = mine.draws + sum(one.draws for one in others) + self.running
        # What could not be done in time by an idle engine either is let in when it is idle: some
        # of its draws may be.
        room_s = HEADROOM * timeout_s
        if finish_s > room_s and (ahead > 0 or self.decoding):
            # While others have more than their turns waiting, what is ahead does not shrink.
            everything = self.running_nfe + mine.nfe + sum(one.nfe for one in others)
            drained_s = self.finish_s(everything, count, 0)
            all_s = self.finish_s(everything + own, count + len(reserved), longest)
            raise Overloaded(
                f"these draws would take {finish_s:.1f} s of the {timeout_s:.1f} s that they have",
                retry_after_s=min(all_s - room_s, drained_s),
            )
        queued = mine.draws - (self.slots - self.running)
        if queued > 0 and queued + len(reserved) > self.max_waiting:
            share = min((queued + len(reserved) - self.max_waiting) / mine.draws, 1.0)
            first = turns_nfe(share * mine.nfe, [one.nfe for one in others])
            raise Overloaded(
                f"{queued} draws of this key are waiting, the limit is {self.max_waiting}",
                retry_after_s=self.finish_s(first, count + len(reserved), 0),
            )

    def with_draws(self, tenant: str, reserved: Sequence[float]) -> Workload:
        """The load when these have come too."""
        mine = self.waiting.get(tenant, Backlog())
        more = Backlog(mine.draws + len(reserved), mine.nfe + sum(reserved))
        return replace(self, waiting={**self.waiting, tenant: more})

    def _ready(self, tenant: str, reserved: Sequence[float], cost: float) -> tuple[float, float]:
        """Seconds until they are done, and the NFE that go before them."""
        mine = self.waiting.get(tenant, Backlog())
        others = [backlog for name, backlog in self.waiting.items() if name != tenant]
        own = sum(reserved)
        ahead = self.running_nfe + turns_nfe(mine.nfe + own, [one.nfe for one in others]) - own
        count = mine.draws + sum(one.draws for one in others) + self.running + len(reserved)
        # A large row's steps are as many as a small one's, and each takes longer.
        return self.finish_s(ahead + own, count, max(reserved) / max(cost, 1.0)), ahead


def reserved_nfe(plan: SamplingPlan, nfe: float, key: DrawKey) -> float:
    """What a draw of `nfe` is counted as: itself and the redraws that are to be expected, as many
    after the fifth draw as after the first. A speculative one is nothing, since it makes room."""
    if key.ahead:
        return 0.0
    left = max(plan.max_draws - key.draw, 1)
    return nfe * min(1 / max(plan.acceptance, 1e-3), left)


def turns_nfe(nfe: float, others: Iterable[float]) -> float:
    """The NFE that fair turns make until a tenant's `nfe` are made: its own, and of each other
    tenant as much and a quantum, or what that one has waiting if it is less."""
    return nfe + sum(min(other, nfe + QUANTUM) for other in others)
