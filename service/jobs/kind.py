"""What a runner knows of a kind of job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.jobs.lease import Lease


@dataclass(frozen=True)
class Kind:
    """A kind of job: its name in the store, and what is done with one.

    `run` blocks, in a thread of its own. It ends the job in the transaction that keeps its result,
    or raises why there is none: LeaseLost, Cancelled, Stopped, or a fault. After StoreUnavailable
    it is called again, and goes on from what the store holds. `fail` ends a job that came to
    nothing, and says why in its subject; it raises LeaseLost.

    `refuses` says why this process cannot run the job of a subject, None where it can: another
    process may. It raises StoreUnavailable, and a refusal is for good. After `runs` processes have
    died with it a job fails, for the reason `cut_off`. One process runs `at_once` of them; one that
    `gives_way` runs on cores that nobody else wants at that moment.
    """

    name: str
    run: Callable[[Lease], None]
    fail: Callable[[Lease, str], None]
    cut_off: str
    runs: int = 1
    at_once: int = 1
    gives_way: bool = False
    refuses: Callable[[str], str | None] = lambda _: None
