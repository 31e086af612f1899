"""What a peer has to be able to do to be measured."""

from __future__ import annotations

import time
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

    def pids(self) -> list[int]:
        """A server's processes that answer the searches; none for what lives in this process."""
        ...

    def close(self) -> None:
        """Give back what is held, and delete it."""
        ...


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory(pids: Sequence[int]) -> int:
    """Bytes of a server's sessions on this machine: what each has, and what most of them share."""
    found = [
        dict(line.split(":", 1) for line in text.splitlines()) for text in _facts(pids, "status")
    ]
    own = [int(one["RssAnon"].split()[0]) * 1024 for one in found]
    # Huge pages are counted on their own.
    shared = [
        sum(int(one[name].split()[0]) * 1024 for name in ("RssShmem", "HugetlbPages"))
        for one in found
    ]
    return sum(own) + max(shared, default=0)


def processor_seconds(pids: Sequence[int]) -> float:
    """Seconds of processor that this process and a server's sessions have used."""
    server = sum(int(text.split()[0]) for text in _facts(pids, "schedstat"))
    return time.process_time() + server / 1e9


def _facts(pids: Sequence[int], name: str) -> list[str]:
    paths = [Path("/proc") / str(pid) / name for pid in pids]
    return [path.read_text() for path in paths if path.exists()]
