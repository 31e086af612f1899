"""Settings of a collection: exact BM25 by whatever they are, also while they are being changed."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.test_bm25 import WORDS, statistics, text

if TYPE_CHECKING:
    from psycopg import Connection

PLACES = ("title", "heading", "enriched", "content")

# What stands where in each chunk, in lexemes, with how often; null: in second place only.
PARTS = """
select c.chunk_id, p.place, u.lexeme, cardinality(u.positions)
from rag.chunks as c
join rag.documents as d using (tenant_id, document_id)
join rag.collections as n on n.tenant_id = c.tenant_id and n.collection_id = c.collection_id
cross join lateral (
    values
    (0, d.title),
    (1, array_to_string(c.heading_path, ' ')),
    (2, concat_ws(
        ' ', c.metadata ->> 'author', c.metadata #>> '{tags,0}', c.metadata #>> '{tags,1}',
        replace(split_part(d.uri, '/', 2), '.', ' ')
    )),
    (3, c.content)
) as p (place, content)
cross join lateral unnest(rag._lexemes(d.language, coalesce(p.content, ''))) as u
where c.tenant_id = rag._policy_tenant() and (p.place <> 2 or n.enrich <> '{}')
"""


class Reference:
    """Okapi BM25 by the formula, over weighted places."""

    def __init__(
        self, connection: Connection[Any], k1: float, b: float, weights: tuple[float, ...]
    ) -> None:
        self.connection = connection
        chunks: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        second: set[tuple[int, str]] = set()
        for chunk, place, lexeme, count in connection.execute(PARTS):
            if count is None:
                second.add((chunk, lexeme))
            else:
                chunks[chunk][lexeme] += weights[place] * count
        for chunk, lexeme in second:
            chunks[chunk].setdefault(lexeme, 1)
        lengths = {chunk: sum(lexemes.values()) for chunk, lexemes in chunks.items()}
        mean = sum(lengths.values()) / len(lengths)
        self.size = len(chunks)
        self.frequency: Counter[str] = Counter()
        self.postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for chunk, lexemes in chunks.items():
            norm = k1 * (1 - b + b * lengths[chunk] / mean)
            for lexeme, count in lexemes.items():
                if count > 0:
                    self.frequency[lexeme] += 1
                    self.postings[lexeme].append((chunk, count * (k1 + 1) / (count + norm)))

    def check(self, query: str, top: int = 50) -> None:
        """The leg's list is the best of all, score by score."""
        scores: dict[int, float] = defaultdict(float)
        terms = self.connection.execute(
            "select u.lexeme, coalesce(cardinality(u.positions), 0.5)::float8"
            " from unnest(rag._lexemes('english', %s)) as u",
            [query],
        ).fetchall()
        for lexeme, count in terms:
            found = self.frequency[lexeme]
            idf = count * math.log(1 + (self.size - found + 0.5) / (found + 0.5))
            for chunk, weight in self.postings[lexeme]:
                scores[chunk] += idf * weight
        best = sorted(scores.values(), reverse=True)[:top]
        rows = self.connection.execute(
            "select l.chunk_id, l.score from rag._context() as c cross join lateral"
            " rag._lexical_leg(c.tenant_id, c.partition_id, %s, null, null, %s) as l",
            [query, top],
        ).fetchall()
        assert [score for _, score in rows] == pytest.approx(best, rel=1e-3), query
        assert [scores[chunk] for chunk, _ in rows] == pytest.approx(best, rel=1e-3), query


def document(source: random.Random, n: int) -> dict[str, Any]:
    """A document with words in its title, headings, metadata and uri."""
    return {
        "uri": f"folder/{source.choice(WORDS)}.{source.choice(WORDS)}?{n}",
        "title": text(source)[:30],
        "content": "".join(f"# {source.choice(WORDS)}\n\n{text(source)}\n\n" for _ in range(3)),
        "metadata": {
            "author": source.choice(WORDS),
            "tags": source.choices(WORDS, k=2),
            "secret": "hidden",
        },
    }


def put(connection: Connection[Any], source: random.Random, first: int, last: int) -> None:
    documents = [document(source, n) for n in range(first, last)]
    connection.execute(
        "select from rag.put_many(%s, chunk_size => 100, chunk_overlap => 0)", [Jsonb(documents)]
    )


def check(reference: Reference) -> None:
    """Queries of 1 to 40 words."""
    source = random.Random(3)
    for size in (1, 2, 4, 8, 40):
        for _ in range(5):
            reference.check(" ".join(source.choices(WORDS, k=size)))


def recounted(connection: Connection[Any]) -> None:
    """The statistics that were kept up to date are those of the weights that are stored."""
    connection.execute(
        "select rag._fold_statistics(c.tenant_id, c.partition_id, 0) from rag._context() as c"
    )
    rows = connection.execute(
        "select u.lexeme, count(*), sum(w.weight), sum(w.weight ^ 2) from rag.lexemes as l"
        " cross join lateral"
        " (select rag._weights_by_dimension(l.weights) as weights offset 0) as o"
        " cross join lateral unnest(l.lexemes) as u"
        " cross join lateral ("
        "     select (o.weights ->> rag._lexeme_dimension(u.lexeme)::text)::float8 as weight"
        " ) as w"
        " where w.weight is not null and l.tenant_id = rag._policy_tenant() group by u.lexeme"
    ).fetchall()
    counted = {lexeme: (chunks, total, square) for lexeme, chunks, total, square in rows}
    kept = statistics(connection)
    assert kept.keys() == counted.keys()
    for lexeme, row in kept.items():
        assert row == pytest.approx(counted[lexeme], rel=1e-4, abs=1e-3), lexeme


ALTER = (
    "select rag.alter_collection('default', k1 => 0.6, b => 0.3, title_weight => 3,"
    " heading_weight => 2, enrich => '{author,tags,$file_name}', enrich_weight => 1.5)"
)


def test_bm25_is_exact_by_every_setting(connection: Connection[Any]) -> None:
    put(connection, random.Random(1), 0, 150)
    check(Reference(connection, 1.2, 0.75, (1, 1, 1, 1)))
    assert connection.execute(ALTER).fetchone() == (0,)
    check(Reference(connection, 0.6, 0.3, (3, 2, 1.5, 1)))
    # What comes and goes afterwards is indexed by the same settings.
    put(connection, random.Random(2), 100, 200)
    connection.execute("select rag.delete(uri) from rag.documents where uri like '%7'")
    check(Reference(connection, 0.6, 0.3, (3, 2, 1.5, 1)))
    assert connection.execute(
        "select rag.alter_collection('default', k1 => 2.5, b => 1, title_weight => 0,"
        " heading_weight => 0, enrich => '{}')"
    ).fetchone() == (0,)
    check(Reference(connection, 2.5, 1, (0, 0, 1, 1)))
    recounted(connection)


def test_a_big_collection_is_indexed_in_batches(connection: Connection[Any], database: str) -> None:
    for start in range(0, 1000, 250):
        put(connection, random.Random(start), start, start + 250)
    row = connection.execute("select count(*) from rag.chunks").fetchone()
    assert row is not None
    chunks = row[0]
    assert chunks > 2000
    assert connection.execute(ALTER).fetchone() == (chunks,)

    def write() -> None:
        """Put and delete while others index."""
        source = random.Random(9)
        with psycopg.connect(database, autocommit=True) as session:
            for n in range(40):
                put(session, source, 2000 + n, 2002 + n)
                session.execute(
                    "select rag.delete(d.uri) from rag.documents as d"
                    " where d.document_id = (select min(x.document_id) + %s"
                    " from rag.documents as x)",
                    [17 * n],
                )

    def index() -> int:
        done = 0
        with psycopg.connect(database, autocommit=True) as session:
            while found := session.execute("select rag.reindex(batch => 300)").fetchone():
                if not found[0]:
                    return done
                done += found[0]
        raise AssertionError

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(write)
        indexers = [pool.submit(index) for _ in range(2)]
        writer.result()
        assert 0 < sum(indexer.result() for indexer in indexers) <= chunks
    assert connection.execute(
        "select count(*) from rag.lexemes as l join rag.collections as n"
        " using (tenant_id, collection_id) where l.index_version <> n.index_version"
    ).fetchone() == (0,)
    assert connection.execute(
        "select count(*) filter (where l.chunk_id is null),"
        " count(*) filter (where c.chunk_id is null)"
        " from rag.lexemes as l full join rag.chunks as c"
        " on c.tenant_id = l.tenant_id and c.chunk_id = l.chunk_id"
    ).fetchone() == (0, 0)
    check(Reference(connection, 0.6, 0.3, (3, 2, 1.5, 1)))
    recounted(connection)


def test_a_language_is_there_for_all(connection: Connection[Any]) -> None:
    connection.execute("select rag.set_tenant('default')")
    connection.execute("create text search configuration pg_temp.evil (copy = english)")
    connection.execute("create schema own")
    connection.execute("create text search configuration own.hidden (copy = english)")
    for name in ("pg_temp.evil", "evil", "own.hidden"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="unknown language"):
            connection.execute("select rag.put('foo', 'ts', language => %s)", [name])
    connection.execute("grant usage on schema own to public")
    connection.execute("select rag.put('foo', 'ts', language => 'own.hidden')")
    connection.execute("select rag.put('bars', 'english')")
    connection.execute("drop schema own cascade")
    # It takes its own words along, not the search.
    assert connection.execute("select uri from rag.search('bar')").fetchall() == [("english",)]


def test_a_search_is_whole_while_chunks_are_indexed(connection: Connection[Any]) -> None:
    for start in range(0, 1000, 250):
        put(connection, random.Random(start), start, start + 250)
    connection.execute("select rag.put('zebra', 'folder/first.txt')")
    count = "select count(*) from rag.search('word1 zebra', 1000, mode => 'lexical')"
    before = connection.execute(count).fetchone()
    connection.execute(ALTER)
    connection.execute("select rag.reindex(batch => 500)")
    assert connection.execute(
        "select count(distinct l.index_version) from rag.lexemes as l"
    ).fetchone() == (2,)
    after = connection.execute(count).fetchone()
    assert before is not None
    assert after is not None
    # By their metadata more may be found, by their text no fewer.
    assert after[0] >= before[0]
    assert connection.execute(
        "select uri from rag.search('zebra', 1, mode => 'lexical')"
    ).fetchone() == ("folder/first.txt",)


def test_a_language_that_was_dropped_is_told(connection: Connection[Any]) -> None:
    connection.execute("create text search configuration public.klingon (copy = english)")
    connection.execute("select rag.create_collection('k', language => 'klingon', enrich => '{n}')")
    connection.execute("select rag.put('Words', 'a', collection => 'k')")
    connection.execute("drop text search configuration public.klingon")
    for call in (
        "rag.put('Other words', 'b', collection => 'k')",
        "rag.put('Other words', 'a', collection => 'k')",
        "rag.patch_metadata('a', '{\"n\": 1}', collection => 'k')",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="klingon") as caught:
            connection.execute(f"select {call}".encode())
        assert "create it again" in str(caught.value.diag.message_hint)
    connection.execute("select rag.alter_collection('k', language => 'simple')")
    connection.execute("select rag.put('Other words', 'a', collection => 'k')")
    connection.execute("select rag.patch_metadata('a', '{\"n\": 1}', collection => 'k')")
