"""Labels as JSONL or CSV, with their images as base64 PNG: what leaves one store enters another."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from models.noise import MAX_SEED
from service.api.text import Sent, Text
from service.encode import from_data_url, to_png
from service.errors import BlobMissing, InvalidValue
from service.store.blobs import Blobs, name_of
from service.store.datasets import Label, Labelled, Shown

Format = Literal["jsonl", "csv"]
MAX_ROWS = 2000
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)
"""Between them every zone's time is one that any store can hold."""
csv.field_size_limit(2**31 - 1)  # a cell holds a whole image; the body has its own limit


class Input(Sent):
    """What an image was drawn under, as `service.inputs.drawn` says it."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text | None = Field(None, max_length=100_000)
    negative_prompt: Text | None = Field(None, max_length=100_000)
    class_label: int | None = Field(None, ge=0, le=2**31 - 1)
    guidance_scale: float | None = Field(None, ge=1, allow_inf_nan=False)


class Row(Sent):
    """One label, and the image that it is of; without `png` it can be read but not brought in."""

    model_config = ConfigDict(extra="forbid")

    image_id: Text = Field(min_length=1, max_length=64)
    label: Label
    annotator: Text = Field(min_length=1, max_length=128)
    elapsed_ms: int = Field(ge=0, le=3_600_000)
    labelled: AwareDatetime = Field(ge=EARLIEST, le=LATEST)
    strategy: Text = Field(min_length=1, max_length=32)
    inclusion: float = Field(gt=0, le=1)
    score: float | None = Field(None, ge=0, le=1)
    seed: int = Field(ge=0, le=MAX_SEED)
    draw: int = Field(ge=0, le=1_000_000)
    policy: Text = Field(max_length=64)
    policy_version: int = Field(ge=0, le=1_000_000)
    backbone: Text = Field(max_length=80)
    sha256: Text = Field(max_length=80)
    question: Text | None = Field(None, max_length=200)  # older exports lack it
    input: Input | None = None  # and this one
    png: str | None = None


FIELDS = list(Row.model_fields)


def write(
    labelled: list[Labelled], question: str, blobs: Blobs, form: Format, images: bool
) -> Iterator[str]:
    """The lines of a file, one label each, with what was asked.

    An image that was purged is left out of its row.

    Raises StoreUnavailable at an image that cannot be read, or was changed.
    """
    if form == "csv":
        yield _csv(FIELDS)
    for one in labelled:
        row = _row(one, question, blobs if images else None)
        if form == "csv":
            yield _csv([_cell(value) for value in row.values()])
        else:
            yield json.dumps(row) + "\n"


def read(
    text: str, form: Format, dataset: str, shape: tuple[int, int, int], question: str | None = None
) -> Iterator[tuple[Labelled, bytes]]:
    """The labels of a file, each with the PNG of its image, [H, W, C] = `shape`.

    The image is decoded and packed again, so that nothing but its pixels comes in. Its id follows
    from dataset, old id and pixels; the annotator's name says that the label was brought.
    Raises InvalidValue, naming the line; also for labels of another `question`, where one is given.
    """
    for number, values in _rows(text, form):
        if number > MAX_ROWS:
            raise InvalidValue(f"more than {MAX_ROWS} labels: send the file in parts", "body")
        where = f"line {number}"
        try:
            row = Row.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join((where, *(str(part) for part in first["loc"])))
            raise InvalidValue(f"{at}: {first['msg']}", at) from None
        if row.strategy == "certificate":
            raise InvalidValue(
                "a certificate's labels prove, and may not train", f"{where}.strategy"
            )
        if question is not None and row.question not in (None, question):
            raise InvalidValue(
                f"answers {row.question!r}, and this dataset asks {question!r}: anyway=true (of "
                "the command, --anyway) brings it in all the same",
                f"{where}.question",
            )
        if row.png is None:
            raise InvalidValue(
                "a label needs its image: export it with images=true (of the command, --images)",
                f"{where}.png",
            )
        url = f"data:image/png;base64,{row.png}"
        png = to_png(from_data_url(url, *shape, f"{where}.png"))
        blob = name_of(png)
        known_by = hashlib.sha256(f"{dataset}\n{row.image_id}\n{blob}".encode()).hexdigest()
        annotator = row.annotator.removeprefix("import:")
        shown = Shown(
            id=f"imp_{known_by[:32]}",
            dataset=dataset,
            batch=f"import-{known_by[:32]}",
            position=0,
            blob=blob,
            seed=row.seed,
            draw=row.draw,
            policy=row.policy,
            policy_version=row.policy_version,
            backbone=row.backbone,
            strategy=row.strategy,
            inclusion=row.inclusion,
            score=row.score,
            annotator=f"import:{annotator}"[:128],
            created=datetime.now(row.labelled.tzinfo),
            input=row.input.model_dump(exclude_none=True) if row.input else None,
        )
        yield Labelled(shown, row.label, shown.annotator, row.elapsed_ms, row.labelled), png


def _row(one: Labelled, question: str, blobs: Blobs | None) -> dict[str, Any]:
    image = one.image
    png = None
    if blobs is not None:
        with suppress(BlobMissing):  # anything else would pass for purged
            png = base64.b64encode(blobs.get(image.blob)).decode("ascii")
    labelled = one.labelled.isoformat()
    return {
        "image_id": image.id,
        "label": one.label,
        "annotator": one.annotator,
        "elapsed_ms": one.elapsed_ms,
        # SQLite forgets the zone of what is always UTC.
        "labelled": labelled if one.labelled.tzinfo else f"{labelled}+00:00",
        "strategy": image.strategy,
        "inclusion": image.inclusion,
        "score": image.score,
        "seed": image.seed,
        "draw": image.draw,
        "policy": image.policy,
        "policy_version": image.policy_version,
        "backbone": image.backbone,
        "sha256": image.blob,
        "question": question,
        "input": image.input,
        "png": png,
    }


def _rows(text: str, form: Format) -> Iterator[tuple[int, Any]]:
    if form == "csv":
        number = 0
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text)), 1):
                row = {k: v for k, v in row.items() if v != "" or k == "policy"}
                yield number, _with_input(row, number)
        except csv.Error as error:
            where = f"line {number + 1}"
            raise InvalidValue(f"{where} is not CSV: {error}", where) from None
        return
    # Not `splitlines`: JSON may hold the other ends of lines that Unicode knows.
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidValue(f"line {number} is not JSON", f"line {number}") from None


def _with_input(row: dict[Any, Any], number: int) -> dict[Any, Any]:
    """A row of CSV, whose cell `input` is JSON."""
    if "input" not in row:
        return row
    try:
        return row | {"input": json.loads(row["input"])}
    except (ValueError, RecursionError):
        where = f"line {number}.input"
        raise InvalidValue("is not JSON", where) from None


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value)


def _csv(cells: list[str]) -> str:
    out = io.StringIO()
    # A spreadsheet runs a cell that begins so; a name or word of ours never does.
    csv.writer(out, lineterminator="\n").writerow(
        f"'{cell}" if cell[:1] in "=+-@" and cell else cell for cell in cells
    )
    return out.getvalue()
