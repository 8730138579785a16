"""`winnow serve`: Ray, Serve and the application on this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from service.config import ConfigError, Settings, store_urls
from service.config import secrets as read_secrets

# Ray reads these when it is imported. A control loop every 20 ms halves the start; a laptop needs
# neither Ray's metrics agent nor its usage reports. A handle on its replica's own event loop saves
# each call two changes of thread: a quarter more images a second. Ray runs all workers at nice 15,
# where a training at 19, the most there is, hardly gives way: at 0 it runs at 10.
QUICK_START = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.02",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",
}
READY_TIMEOUT_S = 180.0
console = Console(file=sys.stdout, highlight=False)


def run(config: Path, port: int | None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    for name, value in QUICK_START.items():
        os.environ.setdefault(name, value)
    # Ray listens on every interface, whatever the service listens on: without a token anyone on
    # the network could run code here.
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from models.bundle import BundleError

    try:
        return _run(config, port)
    except (ConfigError, BundleError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1


def _run(config: Path, port: int | None) -> int:
    from models import bundle
    from service.live import refuse_strangers
    from service.pinning import pin
    from service.serve_file import read
    from service.store.store import Store

    file = read(config)
    http = file.serve.http_options
    port = port or http.port
    host = http.host or "127.0.0.1"
    models = file.settings.models
    seeds = pin(file.settings, {name: bundle.load(models[name].bundle) for name in models})
    _refuse_too_small(file.settings)
    admin_key = _admin_key(file.settings)
    read_secrets(file.settings.auth, os.environ)
    store = Store(*store_urls(file.settings.store, os.environ))
    refuse_strangers(store, seeds)
    store.close()
    _refuse_taken_port(host, port)

    stop = threading.Event()

    def stop_on_signals() -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stop.set())

    stop_on_signals()
    started = time.monotonic()
    with console.status("Starting Ray…") as status:
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        context: Any = ray.init(
            address="local",
            num_cpus=_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
        logs = f"{context.address_info['session_dir']}/logs"
        # Ray puts a handler of its own on SIGTERM, which aborts.
        stop_on_signals()
        failure: list[Exception] = []
        try:
            starter = threading.Thread(
                target=_deploy, args=(file, host, port, failure), daemon=True
            )
            starter.start()
            while starter.is_alive() and not stop.is_set():
                seconds = time.monotonic() - started
                status.update(f"Loading backbone and judge… {seconds:.0f} s")
                starter.join(0.2)
            url = f"http://{host}:{port}"
            if not failure and not stop.is_set():
                status.update("Waiting for the first canary…")
                _wait_ready(url, stop)
            if failure:
                console.print(f"[red]The service did not start:[/] {failure[0]}")
                console.print(f"Logs: {logs}")
                return 1
            status.stop()
            if not stop.is_set():
                _greet(url, time.monotonic() - started, file.settings, admin_key, logs)
            stop.wait()
        finally:
            status.update("Stopping…")
            status.start()
            # Ray reports the controller that it has just been told to kill.
            with contextlib.redirect_stdout(io.StringIO()):
                # First the application alone: the proxy stays until what runs has its answer.
                if not failure and not starter.is_alive():
                    serve.delete(file.application.name)
                serve.shutdown()  # type: ignore[no-untyped-call]
                ray.shutdown()
    console.print("Stopped.")
    return 0


def _cpus() -> int:
    return max(2, os.cpu_count() or 2)


def _refuse_too_small(settings: Settings) -> None:
    """Raises ConfigError where the replicas ask for more CPUs than there are: they would wait for
    ever, without a word."""
    parts = [settings.ingress]
    parts += [settings.feedback.replicas] if settings.feedback.enabled else []
    for model in settings.models.values():
        parts += [model.backbone.replicas, model.judge.replicas]
    needed = 0.0
    for part in parts:
        scaled = getattr(part, "autoscaling", None)
        count = part.num_replicas if scaled is None else scaled.min_replicas
        needed += count * float(part.ray_actor_options.get("num_cpus", 1))
    if needed > _cpus() + 1e-6:
        raise ConfigError(
            f"the replicas ask for {needed:g} CPUs, and this machine has {_cpus()}: give them less "
            "(models.<name>.backbone.replicas.ray_actor_options.num_cpus, the same of judge, and "
            "ingress.ray_actor_options.num_cpus), or serve fewer models"
        )


def _deploy(file: object, host: str, port: int, failure: list[Exception]) -> None:
    from ray import serve

    from service.app import build
    from service.serve_file import ServeFile

    assert isinstance(file, ServeFile)
    try:
        options = file.serve.http_options.model_dump() | {"host": host, "port": port}
        serve.start(
            proxy_location=file.serve.proxy_location,
            http_options=options,
            logging_config=file.serve.logging_config,
        )
        serve.run(
            build(file.settings),
            name=file.application.name,
            route_prefix=file.application.route_prefix,
        )
    except Exception as error:  # shown by the caller's thread, with the logs' folder
        failure.append(error)


def _wait_ready(url: str, stop: threading.Event) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not stop.is_set():
        try:
            with direct.open(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"{url}/health/ready is not ready: {error}") from None
            stop.wait(0.1)


def _admin_key(settings: Settings) -> str | None:
    """Make the local admin key if the environment holds none; returns it only if made."""
    name = "WINNOW_ADMIN_KEY"
    if name in os.environ or name not in {key.secret_env for key in settings.auth.keys}:
        return None
    os.environ[name] = f"wn-{secrets.token_urlsafe(24)}"
    return os.environ[name]


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}): choose another with "
                "--port, or PORT= for make"
            ) from None


def _greet(url: str, seconds: float, settings: Settings, admin_key: str | None, logs: str) -> None:
    key = "" if settings.auth.anonymous else '-H "Authorization: Bearer $YOUR_KEY" '
    body = json.dumps({"prompt": "", "seed": 7})
    decode = (
        "import base64, json, sys; "
        'image = json.load(sys.stdin)["data"][0]["b64_json"]; '
        'open("image.png", "wb").write(base64.b64decode(image))'
    )
    console.print(f"\n[bold green]Winnow is ready[/] at [bold]{url}[/] after {seconds:.0f} s\n")
    default = settings.default_policy
    if settings.policies[default].trained:
        console.print(
            f"`{default}` delivers nothing until a reward is promoted for it: label at "
            f"{url}/feedback, train one, promote it. Then",
            markup=False,
            soft_wrap=True,
        )
    console.print("Paste this for a censored image in image.png:\n", markup=False)
    line = (
        f"curl -s {url}/v1/images/generations -H 'Content-Type: application/json' "
        f"{key}-d '{body}' \\\n  | python3 -c '{decode}'\n"
    )
    console.print(line, markup=False, soft_wrap=True)
    if settings.feedback.enabled:
        console.print(f"Label    {url}/feedback")
    console.print(f"Docs     {url}/docs")
    if settings.ingress_metrics:
        console.print(f"Metrics  {url}/metrics")
    console.print(f"Logs     {logs}")
    if admin_key and sys.stdout.isatty():
        console.print(f"Admin key (this run only)  {admin_key}", markup=False)
    elif admin_key:
        console.print(
            "Admin key  made for this run, shown on a terminal only; or set WINNOW_ADMIN_KEY"
        )
    console.print("\nCtrl-C stops it.\n")
