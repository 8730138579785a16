"""`winnow policies`: what is in force on the running service, and how to change it."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from service.cli.client import ServiceUrl, call
from service.cli.common import faults
from service.cli.rewards import whole

app = typer.Typer(
    help="See and change which policies are in force on the running service.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="The policy's name.")]


@app.command("list")
def list_(url: ServiceUrl = None) -> None:
    """List the policies, those that are switched off too, and what each of them censors."""
    with faults():
        found = call("GET", "/v1/policies", url=url)["data"]
    table = Table(
        "name", "version", "", "model", "censors, where yes", "judge", "thresholds", box=None
    )
    for one in found:
        name = f"{one['id']} (default)" if one["default"] else one["id"]
        table.add_row(
            name,
            str(one["version"]),
            "switched off" if one["disabled"] else "in force",
            one["model"],
            one["censors"] or ("nothing" if one["ready"] else "all, until a reward is promoted"),
            _short(one["judge"]),
            _thresholds(one.get("thresholds")),
        )
    _out().print(table)


@app.command()
def show(name: Name, url: ServiceUrl = None) -> None:
    """Show the versions of a policy, and which one is in force."""
    with faults():
        found = call("GET", f"{_path(name)}/versions", url=url)
    now = found["in_force"]
    table = Table(
        "version", "", "created", "by", "reward", "judge", "thresholds", "lacks", box=None
    )
    for one in found["data"]:
        if "networks" not in one:
            table.add_row(str(one["version"]), "", "", "", "cannot be read by this Winnow")
            continue
        lacks = ", ".join(f"{steps} steps" for steps in one["uncalibrated"])
        table.add_row(
            str(one["version"]),
            _state(one["version"], now),
            one["created"][:19],
            one["created_by"],
            one["reward"] or "the bundle's",
            _short(one["networks"].get("judge")),
            _thresholds(one["thresholds"]),
            lacks and f"a threshold at {lacks}",
        )
    _out().print(table)


@app.command()
def history(name: Name, url: ServiceUrl = None) -> None:
    """Show who changed what, the newest first."""
    with faults():
        found = call("GET", f"{_path(name)}/history", url=url)["data"]
    table = Table("when", "who", "what", "from", "to", box=None)
    for one in found:
        detail = one["detail"]
        before = (detail.get("before") or {}).get("version")
        to = detail.get("shadow", detail.get("version"))
        action = one["action"].removeprefix("policy.")
        table.add_row(one["created"][:19], one["actor"], action, _number(before), _number(to))
    _out().print(table)


@app.command()
def add(
    name: Name,
    based_on: Annotated[
        str | None, typer.Option(help="The policy in force to start from; NAME by default.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="A trained reward. Without one: what the configuration says of NAME."),
    ] = None,
    url: ServiceUrl = None,
) -> None:
    """Make a new version, which is not in force yet."""
    with faults():
        full = reward and whole(reward, url)
        body = {"name": name, "based_on": based_on or name, "reward": full}
        made = call("POST", "/v1/policies", body, url=url)
    version = made["version"]
    typer.echo(
        f"{name} version {version} is there. In force: `winnow policies promote {name} {version}`"
    )
    if made["uncalibrated"]:
        steps = ", ".join(str(number) for number in made["uncalibrated"])
        typer.echo(f"It cannot be promoted: it has no calibrated threshold at {steps} steps")


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="`winnow policies show` lists them.")],
    url: ServiceUrl = None,
) -> None:
    """Put a version in force, once every replica has loaded it."""
    _move(name, "promote", {"version": version}, url)


@app.command()
def rollback(name: Name, url: ServiceUrl = None) -> None:
    """Put the version in force that was so before the last promotion."""
    _move(name, "rollback", None, url)


@app.command()
def disable(name: Name, url: ServiceUrl = None) -> None:
    """Switch a policy off everywhere: nothing leaves under it any more, not even what runs."""
    _move(name, "disable", None, url)


@app.command()
def shadow(
    name: Name,
    version: Annotated[
        str, typer.Argument(help="The version that scores and decides nothing, or `none`.")
    ],
    url: ServiceUrl = None,
) -> None:
    """Let another version's judge score after each response; `winnow_shadow_…` metrics tell."""
    with faults():
        if version != "none" and not version.isdecimal():
            raise ValueError(f"version: {version!r} is neither a number nor `none`")
    _move(name, "shadow", {"version": None if version == "none" else int(version)}, url)


def _move(name: str, how: str, body: Any, url: str | None) -> None:
    with faults():
        now = call("POST", f"{_path(name)}/{how}", body, url=url)
    if now["disabled"]:
        typer.echo(f"{name} is switched off (version {now['version']}); promote switches it on")
        return
    shadow = "" if now["shadow"] is None else f", with version {now['shadow']} as its shadow"
    typer.echo(f"{name} version {now['version']} is in force{shadow}")


def _path(name: str) -> str:
    return f"/v1/policies/{quote(name, safe='')}"


def _state(version: int, now: dict[str, Any] | None) -> str:
    if now is None:
        return ""
    if version == now["version"]:
        return "switched off" if now["disabled"] else "in force"
    return "shadow" if version == now["shadow"] else ""


def _thresholds(found: dict[str, float] | None) -> str:
    if not found:
        return ""
    return json.dumps({steps: round(value, 4) for steps, value in found.items()}).strip("{}")


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256.removeprefix("sha256:")[:12]


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _out() -> Console:
    return Console(highlight=False, width=max(140, Console().width))
