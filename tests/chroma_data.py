"""A real Chroma for tests: several collections, odd metadata, missing documents, two dimensions."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1000
WORDS = [
    "parcel", "refund", "order", "invoice", "customer", "delivery", "warehouse", "bolt", "anvil",
    "winter", "summer", "contract", "signature", "address", "payment", "bank", "return",
    "exchange", "warranty", "repair", "spare", "part", "colour", "weight",
]  # fmt: skip


def client(folder: Path) -> Any:
    """A client of chromadb on a folder."""
    chromadb: Any = importlib.import_module("chromadb")
    settings: Any = importlib.import_module("chromadb.config").Settings
    return chromadb.PersistentClient(str(folder), settings=settings(anonymized_telemetry=False))


def vectors(number: int, dimensions: int, seed: int, *, unit: bool = True) -> Any:
    """Vectors that lie in some clusters, as those of texts do."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, dimensions))
    made = centres[random.integers(0, 20, number)] + 0.7 * random.standard_normal(
        (number, dimensions)
    )
    if unit:
        made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)


def fill(folder: Path, records: int) -> None:
    """Four collections: manual (records, 384 dimensions), notes, small (8 dimensions), empty."""
    chroma = client(folder)
    random = np.random.default_rng(7)

    def text(n: int) -> str:
        return f"{n}: " + " ".join(random.choice(WORDS, 12))

    # By Chroma's own embedding function, which is the model of ragdb; measured by cosine.
    manual = chroma.create_collection("manual", configuration={"hnsw": {"space": "cosine"}})
    made = vectors(records, 384, seed=1)
    for start in range(0, records, BATCH):
        numbers = range(start, min(records, start + BATCH))
        manual.add(
            ids=[f"m-{n}" for n in numbers],
            embeddings=made[start : start + BATCH],
            documents=[text(n) for n in numbers],
            metadatas=[odd(n) for n in numbers],
        )
    # Squared distance, the default; some records have no document, one no metadata.
    notes = chroma.create_collection("notes")
    number = max(20, records // 10)
    notes.add(
        ids=[f"note {n}/ä\0" if n == 3 else f"note {n}" for n in range(number)],
        embeddings=vectors(number, 384, seed=2),
        documents=[("", " \n", None, "with\0NUL")[n % 40] if n % 40 < 4 else text(n)
                   for n in range(number)],
        metadatas=[None if n % 5 == 0 else odd(n) for n in range(number)],
    )  # fmt: skip
    # Of another model, with other dimensions, not normalised.
    small = chroma.create_collection("small", embedding_function=None)
    small.add(
        ids=[str(n) for n in range(50)],
        embeddings=vectors(50, 8, seed=3, unit=False),
        documents=[text(n) for n in range(50)],
    )
    chroma.create_collection("empty-one")


def odd(n: int) -> dict[str, Any]:
    """Metadata of every kind that Chroma takes."""
    kinds: tuple[dict[str, Any], ...] = (
        {"page": n, "ratio": n / 7, "whole": 1.0, "yes": True, "lang": "en"},
        {"big": 2**60 + n, "small": 1e-300, "negative": -n},
        {"ключ $x.'\"": "Größe 🦊", "empty": ""},
        {"tags": ["a", "b"], "numbers": [1, 2, 3], "nul": "a\0b"},
        {"page_starts": "no list", "root": "not ours", "sha256": "x"},
    )
    return kinds[n % len(kinds)]
