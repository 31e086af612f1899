"""Readers: from a file to a Document whose headings are Markdown headings.

One module a format, each with a function `read(file: File) -> Document`, imported when the first
file of its format comes. What they need beyond the plain installation is in the extra `files`.
Nothing here trusts a file; `embedder.readers.process` reads in a process of its own, under limits.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, cast

from embedder.readers import languages, remote
from embedder.readers.document import (
    CONTENT_BYTES,
    TITLE_CHARACTERS,
    Document,
    File,
    Metadata,
    day,
    one_line,
    too_much_text,
)
from embedder.readers.errors import TextMissingError, UnavailableError, UnreadableError

__all__ = ["FORMATS", "Document", "Limits", "UnreadableError", "read_bytes", "read_document"]

_OFFICE: Final = "application/vnd.openxmlformats-officedocument"


class Format(NamedTuple):
    """A format: the module that reads it, and its media type (MIME)."""

    module: str
    media_type: str


KINDS: Final[Mapping[str, Format]] = {
    "text": Format("text", "text/plain"),
    "markdown": Format("markdown", "text/markdown"),
    "rst": Format("rst", "text/x-rst"),
    "html": Format("html", "text/html"),
    "csv": Format("records", "text/csv"),
    "tsv": Format("records", "text/tab-separated-values"),
    "jsonl": Format("records", "application/jsonl"),
    "email": Format("mail", "message/rfc822"),
    "pdf": Format("pdf", "application/pdf"),
    "docx": Format("docx", f"{_OFFICE}.wordprocessingml.document"),
    "pptx": Format("pptx", f"{_OFFICE}.presentationml.presentation"),
    "xlsx": Format("xlsx", f"{_OFFICE}.spreadsheetml.sheet"),
}

FORMATS: Final[Mapping[str, str]] = {
    ".txt": "text", ".text": "text",
    ".md": "markdown", ".mdx": "markdown", ".markdown": "markdown",
    ".rst": "rst", ".rest": "rst",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".eml": "email",
    ".pdf": "pdf", ".docx": "docx", ".pptx": "pptx", ".xlsx": "xlsx", ".xlsm": "xlsx",
}  # fmt: skip
"""What is read, by the ending of the file's name in lower case."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost, and who is asked for what is not read here.

    extractor is a URL such as "tika+http://host:9998" or "docling+http://host:5001", '' for none;
    extracted are the endings, such as ".pdf", of files that always go there.
    """

    file_bytes: int = 50_000_000
    seconds: float = 60.0
    memory_bytes: int = 1_000_000_000
    extractor: str = ""
    extracted: tuple[str, ...] = ()

    @property
    def endings(self) -> frozenset[str]:
        """The endings of the names of files that are read."""
        return frozenset((*FORMATS, *(remote.ENDINGS if self.extractor else ())))


def read_document(path: Path, source: str, limits: Limits | None = None) -> Document:
    """Read a file; one with an ending that nobody knows is read as plain text.

    source is the name that people know the file by, kept in the metadata. Raises UnreadableError
    for everything that lies in the file: rights, size, bytes that are no text, nothing in it.
    """
    limits = limits or Limits()
    data, modified = _opened(path, limits)
    return _read(path.name, data, {"source": source, "modified": day(modified)}, limits)


def read_bytes(name: str, data: bytes, source: str, limits: Limits | None = None) -> Document:
    """Read a file that was handed over, by the ending of its name; raises UnreadableError."""
    limits = limits or Limits()
    _check_size(len(data), limits)
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a name, not a path)
    if ending in remote.ENDINGS and not limits.extractor:
        raise UnreadableError(
            f"{ending} files are not read here; an embedder with RAGDB_EXTRACTOR reads them"
        )
    return _read(name, data, {"source": source}, limits)


def _opened(path: Path, limits: Limits) -> tuple[bytes, datetime]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer for ever.
            raise UnreadableError("not a regular file")
        _check_size(status.st_size, limits)
        with path.open("rb") as file:
            # Not more, even if it grows while it is read.
            data = file.read(limits.file_bytes + 1)
        _check_size(len(data), limits)
        return data, datetime.fromtimestamp(status.st_mtime, UTC)
    except FileNotFoundError as error:
        raise UnreadableError("a link to nothing" if path.is_symlink() else "gone") from error
    except PermissionError as error:
        raise UnreadableError("no permission to read it") from error
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise UnreadableError(
            f"{size / 1_000_000:.0f} MB; the limit is {limits.file_bytes / 1_000_000:g} MB"
        )


def _read(name: str, data: bytes, known: Metadata, limits: Limits) -> Document:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a name, not a path)
    file = File(name, FORMATS.get(ending, "text"), data)
    try:
        document = _converted(file, ending, limits)
    except RecursionError as error:
        raise UnreadableError("nested too deeply") from error
    except MemoryError as error:
        memory = limits.memory_bytes / 1_000_000
        raise UnreadableError(f"reading it takes more than {memory:,.0f} MB of memory") from error
    if not document.content.strip():
        raise UnreadableError("empty")
    if len(document.content.encode(errors="replace")) > CONTENT_BYTES:
        raise too_much_text()
    said_so = (document.content, document.title, str(known["source"]), str(document.metadata))
    if any(map(_SURROGATE.search, said_so)):
        raise UnreadableError("it has characters that are no valid Unicode (lone surrogates)")
    metadata: Metadata = {
        **known,
        "name": name,
        "format": ending[1:] if ending in remote.ENDINGS else file.kind,
        "mime": _media_type(ending),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **document.metadata,
    }
    if "lang" not in metadata and (language := languages.detected(document.content)):
        metadata["lang"] = language
    return Document(document.content, one_line(document.title)[:TITLE_CHARACTERS], metadata)


def _media_type(ending: str) -> str:
    if ending in FORMATS:
        return KINDS[FORMATS[ending]].media_type
    return remote.ENDINGS.get(ending, "text/plain")


def _converted(file: File, ending: str, limits: Limits) -> Document:
    extractor = limits.extractor
    if extractor and (ending in remote.ENDINGS or ending in limits.extracted):
        return remote.read(file, extractor, limits.seconds)
    name = f"embedder.readers.{KINDS[file.kind].module}"
    try:
        reader = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"reading {ending} needs the package {error.name}: pip install 'ragdb[files]'"
        ) from error
    try:
        return cast("Document", reader.read(file))
    except TextMissingError:
        if not extractor:
            raise
        return remote.read(file, extractor, limits.seconds)
    except (UnreadableError, RecursionError, MemoryError):
        raise
    except Exception as error:
        # Whatever a library raises lies in the file; the message may be long and of many lines.
        reason = one_line(str(error))[:200]
        raise UnreadableError(f"broken: {type(error).__name__}: {reason}") from error
