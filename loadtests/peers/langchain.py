"""langchain-postgres: PGVectorStore with its hybrid search."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import numpy as np
import psycopg
from langchain_core.embeddings import (  # pyright: ignore[reportMissingImports]
    Embeddings,
)
from langchain_postgres import (  # pyright: ignore[reportMissingImports]
    PGEngine,
    PGVectorStore,
)
from langchain_postgres.v2.hybrid_search_config import (  # pyright: ignore[reportMissingImports]
    HybridSearchConfig,
    reciprocal_rank_fusion,
)
from langchain_postgres.v2.indexes import (  # pyright: ignore[reportMissingImports]
    HNSWIndex,
)
from numpy.typing import NDArray

from loadtests.peers.peer import DEPTH, Passages


class _Given(Embeddings):
    """Knows the vector of the question that is asked next."""

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.vectors[text]


class Langchain:
    """Dense by HNSW, words by websearch-like tsquery and ts_rank_cd, RRF in Python."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        host = query.get("host", [parts.hostname or "localhost"])[0]
        port = query.get("port", [str(parts.port or 5432)])[0]
        user = parts.username or "postgres"
        self._given = _Given()
        self._engine = PGEngine.from_connection_string(
            f"postgresql+psycopg://{user}@{parts.path}?host={host}&port={port}"
        )

    def build(self, passages: Passages) -> None:
        """By its own bulk path, in lots of 1,000."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("create extension if not exists vector")
        config = HybridSearchConfig(
            tsv_column="words",
            tsv_lang=f"pg_catalog.{passages.language}",
            fusion_function=reciprocal_rank_fusion,
            primary_top_k=DEPTH,
            secondary_top_k=DEPTH,
        )
        self._engine.init_vectorstore_table(
            "passages", passages.vectors.shape[1], id_column="key",
            metadata_columns=[{"name": "source", "data_type": "text", "nullable": True}],
            hybrid_search_config=config,
        )  # fmt: skip
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("alter table passages alter column key type text")
        self._store = PGVectorStore.create_sync(
            self._engine, self._given, "passages", id_column="key",
            metadata_columns=["source"], hybrid_search_config=config,
        )  # fmt: skip
        for start in range(0, len(passages.ids), 1000):
            part = slice(start, start + 1000)
            self._store.add_embeddings(
                list(passages.texts[part]),
                passages.vectors[part].tolist(),
                [{"source": key} for key in passages.ids[part]],
                list(passages.ids[part]),
            )
        self._store.apply_vector_index(HNSWIndex())
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("create index on passages using gin (words)")
            connection.execute("vacuum analyze passages")

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """Hybrid, as configured."""
        self._given.vectors[text] = vector.tolist()
        return [found.metadata["source"] for found in self._store.similarity_search(text, k)]

    def disk(self) -> int:
        """Table and indexes."""
        with psycopg.connect(self._url) as connection:
            [(size,)] = connection.execute("select pg_total_relation_size('passages')").fetchall()
        return size

    def pids(self) -> list[int]:
        """The sessions of its pool."""
        with psycopg.connect(self._url) as connection:
            rows = connection.execute(
                "select a.pid from pg_stat_activity as a where a.datname = current_database() "
                "and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'"
            )
            return [pid for (pid,) in rows]

    def close(self) -> None:
        """The process ends with the pool; the database is the caller's."""
