"""`winnow rewards`: train a reward on a running service, watch it, and read its card."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.console import Console
from rich.table import Table

from service.cli.client import ServiceUrl, call
from service.cli.common import bars, console, faults

app = typer.Typer(help="Train rewards on the running service.", no_args_is_help=True)
RewardId = Annotated[str, typer.Argument(help="A reward's id: rwd_…, or how it begins.")]
RUNNING = ("queued", "training", "cancelling")
POLL_S = 0.5
ID_LENGTH = 36


@app.command("list")
def list_(
    dataset: Annotated[str | None, typer.Option(help="Only those of this dataset.")] = None,
    url: ServiceUrl = None,
) -> None:
    """List trainings and rewards, the newest first."""
    query = f"?{urlencode({'dataset': dataset})}" if dataset else ""
    with faults():
        found = call("GET", f"/v1/rewards{query}", url=url)["data"]
    table = Table("id", "dataset", "policy", "status", "stage", "", "by", box=None)
    for one in found:
        done = f"{one['progress']:.0%}" if one["status"] in RUNNING else ""
        policy = one["recipe"].get("policy", "")
        stage = "" if one["stage"] == one["status"] else one["stage"]
        row = (one["dataset"], policy, one["status"], stage, done, one["created_by"])
        table.add_row(one["id"], *row)
    _out().print(table)


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="The dataset to learn from.")],
    policy: Annotated[
        str | None, typer.Option(help="Calibrate for this policy's sampling.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="The malign rate to aim at.")] = None,
    guide: Annotated[bool, typer.Option("--guide", help="A guide as well, to steer by.")] = False,
    distil: Annotated[bool, typer.Option("--distil", help="And the guide's student.")] = False,
    features: Annotated[
        str | None, typer.Option(help="Let the judge learn on these features of the bundle.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Stay until it has ended.")] = True,
    url: ServiceUrl = None,
) -> None:
    """Train a reward; Ctrl-C stops watching, not the training."""
    wanted = {"dataset": dataset, "policy": policy, "target": target, "features": features}
    body = {name: value for name, value in wanted.items() if value is not None}
    with faults():
        reward = call("POST", "/v1/rewards", body | {"guide": guide, "distil": distil}, url=url)
        typer.echo(reward["id"])
        if wait:
            reward = _watch(reward, url)
            console.print(_sentence(reward), markup=False, soft_wrap=True)
            if reward["status"] != "ready":
                raise typer.Exit(1)


@app.command()
def show(
    reward_id: RewardId,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    url: ServiceUrl = None,
) -> None:
    """Show a training's progress, or a reward's card."""
    with faults():
        reward = call("GET", _path(whole(reward_id, url)), url=url)
    if as_json:
        typer.echo(json.dumps(reward, indent=2))
        return
    _out().print(_facts(reward))


@app.command()
def cancel(reward_id: RewardId, url: ServiceUrl = None) -> None:
    """Stop a training; everything stays as it was."""
    with faults():
        reward = call("POST", f"{_path(whole(reward_id, url))}/cancel", url=url)
    console.print(f"{reward['id']}: {reward['status']}", markup=False, soft_wrap=True)


def _watch(reward: dict[str, Any], url: str | None) -> dict[str, Any]:
    with bars() as start:
        advance = start("Training", 100)
        shown = 0
        while reward["status"] in RUNNING:
            time.sleep(POLL_S)
            reward = call("GET", _path(reward["id"]), url=url)
            percent = round(100 * reward["progress"])
            advance(percent - shown, reward["stage"])
            shown = percent
    return reward


def _sentence(reward: dict[str, Any]) -> str:
    if reward["status"] == "ready":
        return f"{reward['id']} is ready: `winnow rewards show {reward['id']}` shows its card"
    return f"{reward['id']}: {reward['error'] or reward['status']}"


def _facts(reward: dict[str, Any]) -> Table:
    card = reward.get("card") or {}
    counts = card.get("counts") or {}
    state = dict.fromkeys((reward["status"], reward["stage"]))  # once it has ended, these are alike
    if reward["status"] in RUNNING:
        state[f"{reward['progress']:.0%}"] = None
    rows = [
        ("reward", f"{reward['id']} of {reward['dataset']}, by {reward['created_by']}"),
        ("status", ", ".join(state)),
        ("error", reward["error"]),
        ("resumed", reward["parent"]),
        ("recipe", ", ".join(f"{key} {value}" for key, value in reward["recipe"].items())),
    ]
    if card:
        rows += [
            ("question", (card.get("dataset") or {}).get("question")),
            ("labels", ", ".join(f"{count} {kind}" for kind, count in counts.items())),
            ("purged", card.get("purged") or None),
            ("time", f"{card.get('label_seconds')} s of labelling by {_people(card)}"),
            ("training", f"{card.get('trained_seconds')} s"),
            ("AUC", f"{card['auc']:.4f}, cross-validated" if "auc" in card else None),
        ]
        for steps, one in (card.get("calibrations") or {}).items():
            text = f"{one['acceptance']:.1%} of draws accepted"
            if "threshold" in one:  # for keys that see scores
                text = f"threshold {one['threshold']:.4f}, {text}"
            rows.append((f"{steps} steps", text))
        rows += list((card.get("not_calibrated") or {}).items())
    rows += [(part, name) for part, name in (reward.get("weights") or {}).items()]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, str(value))
    return table


def _people(card: dict[str, Any]) -> str:
    return ", ".join(card.get("annotators") or []) or "nobody"


def whole(reward_id: str, url: str | None) -> str:
    """The id that begins so, as pages and tables show it. Raises ValueError where several do."""
    if len(reward_id) >= ID_LENGTH:
        return reward_id
    found = call("GET", "/v1/rewards", url=url)["data"]
    same = [one["id"] for one in found if one["id"].startswith(reward_id)]
    if len(same) > 1 and reward_id not in same:
        raise ValueError(f"reward {reward_id!r}: {len(same)} begin so: give more of its id")
    return same[0] if len(same) == 1 else reward_id


def _path(reward_id: str) -> str:
    return f"/v1/rewards/{quote(reward_id, safe='')}"


def _out() -> Console:
    # An id that was cut short cannot be pasted.
    return Console(highlight=False, width=max(140, Console().width))
