"""What the routes work with, put together once per ingress replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from models.bundle import Manifest
from service.config import KeySettings, Settings
from service.feedback.certified import Certified
from service.metrics import IngressMetrics
from service.policy import Policy
from service.ports import Drawer, Scorer
from service.router import Router
from service.store.recorder import Recorder
from service.store.store import Store


@dataclass(frozen=True)
class Context:
    """`keys` maps a secret to its key; `gather_metrics` gives the page of all replicas."""

    settings: Settings
    manifests: Mapping[str, Manifest]
    policies: Mapping[str, Policy]
    keys: Mapping[str, KeySettings] = field(repr=False)
    routers: Mapping[str, Router]
    drawer: Drawer
    scorer: Scorer
    store: Store
    recorder: Recorder
    metrics: IngressMetrics
    certified: Certified
    gather_metrics: Callable[[], Awaitable[str]]
