"""`winnow`: the command line. `winnow COMMAND --help` explains each one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from service.cli.common import DEFAULT_CONFIG, console
from service.config import ConfigError

app = typer.Typer(
    help="Serve images from a diffusion model, and keep the bad ones from leaving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at a configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(train.app, name="train")
app.add_typer(bundle.app, name="bundle")
app.add_typer(example.app, name="example")
app.add_typer(decisions.app, name="decisions")
app.add_typer(policies.app, name="policies")
app.add_typer(certify.app, name="certify")
app.add_typer(datasets.app, name="datasets")
app.add_typer(rewards.app, name="rewards")
app.add_typer(judge.app, name="judge")
app.add_typer(features.app, name="features")
app.command()(calibrate.calibrate)
app.command()(evaluate.evaluate)
app.command()(exporter.exporter)
app.command()(replay.replay)

ConfigFile = Annotated[
    Path, typer.Argument(help="A Ray Serve config file.", show_default="deploy/local.yaml")
]


@app.command()
def serve(
    config: ConfigFile = DEFAULT_CONFIG,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen here, not where the file says.")
    ] = None,
) -> None:
    """Start the service on this machine and stay until Ctrl-C."""
    from service.cli.serve import run

    raise typer.Exit(run(config, port))


@config_app.command("check")
def config_check(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Check a configuration file: a line `path: reason` for each fault, exit code 1."""
    from models import bundle as bundles
    from service.pinning import pin
    from service.serve_file import read

    try:
        file = read(config)
        models = file.settings.models
        pin(file.settings, {name: bundles.load(models[name].bundle) for name in models})
    except (ConfigError, bundles.BundleError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(
        f"{config}: fine ({len(file.settings.models)} model, {len(file.settings.policies)} "
        f"policies, http://{file.serve.http_options.host}:{file.serve.http_options.port})",
        soft_wrap=True,
    )
