"""`winnow datasets`: what was labelled, taken out of a running service or brought into one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlencode

import typer
from rich.console import Console
from rich.table import Table

from service.cli.client import ServiceUrl, call, send
from service.cli.common import console, faults

app = typer.Typer(help="See, export and import labels.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The dataset's name.")]
csv.field_size_limit(2**31 - 1)  # a cell holds a whole image
PART_BYTES = 500_000
"""A file goes over in parts, each below the service's `limits.body_bytes`."""


class Format(StrEnum):
    """How a file is written."""

    jsonl = "jsonl"
    csv = "csv"


@app.command("list")
def list_(
    certificates: Annotated[
        bool, typer.Option("--certificates", help="Those of certificates, which train nothing.")
    ] = False,
    url: ServiceUrl = None,
) -> None:
    """List the datasets with their labels."""
    with faults():
        listed = call("GET", "/v1/datasets", url=url)["data"]
    found = [one for one in listed if (one["purpose"] == "certificate") is certificates]
    table = Table("name", "model", "question", "benign", "malign", "unsure", "seconds", box=None)
    for one in found:
        counts = one["counts"]
        kinds = (str(counts[kind]) for kind in ("benign", "malign", "unsure", "seconds"))
        table.add_row(one["name"], one["model"], one["question"], *kinds)
    Console(highlight=False, width=max(140, Console().width)).print(table)


@app.command()
def export(
    name: Name,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A new file; .csv or .jsonl says which. Else stdout."),
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="jsonl, unless the file says csv.")
    ] = None,
    images: Annotated[
        bool | None, typer.Option(help="With the images, base64; by default in jsonl alone.")
    ] = None,
    url: ServiceUrl = None,
) -> None:
    """Write a dataset's labels to a file, one a line."""
    with faults():
        chosen = form or _format(to)
        query = {"format": chosen.value}
        if images is not None:
            query["images"] = str(images).lower()
        if to is not None and to.exists():
            raise ValueError(f"{to} exists already: name a new file")
        data = send("GET", f"{_path(name)}/export?{urlencode(query)}", url=url)
        if to is None:
            typer.echo(data.decode(), nl=False)
            return
        to.write_bytes(data)
    console.print(f"{to}: {_count(data.decode(), chosen)} labels", soft_wrap=True)


@app.command("import")
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A file that `winnow datasets export` wrote.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="jsonl, unless the file says csv.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also labels that answer another question.")
    ] = False,
    url: ServiceUrl = None,
) -> None:
    """Bring labels and their images into a dataset that exists; what is there already stays."""
    imported = known = 0
    with faults():
        chosen = form or _format(file)
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file")
        for part in _parts(file.read_text(), chosen):
            path = f"{_path(name)}/import?format={chosen.value}{'&anyway=true' * anyway}"
            answer = json.loads(send("POST", path, part.encode(), "text/plain", url))
            imported += answer["imported"]
            known += answer["known_already"]
    console.print(f"{name}: {imported} labels came in, {known} were there already", soft_wrap=True)


def _parts(text: str, form: Format) -> Iterator[str]:
    """A file in parts of whole rows; each part of a CSV has its head."""
    if form is Format.csv:
        rows = list(csv.reader(io.StringIO(text)))
        if not rows:
            raise ValueError("the file is empty")
        head, lines = _line(rows[0]), [_line(row) for row in rows[1:]]
    else:
        head, lines = "", [line + "\n" for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("the file holds no label")
    part, size = [head], 0
    for line in lines:
        if size and size + len(line) > PART_BYTES:
            yield "".join(part)
            part, size = [head], 0
        part.append(line)
        size += len(line)
    yield "".join(part)


def _line(row: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(row)
    return out.getvalue()


def _count(text: str, form: Format) -> int:
    if form is Format.csv:
        return max(sum(1 for _ in csv.reader(io.StringIO(text))) - 1, 0)
    return sum(1 for line in text.split("\n") if line)


def _format(file: Path | None) -> Format:
    """What a file's name says. Raises ValueError where it says something else."""
    if file is None:
        return Format.jsonl
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{file}: ends in neither .csv nor .jsonl: say which with --format")
    return Format(file.suffix.lower()[1:])


def _path(name: str) -> str:
    return f"/v1/datasets/{quote(name, safe='')}"
