"""CSV, TSV and JSON lines: each record is a paragraph, "name: value" a line.

A passage of a table is of no use without the names of its columns, so each record repeats them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import cast

from embedder.readers.document import CONTENT_BYTES, Document, File, one_line, too_much_text
from embedder.readers.errors import UnreadableError

# What stands under these names in a record of JSON is its text, and needs no name.
_TEXTS = ("title", "content", "text", "body")


def read(file: File) -> Document:
    """The records of a file whose first row, of CSV and TSV, names the columns."""
    if file.kind == "jsonl":
        return Document(joined(_json_records(file.text)), file.stem)
    csv.field_size_limit(CONTENT_BYTES)
    rows = csv.reader((f"{line}\n" for line in file.text.split("\n")), _dialect(file))
    try:
        return Document(joined(table_records(rows)), file.stem)
    except csv.Error as error:
        raise UnreadableError(f"not valid {file.kind.upper()}: {error}") from error


def joined(records: Iterable[str]) -> str:
    """Records with an empty line between two. Raises UnreadableError when it is too much text."""
    parts: list[str] = []
    length = 0
    for record in records:
        if record:
            parts.append(record)
            length += len(record) + 2
            if length > CONTENT_BYTES:
                raise too_much_text()
    return "\n\n".join(parts) + "\n" if parts else ""


def table_records(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """The records of a table whose first row that is not empty names the columns."""
    names: list[str] = []
    alone = False
    for row in rows:
        values = [one_line(value) for value in row]
        if not any(values):
            continue
        if not names:
            names, alone = values, True
            continue
        alone = False
        named = zip([*names, *[""] * (len(values) - len(names))], values, strict=False)
        yield "\n".join(f"{name}: {value}" if name else value for name, value in named if value)
    if alone:
        # Nothing but names: they are all there is to be found.
        yield ", ".join(filter(None, names))


def _dialect(file: File) -> type[csv.Dialect]:
    if file.kind == "tsv":
        return csv.excel_tab
    # A sniffer of ten lines misses what one line tells: what there is most of in the first row.
    first = file.text.lstrip("\n").partition("\n")[0][:10_000]
    found = max(",;\t|", key=first.count)
    return type("Dialect", (csv.excel,), {"delimiter": found})


def _json_records(text: str) -> Iterable[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value: object = json.loads(line)
        except ValueError as error:
            raise UnreadableError(f"line {number} is no JSON") from error
        yield "\n".join(_lines(value, ""))


def _lines(value: object, name: str) -> Iterable[str]:
    """A value of JSON as lines; a name is the path to it, "author.name"."""
    if isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield from _lines(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        items = cast("list[object]", value)
        if any(isinstance(item, dict | list) for item in items):
            for item in items:
                yield from _lines(item, name)
        elif items:
            yield f"{name}: {', '.join(map(_plain, items))}"
    elif value is not None and value != "":
        text = _plain(value)
        yield text if name in _TEXTS or not name else f"{name}: {text}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
