"""`winnow decisions`: what was decided and why, read from the store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from service.cli.common import DEFAULT_CONFIG, ConfigFile, console, faults, read_settings
from service.config import ConfigError, Settings, StoreSettings, store_urls
from service.decisions import RECORD_VERSION, Record
from service.errors import DecisionNotFound
from service.inputs import listed
from service.store.store import Store

app = typer.Typer(help="Look at what was decided, and why.", no_args_is_help=True)
Url = Annotated[
    str | None, typer.Option("--url", help="A store's URL, instead of the configuration's.")
]
DecisionId = Annotated[str, typer.Argument(help="The `id` of a response or a log line: img_…")]


@app.command()
def show(
    decision_id: DecisionId,
    config: ConfigFile = DEFAULT_CONFIG,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole record as JSON.")] = False,
) -> None:
    """Show one decision: plan, weights, and each draw with its score."""
    with faults():
        document = read(_settings(config, url), decision_id, url)
        if as_json:
            typer.echo(json.dumps(document, indent=2))
            return
        record = parse(document)
    out = Console(highlight=False)
    out.print(_facts(record))
    out.print(_images(record))


@app.command("list")
def recent(
    config: ConfigFile = DEFAULT_CONFIG,
    url: Url = None,
    policy: Annotated[str | None, typer.Option(help="Only under this policy.")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only with this outcome: ok, moderation_blocked, …")
    ] = None,
    request_id: Annotated[str | None, typer.Option(help="Only with this X-Request-ID.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
) -> None:
    """List decisions, the newest first."""
    having = {"policy": policy, "outcome": outcome, "request_id": request_id}
    with faults():
        settings = _settings(config, url)
        store = _open(settings, url)
        try:
            found = store.decisions.recent(
                limit, {k: v for k, v in having.items() if v is not None}
            )
        finally:
            store.close()
    if not found:
        console.print(f"no such decision in {_where(settings, url)}", markup=False, soft_wrap=True)
        return
    table = Table("created", "id", "policy", "key", "outcome", "images", "draws", box=None)
    for one in found:
        usage = one["usage"]
        images = f"{usage.get('delivered', 0)}/{one['request']['n']}"
        names = (one["created"][:19], one["id"], one["plan"]["policy"], one["key"], one["outcome"])
        table.add_row(*names, images, str(usage.get("draws", "")))
    # An id that was cut short cannot be pasted.
    Console(highlight=False, width=max(140, Console().width)).print(table)


def read(settings: Settings | None, decision_id: str, url: str | None = None) -> dict[str, Any]:
    """The stored record. Raises ConfigError, StoreUnavailable or DecisionNotFound."""
    store = _open(settings, url)
    try:
        document = store.decisions.read(decision_id)
    finally:
        store.close()
    if document is None:
        raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
    return document


def parse(document: dict[str, Any]) -> Record:
    """The record, if this Winnow can read it. Raises ValueError with a sentence."""
    try:
        return Record.model_validate(document)
    except ValidationError:
        raise ValueError(
            f"the record has version {document.get('record_version')} and was written by Winnow "
            f"{document.get('versions', {}).get('packages', {}).get('winnow-serve')}: this one "
            f"reads version {RECORD_VERSION}. --json of `winnow decisions show` still shows it"
        ) from None


def _settings(config: Path, url: str | None) -> Settings | None:
    """The configuration's settings, unless `url` says where the store is. Raises ConfigError."""
    if url:
        return None
    try:
        return read_settings(config)
    except ConfigError as error:
        if config.is_file():
            raise
        raise ConfigError(
            f"{error}, or where its store is with --url: {_where(None, None)} unless the "
            "configuration says otherwise"
        ) from None


def _where(settings: Settings | None, url: str | None) -> str:
    """The store's URL, without a password."""
    store = settings.store if settings else StoreSettings()
    return make_url(url or store_urls(store, os.environ)[0]).render_as_string(hide_password=True)


def _open(settings: Settings | None, url: str | None) -> Store:
    store = settings.store if settings else StoreSettings()
    found, blobs_url = store_urls(store, os.environ)
    return Store(url or found, blobs_url, create=False)


def _facts(record: Record) -> Table:
    plan, request, versions = record.plan, record.request, record.versions
    threshold = "" if plan.threshold is None else f", threshold {plan.threshold:.4f}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("decision", f"{record.id} (request {record.request_id})"),
        ("outcome", f"{record.outcome}, {record.created:%Y-%m-%d %H:%M:%S} UTC, key {record.key}"),
        ("policy", f"{plan.policy} version {plan.policy_version}{threshold}"),
        ("asked", f"n {request.n}, deadline {request.deadline_s:g} s, {request.on_filtered}"),
        *_asked(record),
        ("seed", f"{plan.seed}, at most {plan.max_draws} draws an image"),
        ("method", ", ".join(f"{k} {v}" for k, v in vars(plan.method).items() if v is not None)),
        ("ran on", f"{versions.runtime} {versions.dtype}, {versions.device}"),
        ("packages", ", ".join(f"{k} {v}" for k, v in versions.packages.items())),
        ("bundle", f"{versions.bundle} of model {plan.model}"),
        *versions.weights.items(),
        ("spent", ", ".join(f"{k} {v}" for k, v in (record.usage | record.timings).items())),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _asked(record: Record) -> list[tuple[str, str]]:
    """What the model was asked for; a model that takes nothing was asked for an empty prompt."""
    condition, prompt = record.plan.condition, record.request.prompt
    rows = [("prompt", "not kept" if prompt is None else repr(prompt))]
    if condition.negative_prompt:
        rows.append(("negative prompt", repr(condition.negative_prompt)))
    if condition.class_label is not None:
        rows.append(("class", str(condition.class_label)))
    elif condition.class_labels:
        rows.append(("class", f"drawn by each seed from {listed(condition.class_labels)}"))
    if condition.guidance_scale > 1:
        rows.append(("guidance scale", f"{condition.guidance_scale:g}"))
    return rows


def _images(record: Record) -> Table:
    labels = [record.plan.condition.label(image.seed) for image in record.images]
    columns = ["image", "seed", *(["class"] if any(one is not None for one in labels) else [])]
    table = Table(*columns, "came to", "draw", "verdict", "score", "probes", "NFE", box=None)
    for image, label in zip(record.images, labels, strict=True):
        head = [str(image.index), str(image.seed), *([] if label is None else [str(label)])]
        head.append(getattr(image.finish_reason, "value", ""))
        for one in image.judged or [None]:
            cells = [""] * 5
            if one is not None:
                probes = " ".join(_number(score) for score in one.probe_scores)
                score = _number(one.score)
                cells = [str(one.draw), one.verdict.value, score, probes, str(one.nfe)]
            table.add_row(*head, *cells)
            head = [""] * (len(columns) + 1)
    return table


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"
