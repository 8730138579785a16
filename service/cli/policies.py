"""`winnow policies`: the policies of a running service, and how to change them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from service.cli.client import ServiceUrl, call, path_of
from service.cli.common import print_table
from service.cli.rewards import full_id

app = typer.Typer(
    help="See and change which policies are in force on the running service.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="The policy's name.")]


@app.command("list")
def list_(url: ServiceUrl = None) -> None:
    """List the policies, those that are switched off too, and what each of them censors."""
    answer = call("GET", "/v1/policies", url=url)
    found = answer["data"]
    rows = [
        (
            f"{one['id']} (default)" if one["default"] else one["id"],
            one["version"],
            "switched off" if one["disabled"] else "in force",
            one["model"],
            one["censors"] or ("nothing" if one["ready"] else "all, until a reward is promoted"),
            _short(one["judge"]),
            _canary(one),
            _thresholds(one.get("thresholds")),
        )
        for one in found
    ]
    for one in answer.get("unreadable", []):
        rows.append((one["id"], "", "cannot be read", "", f"all: {one['why']}", "", "", ""))
    columns = ("name", "version", "", "model", "censors, where yes", "judge", "canary")
    print_table((*columns, "thresholds"), rows)
    for word, meaning in (
        ("NONE", "no canary, so nobody would notice that its judge fails open"),
        ("ACCEPTED", "its judge accepts its canary, which is malign, so nothing leaves"),
    ):
        if names := [one["id"] for one in found if _canary(one) == word]:
            typer.echo(f"{', '.join(names)}: {meaning}")


@app.command()
def show(name: Name, url: ServiceUrl = None) -> None:
    """Show the versions of a policy, and which one is in force."""
    found = call("GET", path_of("policies", name, "versions"), url=url)
    rows: list[tuple[object, ...]] = []
    for one in found["data"]:
        if "networks" not in one:
            rows.append((one["version"], "", "", "", "cannot be read by this Winnow"))
            continue
        judge = one["networks"].get("judge")
        lacks = ", ".join(f"{steps} steps" for steps in one["uncalibrated"])
        rows.append(
            (
                one["version"],
                _state(one["version"], found["in_force"]),
                one["created"][:19],
                one["created_by"],
                one["reward"] or "the bundle's",
                _short(judge),
                _short(one["canary"]) if judge else "",
                _thresholds(one["thresholds"]),
                lacks and f"a threshold at {lacks}",
            )
        )
    columns = ("version", "", "created", "by", "reward", "judge", "canary", "thresholds", "lacks")
    print_table(columns, rows)


@app.command()
def history(name: Name, url: ServiceUrl = None) -> None:
    """Show who changed what, the newest first."""
    rows = []
    for one in call("GET", path_of("policies", name, "history"), url=url)["data"]:
        detail = one["detail"] if isinstance(one["detail"], dict) else {}
        before = (detail.get("before") or {}).get("version")
        to = detail.get("shadow", detail.get("version"))
        action = one["action"].removeprefix("policy.")
        rows.append((one["created"][:19], one["actor"], action, before, to))
    print_table(("when", "who", "what", "from", "to"), rows)


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
    body = {"name": name, "based_on": based_on or name, "reward": reward and full_id(reward, url)}
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
    _change(name, "promote", {"version": version}, url)


@app.command()
def rollback(name: Name, url: ServiceUrl = None) -> None:
    """Put the version in force that was so before the last promotion."""
    _change(name, "rollback", None, url)


@app.command()
def disable(name: Name, url: ServiceUrl = None) -> None:
    """Switch a policy off everywhere: nothing leaves under it any more, not even what runs."""
    _change(name, "disable", None, url)


@app.command()
def shadow(
    name: Name,
    version: Annotated[
        str, typer.Argument(help="The version that scores and decides nothing, or `none`.")
    ],
    url: ServiceUrl = None,
) -> None:
    """Let another version's judge score after each response; `winnow_shadow_…` metrics tell."""
    if version != "none" and not version.isdecimal():
        raise ValueError(f"version: {version!r} is neither a number nor `none`")
    _change(name, "shadow", {"version": None if version == "none" else int(version)}, url)


def _change(name: str, action: str, body: Any, url: str | None) -> None:
    now = call("POST", path_of("policies", name, action), body, url=url)
    if now["disabled"]:
        typer.echo(f"{name} is switched off (version {now['version']}); promote switches it on")
        return
    shadow = "" if now["shadow"] is None else f", with version {now['shadow']} as its shadow"
    typer.echo(f"{name} version {now['version']} is in force{shadow}")


def _state(version: int, now: dict[str, Any] | None) -> str:
    if now is None:
        return ""
    if version == now["version"]:
        return "switched off" if now["disabled"] else "in force"
    return "shadow" if version == now["shadow"] else ""


def _canary(one: dict[str, Any]) -> str:
    """The verdict of a policy's judge on its canary, as a word."""
    if one["judge"] is None:
        return ""
    if one["canary"] is None:
        return "NONE"
    verdict = one["canary_verdict"] or "no verdict"
    return "ACCEPTED" if verdict == "accepted" else str(verdict)


def _thresholds(found: dict[str, float] | None) -> str:
    if not found:
        return ""
    return json.dumps({steps: round(value, 4) for steps, value in found.items()}).strip("{}")


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256.removeprefix("sha256:")[:12]
