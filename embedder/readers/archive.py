"""Office files are ZIP archives: what is looked at before one is opened."""

from __future__ import annotations

import io
import zipfile

from embedder.readers.errors import UnreadableError

# What a document of many megabytes has at most; zipfile reads no more of an entry than it declares.
UNPACKED_BYTES = 400_000_000
ENTRIES = 20_000

# Compound files of Windows: what office programs write when a password is asked for.
_COMPOUND = bytes.fromhex("d0cf11e0a1b11ae1")


def opened(data: bytes) -> io.BytesIO:
    """The bytes as a file, once the archive is found to be sane. Raises UnreadableError."""
    if data.startswith(_COMPOUND):
        raise UnreadableError("encrypted, or of an office program before 2007")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise UnreadableError("broken: no valid ZIP archive") from error
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > ENTRIES or unpacked > UNPACKED_BYTES:
        raise UnreadableError(
            f"a ZIP archive that unpacks to {unpacked / 1_000_000:,.0f} MB in {len(entries):,} "
            f"files; the limit is {UNPACKED_BYTES // 1_000_000} MB"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise UnreadableError("encrypted")
    return io.BytesIO(data)
