"""`python -m deploy.observability` writes rules and dashboards; `--check` compares."""

from __future__ import annotations

import argparse
import sys

from deploy.observability.files import HERE, RUNBOOKS, files


def main() -> int:
    """Write the files, or with `--check` say which ones differ and return 1."""
    parser = argparse.ArgumentParser(prog="python -m deploy.observability", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument(
        "--runbooks", default=RUNBOOKS, help="where links to runbooks begin: a URL of that folder"
    )
    asked = parser.parse_args()
    wanted = files(asked.runbooks)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if not asked.check:
        for path in stale:
            path.write_text(wanted[path])
        return 0
    for path in stale:
        sys.stderr.write(
            f"{path.relative_to(HERE.parents[1])} is not what the data says: "
            "run make k8s, with RUNBOOKS= if you have set it\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
