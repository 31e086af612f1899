"""The lexical leg against an exhaustive BM25 that knows nothing of it but the lexemes."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from psycopg import Connection

K1, B = 1.2, 0.75
TOP = 50
QUERIES = 200


def lines(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines, gzipped or not."""
    text = (
        path.read_text("utf-8")
        if path.exists()
        else gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()
    )
    return [json.loads(line) for line in text.splitlines()]


class Reference:
    """Okapi BM25 over all chunks of the caller's tenant, by the formula and without an index."""

    def __init__(self, connection: Connection[Any], language: str) -> None:
        self.connection = connection
        self.language = language
        rows = connection.execute(
            "select c.chunk_id, x.lexemes"
            " from rag.chunks as c join rag.documents as d using (tenant_id, document_id)"
            " cross join lateral ("
            "     select jsonb_object_agg(u.lexeme, coalesce(cardinality(u.positions), 1))"
            "     as lexemes"
            "     from unnest(rag._lexemes(d.language, concat_ws(' ', d.title, c.content))) as u"
            " ) as x"
            " where c.tenant_id = rag._policy_tenant()"
        ).fetchall()
        chunks: dict[int, dict[str, int]] = {chunk: lexemes or {} for chunk, lexemes in rows}
        self.frequency = Counter(lexeme for lexemes in chunks.values() for lexeme in lexemes)
        self.size = len(chunks)
        lengths = {chunk: sum(lexemes.values()) for chunk, lexemes in chunks.items()}
        self.mean = sum(lengths.values()) / max(1, len(chunks))
        self.postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for chunk, lexemes in chunks.items():
            norm = K1 * (1 - B + B * lengths[chunk] / self.mean)
            for lexeme, count in lexemes.items():
                self.postings[lexeme].append((chunk, count * (K1 + 1) / (count + norm)))

    def scores(self, query: str) -> dict[int, float]:
        """The score of every chunk that has one."""
        terms = self.connection.execute(
            "select u.lexeme, coalesce(cardinality(u.positions), 0.35)"
            " from unnest(rag._lexemes(%s, %s)) as u",
            [self.language, query],
        ).fetchall()
        scores: dict[int, float] = defaultdict(float)
        for lexeme, count in terms:
            found = self.frequency[lexeme]
            idf = float(count) * math.log(1 + (self.size - found + 0.5) / (found + 0.5))
            for chunk, weight in self.postings[lexeme]:
                scores[chunk] += idf * weight
        return scores

    def check(self, query: str, top: int = TOP) -> None:
        """The leg's list is the best of all, score by score; ties may stand either way round."""
        scores = self.scores(query)
        best = sorted(scores.values(), reverse=True)[:top]
        found = self.connection.execute(
            "select l.chunk_id, l.score from rag._context() as c cross join lateral"
            " rag._lexical_leg(c.tenant_id, c.partition_id, %s, null, null, %s) as l",
            [query, top],
        ).fetchall()
        assert [score for _, score in found] == pytest.approx(best, rel=1e-3), query
        assert [scores[chunk] for chunk, _ in found] == pytest.approx(best, rel=1e-3), query
        assert len({chunk for chunk, _ in found}) == len(best)


def plain(query: str) -> str:
    """A query without the syntax of phrases and exclusions, which the formula does not know."""
    return query.replace('"', " ").replace("-", " ")


@pytest.mark.parametrize(("name", "language"), [("cranfield", "english"), ("xquad-es", "spanish")])
def test_the_best_50_are_those_of_an_exhaustive_search(
    connection: Connection[Any], shared_data: Path, name: str, language: str
) -> None:
    folder = shared_data / name
    connection.execute("select rag.create_collection('c', language => %s)", [language])
    documents = [
        {"uri": row["id"], "content": f"{row['title']} {row['text']}".strip() or "-"}
        for row in lines(folder / "corpus.jsonl")
    ]
    for start in range(0, len(documents), 500):
        connection.execute(
            "select from rag.put_many(%s, 'c', strategy => 'none')",
            [Jsonb(documents[start : start + 500])],
        )
    reference = Reference(connection, language)
    for row in lines(folder / "queries.jsonl")[:QUERIES]:
        reference.check(plain(row["text"]))


WORDS = [f"word{n}" for n in range(400)]


def text(source: random.Random) -> str:
    """Words with natural frequencies: the n-th is there 1 / n as often as the first."""
    weights = [1 / (n + 1) for n in range(len(WORDS))]
    return " ".join(source.choices(WORDS, weights, k=source.randint(3, 60)))


def write(database: str, seed: int) -> None:
    """Put, change and delete documents in a session of its own."""
    source = random.Random(seed)
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(60):
            uri = f"u{source.randrange(150)}"
            match source.randrange(5):
                case 0:
                    connection.execute("select rag.delete(%s)", [uri])
                case 1:
                    with connection.transaction(force_rollback=True):
                        connection.execute("select rag.put(%s, %s)", [text(source), uri])
                case 2:
                    documents = [
                        {"uri": f"u{n}", "content": text(source), "title": text(source)[:20]}
                        for n in source.sample(range(150), 20)
                    ]
                    connection.execute("select from rag.put_many(%s)", [Jsonb(documents)])
                case _:
                    connection.execute("select rag.put(%s, %s)", [text(source), uri])


def statistics(connection: Connection[Any]) -> dict[str, tuple[int, float, float]]:
    """Chunks, sum and sum of squares of the weights of each lexeme that is somewhere."""
    rows = connection.execute(
        "select lexeme, chunks, sum_weight, sum_square from rag.lexeme_statistics"
        " where tenant_id = rag._policy_tenant() and lexeme <> '' and chunks <> 0"
    ).fetchall()
    return {lexeme: (chunks, total, square) for lexeme, chunks, total, square in rows}


def test_statistics_are_right_after_many_hands_have_written(
    connection: Connection[Any], database: str
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [database] * 4, range(4)))
    reference = Reference(connection, "english")
    source = random.Random(11)
    for size in (1, 2, 4, 8, 60):
        for _ in range(8):
            reference.check(" ".join(source.choices(WORDS, k=size)))

    fold = "select rag._fold_statistics(c.tenant_id, c.partition_id, 0) from rag._context() as c"
    connection.execute(fold)
    deltas = "select count(*) from rag.lexeme_statistics where delta_id > 0"
    assert connection.execute(deltas).fetchone() == (0,)
    # All weights made anew: what was added must be taken away to the last bit of it.
    everything = (
        "select rag._index_chunks(c.tenant_id, c.partition_id, array("
        "select l.chunk_id from rag.lexemes as l)) from rag._context() as c"
    )
    connection.execute(everything)
    connection.execute(fold)
    folded = statistics(connection)
    assert {lexeme: row[0] for lexeme, row in folded.items()} == dict(reference.frequency)

    # Counted anew, from nothing.
    connection.execute("delete from rag.lexeme_statistics where lexeme <> ''")
    connection.execute(everything)
    connection.execute("delete from rag.lexeme_statistics where delta_id > 0 and chunks < 0")
    connection.execute(fold)
    recounted = statistics(connection)
    assert folded.keys() == recounted.keys()
    for lexeme, row in folded.items():
        assert row == pytest.approx(recounted[lexeme], rel=1e-4, abs=1e-3), lexeme


@pytest.fixture
def common(connection: Connection[Any]) -> Connection[Any]:
    """A tenant whose commonest words are in every chunk."""
    source = random.Random(5)
    documents = [
        {"uri": str(n), "content": "alpha beta gamma delta omega " + text(source)}
        for n in range(3000)
    ]
    for start in range(0, len(documents), 1000):
        connection.execute(
            "select from rag.put_many(%s, strategy => 'none')",
            [Jsonb(documents[start : start + 1000])],
        )
    return connection


def test_hard_queries_are_exact_and_end(common: Connection[Any]) -> None:
    reference = Reference(common, "english")
    common.execute("set statement_timeout = '20s'")
    for query in (
        "alpha",
        "alpha beta gamma delta omega",
        "alpha beta gamma delta omega word399",
        "word0 word1 word2 word3 word4",
        " ".join(WORDS[:20]),
        "alpha " * 500,
    ):
        reference.check(query)


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        "the",
        "?!",
        "-alpha",
        '"',
        '""',
        "'",
        "\\",
        "a" * 3000,
        "&|!()<->:*",
        "🙂",
        "x" * 10**5,
    ],
)
def test_odd_queries_find_nothing_and_raise_nothing(common: Connection[Any], query: str) -> None:
    assert common.execute("select from rag.search(%s)", [query]).fetchall() == []


def test_a_query_of_many_words_counts_its_rarest(common: Connection[Any]) -> None:
    common.execute("set statement_timeout = '20s'")
    query = " ".join(WORDS + ["alpha"] + [f"new{n}" for n in range(3000)])
    rows = common.execute("select score from rag.search(%s)", [query]).fetchall()
    assert len(rows) == 10
    excluded = " ".join(f'-"no{n} no{n}"' for n in range(2000))
    rows = common.execute("select uri from rag.search(%s)", [f"word300 {excluded}"]).fetchall()
    assert rows
