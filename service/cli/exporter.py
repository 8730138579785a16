"""`winnow exporter`: one page of metrics for a machine, or for a pod."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from service.cli.common import say
from service.config import ConfigError, url_of
from service.config.settings import MOST_METRICS_PORTS


def exporter(
    ports: Annotated[
        str, typer.Option(help="Where replicas export, as in metrics_ports: first-last.")
    ] = "9400-9463",
    host: Annotated[str, typer.Option(help="Listen here.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Listen here.")] = 9464,
) -> None:
    """Serve the metrics of all replicas of this machine on one page, until stopped.

    The page is there whatever the number of replicas: the one target that Prometheus scrapes here.
    """
    from prometheus_client import start_http_server

    from service.metrics.exporter import gather

    first, dash, last = ports.partition("-")
    if not (
        dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536
    ):
        raise typer.BadParameter(f"{ports!r} is not first-last", param_hint="--ports")
    if int(last) - int(first) >= MOST_METRICS_PORTS:
        raise typer.BadParameter(f"at most {MOST_METRICS_PORTS} ports", param_hint="--ports")
    try:
        start_http_server(port, host, gather((int(first), int(last))))
    except OSError as error:
        raise ConfigError(f"port {port} on {host} cannot be used ({error.strerror})") from None
    say(f"Metrics of ports {ports} at {url_of(host, port)}/metrics")
    threading.Event().wait()
