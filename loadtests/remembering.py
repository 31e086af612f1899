"""A model that remembers what it has embedded: a measurement repeated takes a minute."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedder.models import EmbeddingModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RememberingModel:
    """The given model, with the vectors of each text kept in a file of SQLite.

    Vectors stay float32, so a second run stores what the first one stored. Used from one thread at
    a time, like any model, but not always from the same.
    """

    def __init__(self, model: EmbeddingModel, folder: Path) -> None:
        self.name = model.name
        self.dimensions = model.dimensions
        self.backend = model.backend
        self.max_tokens = model.max_tokens
        self.batch_tokens = model.batch_tokens
        self.batch_size = model.batch_size
        self._model = model
        folder.mkdir(parents=True, exist_ok=True)
        # Names of the hub have slashes in them.
        path = folder / f"{model.name.replace('/', '--')}.sqlite"
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # What a crash loses here is embedded again.
        self._file.execute("pragma synchronous = off")
        self._file.execute(
            "create table if not exists vectors (text blob primary key, vector blob not null)"
        )

    def check(self) -> None:
        """Does the model work?"""
        self._model.check()

    def close(self) -> None:
        """Close the file, and the model."""
        self._file.close()
        self._model.close()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut off."""
        return self._model.count_tokens(texts)

    def vocabulary(self) -> list[str]:
        """What the model's tokenizer knows."""
        return self._model.vocabulary()

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts, shape (len(texts), dimensions)."""
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        found = [self._recalled(key) for key in keys]
        missing = [n for n, vector in enumerate(found) if vector is None]
        if missing:
            made = self._model.encode_documents([texts[n] for n in missing])
            self._file.execute("begin")
            self._file.executemany(
                "insert or replace into vectors values (?, ?)",
                [(keys[n], vector.tobytes()) for n, vector in zip(missing, made, strict=True)],
            )
            self._file.execute("commit")
            for n, vector in zip(missing, made, strict=True):
                found[n] = vector
        vectors = [vector for vector in found if vector is not None]
        return np.stack(vectors) if vectors else np.empty((0, self.dimensions), dtype=np.float32)

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """Unit vector of a question, shape (dimensions,)."""
        return self.encode_documents([text])[0]

    def _recalled(self, key: bytes) -> NDArray[np.float32] | None:
        row = self._file.execute("select vector from vectors where text = ?", [key]).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype=np.float32)
