"""Latency of each kind of search by one client, beside what Postgres does without ragdb.

    python -m loadtests.search_latency --size 1000000 [--questions 200] [--recall 50] [--words 4]

Real questions, one after the other; each kind in turns for the same question, so that a busy
machine is busy for all of them. Baselines are ts_rank_cd over an OR of the same lexemes through the
same GIN index, and a bare scan of the same HNSW index. Recall@10 of the semantic leg, and of the
bare scan, is against comparing all vectors; overlap@10 is how many of an exhaustive hybrid search's
ten are found. Below the table stands what the first search of a new connection takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, LiteralString

import numpy as np
import psycopg
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from embedder.database import register_vector
from loadtests import bench_data, exhaustive
from loadtests.corpus import Question, shared

FILTERS: dict[str, dict[str, int] | None] = {
    "": None,
    ", filter of 10 %": {"tenth": 3},
    ", filter of 1 %": {"hundredth": 3},
    ", filter of 0.1 %": {"thousandth": 3},
}

TS_RANK_CD = "ts_rank_cd, k = 10"
BARE_HNSW = "bare HNSW, limit 100"
SEMANTIC = "semantic, k = 10"
HYBRID = "hybrid, k = 10"
TEXT_ONLY = "hybrid, text only"

RECONNECTS = 10


@dataclass(frozen=True)
class Place:
    """Where the benchmark's tenant is, and what his vectors are like."""

    tenant: int
    partition: int
    model: int
    dimensions: int

    @property
    def lexemes(self) -> sql.Identifier:
        """The table of his lexemes."""
        return sql.Identifier("rag_data", f"lexemes_p{self.partition}")

    @property
    def vectors(self) -> sql.Identifier:
        """The table of his embeddings."""
        return sql.Identifier("rag_data", f"embeddings_m{self.model}_p{self.partition}")

    @property
    def chunks(self) -> sql.Identifier:
        """The table of his chunks."""
        return sql.Identifier("rag_data", f"chunks_p{self.partition}")


@dataclass(frozen=True)
class Quality:
    """What is found of what exact searches find, by filter, and by the bare scan; 0 to 1."""

    recall: dict[str, float]
    overlap: dict[str, float]
    bare: float


@dataclass(frozen=True)
class Kind:
    """A kind of search: its name and its statement with %(query)s, %(lexemes)s, %(vector)s."""

    name: str
    statement: LiteralString | sql.Composed
    parameters: dict[str, Any]


def kinds(place: Place) -> list[Kind]:
    """All that is measured, the baseline first."""
    found = [
        Kind(
            TS_RANK_CD,
            sql.SQL(
                "select chunk_id from {} where lexemes @@ %(lexemes)s::tsquery "
                "order by ts_rank_cd(lexemes, %(lexemes)s::tsquery) desc limit 10"
            ).format(place.lexemes),
            {},
        ),
        Kind(
            BARE_HNSW,
            sql.SQL(
                "select chunk_id from {} order by embedding::halfvec({size}) "
                "<=> %(vector)s::halfvec({size}) limit 100"
            ).format(place.vectors, size=sql.Literal(place.dimensions)),
            {},
        ),
    ]
    found += [Kind(f"lexical, k = {k}", SEARCH, {"k": k, "mode": "lexical"}) for k in (10, 50)]
    found.append(Kind(SEMANTIC, SEARCH_VECTOR, {"k": 10, "mode": "semantic"}))
    for name, condition in FILTERS.items():
        parameters = {"k": 10, "mode": "hybrid", "filter": condition and Jsonb(condition)}
        found.append(Kind(f"{HYBRID}{name}", SEARCH_VECTOR, parameters))
    found.append(Kind(TEXT_ONLY, SEARCH, {"k": 10, "mode": "hybrid"}))
    return found


SEARCH: LiteralString = (
    "select chunk_id, content from rag.search(%(query)s, %(k)s, filter => %(filter)s, "
    "mode => %(mode)s)"
)
SEARCH_VECTOR: LiteralString = (
    "select chunk_id, content from rag.search(%(query)s, %(k)s, filter => %(filter)s, "
    "embedding => %(vector)s, mode => %(mode)s)"
)


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection as the benchmark's tenant that can send vectors."""
    connection = bench_data.connect(url)
    register_vector(connection)
    # Else a bare scan of the index ends after 40. rag.search has a setting of its own.
    connection.execute("set hnsw.ef_search = 100")
    return connection


def place(connection: psycopg.Connection[Any]) -> Place:
    """Where the tenant is."""
    row = connection.execute(
        "select t.tenant_id, t.partition_id, m.model_id, m.dimensions from rag.tenants as t "
        "cross join rag.models as m where t.name = %s and m.is_active",
        [bench_data.TENANT],
    ).fetchone()
    if row is None:
        raise SystemExit("the benchmark's data is not there: make bench-data")
    return Place(*row)


def measure(
    connection: psycopg.Connection[Any], found: list[Kind], questions: list[Question]
) -> dict[str, list[float]]:
    """Milliseconds by kind, one for each question."""
    times: dict[str, list[float]] = defaultdict(list)
    for number, question in enumerate(questions):
        lexemes = or_query(connection, question.text)
        if not lexemes:
            continue
        # Another one first each time, so that none finds the cache warmed by its predecessor.
        for kind in found[number % len(found) :] + found[: number % len(found)]:
            started = time.perf_counter()
            connection.execute(kind.statement, asked(kind, question, lexemes)).fetchall()
            times[kind.name].append((time.perf_counter() - started) * 1000)
    return times


def asked(kind: Kind, question: Question, lexemes: str) -> dict[str, Any]:
    """The parameters of a kind's statement; `lexemes` is the question's or_query."""
    return {
        "query": question.text,
        "lexemes": lexemes,
        "vector": Vector(question.vector),
        "filter": None,
        **kind.parameters,
    }


def shortened(question: Question, words: int) -> Question:
    """The question's longest words: a search as people type it into a box."""
    longest = sorted(question.text.split(), key=len, reverse=True)[:words]
    return Question(" ".join(longest), question.vector)


def or_query(connection: psycopg.Connection[Any], text: str) -> str:
    """What a recipe for Postgres makes of a question: any of its lexemes."""
    row = connection.execute(
        "select string_agg(rag._quote_lexeme(u.lexeme), ' | ') "
        "from unnest(rag._lexemes('english', %s)) as u",
        [text],
    ).fetchone()
    return row[0] if row and row[0] else ""


def recall(
    connection: psycopg.Connection[Any], where: Place, questions: list[Question]
) -> tuple[dict[str, float], float]:
    """Mean recall@10 of mode semantic by filter, and of the first ten of the bare scan."""
    hits: dict[str, list[float]] = defaultdict(list)
    bare_hits: list[float] = []
    [bare] = [kind for kind in kinds(where) if kind.name == BARE_HNSW]
    # + 0, so that no index is used.
    statement = sql.SQL(
        "select e.chunk_id from {} as e join {} as c using (chunk_id) "
        "where %(filter)s::jsonb is null or c.metadata @> %(filter)s::jsonb "
        "order by (e.embedding <=> %(vector)s::halfvec) + 0 limit 10"
    ).format(where.vectors, where.chunks)
    for question in questions:
        for name, condition in FILTERS.items():
            parameters = {
                "query": "",
                "k": 10,
                "mode": "semantic",
                "vector": Vector(question.vector),
                "filter": condition and Jsonb(condition),
            }
            got = {row[0] for row in connection.execute(SEARCH_VECTOR, parameters)}
            exact = connection.execute(statement, parameters)
            wanted = {row[0] for row in exact}
            hits[name].append(len(got & wanted) / max(1, len(wanted)))
            if condition is None:
                nearest = connection.execute(bare.statement, parameters).fetchmany(10)
                bare_hits.append(len(wanted.intersection(key for (key,) in nearest)) / 10)
    recalls = {name: float(np.mean(values)) for name, values in hits.items()}
    return recalls, float(np.mean(bare_hits or [np.nan]))


def overlap(
    connection: psycopg.Connection[Any], where: Place, questions: list[Question]
) -> dict[str, float]:
    """Mean overlap@10 of mode hybrid with an exhaustive one, by filter."""
    tables = {"vectors": where.vectors, "lexemes": where.lexemes, "chunks": where.chunks}
    hits: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        vector = Vector(question.vector)
        for name, condition in FILTERS.items():
            wanted = exhaustive.search(connection, tables, question.text, vector, condition, 10)
            parameters = {
                "query": question.text,
                "k": 10,
                "mode": "hybrid",
                "vector": vector,
                "filter": condition and Jsonb(condition),
            }
            got = {row[0] for row in connection.execute(SEARCH_VECTOR, parameters)}
            hits[name].append(len(got.intersection(wanted)) / max(1, len(wanted)))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def table(times: dict[str, list[float]], quality: Quality, title: str) -> Table:
    """Latency of each kind, as multiples of the baselines, and its quality."""
    shown = Table(title=title)
    for column in (
        "kind", "p50 ms", "p95 ms", "p99 ms", "ts_rank_cd, p50", "p95", "HNSW, p50", "recall@10",
        "overlap@10",
    ):  # fmt: skip
        shown.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    rank, bare = (np.percentile(times[name], [50, 95]) for name in (TS_RANK_CD, BARE_HNSW))
    recalls = {f"{HYBRID}{name}": value for name, value in quality.recall.items() if name}
    recalls[SEMANTIC] = quality.recall.get("", float("nan"))
    recalls[BARE_HNSW] = quality.bare
    overlaps = {f"{HYBRID}{name}": value for name, value in quality.overlap.items()}
    for name, values in times.items():
        p = np.percentile(values, [50, 95, 99])
        shown.add_row(
            name,
            *(f"{value:,.1f}" for value in p),
            f"{rank[0] / p[0]:.1f} x",
            f"{rank[1] / p[1]:.1f} x",
            f"{p[0] / bare[0]:.1f}",
            f"{recalls[name]:.3f}" if name in recalls and not np.isnan(recalls[name]) else "",
            f"{overlaps[name]:.3f}" if name in overlaps else "",
        )
    return shown


def run(url: str, questions: list[Question], judged: int) -> tuple[dict[str, list[float]], Quality]:
    """Milliseconds by kind, and the quality of the first `judged` questions' answers."""
    with connect(url) as connection:
        where = place(connection)
        # A first turn loads what is cached and plans what is planned once.
        measure(connection, kinds(where), questions[:20])
        times = measure(connection, kinds(where), questions)
        recalls, bare = recall(connection, where, questions[:judged])
        quality = Quality(recalls, overlap(connection, where, questions[:judged]), bare)
    return times, quality


def reconnected(url: str, questions: list[Question]) -> dict[str, float]:
    """Median milliseconds of the first search of a connection, by text only and with a vector.

    Connecting and setting the tenant are not counted; tables are in the server's memory.
    """
    with connect(url) as connection:
        found = {kind.name: kind for kind in kinds(place(connection))}
    times: dict[str, list[float]] = defaultdict(list)
    for question in islice(cycle(questions), RECONNECTS):
        for said, kind in (("text only", found[TEXT_ONLY]), ("with a vector", found[HYBRID])):
            with connect(url) as connection:
                started = time.perf_counter()
                connection.execute(kind.statement, asked(kind, question, "")).fetchall()
                times[said].append((time.perf_counter() - started) * 1000)
    return {said: statistics.median(values) for said, values in times.items()}


def first_searches(medians: dict[str, float]) -> str:
    """The line below the table."""
    said = ", ".join(f"{name} {milliseconds:,.1f} ms" for name, milliseconds in medians.items())
    return f"first search of a new connection, p50 of {RECONNECTS}: {said}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--recall", type=int, default=50, help="questions for quality; 0: none")
    parser.add_argument("--words", type=int, help="ask by so many words of each question only")
    arguments = parser.parse_args()
    url = bench_data.load(arguments.size)
    questions = shared().questions(arguments.questions)
    if arguments.words:
        questions = [shortened(question, arguments.words) for question in questions]
    times, quality = run(url, questions, arguments.recall)
    title = f"{arguments.size:,} chunks, {len(questions)} questions"
    Console(width=120).print(table(times, quality, title))
    print(first_searches(reconnected(url, questions)))


if __name__ == "__main__":
    main()
