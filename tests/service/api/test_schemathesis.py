"""The service against its own description, by a fuzzer that nobody here wrote: all its checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from tests.service.api.server import AUTH, KEYS, serve

RUN = "from schemathesis.cli import schemathesis; schemathesis()"
CONFIG = """
seed = 13
color = false

[generation]
max-examples = 3
deterministic = true
database = "none"

# Whether a model takes a prompt, or a policy a threshold, no schema can say: what fits the schema
# may still be refused with 400, but never with 405, 408, 413, 415 or a fault of ours.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 429, 503, 504]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("key", "phases"), [(None, "fuzzing"), ("ADMIN_KEY", "coverage,fuzzing")])
def test_every_answer_is_as_described(
    key: str | None, phases: str, bundle: Bundle, tmp_path: Path
) -> None:
    auth: dict[str, Any] = AUTH | {
        "anonymous": key is None,
        "anonymous_scopes": ["generate", "label"],
    }
    limits = {"n": 2, "deadline_s": 5.0, "max_deadline_s": 5.0}
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with serve(bundle, auth=auth, limits=limits) as served:
        command = [sys.executable, "-c", RUN, "--config-file", str(config), "run"]
        command += [f"{served.url}/openapi.json", "--checks", "all", "--phases", phases]
        if key is not None:
            command += ["--header", f"Authorization: Bearer {KEYS[key]}"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
