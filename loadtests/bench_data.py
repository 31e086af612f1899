"""Load a corpus of any size through the product's own bulk path.

    python -m loadtests.bench_data --size 1000000

rag.put_many by two sessions, then the worker's protocol (claim_jobs, complete_jobs) with the
corpus' vectors, so that what is loaded is what a user would have, then a partition of its own with
an HNSW index, word vectors, and maintenance. Broken off, it goes on where it was. Prints rates and
sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import psycopg
from pgvector import Vector
from psycopg.types.json import Jsonb
from rich.console import Console

from embedder.database import register_vector
from loadtests import bench_server, corpus_words, storage
from loadtests.corpus import BLOCK, PER_FOLDER, Corpus, shared

TENANT: Final = "bench"
SESSIONS: Final = 2


def connect(url: str) -> psycopg.Connection[Any]:
    """An autocommit connection as the benchmark's tenant."""
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("select rag.set_tenant(%s)", [TENANT])
    return connection


def put(url: str, corpus: Corpus, first: int, last: int, step: int) -> None:
    """Put the blocks first, first + step, … before last that are not there."""
    with connect(url) as connection:
        for block in range(first, last, step):
            chunks = corpus.block(block)
            known = connection.execute(
                "select 1 from rag.documents as d join rag.tenants as t using (tenant_id) "
                "where t.name = %s and d.uri = %s",
                [TENANT, chunks[-1].uri],
            )
            if known.fetchone():
                continue
            connection.execute(
                "select from rag.put_many(%s, 'default', strategy => 'none')",
                [
                    Jsonb(
                        [
                            {"uri": c.uri, "content": c.content, "metadata": c.metadata}
                            for c in chunks
                        ]
                    )
                ],
            )


def embed(url: str, corpus: Corpus, size: int) -> None:
    """Finish jobs with the corpus' vectors until none is left."""
    vectors = np.empty((size, corpus.sentence_vectors.shape[1]), dtype=np.float16)
    numbers: dict[bytes, int] = {}
    for block in range(size // BLOCK):
        chunks = corpus.block(block)
        vectors[block * BLOCK : (block + 1) * BLOCK] = corpus.vectors(chunks, block)
        numbers |= {_key(c.content): c.number for c in chunks}

    def work(worker: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            register_vector(connection)
            while rows := connection.execute(
                "select c.job_id, c.lease_token, c.content from rag.claim_jobs(%s, 1000) as c",
                [f"bench-{worker}"],
            ).fetchall():
                found = vectors[[numbers[_key(content)] for _, _, content in rows]]
                connection.execute(
                    "select rag.complete_jobs(%s, %s::bigint[], %b)",
                    [
                        rows[0][1],
                        [job for job, _, _ in rows],
                        [Vector(v) for v in found.astype(np.float32)],
                    ],
                )

    with ThreadPoolExecutor(SESSIONS) as pool:
        list(pool.map(work, range(SESSIONS)))


def _key(content: str) -> bytes:
    return hashlib.md5(content.encode(), usedforsecurity=False).digest()[:8]


def is_complete(url: str, size: int) -> bool:
    """Whether nothing of the corpus is left to put or to embed."""
    with connect(url) as connection:
        [(documents, jobs)] = connection.execute(
            "select (select count(*) from rag.documents as d where d.tenant_id = t.tenant_id), "
            "(select count(*) from rag.jobs as j where j.tenant_id = t.tenant_id) "
            "from rag.tenants as t where t.name = %s",
            [TENANT],
        ).fetchall()
    return documents == size and jobs == 0


def name(size: int, per_folder: int = PER_FOLDER) -> str:
    """The database of a corpus of that size, made of so many sentences of each folder."""
    return f"bench_{size}" if per_folder == PER_FOLDER else f"bench_{size}_of_{per_folder}"


def load(size: int, per_folder: int = PER_FOLDER, *, fresh: bool = False) -> str:
    """URL of the database with the whole corpus in it; with `fresh` it is made anew."""
    if size % BLOCK:
        raise SystemExit(f"the size is a multiple of {BLOCK}, not {size}")
    console = Console(stderr=True)
    url = bench_server.database(name(size, per_folder), fresh=fresh)
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("select from rag.tenants where name = %s", [TENANT])
        if not known.rowcount:
            connection.execute("select rag.create_tenant(%s)", [TENANT])
        is_new = not connection.execute("select from rag.documents limit 1").rowcount
    if not is_complete(url, size):
        corpus = shared(per_folder)
        loaded = storage.Loaded(size)
        started = time.monotonic()
        with ThreadPoolExecutor(SESSIONS) as pool:
            first = range(SESSIONS)
            list(pool.map(lambda n: put(url, corpus, n, size // BLOCK, SESSIONS), first))
        loaded.put = time.monotonic() - started
        console.print(f"put: {size / loaded.put:,.0f} chunks/s")
        started = time.monotonic()
        embed(url, corpus, size)
        loaded.embed = time.monotonic() - started
        console.print(f"embeddings: {size / loaded.embed:,.0f} chunks/s")
        storage.isolate(url, TENANT, loaded)
        console.print(f"a partition with its indexes: {loaded.isolate:,.0f} s")
        # What was broken off and goes on tells nothing.
        if is_new:
            storage.keep(url, loaded)
    with connect(url) as connection:
        # What an earlier run has left in a shared partition.
        storage.watch_memory(connection)
        connection.execute("call rag.isolate_tenant(%s)", [TENANT])
        corpus_words.give(connection, per_folder)
    with psycopg.connect(url, autocommit=True) as connection:
        # As cron leaves it: straight after loading the statistics of words cost each search twice.
        # However small a corpus is, it stays in its own partition.
        connection.execute("call rag.maintain(demote_at => 0)")
    return url


def main() -> None:
    """Load what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    size = parser.parse_args().size
    url = load(size)
    Console(stderr=True).print(storage.table(url, TENANT, size))
    print(url)


if __name__ == "__main__":
    main()
