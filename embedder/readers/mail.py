"""E-mail (RFC 5322): who wrote what to whom and when, and its text; attachments by their names."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import cast

from embedder.readers.document import Document, File, one_line, said, unmarked
from embedder.readers.encodings import decode
from embedder.readers.html import markdown, parse

_HEADERS = ("From", "To", "Cc", "Date")


def read(file: File) -> Document:
    """The subject as title and heading, the headers as a list, and the plain text or the HTML."""
    message = message_from_bytes(file.data, policy=policy.default)
    headers = {name: _header(message, name) for name in ("Subject", *_HEADERS)}
    title = headers["Subject"] or file.stem
    body = cast("EmailMessage | None", message.get_body(("plain", "html")))
    lines = [f"- {name}: {headers[name]}" for name in _HEADERS if headers[name]]
    names = [one_line(part.get_filename() or "") for part in message.iter_attachments()]
    if any(names):
        lines.append(f"- Attachments: {', '.join(filter(None, names))}")
    text = _body(body) if body is not None else ""
    content = "\n".join([f"# {title}", "", *lines, "", text.strip("\n"), ""])
    if not text.strip() and not lines:
        content = ""
    return Document(
        content.replace("\0", ""),
        title,
        said(author=headers["From"], created=_date(headers["Date"])),
    )


def _header(message: EmailMessage, name: str) -> str:
    try:
        return one_line(str(message.get(name, "")))
    except (ValueError, IndexError, AttributeError, TypeError):
        # The header parser of the standard library stumbles over what is not to the standard.
        return ""


def _date(value: str) -> object:
    try:
        return parsedate_to_datetime(value)
    except ValueError:
        return None


def _body(part: EmailMessage) -> str:
    data = part.get_payload(decode=True)
    raw = data if isinstance(data, bytes) else b""
    charset = part.get_content_charset()
    try:
        text = raw.decode(charset or "utf-8")
    except (LookupError, UnicodeDecodeError):
        text = decode(raw)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if part.get_content_type() == "text/html":
        return markdown(parse(text))[0]
    return unmarked(text)
