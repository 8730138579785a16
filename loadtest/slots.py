"""Whether the work stops when nobody wants it: slots and queue places after the last caller."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

FREE_S = 5.0
GAUGES = ("winnow_slots_running", "winnow_draws_waiting")


def wait_until_free(host: str) -> tuple[float | None, str | None]:
    """Seconds until no slot is in use and no draw waits, and what is wrong if that is never.

    The seconds are None where the service shows no metrics on its public route.
    """
    started = time.monotonic()
    while (busy := in_use(host)) is not None:
        seconds = time.monotonic() - started
        if not busy:
            return seconds, None
        if seconds > FREE_S:
            return seconds, f"{busy:.0f} slots in use or draws waiting after {FREE_S:.0f} s"
        time.sleep(0.05)
    return None, None


def in_use(host: str) -> float | None:
    """Slots in use and draws that wait; None where metrics are not on the public route."""
    try:
        with urllib.request.urlopen(f"{host.rstrip('/')}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
    except urllib.error.HTTPError:
        return None
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(GAUGES)]
    return sum(values) if values else None
