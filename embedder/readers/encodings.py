"""The text of a file whose encoding nobody knows."""

from __future__ import annotations

import codecs
import re
from typing import Final

from charset_normalizer import from_bytes

from embedder.readers.errors import UnreadableError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED: Final = re.compile(
    rb"""<\?xml[^>]*?\bencoding=["']([\w.:-]+)|<meta[^>]*?\bcharset=["']?\s*([\w.:-]+)""",
    re.IGNORECASE,
)
# What files without a declaration are written in; with all codecs of Python in the race, short
# Western texts come out as Turkish, Baltic or EBCDIC.
_CANDIDATES: Final = (
    "cp1252", "cp1250", "cp1251", "cp1253", "koi8_r",
    "cp932", "euc_jp", "gb18030", "big5", "euc_kr",
)  # fmt: skip
_GUESS_BYTES: Final = 262_144
# No text has these (form feeds and escapes occur).
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode(data: bytes, kind: str = "text") -> str:
    """The text of a file: by its byte order mark, as UTF-8, as it declares, else by a guess.

    Valid UTF-8 wins over a declaration: text in another encoding that happens to be valid UTF-8
    does not occur, files that were converted and kept their old declaration do.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _strictly(data, encoding)
    if b"\0" in data:
        return _decode_wide(data)
    declared = _declared_encoding(data) if kind == "html" else None
    if declared is not None and declared.startswith(("iso2022", "hz")):
        return _strictly(data, declared)
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    if declared is not None and declared != "utf-8":
        return _strictly(data, declared)
    guess = from_bytes(data[:_GUESS_BYTES], cp_isolation=list(_CANDIDATES)).best()
    if guess is None:
        raise UnreadableError("its encoding is not recognised")
    return _strictly(data, guess.encoding)


def _declared_encoding(data: bytes) -> str | None:
    found = _DECLARED.search(data[:4096])
    if found is None:
        return None
    try:
        name = codecs.lookup((found[1] or found[2]).decode("ascii")).name
    except LookupError:
        return None
    # As browsers read it: who declares ISO-8859-1 often means the quotation marks of Windows.
    return "cp1252" if name in {"iso8859-1", "ascii"} else name


def _strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "cp1252":
            return data.decode("latin-1")
        raise UnreadableError(f"not valid {encoding.removesuffix('-sig')}") from error


def _decode_wide(data: bytes) -> str:
    """UTF-16 without a byte order mark: every other byte of mostly Western text is NUL."""
    sample = data[:_GUESS_BYTES]
    half = len(sample) // 2
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if half and sample[first::2].count(0) > half * 0.6 and 0 not in sample[1 - first :: 2]:
            text = _strictly(data, encoding)
            if not _CONTROL.search(text):
                return text
    raise UnreadableError("binary: it contains NUL bytes")
