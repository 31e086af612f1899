"""Extractors by HTTP, for scans and for what no reader here reads: Apache Tika, docling-serve.

RAGDB_EXTRACTOR names one, `tika+http://host:9998` or `docling+http://host:5001`. Their libraries
are imported when they are asked: most files never need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from embedder.readers.document import Document, File, Pages, one_line, said
from embedder.readers.errors import UnavailableError, UnreadableError

if TYPE_CHECKING:
    import httpx

_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument"
ENDINGS: Final = {
    ".bmp": "image/bmp",
    ".doc": "application/msword",
    ".docm": "application/vnd.ms-word.document.macroEnabled.12",
    ".epub": "application/epub+zip",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".odp": f"{_OPEN_DOCUMENT}.presentation",
    ".ods": f"{_OPEN_DOCUMENT}.spreadsheet",
    ".odt": f"{_OPEN_DOCUMENT}.text",
    ".png": "image/png",
    ".ppt": "application/vnd.ms-powerpoint",
    ".rtf": "application/rtf",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
    ".xls": "application/vnd.ms-excel",
}
"""What an extractor is asked for besides scanned PDFs, with its media type."""

_PAGE_BREAK: Final = "<!-- ragdb: page break -->"


def read(file: File, extractor: str, seconds: float) -> Document:
    """Let the extractor read a file. Raises UnreadableError with what it says."""
    import httpx

    kind, _, url = extractor.partition("+")
    url = url.rstrip("/")
    try:
        with httpx.Client(timeout=seconds, trust_env=False) as client:
            answer = _ask_tika(client, url, file) if kind == "tika" else _ask(client, url, file)
    except httpx.HTTPError as error:
        raise UnavailableError(f"{kind} does not answer: {type(error).__name__}") from error
    if answer.status_code >= 500 or answer.status_code == 429:
        raise UnavailableError(f"{kind} answers {answer.status_code}")
    if not answer.is_success:
        raise UnreadableError(f"{kind} answers {answer.status_code}: {one_line(answer.text)[:200]}")
    document = _of_tika(file, answer.text) if kind == "tika" else _of_docling(file, answer)
    if not document.content.strip():
        raise UnreadableError(f"{kind} found no text in it")
    return document


def _ask_tika(client: httpx.Client, url: str, file: File) -> httpx.Response:
    name = file.name.encode("ascii", "replace").decode()
    headers = {
        "Accept": "text/html",
        "Content-Disposition": f'attachment; filename="{name.replace(chr(34), "")}"',
    }
    return client.put(f"{url}/tika", content=file.data, headers=headers)


def _of_tika(file: File, page: str) -> Document:
    from embedder.readers.html import markdown, meta, parse

    soup = parse(page)
    title = soup.title.get_text() if soup.title else ""
    metadata = said(
        author=meta(soup, "dc:creator"), created=meta(soup, "dcterms:created").partition("T")[0]
    )
    parts = soup.find_all("div", class_="page")
    if not parts:
        content, heading = markdown(soup)
        return Document(content, one_line(title) or heading or file.stem, metadata)
    pages = Pages()
    for part in parts:
        pages.add(markdown(parse(str(part)))[0])
    return Document(pages.content, one_line(title) or file.stem, metadata | pages.metadata)


def _ask(client: httpx.Client, url: str, file: File) -> httpx.Response:
    return client.post(
        f"{url}/v1/convert/file",
        files={"files": (file.name, file.data)},
        data={"to_formats": "md", "md_page_break_placeholder": _PAGE_BREAK},
    )


def _of_docling(file: File, answer: httpx.Response) -> Document:
    try:
        said_so = cast("dict[str, Any]", answer.json())
        text = said_so["document"]["md_content"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError("docling answers something else than a document") from error
    if not isinstance(text, str) or not text.strip():
        errors = "; ".join(str(error) for error in cast("list[Any]", said_so.get("errors") or []))
        raise UnreadableError(f"docling found no text in it{errors and ': '}{errors[:200]}")
    pages = Pages()
    parts = text.replace("\0", "").replace("\r\n", "\n").split(_PAGE_BREAK)
    for part in parts:
        pages.add(part)
    first = next((line for line in text.split("\n") if line.startswith("# ")), "")
    # What has no pages comes in one part.
    metadata = pages.metadata if len(parts) > 1 else {}
    return Document(pages.content, one_line(first[2:]) or file.stem, metadata)
