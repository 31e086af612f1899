"""How many candidates a scan of the HNSW index needs: recall@10 and processor time by ef_search.

    python -m loadtests.candidates --size 1000000 [--questions 500]

Recall is beside a scan with 1,000 candidates, which takes 20 ms where comparing a million vectors
takes a second: few questions tell nothing, because most are answered in full and one in a hundred
ends in a part of the graph from which there is no way on. Last come searches by meaning as they
are, without the question's text and with it, which lets the lexical leg tell where to look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, LiteralString

import numpy as np
import psycopg
from pgvector import Vector
from psycopg import sql
from rich.console import Console
from rich.table import Table

from loadtests import bench_data, search_latency
from loadtests.chunking import server_seconds
from loadtests.corpus import Question, shared

REFERENCE: Final = 1000
CANDIDATES: Final = (100, 200, 300, 400, 600)
K: Final = 10

SCAN: LiteralString = (
    "select chunk_id from (select e.chunk_id, e.embedding::halfvec({size}) <=> "
    "%(vector)s::halfvec({size}) as distance from {vectors} as e order by 2 limit %(rows)s) as s "
    "order by s.distance + 0, s.chunk_id limit 10"
)


def run(
    connection: psycopg.Connection[Any], questions: list[Question]
) -> dict[str, tuple[float, float, int]]:
    """By way: recall@10, ms of processor a question, and how many find less than half of the ten.

    The first way is the reference, whose recall is 1.
    """
    where = search_latency.place(connection)
    scan = sql.SQL(SCAN).format(size=sql.Literal(where.dimensions), vectors=where.vectors)

    def asked(found: LiteralString | sql.Composed, **parameters: object) -> list[set[int]]:
        return [
            {
                key
                for key, *_ in connection.execute(
                    found, {"vector": Vector(question.vector), "query": question.text} | parameters
                )
            }
            for question in questions
        ]

    def scanned(candidates: int) -> Callable[[], list[set[int]]]:
        def ask() -> list[set[int]]:
            connection.execute("select set_config('hnsw.ef_search', %s, false)", [str(candidates)])
            return asked(scan, rows=candidates)

        return ask

    def searched(**parameters: object) -> Callable[[], list[set[int]]]:
        return lambda: asked(
            search_latency.SEARCH_VECTOR, k=K, mode="semantic", filter=None, **parameters
        )

    ways = {f"{n} candidates": scanned(n) for n in (REFERENCE, *CANDIDATES)}
    ways |= {"rag.search, a vector alone": searched(query=""), "with the text": searched()}
    results: dict[str, tuple[float, float, int]] = {}
    wanted: list[set[int]] = []
    for way, ask in ways.items():
        worked = server_seconds(connection)
        found = ask()
        worked = server_seconds(connection) - worked
        wanted = wanted or found
        shares = [len(one & other) / K for one, other in zip(found, wanted, strict=True)]
        results[way] = (
            float(np.mean(shares)),
            1000 * worked / len(questions),
            sum(share < 0.5 for share in shares),
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=500)
    options = parser.parse_args()
    questions = shared().questions(options.questions)
    with search_latency.connect(bench_data.load(options.size)) as connection:
        results = run(connection, questions)
    shown = Table(title=f"{options.size:,} chunks, {len(questions)} questions")
    for column in ("way", "recall@10", "CPU ms", "find less than half"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for way, (recall, milliseconds, lost) in results.items():
        shown.add_row(way, f"{recall:.4f}", f"{milliseconds:.2f}", str(lost))
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
