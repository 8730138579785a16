"""A process that opens stores as an ingress does: `python -m tests.service.store.opener`.

Each line of its input is JSON: the `url`, its own `number`, and how many seconds a migration takes
(`slow_s`). It answers with a line: nothing, or what went wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alembic import command

from models.bundles.bundle import load
from service.config import Settings
from service.policies.registry import PolicyRegistry
from service.policies.seeding import configured_policies
from service.store.store import Store
from tests.bundles import settings, write_bundle
from tests.records import make_row

upgrade = command.upgrade


def say(text: str) -> None:
    """One line to whoever started this process."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Open stores until there is no more input."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(str(write_bundle(Path(folder) / "tiny")))
        seeds = configured_policies(
            Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle}
        )
        say("up")
        for line in sys.stdin:
            job = json.loads(line)

            def slowly(*arguments: Any, job: dict[str, Any] = job) -> None:
                upgrade(*arguments)
                time.sleep(job["slow_s"])

            command.upgrade = slowly  # type: ignore[assignment]
            try:
                store = Store(job["url"], f"{folder}/blobs")
                policy_registry = PolicyRegistry(store, seeds)
                store.decisions.insert([make_row(job["number"])])
                policy_registry.close()
                store.close()
                say("")
            except BaseException as error:
                say(repr(error))


if __name__ == "__main__":
    main()
