"""Labels as JSONL or CSV, with their images as base64 PNG: what leaves one store enters another."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from models.diffusion.noise import MAX_SEED
from service.api.exception_handlers import in_words, part
from service.api.json_body import media_type, parse
from service.api.label_images import why
from service.api.text import RequestBody, Text
from service.errors import BlobUnreadable, InvalidValue, UnsupportedMedia, shown
from service.images.encode import from_data_url, to_png
from service.labelling.label_file import (
    CsvError,
    Format,
    csv_rows,
    jsonl_lines,
    write_rows,
)
from service.store.blobs import Blobs, name_of
from service.store.datasets import ImageToLabel, Label, LabelledImage

log = logging.getLogger("winnow.labelling")

MAX_ROWS = 2000
TYPES: dict[str, Format] = {
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/csv": "csv",
}
"""What a file may say that it is."""
BODY = {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in TYPES}}
"""A file in OpenAPI's words."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)
"""Between them every zone's time is one that any store can hold."""


class Input(RequestBody):
    """What an image was drawn under, as `service.policies.inputs.drawn` says it."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text | None = Field(None, max_length=100_000)
    negative_prompt: Text | None = Field(None, max_length=100_000)
    class_label: int | None = Field(None, ge=0, le=2**31 - 1)
    guidance_scale: float | None = Field(None, ge=0, allow_inf_nan=False)


class Row(RequestBody):
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
    question: Text | None = Field(None, max_length=200)
    input: Input | None = None
    png: str | None = None
    missing: Text | None = Field(None, max_length=32)  # why there is no png: purged, or damaged


FIELDS = list(Row.model_fields)
OF_THE_IMAGE = (
    "strategy", "inclusion", "score", "seed", "draw", "policy", "policy_version", "backbone",
)  # fmt: skip
"""What a row says of its image as the store does."""


def form_of(headers: Headers, asked: Format | None) -> Format:
    """The form of a body, by its media type.

    Raises UnsupportedMedia for another one, and InvalidValue where the query says another form.
    """
    given = media_type(headers)
    form = TYPES.get(given or "")
    if form is None:
        sent = "there is none" if given is None else f"this is {shown(given)}"
        raise UnsupportedMedia(f"must be {' or '.join(TYPES)}, and {sent}", "Content-Type")
    if asked not in (None, form):
        raise InvalidValue(f"is {asked}, and Content-Type says {given}: leave one out", "format")
    return form


def write(
    labelled: list[LabelledImage], question: str, blobs: Blobs, form: Format, images: bool
) -> Iterator[str]:
    """The lines of a file, one label each, with what was asked.

    An image that was purged or is damaged is left out of its row, which says so in `missing`.
    Raises StoreUnavailable where no image can be read.
    """
    rows = (_row(one, question, blobs if images else None) for one in labelled)
    return write_rows(rows, FIELDS, form)


def read(
    text: str, form: Format, dataset: str, shape: tuple[int, int, int], question: str | None = None
) -> Iterator[tuple[LabelledImage, bytes] | None]:
    """The labels of a file, each with the PNG of its image, [H, W, C] = `shape`; None for a line
    without an image, which teaches nothing.

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
            at = ".".join((where, *map(part, first["loc"])))
            raise InvalidValue(f"{at}: {in_words(first)}", at) from None
        if row.strategy == "certificate":
            raise InvalidValue(
                "a certificate's labels prove, and may not train", f"{where}.strategy"
            )
        if question is not None and row.question not in (None, question):
            raise InvalidValue(
                f"answers {shown(row.question or '')}, and this dataset asks {question!r}: "
                "force=true (of the command, --force) brings it in all the same",
                f"{where}.question",
            )
        if row.png is None:
            yield None
            continue
        url = f"data:image/png;base64,{row.png}"
        png = to_png(from_data_url(url, *shape, f"{where}.png"))
        blob = name_of(png)
        known_by = hashlib.sha256(f"{dataset}\n{row.image_id}\n{blob}".encode()).hexdigest()
        annotator = row.annotator.removeprefix("import:")
        image = ImageToLabel(
            id=f"imp_{known_by[:32]}",
            dataset=dataset,
            batch=f"import-{known_by[:32]}",
            position=0,
            blob=blob,
            annotator=f"import:{annotator}"[:128],
            created=datetime.now(row.labelled.tzinfo),
            input=row.input.model_dump(exclude_none=True) if row.input else None,
            **{name: getattr(row, name) for name in OF_THE_IMAGE},
        )
        yield LabelledImage(image, row.label, image.annotator, row.elapsed_ms, row.labelled), png


def _row(one: LabelledImage, question: str, blobs: Blobs | None) -> dict[str, Any]:
    image = one.image
    row: dict[str, Any] = {name: getattr(image, name) for name in OF_THE_IMAGE}
    row |= {"image_id": image.id, "sha256": image.blob, "question": question}
    row |= {"label": one.label, "annotator": one.annotator, "elapsed_ms": one.elapsed_ms}
    row["labelled"] = one.labelled.isoformat()
    row["input"] = image.input if isinstance(image.input, dict) else None
    if blobs is not None:
        try:
            row["png"] = base64.b64encode(blobs.get(image.blob)).decode("ascii")
        except BlobUnreadable as error:
            log.warning("image %s is not exported: %s", image.id, error)
            row["missing"] = why(error)
    return {name: row.get(name) for name in FIELDS}


def _rows(text: str, form: Format) -> Iterator[tuple[int, Any]]:
    if form == "jsonl":
        for number, line in jsonl_lines(text):
            yield number, _json(line, f"line {number}")
        return
    head: list[str] | None = None
    try:
        for number, cells in csv_rows(text):
            if head is None:
                head = cells
                if len(set(head)) < len(head):
                    raise InvalidValue("a column stands twice in the first line", "body")
                continue
            if len(cells) != len(head):
                where = f"line {number}"
                raise InvalidValue(f"{where} has other columns than the first one", where)
            row = dict(zip(head, cells, strict=True))
            yield number, _with_input({k: v for k, v in row.items() if v or k == "policy"}, number)
    except CsvError as error:
        raise InvalidValue(str(error), f"line {error.line}") from None


def _with_input(row: dict[Any, Any], number: int) -> dict[Any, Any]:
    """A row of CSV, whose cell `input` is JSON."""
    if "input" not in row:
        return row
    return row | {"input": _json(row["input"], f"line {number}.input")}


def _json(text: str, where: str) -> Any:
    try:
        return parse(text)
    except InvalidValue as error:
        raise InvalidValue(f"{where}: {error.message}", where) from None
    except (ValueError, RecursionError):
        raise InvalidValue(f"{where} is not JSON", where) from None
