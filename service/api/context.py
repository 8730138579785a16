"""What the routes work with, put together once per ingress replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.manifest import Manifest
from service.canary import Canaries
from service.certificates.certified import Certified
from service.config import KeySettings, Settings
from service.live import Live
from service.metrics.ingress import IngressMetrics
from service.policy import Policy
from service.ports import Drawer, Scorer
from service.router import Router
from service.shadow import Shadows
from service.store.datasets import Dataset, Shown
from service.store.recorder import Recorder
from service.store.store import Store


class Proposer(Protocol):
    """The feedback desk, seen from the routes."""

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        besides: Sequence[str],
        policy: str | None = None,
    ) -> list[Shown]:
        """The images that a person is asked about next, drawn if need be.

        Raises PolicyNotFound, PolicyDisabled, BackendUnavailable, CensorUnavailable, Overloaded or
        StoreUnavailable.
        """
        ...


@dataclass(frozen=True)
class Context:
    """`keys` maps a secret to its key; `gather_metrics` gives the page of all replicas.

    `warm` brings a policy's networks into every replica, or raises what stops it.
    Without a `desk` nobody labels or trains here.
    """

    settings: Settings
    manifests: Mapping[str, Manifest]
    live: Live
    keys: Mapping[str, KeySettings] = field(repr=False)
    routers: Mapping[str, Router]
    drawer: Drawer
    scorer: Scorer
    warm: Callable[[Policy], Awaitable[None]]
    shadows: Shadows
    store: Store
    recorder: Recorder
    metrics: IngressMetrics
    certified: Certified
    canaries: Canaries
    gather_metrics: Callable[[], Awaitable[str]]
    desk: Proposer | None = None
