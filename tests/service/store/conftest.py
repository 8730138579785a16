"""A store of each kind that is supported: SQLite, and a real PostgreSQL where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from service.store.store import Store
from tests.integration.conftest import free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of our own, in a folder of its own, as a user without rights."""
    if not BINARIES:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="winnow-postgres-"))
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    port, data = free_port(), folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [BINARIES[-1] / program, *arguments],
            check=True, cwd=folder, user=user, timeout=120,
            stdout=subprocess.DEVNULL, env={"LC_ALL": "C", "HOME": str(folder)},
        )  # fmt: skip

    run("initdb", "-D", str(data), "-U", "winnow", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    # Not UTC: what is read must not depend on where the server stands.
    options += " -c timezone=America/New_York"
    try:
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql+psycopg://winnow@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.sqlite"
    else:
        url = request.getfixturevalue("postgres")
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
    opened = Store(url, str(tmp_path / "blobs"))
    yield opened
    opened.close()
