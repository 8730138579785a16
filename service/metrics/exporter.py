"""Pages of metrics on ports of their own, off the public route.

Every replica process takes the first free port of a range on its machine (`export`). One more
process on the machine, or a sidecar in the pod, gathers what listens there (`gather`): a target
that is up at any number of replicas, and from which a dead replica's series are simply gone.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.metrics.exposition import Families, labelled, united

log = logging.getLogger("winnow.metrics")

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 2.0
RETRY_S = 1.0
OURS = "winnow_"


def export(registry: CollectorRegistry, deployment: str, ports: tuple[int, int] | None) -> None:
    """Serve this process's metrics on the first free port of a range, on loopback.

    Without `ports`, nothing is served. Where all are taken it tries again each second: a replica
    that is being replaced may hold one a little longer.
    """
    if ports is not None:
        threading.Thread(
            target=_bind, args=(registry, deployment, ports), name="metrics", daemon=True
        ).start()


def _bind(registry: CollectorRegistry, deployment: str, ports: tuple[int, int]) -> None:
    reported = False
    while True:
        for port in range(ports[0], ports[1] + 1):
            # The port is this process's alone, and so is the name.
            page = Families(partial(_labelled, registry, f"{deployment}-{port}"))
            try:
                start_http_server(port, LOOPBACK, page)
            except OSError:
                continue
            log.info("metrics at http://%s:%d/metrics", LOOPBACK, port)
            return
        if not reported:
            log.error("no metrics: ports %d to %d are taken; tried again each second", *ports)
        reported = True
        time.sleep(RETRY_S)


def _labelled(registry: CollectorRegistry, replica: str) -> Iterator[Metric]:
    return labelled(registry.collect(), replica)


def gather(ports: tuple[int, int]) -> Families:
    """What listens on a range of ports of this machine, as one registry, read at each scrape."""

    def collect() -> list[Metric]:
        numbers = range(ports[0], ports[1] + 1)
        with ThreadPoolExecutor(len(numbers)) as pool:
            pages = list(pool.map(_read, numbers))
        return united(family for page in pages for family in page)

    return Families(collect)


def _read(port: int) -> list[Metric]:
    """Our families on a port; none where nothing of ours listens, or it does not answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        families = list(text_string_to_metric_families(text))
    except Exception:  # whatever a stranger's port says, ours must be on the page
        return []
    finally:
        connection.close()
    return [family for family in families if family.name.startswith(OURS)]
