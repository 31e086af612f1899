"""PDF, by PDFium: the text layer page by page, headings where the outline names them."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, cast

import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

from embedder.readers.document import Document, File, Pages, one_line, said, unmarked
from embedder.readers.errors import TextMissingError, UnreadableError

# PDFium's codes, as FPDF_GetLastError has them.
_REASONS = {3: "broken: no valid PDF", 4: "encrypted", 5: "encrypted in a way that is not known"}
# An outline of a book has hundreds of entries.
_OUTLINE_ENTRIES = 10_000
# Beyond that a name for each page would be most of the metadata (100,000 bytes at most).
_PAGES = 9_000


def read(file: File) -> Document:
    """The text of all pages. Raises TextMissingError if none has any: a scan."""
    try:
        pdf: Any = pypdfium2.PdfDocument(file.data)
    except pypdfium2.PdfiumError as error:
        code = getattr(error, "err_code", None)
        raise UnreadableError(_REASONS.get(cast("int", code), f"broken: {error}")) from error
    if len(pdf) > _PAGES:
        raise UnreadableError(f"{len(pdf):,} pages; the limit is {_PAGES:,}")
    headings = _outline(pdf)
    pages = Pages()
    for number in range(len(pdf)):
        page: Any = pdf[number]
        text = page.get_textpage().get_text_range(errors="ignore")
        pages.add(_marked(_tidy(str(text)), headings.get(number, {})))
        page.close()
    about: dict[str, str] = pdf.get_metadata_dict()
    if not pages.content.strip():
        raise TextMissingError(f"no text layer in {len(pdf)} pages: a scan needs OCR")
    title = one_line(about.get("Title", "").replace("\0", "")) or file.stem
    metadata = said(author=about.get("Author"), created=_day(about.get("CreationDate", "")))
    return Document(pages.content, title, metadata | pages.metadata)


def _outline(pdf: Any) -> dict[int, dict[str, int]]:  # noqa: ANN401
    """By page the headings that the outline has on it, with their levels, 1 to 6."""
    found: dict[int, dict[str, int]] = {}
    for count, entry in enumerate(pdf.get_toc()):
        if count >= _OUTLINE_ENTRIES:
            break
        target = entry.get_dest()
        page = target.get_index() if target else None
        title = _key(str(entry.get_title()))
        if page is not None and title:
            found.setdefault(page, {})[title] = min(6, 1 + entry.level)
    return found


def _key(text: str) -> str:
    return one_line(text).casefold()


def _tidy(text: str) -> str:
    """Line feeds only, words that were torn at the end of a line joined again."""
    # PDFium marks a hyphen that it knows to be one of the line's end by U+FFFE or U+0002.
    text = re.sub(r"[\ufffe\x02]\r?\n?", "", text)
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"(?<=[^\W\d_])-\n(?=[^\W\d_A-Z])", "", text)
    text = re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]", "", text)
    return "\n".join(line.strip() for line in text.replace("\f", "\n").split("\n"))


def _marked(text: str, headings: dict[str, int]) -> str:
    """The lines that are headings of the outline as headings of Markdown, each of them once."""
    left = dict(headings)
    lines: list[str] = []
    for line in unmarked(text).split("\n"):
        level = left.pop(_key(line), 0) if left else 0
        lines.append(f"\n{'#' * level} {line}\n" if level else line)
    return "\n".join(lines)


def _day(value: str) -> date | None:
    """A date such as D:20220429171908Z."""
    found = re.match(r"(?:D:)?(\d{4})(\d{2})?(\d{2})?", value)
    try:
        return date(int(found[1]), int(found[2] or 1), int(found[3] or 1)) if found else None
    except ValueError:
        return None
