"""What the routes work with, put together once per ingress replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from models.bundle import Manifest
from service.config import KeySettings, Settings
from service.feedback.certified import Certified
from service.live import Live
from service.metrics import IngressMetrics
from service.policy import Policy
from service.ports import Drawer, Scorer
from service.router import Router
from service.shadow import Shadows
from service.store.recorder import Recorder
from service.store.store import Store


@dataclass(frozen=True)
class Context:
    """`keys` maps a secret to its key; `gather_metrics` gives the page of all replicas.

    `warm` brings a policy's networks into every replica, or raises what stops it.
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
    gather_metrics: Callable[[], Awaitable[str]]
