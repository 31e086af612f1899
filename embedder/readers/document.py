"""What every reader takes and gives: a File, a Document, and the error for what cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property

from embedder.readers.encodings import decode
from embedder.readers.errors import UnreadableError

TITLE_CHARACTERS = 300
CONTENT_BYTES = 50_000_000

Metadata = dict[str, str | int | list[int]]


@dataclass(frozen=True)
class File:
    """The bytes of a file with its name, such as "report.pdf", and its format, such as "pdf"."""

    name: str
    kind: str
    data: bytes

    @property
    def stem(self) -> str:
        """The name without its ending: the title of what has none."""
        return self.name.rpartition(".")[0] or self.name

    @cached_property
    def text(self) -> str:
        """The file as text with line feeds only. Raises UnreadableError for what is no text."""
        text = decode(self.data, self.kind)
        if "\0" in text:
            raise UnreadableError("binary: it contains NUL characters")
        return re.sub(r"\r\n?", "\n", text)


@dataclass(frozen=True)
class Document:
    """What rag.put takes from a file.

    content is the text in which passages are searched, with line feeds only. metadata has what
    the file says of itself: "author", "created" (date), "lang", and "page_starts" where it has
    pages (the 0-based character offset in content at which each page begins; rag.put makes of it
    the "page" of each passage). read_document adds what is known of every file.
    """

    content: str
    title: str
    metadata: Metadata = field(default_factory=Metadata)


class Pages:
    """Joins the texts of pages and notes where each begins."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._starts: list[int] = []
        self._length = 0

    def add(self, text: str) -> None:
        """Add a page, which may be empty. Raises UnreadableError when it is too much text."""
        self._starts.append(self._length)
        text = text.strip("\n")
        if text:
            self._parts.append(text + "\n\n")
            self._length += len(text) + 2
        if self._length > CONTENT_BYTES:
            raise too_much_text()

    @property
    def content(self) -> str:
        """All pages, an empty line between two."""
        return "".join(self._parts)

    @property
    def metadata(self) -> Metadata:
        """{"page_starts": [...]}."""
        return {"page_starts": self._starts}


def too_much_text() -> UnreadableError:
    """The error for what grows beyond all measure."""
    return UnreadableError(f"more than {CONTENT_BYTES // 1_000_000} MB of text")


def one_line(text: str) -> str:
    """The text with single spaces for all white space."""
    return " ".join(text.split())


def said(**values: object) -> Metadata:
    """Metadata of what a file says of itself, without what is empty; dates as days."""
    found: Metadata = {}
    for name, value in values.items():
        if isinstance(value, date):
            found[name] = day(value)
        elif name == "created":
            # Of a date that is written in words or without a year nothing could be asked.
            if stated := _DAY.match(value if isinstance(value, str) else ""):
                found[name] = "-".join(stated.groups())
        elif isinstance(value, str) and (text := one_line(value.replace("\0", ""))):
            found[name] = text[:TITLE_CHARACTERS]
    return found


_DAY = re.compile(r"\s*(\d{4})[-/](\d{2})[-/](\d{2})(?!\d)")


def day(moment: date) -> str:
    """A day, not a moment: of a file's time a fresh checkout would change every document."""
    if isinstance(moment, datetime):
        moment = (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    return moment.isoformat()


def cells(values: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(one_line(value).replace("|", "\\|") for value in values) + " |"


_FALSE_MARK = re.compile(r"^(\s*)(#{1,6}(?:\s|$)|`{3}|~{3})", re.MULTILINE)


def unmarked(text: str) -> str:
    """Text that is no Markdown, so that none of it begins a heading or a block of code."""
    return _FALSE_MARK.sub(r"\1\\\2", text)
