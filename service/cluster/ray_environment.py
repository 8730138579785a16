"""Ray's settings, as environment variables that it reads when it is imported.

These are defaults: variables that are set already stay.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

# Wherever Ray runs: the Dockerfile and the manifests have the same. Ray runs all workers at nice
# 15, where a training at 19, the most there is, hardly gives way: at 0 it runs at 10. Each log may
# have 30 MiB, in three files (Ray's own bound is 3 GiB, and none for what workers write to stderr);
# what its C++ parts say of every request is left out. What fails to start in time on a busy machine
# mostly only needs longer.
EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",
    "RAY_ROTATION_MAX_BYTES": "10485760",
    "RAY_ROTATION_BACKUP_COUNT": "2",
    "RAY_BACKEND_LOG_LEVEL": "warning",
    "RAY_gcs_server_port_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
}

# On one machine alone, which needs no agent for Ray's metrics. Ray's agents notice by a pipe that
# the raylet has died, and so die at once.
ONE_MACHINE = EVERYWHERE | {
    "RAY_enable_metrics_collection": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_enable_pipe_based_agent_to_parent_health_check": "1",
}


def prepare(environment: MutableMapping[str, str], folder: Path) -> None:
    """Set what is not set yet, for this process and those that it starts.

    Replicas put their temporary files into `folder`, which ends with the service.
    """
    for name, value in ONE_MACHINE.items():
        environment.setdefault(name, value)
    # What torch has compiled is worth keeping for the next start.
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
    environment["TMPDIR"] = str(folder)
    # Ray listens on every interface, whatever the service listens on: without a token anyone on
    # the network could run code here.
    if "RAY_AUTH_MODE" not in environment:
        environment["RAY_AUTH_MODE"] = "token"
        environment.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
