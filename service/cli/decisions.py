"""`winnow decisions`: what was decided and why, read from the store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from sqlalchemy import make_url

from models.diffusion.condition import size_text
from service.cli.common import (
    DEFAULT_CONFIG,
    AsJson,
    ConfigFile,
    print_facts,
    print_table,
    read_settings,
    say,
)
from service.config import ConfigError, Settings, StoreSettings, store_urls
from service.errors import DecisionNotFound
from service.generation.record import RECORD_VERSION, Record
from service.policies.inputs import listed
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
    as_json: AsJson = False,
) -> None:
    """Show one decision: plan, weights, and each draw with its score."""
    document = read(_settings(config, url), decision_id, url)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    record = parse(document)
    print_facts(_facts(record))
    _print_images(record)


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
    settings = _settings(config, url)
    with _opened(settings, url) as store:
        found = store.decisions.rows(limit, {k: v for k, v in having.items() if v is not None})
    if not found:
        say(f"no such decision in {_where(settings, url)}")
        return
    rows = []
    for one in found:
        try:
            usage = one.document["usage"]
            images = f"{usage.get('delivered', 0)}/{one.document['request']['n']}"
            draws = str(usage.get("draws", ""))
        except (AttributeError, KeyError, TypeError):
            images, draws = "cannot be read", ""
        names = (one.created.isoformat()[:19], one.id, one.policy, one.key_name, one.outcome)
        rows.append((*names, images, draws))
    print_table(("created", "id", "policy", "key", "outcome", "images", "draws"), rows)


def read(settings: Settings | None, decision_id: str, url: str | None = None) -> dict[str, Any]:
    """The stored record. Raises ConfigError, StoreUnavailable or DecisionNotFound."""
    with _opened(settings, url) as store:
        document = store.decisions.read(decision_id)
    if document is None:
        raise DecisionNotFound(f"no decision {decision_id!r}: unknown, or past store.keep_days")
    return document


def parse(document: dict[str, Any]) -> Record:
    """The record, if this Winnow can read it. Raises ValueError with a sentence."""
    try:
        return Record.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        try:
            by = document["versions"]["packages"]["winnow-serve"]
        except (KeyError, TypeError):
            by = "of an unknown version"
        raise ValueError(
            f"the record has version {document.get('record_version')} and was written by Winnow "
            f"{by}: this one reads version {RECORD_VERSION} ({where}: {first['msg']}). --json of "
            "`winnow decisions show` still shows it"
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


@contextmanager
def _opened(settings: Settings | None, url: str | None) -> Iterator[Store]:
    found, blobs_url = store_urls(settings.store if settings else StoreSettings(), os.environ)
    store = Store(url or found, blobs_url, create=False)
    try:
        yield store
    finally:
        store.close()


def _facts(record: Record) -> list[tuple[str, object]]:
    plan, request, versions = record.plan, record.request, record.versions
    backbone = versions.sampling.backbone
    threshold = "" if plan.threshold is None else f", threshold {plan.threshold:.4f}"
    return [
        ("decision", f"{record.id} (request {record.request_id})"),
        ("outcome", f"{record.outcome}, {record.created:%Y-%m-%d %H:%M:%S} UTC, key {record.key}"),
        ("policy", f"{plan.policy} version {plan.policy_version}{threshold}"),
        ("asked", f"n {request.n}, deadline {request.deadline_s:g} s, {request.on_filtered}"),
        *_condition(record),
        ("seed", f"{plan.seed}, at most {plan.max_draws} draws an image"),
        ("method", ", ".join(f"{k} {v}" for k, v in vars(plan.method).items() if v is not None)),
        ("ran on", f"{versions.runtime} {backbone.dtype}, {versions.device}"),
        ("packages", ", ".join(f"{k} {v}" for k, v in versions.packages.items())),
        ("bundle", f"{versions.bundle} of model {plan.model}"),
        ("backbone", backbone.weights),
        *versions.sampling.parts.items(),
        ("schedule", backbone.schedule),
        ("spent", ", ".join(f"{k} {v}" for k, v in (record.usage | record.timings).items())),
    ]


def _condition(record: Record) -> Iterator[tuple[str, str]]:
    """The model's inputs. A model without inputs got an empty prompt."""
    condition, prompt = record.plan.condition, record.request.prompt
    yield "prompt", "not kept" if prompt is None else repr(prompt)
    if condition.negative_prompt:
        yield "negative prompt", repr(condition.negative_prompt)
    if condition.class_label is not None:
        yield "class", str(condition.class_label)
    elif condition.class_labels:
        yield "class", f"drawn by each seed from {listed(condition.class_labels)}"
    if condition.guidance_scale > 1:
        yield "guidance scale", f"{condition.guidance_scale:g}"
    if condition.size is not None:
        yield "size", size_text(condition.size)


def _print_images(record: Record) -> None:
    labels = [record.plan.condition.label(image.seed) for image in record.images]
    columns = ["image", "seed", *(["class"] if any(one is not None for one in labels) else [])]
    rows: list[list[object]] = []
    for image, label in zip(record.images, labels, strict=True):
        head: list[object] = [image.index, image.seed, *([] if label is None else [label])]
        head.append(getattr(image.finish_reason, "value", ""))
        for one in image.judged or [None]:
            cells: list[object] = []
            if one is not None:
                probes = " ".join(_number(score) for score in one.probe_scores)
                cells = [one.draw, one.verdict.value, _number(one.score), probes, one.nfe]
            rows.append([*head, *cells])
            head = [""] * (len(columns) + 1)
    print_table((*columns, "came to", "draw", "verdict", "score", "probes", "NFE"), rows)


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"
