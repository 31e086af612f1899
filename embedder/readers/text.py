"""Plain text, as it is."""

from __future__ import annotations

from embedder.readers.document import Document, File


def read(file: File) -> Document:
    """The text; its title is the file's name."""
    return Document(file.text, file.stem)
