"""Ray and Serve on this machine: start, deployment and stop, in the calling process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.cluster import processes
from service.cluster.hardware import cpus
from service.config.serve_file import ServeFile

NODE_S = 180.0
"""The time limit for Ray's daemons to find each other; Ray's own is 30 s."""
READY_S = 300.0
"""The time limit for the first canary once all replicas run."""
log = logging.getLogger("winnow.serve")

DAEMONS = {"gcs_server": "GCS", "raylet": "raylet"}


class StartFailed(Exception):
    """Ray or the application did not start; the message is one line."""


def start_ray(folder: Path, died: Callable[[str], None]) -> None:
    """Start Ray's daemons, which write into `folder`. Raises StartFailed.

    They end with the calling thread. `died` is called with the name of the first that ends before.
    """
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _allow_slow_raylet()
    try:
        ray.init(
            address="local",
            num_cpus=cpus(),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
    except Exception as error:
        raise StartFailed(one_line(error)) from error
    watched = processes.children(DAEMONS)

    def watch() -> None:
        died(processes.wait_for_end(watched))

    threading.Thread(target=watch, name="daemons", daemon=True).start()


def start_serve(file: ServeFile) -> None:
    """Start Serve, still without an application. Raises StartFailed."""
    from ray import serve

    try:
        serve.start(
            proxy_location=file.serve.proxy_location,
            http_options=file.serve.http_options.model_dump(),
            logging_config=file.serve.logging_config,
        )
    except Exception as error:
        raise StartFailed(one_line(error)) from error


def deploy(file: ServeFile) -> None:
    """Start the application's replicas and wait until they run. Raises StartFailed."""
    from ray import serve

    from service.app import build

    application = file.application
    try:
        serve.run(
            build(file.settings),
            name=application.name,
            route_prefix=application.route_prefix,
            # Serve's own configuration is for its controller and proxies alone.
            logging_config=application.logging_config or file.serve.logging_config,
        )
    except Exception as error:
        raise StartFailed(one_line(error)) from error


def wait_ready(url: str) -> None:
    """Wait until the service would answer a request. Raises StartFailed."""
    deadline = time.monotonic() + READY_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise StartFailed(f"{url}/health/ready is not ready: {error}") from None
            time.sleep(0.1)


def stop(application: str, grace_s: float) -> None:
    """Finish what runs, for `grace_s` at most, and then end Serve's replicas.

    Every ingress refuses new requests meanwhile. Deployments end after those that call them.
    """
    # Ray reports the end of the controller that this kills.
    with contextlib.redirect_stdout(io.StringIO()):
        asyncio.run(_stop(application, grace_s))


async def _stop(application: str, grace_s: float) -> None:
    from ray import serve

    try:
        ingress: Any = serve.get_deployment_handle("Ingress", application)
        # One that dies meanwhile holds no request that the others would have to wait for.
        await ingress.broadcast("drain", grace_s).results_async(
            timeout_s=grace_s + 5, return_exceptions=True
        )
    except Exception:
        log.exception("not every ingress said that it is done")
    await serve.shutdown_async()  # type: ignore[no-untyped-call]


def one_line(error: Exception) -> str:
    """The first line of an error that says something, without Ray's colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _allow_slow_raylet() -> None:
    """Give a raylet longer to register than Ray's 30 s, which no setting changes."""
    from ray._private import services

    ask: Any = services.get_node

    def get_node(*args: Any, **options: Any) -> Any:
        deadline = time.monotonic() + NODE_S
        while True:
            try:
                return ask(*args, **options)
            except RuntimeError:
                if time.monotonic() > deadline or len(processes.children(DAEMONS)) < len(DAEMONS):
                    raise
                time.sleep(0.1)

    services.get_node = get_node
