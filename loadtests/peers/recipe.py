"""What the documentation of Postgres and pgvector suggests, in one table."""

from __future__ import annotations

import threading
from typing import Any, LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from loadtests.peers.peer import DEPTH, Passages

# websearch_to_tsquery asks for all words: a question finds a passage that has every one of them.
HYBRID: LiteralString = """
create or replace function hybrid(query text, query_embedding vector, k int)
    returns table (id text)
    language sql
    stable
as $$
with
fulltext as (
    select p.id, row_number() over (order by ts_rank_cd(p.words, q) desc) as place
    from passages as p
    cross join websearch_to_tsquery({language}, query) as q
    where p.words @@ q
    order by place
    limit {depth}
),
semantic as (
    select p.id, row_number() over (order by p.embedding <=> query_embedding) as place
    from passages as p
    order by p.embedding <=> query_embedding
    limit {depth}
)
select coalesce(f.id, s.id)
from fulltext as f
full join semantic as s on s.id = f.id
order by coalesce(1.0 / (60 + f.place), 0) + coalesce(1.0 / (60 + s.place), 0) desc
limit k
$$
"""


class Recipe:
    """websearch_to_tsquery, ts_rank_cd, HNSW and RRF in one SQL function."""

    statement: LiteralString = "select h.id from hybrid(%(text)s, %(vector)s, %(k)s) as h"

    def __init__(self, url: str) -> None:
        self._url = url
        self._local = threading.local()

    def build(self, passages: Passages) -> None:
        """COPY, then the indexes."""
        with self._connect() as connection:
            language = sql.Literal(passages.language)
            connection.execute(
                sql.SQL(
                    "create table passages (id text primary key, content text not null, "
                    "embedding vector({}) not null, words tsvector "
                    "generated always as (to_tsvector({}, content)) stored)"
                ).format(sql.Literal(passages.vectors.shape[1]), language)
            )
            with connection.cursor().copy(
                "copy passages (id, content, embedding) from stdin (format binary)"
            ) as copy:
                copy.set_types(["text", "text", "vector"])
                rows = zip(passages.ids, passages.texts, passages.vectors, strict=True)
                for key, text, vector in rows:
                    copy.write_row((key, text, Vector(vector)))
            connection.execute("create index on passages using gin (words)")
            connection.execute("create index on passages using hnsw (embedding vector_cosine_ops)")
            connection.execute(sql.SQL(HYBRID).format(language=language, depth=sql.Literal(DEPTH)))
            connection.execute("vacuum analyze passages")

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """One statement."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connect()
            self._local.connection.execute("set hnsw.ef_search = 100")
        rows = self._local.connection.execute(
            self.statement, {"text": text, "vector": Vector(vector), "k": k}
        )
        return [row[0] for row in rows]

    def disk(self) -> int:
        """Table and indexes."""
        with self._connect() as connection:
            [(size,)] = connection.execute("select pg_total_relation_size('passages')").fetchall()
        return size

    def pids(self) -> list[int]:
        """The session of this thread."""
        return [self._local.connection.info.backend_pid]

    def close(self) -> None:
        """The database is the caller's."""

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True)
        connection.execute("create extension if not exists vector")
        register_vector(connection)
        return connection


class BarePgvector(Recipe):
    """The same table by its HNSW index alone: no words."""

    statement: LiteralString = (
        "select p.id from passages as p order by p.embedding <=> %(vector)s limit %(k)s"
    )
