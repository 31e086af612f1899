"""What an embedder of the crash matrix runs with: a moment to die at, and a quick model or MiniLM.

Imported in the embedder's own process (tests/processes.py); it is the real program but for that.
To die at a point of its loop cannot be had from outside, and no real model refuses a text.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from embedder import models
from embedder.database import Session
from embedder.models import SentenceTransformerModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedder.config import Settings
    from embedder.models import EmbeddingModel, ModelRow

POISON: Final = "poison"
DIMENSIONS: Final = 64

Point = Literal["after claim", "embedding", "before write", "after write"]
POINTS: Final[tuple[Point, ...]] = ("after claim", "embedding", "before write", "after write")


class HashModel:
    """Unit vectors that are made of a text's hash: as quick as a model can be, and repeatable."""

    backend = "hash"
    max_tokens = 512
    batch_tokens = 4096
    batch_size = 8

    def __init__(self, name: str, dimensions: int, seconds: float = 0.0) -> None:
        self.name = name
        self.dimensions = dimensions
        self._seconds = seconds

    def check(self) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Nothing to let go of."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(text.split()) for text in texts]

    def vocabulary(self) -> list[str]:
        """None."""
        return []

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), dimensions). Raises ValueError for a poisonous text."""
        if any(POISON in text for text in texts):
            raise ValueError("no such text")
        time.sleep(self._seconds)
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for place, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            vectors[place] = np.random.default_rng(seed).standard_normal(self.dimensions)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """Shape (dimensions,)."""
        return self.encode_documents([text])[0]


@dataclass(frozen=True)
class Death:
    """Where an embedder kills itself, and the how manieth time it comes there; None: nowhere."""

    point: Point | None
    turn: int = 1


def prepare(death: Death, seconds: float | None) -> None:
    """Have this process die at a point of its loop.

    It embeds by HashModel, `seconds` a pass, or by the real model if that is None.
    """
    turns = 0

    def at(point: Point) -> None:
        nonlocal turns
        turns += point == death.point
        if point == death.point and turns == death.turn:
            os.kill(os.getpid(), signal.SIGKILL)

    class DyingHash(HashModel):
        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            at("embedding")
            return super().encode_documents(texts)

    class DyingReal(SentenceTransformerModel):
        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            at("embedding")
            if any(POISON in text for text in texts):
                raise ValueError("no such text")
            return super().encode_documents(texts)

    def load(
        _settings: Settings, row: ModelRow | None = None, *, measure: bool = False
    ) -> EmbeddingModel:
        del measure
        assert row is not None
        if seconds is None:
            # Loaded in the forkserver already.
            from tests.worker_process import MODEL

            return DyingReal(MODEL.name, MODEL.library_model)
        return DyingHash(row.name, row.dimensions, seconds)

    rows, value = Session.rows, Session.value

    def dying_rows(self: Session, query: str, parameters: Any, kind: type[Any]) -> list[Any]:
        found = rows(self, query, parameters, kind)
        if query == "claim_jobs" and found:
            at("after claim")
        return found

    def dying_value(self: Session, query: str, parameters: Any = None) -> Any:
        if query != "complete_jobs":
            return value(self, query, parameters)
        at("before write")
        stored = value(self, query, parameters)
        at("after write")
        return stored

    models.load = load
    Session.rows = dying_rows  # pyright: ignore[reportAttributeAccessIssue]
    Session.value = dying_value
