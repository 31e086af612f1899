"""Workbooks (XLSX), by openpyxl: each sheet under its name, each row a record."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any, cast

import openpyxl

from embedder.readers import archive
from embedder.readers.document import Document, File, said
from embedder.readers.records import joined, table_records


def read(file: File) -> Document:
    """Values as they were last computed; formulas, charts and hidden sheets are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Styles and validations that it does not know.
        book = openpyxl.load_workbook(archive.opened(file.data), read_only=True, data_only=True)
        try:
            content = joined(_parts(cast("Any", book)))
        finally:
            book.close()
    about = book.properties
    title = about.title or file.stem
    return Document(
        content.replace("\0", ""), title, said(author=about.creator, created=about.created)
    )


def _parts(book: Any) -> Iterator[str]:  # noqa: ANN401
    for sheet in book.worksheets:
        if sheet.sheet_state != "visible":
            continue
        rows = ([_plain(value) for value in row] for row in sheet.iter_rows(values_only=True))
        heading = f"# {sheet.title}"
        for record in table_records(rows):
            if heading:
                yield heading
                heading = ""
            yield record


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
