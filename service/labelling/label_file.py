"""A file of labels as rows of text: JSONL, or CSV with a head. The service and `winnow datasets`
read and write it alike."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

Format = Literal["jsonl", "csv"]
MEDIA_TYPES: dict[Format, str] = {"jsonl": "application/jsonl", "csv": "text/csv"}
"""What a file says that it is."""

csv.field_size_limit(2**31 - 1)  # a cell holds a whole image; what brings it has a limit of its own


class CsvError(ValueError):
    """A file that is no CSV, from this line on."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def write_rows(rows: Iterable[dict[str, Any]], names: Sequence[str], form: Format) -> Iterator[str]:
    """The lines of a file whose rows have these fields."""
    if form == "csv":
        yield _line(names)
    for row in rows:
        if form == "csv":
            yield _line([_cell(value) for value in row.values()])
        else:
            yield json.dumps(row) + "\n"


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row of a CSV with the line that it ends on. Raises CsvError."""
    # Not strict, a quote that is never closed takes in all rows behind it.
    reader, number = csv.reader(io.StringIO(text), strict=True), 0
    try:
        for row in reader:
            number = reader.line_num
            if row:
                yield number, row
    except csv.Error as error:
        raise CsvError(f"line {number + 1} is not CSV: {error}", number + 1) from None


def jsonl_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line that is not empty, with its number."""
    # Not `splitlines`: JSON may hold the other ends of lines that Unicode knows.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def in_parts(text: str, form: Format, part_bytes: int) -> Iterator[str]:
    """A file in parts of whole rows, each of about so many bytes and with the head of a CSV.

    Raises ValueError for a file that holds no label, or is no CSV.
    """
    head, lines = _split(text, form)
    if not lines:
        raise ValueError("the file holds no label")
    part, size = [head], 0
    for line in lines:
        if size and size + len(line) > part_bytes:
            yield "".join(part)
            part, size = [head], 0
        part.append(line)
        size += len(line)
    yield "".join(part)


def count(text: str, form: Format) -> int:
    """How many labels a file holds."""
    return len(_split(text, form)[1])


def _split(text: str, form: Format) -> tuple[str, list[str]]:
    """The head of a file, and each label's text."""
    if form == "jsonl":
        return "", [f"{line}\n" for _, line in jsonl_lines(text)]
    head, *lines = [_plain_line(row) for _, row in csv_rows(text)] or [""]
    return head, lines


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value)


def _line(cells: Sequence[str]) -> str:
    # A spreadsheet runs a cell that begins so; a name or word of ours never does.
    return _plain_line([f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for cell in cells])


def _plain_line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
