"""`winnow`: the command line. `winnow COMMAND --help` explains each one."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from service.cli import (
    bundle,
    calibrate,
    certify,
    datasets,
    decisions,
    evaluate,
    example,
    exporter,
    features,
    judge,
    policies,
    replay,
    rewards,
    train,
)
from service.cli.common import DEFAULT_CONFIG, faults, say


class Commands(TyperGroup):
    """The commands; none ends in a traceback for what a user can mend."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line, under `faults`."""
        with faults():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, under `faults`."""
        with faults():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Serve images from a diffusion model, and keep the bad ones from leaving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at a configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")
for group in (
    train,
    bundle,
    example,
    decisions,
    policies,
    certify,
    datasets,
    rewards,
    judge,
    features,
):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])
for command in (calibrate.calibrate, evaluate.evaluate, exporter.exporter, replay.replay):
    app.command()(command)

ConfigFile = Annotated[
    Path, typer.Argument(help="A Ray Serve config file.", show_default="deploy/local.yaml")
]
PortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Listen here, not where the file says.")
]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"winnow {version('winnow-serve')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile = DEFAULT_CONFIG,
    port: PortOption = None,
    keep_logs: Annotated[
        bool, typer.Option(help="Keep the logs after a clean stop as well, until the next start.")
    ] = False,
) -> None:
    """Start the service on this machine and stay until Ctrl-C."""
    from service.cli.serve import run

    raise typer.Exit(run(config, port, keep_logs))


@config_app.command("check")
def config_check(
    config: ConfigFile = DEFAULT_CONFIG,
    port: PortOption = None,
    remote: Annotated[
        bool,
        typer.Option(
            "--remote",
            help="The file is for another machine or a cluster: check the file alone.",
        ),
    ] = False,
) -> None:
    """Check a configuration file as `winnow serve` does before it starts anything.

    A line `path: reason` for each fault, exit code 1.
    """
    from service.cluster.preflight import check
    from service.config import url_of

    checked = check(config, os.environ, port, remote)
    settings, http = checked.file.settings, checked.file.serve.http_options
    for line in checked.unchecked:
        say(f"not checked: {line}")
    say(
        f"{config}: fine ({len(settings.models)} model, {len(settings.policies)} "
        f"policies, {url_of(http.host, http.port)})"
    )
