"""A process that serves, and is killed: `python -m tests.service.api.drawer BUNDLE FOLDER`.

Its store is in the folder; each denoiser call takes a moment, and its judge accepts everything. It
says where it listens, and serves until its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.bundles.bundle import load
from tests.service.api.server import serve

DELAY_S = 0.02


def main() -> None:
    """Serve."""
    bundle, folder = sys.argv[1:]
    with serve(load(bundle), folder=Path(folder)) as served:
        served.judge.answer = 1.0
        served.backbone.delay_s = DELAY_S
        sys.stdout.write(f"{served.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
