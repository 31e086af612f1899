"""The error for a file that is not read."""

from __future__ import annotations


class UnreadableError(Exception):
    """A file that is not ingested; str() is the reason in a few words."""


class UnavailableError(UnreadableError):
    """What may be read another time: an extractor is away, or the reader was killed."""


class TextMissingError(UnreadableError):
    """A file without a text layer, such as a scanned PDF: what OCR is for."""
