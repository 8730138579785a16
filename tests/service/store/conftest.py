"""A store of each kind that is supported: SQLite, and a real PostgreSQL where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from service.store.store import Store
from tests.processes import free_port, wait_for

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


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


def empty(url: str) -> None:
    """Forget all tables of a PostgreSQL database."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture(scope="session")
def pooled(postgres: str) -> Iterator[str]:
    """The URL of the same server behind a PgBouncer that pools transactions, any database of it."""
    if PGBOUNCER is None:
        pytest.skip("no pgbouncer: apt-get install pgbouncer")
    here, port = make_url(postgres), free_port()
    folder = Path(tempfile.mkdtemp(prefix="winnow-pgbouncer-"))
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"""[databases]
* = host={here.host} port={here.port} user={here.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""
    )
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [PGBOUNCER, configuration], cwd=folder, user=user, stdout=log, stderr=log
        )
    try:
        url = here.set(port=port).render_as_string()
        engine = create_engine(url, connect_args={"prepare_threshold": None})

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with engine.begin() as connection:
                    return bool(connection.scalar(text("SELECT 1")))
            except OperationalError:
                return False

        wait_for(answers)
        engine.dispose()
        yield url
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.sqlite"
    else:
        url = request.getfixturevalue("postgres")
        empty(url)
    opened = Store(url, str(tmp_path / "blobs"))
    yield opened
    opened.close()
