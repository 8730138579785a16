"""`winnow datasets`: labels of a running service, exported and imported."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from service.cli.client import ServiceUrl, call, parse, path_of, send
from service.cli.common import print_table, read_text, say
from service.labelling.label_file import MEDIA_TYPES, count, in_parts


class Format(StrEnum):
    """The format of a file of labels, for the command line."""

    jsonl = "jsonl"
    csv = "csv"


app = typer.Typer(help="See, export and import labels.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The dataset's name.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="jsonl, unless the file says csv.")
]
PART_BYTES = 500_000
"""A file is sent in parts, each below the service's `limits.body_bytes`."""


@app.command("list")
def list_(
    certificates: Annotated[
        bool, typer.Option("--certificates", help="Those of certificates, which train nothing.")
    ] = False,
    url: ServiceUrl = None,
) -> None:
    """List the datasets with their labels."""
    counted = ("benign", "malign", "unsure", "seconds")
    rows = [
        (one["name"], one["model"], one["question"], *(one["counts"][kind] for kind in counted))
        for one in call("GET", "/v1/datasets", url=url)["data"]
        if (one["purpose"] == "certificate") is certificates
    ]
    print_table(("name", "model", "question", *counted), rows)


@app.command()
def export(
    name: Name,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A new file; .csv or .jsonl says which. Else stdout."),
    ] = None,
    form: FormatOption = None,
    images: Annotated[
        bool | None, typer.Option(help="With the images, base64; by default in jsonl alone.")
    ] = None,
    url: ServiceUrl = None,
) -> None:
    """Write a dataset's labels to a file, one a line."""
    chosen = form or _format(to)
    query = {"format": chosen.value}
    if images is not None:
        query["images"] = str(images).lower()
    if to is not None and to.exists():
        raise ValueError(f"{to} exists already: name a new file")
    path = path_of("datasets", name, "export")
    data = send("GET", f"{path}?{urlencode(query)}", url=url)
    if to is None:
        typer.echo(data.decode(), nl=False)
        return
    to.write_bytes(data)
    say(f"{to}: {count(data.decode(), chosen.value)} labels")


@app.command("import")
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A file that `winnow datasets export` wrote.")],
    form: FormatOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also labels that answer another question.")
    ] = False,
    url: ServiceUrl = None,
) -> None:
    """Bring labels and their images into a dataset that exists; what is there already stays."""
    chosen = form or _format(file)
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    path = path_of("datasets", name, "import") + "?force=true" * force
    total: Counter[str] = Counter()
    for part in in_parts(read_text(file).removeprefix("\ufeff"), chosen.value, PART_BYTES):
        answer = parse(path, send("POST", path, part.encode(), MEDIA_TYPES[chosen.value], url))
        total.update(
            {kind: answer[kind] for kind in ("imported", "known_already", "without_image")}
        )
    without = total["without_image"]
    left = f", {without} had no image and were left out" if without else ""
    say(
        f"{name}: {total['imported']} labels came in, {total['known_already']} were there "
        f"already{left}"
    )


def _format(file: Path | None) -> Format:
    """What a file's name says. Raises ValueError where it says something else."""
    if file is None:
        return Format.jsonl
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{file}: ends in neither .csv nor .jsonl: say which with --format")
    return Format(file.suffix.lower()[1:])
