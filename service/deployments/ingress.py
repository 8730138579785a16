"""The Ingress deployment: the REST face over handles to the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from models import bundle as bundles
from service import config, logs
from service.api.app import create_app
from service.api.context import Context
from service.canary import Canaries
from service.certificates.certified import Certified
from service.config import Settings
from service.deployments.feedback import HandleDesk
from service.deployments.handles import HandleDrawer, HandleScorer
from service.encode import from_png
from service.live import Live
from service.metrics.exporter import export
from service.metrics.ingress import IngressMetrics
from service.metrics.page import merge, render
from service.pinning import pin
from service.policy import Policy
from service.router import Router
from service.shadow import Shadows
from service.store.recorder import Recorder
from service.store.retention import Retention
from service.store.store import Store
from service.weights import Weights

METRICS_S = 2.0
Handles = Mapping[str, DeploymentHandle[Any]]


@serve.ingress()
class Ingress:
    """Reads keys from its environment and pins the policies; holds no state of requests."""

    def __init__(
        self,
        settings: Settings,
        backbones: Handles,
        judges: Handles,
        feedback: DeploymentHandle[Any] | None = None,
    ) -> None:
        logs.set_up("ingress")
        config.check_bind(settings, _proxy_host())
        self._backbones, self._judges = backbones, judges
        self._metrics = IngressMetrics()
        export(self._metrics.registry, "Ingress", settings.metrics_ports)
        loaded = {name: bundles.load(model.bundle) for name, model in settings.models.items()}
        store = Store(*config.store_urls(settings.store, os.environ))
        drawer, scorer = HandleDrawer(backbones), HandleScorer(judges)

        async def warm(policy: Policy) -> None:
            model, networks = policy.settings.model, policy.networks
            await drawer.load(model, networks)
            await scorer.load(model, networks)

        manifests = {name: bundle.manifest for name, bundle in loaded.items()}
        live = Live(store, pin(settings, loaded))
        self._metrics.watch(lambda: live.policies)
        weights = {
            name: Weights(bundle, config.blobs_url(settings.store, os.environ))
            for name, bundle in loaded.items()
        }
        self._context = Context(
            settings=settings,
            manifests=manifests,
            live=live,
            keys=config.secrets(settings.auth, os.environ),
            routers={
                name: Router(
                    drawer,
                    scorer,
                    model.judge.timeout_s,
                    self._metrics.draw,
                    model.backbone.speculative_draws,
                )
                for name, model in settings.models.items()
            },
            drawer=drawer,
            scorer=scorer,
            warm=warm,
            shadows=Shadows(scorer, self._metrics.shadow, self._metrics.shadow_dropped),
            store=store,
            recorder=Recorder(store.decisions, settings.store.keep_days),
            metrics=self._metrics,
            certified=Certified(
                store.certificates,
                settings,
                manifests,
                lambda: live.policies,
                self._metrics.certificates,
            ),
            canaries=Canaries(
                scorer.score_everywhere,
                lambda: live.policies,
                lambda model, name: from_png(weights[model].find(name, ".png").read_bytes()),
                self._metrics.canaries,
            ),
            gather_metrics=self._gather,
            desk=HandleDesk(feedback) if feedback else None,
        )
        self._retention = Retention(store, settings.store.keep_images_days)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once in each replica."""
        return create_app(self._context, stamp_request_id=False)

    async def _gather(self) -> str:
        texts = [(serve.get_replica_context().replica_id.unique_id, render(self._metrics.registry))]
        for handles in (self._backbones, self._judges):
            for handle in handles.values():
                # A replica that does not answer is missing from the page, not its end.
                try:
                    answers = await handle.broadcast("metrics").results_async(
                        timeout_s=METRICS_S, return_exceptions=True
                    )
                except (RayError, RayServeException, TimeoutError):
                    continue
                texts += [
                    (f"{handle.deployment_name}-{number}", text)
                    for number, text in enumerate(answers)
                    if isinstance(text, str)
                ]
        return merge(texts)


def _proxy_host() -> str | None:
    """The address that Serve's proxies were told to listen on; Ray has no public call for it."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    return client.http_config.host if client else None
