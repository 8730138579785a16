"""The Ingress deployment: the REST face, on a port of its own."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle

from models.bundles import bundle as bundles
from service import config, logs
from service.api.app import create_app
from service.config import Settings
from service.http.listener import Listener
from service.metrics.exporter import export
from service.metrics.ingress import IngressMetrics
from service.serving import handles
from service.serving.assemble import assemble
from service.serving.handles import Handles
from service.serving.labelling import LabellingHandle

log = logging.getLogger("winnow.ingress")


class Ingress:
    """Reads keys from its environment, pins the policies, and listens: no proxy of Serve does."""

    _listener: Listener | None = None

    async def __init__(  # type: ignore[misc]  # Serve awaits it, so it listens before it is ready
        self,
        settings: Settings,
        backbones: Handles,
        judges: Handles,
        feedback: DeploymentHandle[Any] | None = None,
    ) -> None:
        logs.set_up("ingress")
        http = _http_options()
        host = http.host or "127.0.0.1"
        config.check_bind(settings, host)
        metrics = IngressMetrics()
        export(metrics.registry, "Ingress", settings.metrics_ports)
        self._service = assemble(
            settings,
            {name: bundles.load(model.bundle) for name, model in settings.models.items()},
            handles.backends(backbones, judges, settings.ingress.num_replicas),
            metrics,
            os.environ,
            labelling=LabellingHandle(feedback) if feedback else None,
            replica=serve.get_replica_context().replica_id.unique_id,
        )
        app = create_app(self._service.context)
        keep_alive_s = http.keep_alive_timeout_s
        self._listener = Listener(app, host, http.port, settings.limits, keep_alive_s)
        await self._listener.start()
        log.info("listening on %s:%s", host, http.port)

    async def drain(self, grace_s: float) -> bool:
        """The service is to end: refuse what comes, and return when what runs has its answer.

        False when it had not within `grace_s`.
        """
        return await self._service.context.gate.stop(grace_s)

    async def __del__(self) -> None:
        """Serve calls this when this replica is to end: others go on listening."""
        if self._listener is None:  # it did not start
            return
        try:
            await self._listener.close()
        finally:
            await asyncio.to_thread(self._service.close)


def _http_options() -> HTTPOptions:
    """Where the file says to listen; Ray has no public call for it."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "a replica has a client"
    options: HTTPOptions = client.http_config
    return options
