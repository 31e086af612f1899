"""Peers that live in the program's own process: LanceDB, Chroma, hnswlib, bm25s."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.peers.peer import DEPTH, Passages, bytes_below


class Lance:
    """LanceDB: IVF_PQ refined by exact vectors, its own full text search, RRF."""

    def __init__(self, _: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ragdb-peer-"))

    def build(self, passages: Passages) -> None:
        """A table with both indexes."""
        # It warns at each search of columns that a later version will leave out.
        os.environ.setdefault("LANCEDB_LOG", "error")
        import lancedb  # pyright: ignore[reportMissingImports]
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        from lancedb.rerankers import RRFReranker  # pyright: ignore[reportMissingImports]

        size = passages.vectors.shape[1]
        table = pa.table(
            {
                "id": list(passages.ids),
                "text": list(passages.texts),
                "vector": pa.FixedSizeListArray.from_arrays(
                    pa.array(passages.vectors.ravel()), size
                ),
            }
        )
        self._table: Any = lancedb.connect(self._folder).create_table("passages", table)
        if len(passages.ids) >= 10_000:
            self._table.create_index(
                "cosine", vector_column_name="vector", index_type="IVF_HNSW_SQ"
            )
        self._table.create_fts_index("text", language=passages.language.capitalize())
        for index in self._table.list_indices():
            self._table.wait_for_index([index.name], timeout=timedelta(minutes=30))
        self._reranker = RRFReranker()

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """Query type hybrid."""
        found = (
            self._table.search(query_type="hybrid", vector_column_name="vector")
            .vector(vector)
            .text(text)
            .distance_type("cosine")
            .rerank(self._reranker)
            .limit(DEPTH)
            .select(["id"])
            .to_arrow()
        )
        return found["id"].to_pylist()[:k]

    def disk(self) -> int:
        """Of its folder."""
        return bytes_below(self._folder)

    def pids(self) -> list[int]:
        """It lives in this process."""
        return []

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)


class Chroma:
    """Chroma with a persistent client: dense only."""

    def __init__(self, _: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ragdb-peer-"))

    def build(self, passages: Passages) -> None:
        """One collection, filled in the largest lots it takes."""
        import chromadb  # pyright: ignore[reportMissingImports]

        client = chromadb.PersistentClient(
            str(self._folder), settings=chromadb.Settings(anonymized_telemetry=False)
        )
        self._collection = client.create_collection(
            "passages", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        lot = min(5_000, client.get_max_batch_size())
        for start in range(0, len(passages.ids), lot):
            part = slice(start, start + lot)
            self._collection.add(
                list(passages.ids[part]),
                embeddings=passages.vectors[part],
                documents=list(passages.texts[part]),
            )

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:  # noqa: ARG002
        """By the vector alone."""
        found = self._collection.query(
            query_embeddings=[vector], n_results=k, include=["documents"]
        )
        return found["ids"][0]

    def disk(self) -> int:
        """Of its folder."""
        return bytes_below(self._folder)

    def pids(self) -> list[int]:
        """It lives in this process."""
        return []

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)


class Hnswlib:
    """The graph alone, in memory: a limit of the craft for vectors."""

    def __init__(self, _: str) -> None:
        self._ids: list[str] = []

    def build(self, passages: Passages) -> None:
        """As pgvector's index is: m = 16, ef_construction = 64 are its defaults."""
        import hnswlib  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

        self._ids = list(passages.ids)
        self._index = hnswlib.Index("cosine", passages.vectors.shape[1])
        self._index.init_index(len(self._ids), M=16, ef_construction=128)
        self._index.add_items(passages.vectors, num_threads=2)
        self._index.set_ef(100)

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:  # noqa: ARG002
        """By the vector alone."""
        found, _ = self._index.knn_query(vector, min(k, len(self._ids)), num_threads=1)
        return [self._ids[n] for n in found[0]]

    def disk(self) -> int:
        """It is not on disk."""
        return 0

    def pids(self) -> list[int]:
        """It lives in this process."""
        return []

    def close(self) -> None:
        """Nothing is held but memory."""


class Bm25s:
    """Sparse matrices in memory: a limit of the craft for words."""

    def __init__(self, _: str) -> None:
        self._ids: list[str] = []

    def build(self, passages: Passages) -> None:
        """Its own tokenizer, with the Snowball stemmer where there is one."""
        import bm25s  # pyright: ignore[reportMissingImports]

        self._bm25s: Any = bm25s
        self._ids = list(passages.ids)
        self._stopwords = {"english": "en", "spanish": "es"}[passages.language]
        self._index = bm25s.BM25(k1=1.2, b=0.75)
        tokens = bm25s.tokenize(
            list(passages.texts), stopwords=self._stopwords, show_progress=False
        )
        self._index.index(tokens, show_progress=False)

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:  # noqa: ARG002
        """By the words alone."""
        tokens = self._bm25s.tokenize(text, stopwords=self._stopwords, show_progress=False)
        found, _ = self._index.retrieve(
            tokens, k=min(k, len(self._ids)), show_progress=False, n_threads=0
        )
        return [self._ids[n] for n in found[0]]

    def disk(self) -> int:
        """It is not on disk."""
        return 0

    def pids(self) -> list[int]:
        """It lives in this process."""
        return []

    def close(self) -> None:
        """Nothing is held but memory."""
