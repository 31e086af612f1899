"""Bulk measured: rates of put_many and of an import from a staging table, as the table grows.

    python -m loadtests.bulk [--documents 100000] [--batch 500]

Documents have one chunk of 60 to 150 words, of the corpus of the benchmarks. Each tenth of them is
a row: is the last one as fast as the first? Processor time of the session tells also where other
work makes the rates jump. A single put is timed in between.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from db.server import Server
from loadtests.chunking import server_seconds
from loadtests.corpus import BLOCK, Corpus
from loadtests.scratch import scratch_database

if TYPE_CHECKING:
    from collections.abc import Iterator

Connection = psycopg.Connection[tuple[Any, ...]]


def documents(corpus: Corpus, count: int) -> Iterator[dict[str, Any]]:
    """So many documents, as put_many takes them."""
    for number in range(0, count, BLOCK):
        for chunk in corpus.block(number // BLOCK)[: count - number]:
            yield {"content": chunk.content, "uri": chunk.uri, "metadata": chunk.metadata}


def put_many(connection: Connection, given: list[dict[str, Any]], batch: int) -> list[float]:
    """Put documents; the seconds of each call."""
    seconds: list[float] = []
    for first in range(0, len(given), batch):
        start = time.perf_counter()
        connection.execute("select rag.put_many(%s)", [Jsonb(given[first : first + batch])])
        seconds.append(time.perf_counter() - start)
    return seconds


def stage(connection: Connection, given: list[dict[str, Any]]) -> float:
    """COPY documents into the staging table; the seconds."""
    start = time.perf_counter()
    with connection.cursor().copy("copy incoming (content, uri, metadata) from stdin") as copy:
        for document in given:
            copy.write_row((document["content"], document["uri"], Jsonb(document["metadata"])))
    return time.perf_counter() - start


def single_puts(connection: Connection, number: int) -> float:
    """The median of some single puts, in milliseconds."""
    times: list[float] = []
    for n in range(20):
        start = time.perf_counter()
        connection.execute(
            "select rag.put(%s, %s)",
            [f"A single document, the {n}th of this time, of some words.", f"single/{number}/{n}"],
        )
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    arguments = parser.parse_args()
    tenth = max(1, arguments.documents // 10)
    server = Server()
    server.start()
    corpus = Corpus()
    for way in ("put_many", "import"):
        with (
            scratch_database(server.url(), "ragdb_bulk") as url,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            connection.execute(
                "create temporary table incoming"
                " (content text, uri text, title text, metadata jsonb, error text)"
            )
            print(f"\n| {way}: documents before | documents/s | processor, ms each "
                  "| slowest call, ms | one put, ms |")  # fmt: skip
            print("| ---: | ---: | ---: | ---: | ---: |")
            total = 0.0
            given = documents(corpus, arguments.documents)
            for done in range(0, arguments.documents, tenth):
                some = [document for document, _ in zip(given, range(tenth), strict=False)]
                worked = server_seconds(connection)
                if way == "put_many":
                    calls = put_many(connection, some, arguments.batch)
                else:
                    copied = stage(connection, some)
                    start = time.perf_counter()
                    connection.execute(
                        "call rag.import('incoming', batch => %s)", [arguments.batch]
                    )
                    calls = [time.perf_counter() - start]
                    calls[0] += copied
                worked = server_seconds(connection) - worked
                total += sum(calls)
                slowest = f"{1000 * max(calls):,.0f}" if way == "put_many" else ""
                print(f"| {done:,} | {len(some) / sum(calls):,.0f} "
                      f"| {1000 * worked / len(some):.2f} | {slowest} "
                      f"| {single_puts(connection, done):.1f} |", flush=True)  # fmt: skip
            print(f"\n{arguments.documents / total:,.0f} documents a second over all")


if __name__ == "__main__":
    main()
