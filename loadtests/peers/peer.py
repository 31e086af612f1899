"""What a peer has to be able to do to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DEPTH = 50
"""How many each leg brings before two lists are made one, where a peer lets one say so."""


@dataclass(frozen=True)
class Passages:
    """Texts with their ids and unit vectors, shape (passages, dimensions)."""

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: NDArray[np.float32]
    language: str = "english"


class Peer(Protocol):
    """A store of passages. One object holds one set of them, and may be searched by two threads."""

    def build(self, passages: Passages) -> None:
        """Load the passages and make all indexes."""
        ...

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """Ids of the best k, best first."""
        ...

    def disk(self) -> int:
        """Bytes on disk; 0 for what lives in memory only."""
        ...

    def close(self) -> None:
        """Give back what is held, and delete it."""
        ...


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
