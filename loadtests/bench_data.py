"""Load a corpus of any size through the product's own bulk path.

    python -m loadtests.bench_data --size 1000000

rag.put_many by two processes, then the worker's protocol (claim_jobs, complete_jobs) with the
corpus' vectors, so that what is loaded is what a user would have. Broken off, it goes on where it
was. Prints rates and sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import psycopg
from pgvector import Vector
from psycopg.types.json import Jsonb
from rich.console import Console

from embedder.database import register_vector
from loadtests import bench_server
from loadtests.corpus import BLOCK, Corpus

TENANT: Final = "bench"
PROCESSES: Final = 2


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

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(work, range(PROCESSES)))


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


def name(size: int) -> str:
    """The database of a corpus of that size."""
    return f"bench_{size}"


def load(size: int) -> str:
    """URL of the database with the whole corpus in it."""
    if size % BLOCK:
        raise SystemExit(f"the size is a multiple of {BLOCK}, not {size}")
    console = Console(stderr=True)
    url = bench_server.database(name(size))
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("select from rag.tenants where name = %s", [TENANT])
        if not known.rowcount:
            connection.execute("select rag.create_tenant(%s)", [TENANT])
    if is_complete(url, size):
        return url
    corpus = Corpus()
    started = time.monotonic()
    workers = [
        multiprocessing.Process(target=put, args=(url, corpus, i, size // BLOCK, PROCESSES))
        for i in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a loading process failed")
    console.print(f"put: {size / (time.monotonic() - started):,.0f} chunks/s")
    started = time.monotonic()
    embed(url, corpus, size)
    console.print(f"embeddings: {size / (time.monotonic() - started):,.0f} chunks/s")
    return url


def main() -> None:
    """Load what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    print(load(parser.parse_args().size))


if __name__ == "__main__":
    main()
