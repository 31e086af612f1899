"""ragdb: a tenant with a partition of his own, vectors handed in by the queue's protocol."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from psycopg.types.json import Jsonb

from embedder.database import register_vector
from loadtests.peers.peer import Passages

TENANT = "peer"


class Ragdb:
    """Hybrid search by rag.search, everything by default."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._local = threading.local()

    def build(self, passages: Passages) -> None:
        """As an application would: put_many, then claim and complete."""
        with self._connect() as connection:
            connection.execute("select rag.create_tenant(%s)", [TENANT])
            connection.execute("select rag.set_tenant(%s)", [TENANT])
            connection.execute(
                "select rag.create_collection('c', 'none', language => %s)", [passages.language]
            )
            documents = [
                {"uri": uri, "content": text or "-"}
                for uri, text in zip(passages.ids, passages.texts, strict=True)
            ]
            for start in range(0, len(documents), 1000):
                connection.execute(
                    "select from rag.put_many(%s, 'c')", [Jsonb(documents[start : start + 1000])]
                )
            numbers = {text or "-": n for n, text in enumerate(passages.texts)}
            while rows := connection.execute(
                "select c.job_id, c.lease_token, c.content from rag.claim_jobs('peers', 1000) as c"
            ).fetchall():
                found = passages.vectors[[numbers[content] for _, _, content in rows]]
                connection.execute(
                    "select rag.complete_jobs(%s, %s::bigint[], %b)",
                    [rows[0][1], [job for job, _, _ in rows], [Vector(v) for v in found]],
                )
            # As cron would: from 10,000 passages on, a partition of its own, and posting lists.
            connection.execute("call rag.maintain()")
            connection.execute("vacuum analyze")

    def search(self, text: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """Text and vector, in one statement."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connect()
            self._local.connection.execute("select rag.set_tenant(%s)", [TENANT])
        rows = self._local.connection.execute(
            "select s.uri from rag.search(%s, %s, embedding => %s) as s", [text, k, Vector(vector)]
        )
        return [row[0] for row in rows]

    def disk(self) -> int:
        """Of all tables and indexes."""
        with self._connect() as connection:
            [(size,)] = connection.execute(
                "select sum(pg_total_relation_size(c.oid))::bigint from pg_class as c "
                "where c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace) "
                "and c.relkind = 'r'"
            ).fetchall()
        return size

    def pids(self) -> list[int]:
        """The session of this thread."""
        return [self._local.connection.info.backend_pid]

    def close(self) -> None:
        """The database is the caller's."""

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True)
        register_vector(connection)
        return connection
