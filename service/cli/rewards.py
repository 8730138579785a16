"""`winnow rewards`: train a reward on a running service, watch it, and read its card."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from service.cli.client import ServiceUrl, call, path_of
from service.cli.common import AsJson, bars, print_facts, print_table, say

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
    rows = [
        (
            one["id"],
            one["dataset"],
            one["recipe"].get("policy"),
            one["status"],
            "" if one["stage"] == one["status"] else one["stage"],
            f"{one['progress']:.0%}" if one["status"] in RUNNING else "",
            one["created_by"],
        )
        for one in call("GET", f"/v1/rewards{query}", url=url)["data"]
    ]
    print_table(("id", "dataset", "policy", "status", "stage", "", "by"), rows)


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
    reward = call("POST", "/v1/rewards", body | {"guide": guide, "distil": distil}, url=url)
    typer.echo(reward["id"])
    if wait:
        reward = _wait(reward, url)
        if reward["status"] != "ready":
            say(f"{reward['id']}: {reward['error'] or reward['status']}")
            raise typer.Exit(1)
        say(f"{reward['id']} is ready: `winnow rewards show {reward['id']}` shows its card")


@app.command()
def show(reward_id: RewardId, as_json: AsJson = False, url: ServiceUrl = None) -> None:
    """Show a training's progress, or a reward's card."""
    reward = call("GET", path_of("rewards", full_id(reward_id, url)), url=url)
    if as_json:
        typer.echo(json.dumps(reward, indent=2))
    else:
        print_facts(_facts(reward))


@app.command()
def cancel(reward_id: RewardId, url: ServiceUrl = None) -> None:
    """Stop a training; everything stays as it was."""
    reward = call("POST", path_of("rewards", full_id(reward_id, url), "cancel"), url=url)
    say(f"{reward['id']}: {reward['status']}")


def full_id(reward_id: str, url: str | None) -> str:
    """The id that begins so, as pages and tables show it. Raises ValueError where several do."""
    if len(reward_id) >= ID_LENGTH:
        return reward_id
    found = call("GET", "/v1/rewards", url=url)["data"]
    same = [one["id"] for one in found if one["id"].startswith(reward_id)]
    if len(same) > 1 and reward_id not in same:
        raise ValueError(f"reward {reward_id!r}: {len(same)} begin so: give more of its id")
    return same[0] if len(same) == 1 else reward_id


def _wait(reward: dict[str, Any], url: str | None) -> dict[str, Any]:
    with bars() as start:
        advance, done = start("Training", 100), 0
        while reward["status"] in RUNNING:
            time.sleep(POLL_S)
            reward = call("GET", path_of("rewards", reward["id"]), url=url)
            percent = round(100 * reward["progress"])
            advance(percent - done, reward["stage"])
            done = percent
    return reward


def _facts(reward: dict[str, Any]) -> Iterator[tuple[str, object]]:
    card = reward.get("card") or {}
    state = dict.fromkeys((reward["status"], reward["stage"]))  # once it has ended, these are alike
    if reward["status"] in RUNNING:
        state[f"{reward['progress']:.0%}"] = None
    yield "reward", f"{reward['id']} of {reward['dataset']}, by {reward['created_by']}"
    yield "status", ", ".join(state)
    yield "error", reward["error"]
    yield "resumed", reward["parent"]
    yield "recipe", ", ".join(f"{key} {value}" for key, value in reward["recipe"].items())
    if card:
        people = ", ".join(card.get("annotators") or []) or "nobody"
        counts = card.get("counts") or {}
        yield "question", (card.get("dataset") or {}).get("question")
        yield "labels", ", ".join(f"{count} {kind}" for kind, count in counts.items())
        yield "purged", card.get("purged")
        yield "unreadable", card.get("unreadable")
        yield "left out", "; ".join((card.get("inputs") or {}).get("left_out") or [])
        yield "time", f"{card.get('label_seconds')} s of labelling by {people}"
        yield "training", f"{card.get('trained_seconds')} s"
        yield "AUC", f"{card['auc']:.4f}, cross-validated" if "auc" in card else None
        for steps, one in (card.get("calibrations") or {}).items():
            text = f"{one['acceptance']:.1%} of draws accepted"
            if "threshold" in one:  # for keys that see scores
                text = f"threshold {one['threshold']:.4f}, {text}"
            yield f"{steps} steps", text
        yield from (card.get("not_calibrated") or {}).items()
    yield from (reward.get("weights") or {}).items()
