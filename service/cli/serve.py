"""`winnow serve`: Ray, Serve and the application on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from service.cli.startup_message import print_startup_message
from service.cluster import ray_environment
from service.cluster.supervisor import ExitStatus, ServerProcess, print_line, supervise
from service.config import ConfigError, Settings, store_urls, url_of

console = Console(file=sys.stdout, highlight=False)


def run(config: Path, port: int | None, keep_logs: bool = False) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    try:
        code = supervise(partial(_serve, config, port), console, keep_logs)
    except ConfigError as error:
        _say(error)
        return 1
    _fold_log(config, port)
    return code


def _fold_log(config: Path, port: int | None) -> None:
    """Leave SQLite's file whole: a process that was killed did not close it."""
    from service.config.serve_file import read
    from service.store.database import fold_log

    with suppress(ConfigError):  # it was not served, or was changed meanwhile
        url, _ = store_urls(read(config, port).settings.store, os.environ)
        fold_log(url)


def _serve(config: Path, port: int | None, server: ServerProcess) -> ExitStatus:
    """In a process of its own: check, start, wait for the end, finish what runs."""
    ray_environment.prepare(os.environ, server.session.folder)
    from service.cluster import preflight

    try:
        file = preflight.check(config, os.environ, port, create=True).file
    except ConfigError as error:
        _say(error)
        return ExitStatus.REFUSED
    http = file.serve.http_options
    admin_key = _admin_key(file.settings)

    started = time.monotonic()
    with console.status(_Since("Starting Ray…")) as status:
        from service.cluster import node

        url = url_of(http.host, http.port)
        unstarted = ExitStatus.RAY_FAILED
        try:
            node.start_ray(server.session.ray, _end_without)
            node.start_serve(file)
            unstarted = ExitStatus.FAILED
            _stop_on_signals(server)
            # An ingress listens before `deploy` returns, and what it has taken on is finished.
            grace_s = file.settings.ingress.graceful_shutdown_timeout_s
            server.ready(grace_s)
            status.update(_Since("Loading backbone and judge…", started))
            server.run(lambda: node.deploy(file))
            status.update(_Since("Waiting for the first canary…", started))
            server.run(lambda: node.wait_ready(url))
        except node.StartFailed as error:
            traceback.print_exc()  # stderr is a log
            console.print("[red]The service did not start:[/]", end=" ")
            console.print(str(error), markup=False, soft_wrap=True)
            return unstarted
    if not server.stopping:
        seconds = time.monotonic() - started
        print_startup_message(
            console, url, seconds, file.settings, admin_key, server.session.folder
        )
    server.wait()
    node.stop(file.application.name, grace_s)
    return ExitStatus.STOPPED


@dataclass(frozen=True)
class _Since:
    """What is being done, and for how long the start has taken."""

    doing: str
    started: float | None = None

    def __rich__(self) -> Text:
        seconds = "" if self.started is None else f" {time.monotonic() - self.started:.0f} s"
        return Text(self.doing + seconds)


def _stop_on_signals(server: ServerProcess) -> None:
    """Signals to this process alone. Ray puts a handler of its own on SIGTERM, which aborts."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: server.stop())


def _end_without(daemon: str) -> None:
    print_line(console, f"Ray's {daemon} has ended, and nothing runs without it.")
    os._exit(ExitStatus.FAILED)


def _say(error: Exception) -> None:
    console.print(str(error), style="red", markup=False, soft_wrap=True)


def _admin_key(settings: Settings) -> str | None:
    """Make the local admin key if the environment holds none; returns it only if made."""
    name = "WINNOW_ADMIN_KEY"
    if name in os.environ or name not in {key.secret_env for key in settings.auth.keys}:
        return None
    os.environ[name] = f"wn-{secrets.token_urlsafe(24)}"
    return os.environ[name]
