"""Posting lists: exact while others write, and made, completed and dropped by maintenance."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.test_bm25 import TOP, Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

    from tests.conftest import Databases

WORDS = [f"word{n}" for n in range(300)]
CHUNKS = 24_000
"""Two blocks of the size that they have here; more would only take longer."""

BLOCK = """
create or replace function rag._posting_block_size()
    returns int
    language sql
    immutable
    parallel safe
return 16000
"""

# Whatever would be faster: so that every question is answered by them, or none.
CHOICE = """
create or replace function rag._is_for_posting_lists(
    counts double precision[], bounds double precision[], threshold double precision, blocks int,
    changes bigint, wanted double precision
)
    returns boolean
    language sql
    immutable
return {}
"""

SEARCH = """
select s.chunk_id, s.score from rag.search(%s, 20, mode => 'lexical', {}) as s
"""

CHANGES = """
select coalesce(sum(cardinality(p.chunk_ids)), 0) from rag.postings as p where p.dimension = 0
"""

NEXT = """
with next as (
    select rag._postings_step(t.tenant_id) as result from rag.tenants as t where t.name = 'big'
)
select n.result from next as n
"""


def text(source: random.Random) -> str:
    """Some of the words, the n-th 1 / n as often as the first, so that the first are common."""
    weights = [1 / (n + 1) for n in range(len(WORDS))]
    return " ".join(source.choices(WORDS, weights, k=source.randint(2, 12)))


def metadata(n: int) -> dict[str, Any]:
    """What filters ask for; some chunks have too many keys for facets of their own."""
    many = {f"key{key}": key for key in range(1100)} if n % 8000 == 777 else {}
    tags = ["even", "divisible"] if n % 6 == 0 else ["even"] if n % 2 == 0 else []
    return {"tenth": n % 10, "half": n % 2, "tags": tags} | many


def write(url: str, seed: int) -> None:
    """Put, change and delete documents in a session of its own."""
    source = random.Random(seed)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select rag.set_tenant('big')")
        for _ in range(60):
            uri = str(source.randrange(400))
            match source.randrange(3):
                case 0:
                    connection.execute("select rag.delete(%s)", [uri])
                case 1:
                    with connection.transaction(force_rollback=True):
                        connection.execute("select rag.put(%s, %s)", [text(source), uri])
                case _:
                    connection.execute("select rag.put(%s, %s)", [text(source), uri])


@pytest.fixture(scope="module")
def big(databases: Databases, template: str) -> str:
    """A database with a tenant whose words are common, with posting lists."""
    url = databases.create(template)
    source = random.Random(3)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(BLOCK)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select rag.create_tenant('big')")
        connection.execute("select rag.set_tenant('big')")
        for first in range(0, CHUNKS, 2000):
            documents = [
                {"uri": str(n), "content": text(source), "metadata": metadata(n)}
                for n in range(first, first + 2000)
            ]
            connection.execute(
                "select from rag.put_many(%s, strategy => 'none')", [Jsonb(documents)]
            )
        # One run gives him a partition of his own, and the lists with it.
        connection.execute("call rag.maintain()")
        # At this size GIN is faster for most questions, but not for those of many common words.
        assert asked_lists(connection, " ".join(WORDS[:20]))
        assert not asked_lists(connection, "word250 word260")
        choose(connection, always=True)
    return url


@pytest.fixture
def connection(big: str) -> Iterator[Connection[Any]]:
    """A session as that tenant."""
    with psycopg.connect(big, autocommit=True) as connection:
        connection.execute("select rag.set_tenant('big')")
        yield connection


def scalar(connection: Connection[Any], statement: str) -> Any:
    """The one value of a statement."""
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def asked_lists(connection: Connection[Any], query: str) -> bool:
    """Whether a search for the query asks posting lists."""
    items = connection.execute(
        "select e.item from rag.explain(%s, mode => 'lexical') as e", [query]
    )
    return "posting lists" in {item for (item,) in items}


def choose(connection: Connection[Any], *, always: bool) -> None:
    """Have all questions answered by posting lists, or none."""
    connection.execute(CHOICE.format(always).encode())


def check(connection: Connection[Any]) -> None:
    """Searches are those of an exhaustive one, and ask posting lists."""
    reference = Reference(connection, "english")
    source = random.Random(5)
    asked = 0
    for size in (2, 3, 5, 8, 16):
        for _ in range(8):
            query = " ".join(source.choices(WORDS[:60], k=size))
            reference.check(query)
            asked += asked_lists(connection, query)
    assert asked >= 30
    # All of the commonest, all at all, and a word that is rare, too.
    for query in (" ".join(WORDS[:5]), " ".join(WORDS[:60]), f"{WORDS[0]} {WORDS[1]} {WORDS[299]}"):
        reference.check(query, TOP)


def test_lists_are_made_for_those_who_have_much(connection: Connection[Any]) -> None:
    assert scalar(connection, "select blocks from rag.posting_sets") == 2
    assert (
        scalar(
            connection, "select sum(cardinality(chunk_ids)) from rag.postings where dimension < 0"
        )
        == CHUNKS
    )
    due = "select count(*) from rag.maintenance_plan() as p where p.action = 'post'"
    assert scalar(connection, due) == 0
    check(connection)


def test_what_changes_is_found_at_once(big: str, connection: Connection[Any]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [big] * 4, range(4)))
    assert scalar(connection, CHANGES) > 50
    check(connection)


@pytest.mark.parametrize(
    ("query", "conditions"),
    [
        ("word1 word2 word5", "filter => '{\"tenth\": 3}'"),
        ("word1 word2 word5", "filter => '{\"tenth\": 7}'"),
        ("word1 word2 word5", 'filter => \'{"tenth": 7, "half": 1}\''),
        ("word1 word2 word5", 'filter => \'{"tenth": {"$in": [3, 4]}}\''),
        ("word1 word2 word5", 'filter => \'{"tags": "divisible"}\''),
        ("word1 word2 word5", 'filter => \'{"tags": {"$in": ["even", "divisible"]}}\''),
        ("word1 word2 word5", 'filter => \'{"tenth": {"$gte": 8}}\''),
        ("word1 word2 word3 word4", "collection => 'default'"),
        ("word1 word2 word3 word4", "collection => 'empty'"),
        ('word1 word2 "word0 word0"', "collection => null"),
        ("word1 word2 word3 -word0", "collection => null"),
    ],
)
def test_conditions_hold(connection: Connection[Any], query: str, conditions: str) -> None:
    connection.execute(
        "select rag.create_collection('empty') where not exists "
        "(select from rag.collections as c where c.name = 'empty')"
    )
    statement = SEARCH.format(conditions).encode()
    choose(connection, always=False)
    try:
        expected = connection.execute(statement, [query]).fetchall()
    finally:
        choose(connection, always=True)
    assert len(expected) == (0 if "empty" in conditions else 20)
    assert connection.execute(statement, [query]).fetchall() == expected


def trace(
    connection: Connection[Any], query: str, condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a search, under a filter if there is one, notes of the posting lists that it asks."""
    with connection.transaction():
        connection.execute("select set_config('rag.trace', '.', true)")
        connection.execute(
            "select from rag.search(%s, 20, mode => 'lexical', filter => %s)",
            [query, condition and Jsonb(condition)],
        )
        notes = scalar(connection, "select current_setting('rag.trace')").splitlines()[1:]
    stages = {note["stage"]: note["detail"] for note in map(json.loads, notes)}
    return stages["posting lists"]


def test_a_filter_is_a_list(connection: Connection[Any]) -> None:
    query = " ".join(WORDS[:6])
    facet = scalar(connection, "select rag._facet_dimension(rag._facet('.\"tenth\"', '3'))")
    assert trace(connection, query, {"tenth": 3, "half": 1})["mark"] == facet
    # Of two values a chunk may have both; 40 words could be more than a mark.
    assert trace(connection, query, {"tenth": {"$in": [3, 4]}})["mark"] is None
    assert trace(connection, " ".join(WORDS[:70]), {"tenth": 3})["mark"] is None


def test_common_words_alone_are_for_fine_lists(connection: Connection[Any]) -> None:
    reference = Reference(connection, "english")
    # The first ten words are in a twelfth of all chunks or more.
    for query, is_fine in (
        (WORDS[0], True),
        (" ".join(WORDS[:3]), True),
        (" ".join(WORDS[:8]), True),
        (f"{WORDS[0]} {WORDS[1]} {WORDS[60]}", False),
        # More than a sum of theirs may be.
        (" ".join(WORDS[:14]), False),
    ):
        assert trace(connection, query)["fine"] is is_fine, query
        reference.check(query)
    # A mark leaves half as much room for the sum.
    assert trace(connection, WORDS[0], {"tenth": 3})["fine"]
    assert not trace(connection, " ".join(WORDS[:8]), {"tenth": 3})["fine"]


def test_a_page_as_a_query_is_not_for_lists(connection: Connection[Any]) -> None:
    # Each word's list would be added 20 times. Twice is fine.
    page = " ".join(WORDS[:10] * 20)
    assert not asked_lists(connection, page)
    assert asked_lists(connection, " ".join(WORDS[:10] * 2))
    Reference(connection, "english").check(page)


def test_facets_that_change_count_at_once(connection: Connection[Any]) -> None:
    query = " ".join(WORDS[:6])

    def best(tenth: int) -> list[str]:
        rows = connection.execute(
            "select s.uri from rag.search(%s, 20, mode => 'lexical', filter => %s) as s",
            [query, Jsonb({"tenth": tenth})],
        )
        return [uri for (uri,) in rows]

    moved = best(4)[:3]
    for uri in moved:
        connection.execute("select rag.patch_metadata(%s, '{\"tenth\": 5}')", [uri])
    assert trace(connection, query, {"tenth": 5})["mark"] is not None
    # Tenths are alike: the best of one are among the best of another.
    assert set(moved) <= set(best(5))
    found = best(4), best(5)
    choose(connection, always=False)
    try:
        assert (best(4), best(5)) == found
    finally:
        choose(connection, always=True)


def test_maintenance_puts_changes_into_lists(connection: Connection[Any]) -> None:
    source = random.Random(7)
    documents = [{"uri": str(n), "content": text(source)} for n in range(1200)]
    connection.execute("select from rag.put_many(%s, strategy => 'none')", [Jsonb(documents)])
    before = scalar(connection, CHANGES)
    assert before >= 1200
    assert [scalar(connection, NEXT) for _ in range(2)] == ["", "waiting"]
    # Behind the last change that the build knows of, though it reads what they bring.
    connection.execute("select rag.put('word7 word9 word11', '3')")
    connection.execute("select rag.put('word8 word9 word11', '4')")
    connection.execute("select rag.put('word1 word2 word3', 'new')")
    check(connection)
    result = scalar(connection, NEXT)
    assert "in 3 blocks" in result
    assert scalar(connection, CHANGES) == 3
    check(connection)


def test_a_writer_at_work_is_waited_for(big: str, connection: Connection[Any]) -> None:
    with psycopg.connect(big) as writer:
        writer.execute("select rag.set_tenant('big')")
        writer.execute("select rag.put('word4 word5 word6', '6')")
        assert [scalar(connection, NEXT) for _ in range(4)] == ["", *["waiting"] * 3]
        # Maintenance does not wait for ever, and others may write meanwhile.
        connection.execute("select rag.put('word5 word6 word7', '7')")
        connection.execute("call rag.maintain()")
        left = "select r.result from rag.maintenance_report() as r where r.action = 'post'"
        assert scalar(connection, left).startswith("left for the next time")
        writer.commit()
    assert "blocks" in scalar(connection, NEXT)
    check(connection)


def test_what_writers_in_repeatable_read_note_is_not_kept_for_ever(
    big: str, connection: Connection[Any]
) -> None:
    connection.execute("select rag.create_tenant('small')")
    with psycopg.connect(big) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("select rag.set_tenant('small')")
        writer.execute("select rag.put('word1', 'a')")
    noted = (
        "select coalesce(sum(cardinality(p.chunk_ids)), 0) from rag.postings as p "
        "join rag.tenants as t using (tenant_id) where p.dimension = 0 and t.name = 'small'"
    )
    assert scalar(connection, noted) == 1
    connection.execute("call rag.maintain()")
    assert scalar(connection, noted) == 0


def test_lists_are_made_anew_when_much_has_changed(connection: Connection[Any]) -> None:
    source = random.Random(9)
    documents = [{"uri": str(n), "content": text(source)} for n in range(9000)]
    for first in range(0, 9000, 3000):
        connection.execute(
            "select from rag.put_many(%s, strategy => 'none')",
            [Jsonb(documents[first : first + 3000])],
        )
    generation = scalar(connection, "select generation from rag.posting_sets")
    connection.execute("call rag.maintain()")
    assert connection.execute(
        "select generation, is_ready, is_building from rag.posting_sets"
    ).fetchall() == [(generation + 1, True, False)]
    assert (
        scalar(
            connection, "select count(distinct generation) from rag.postings where generation > 0"
        )
        == 1
    )
    assert scalar(connection, CHANGES) == 0
    check(connection)


def test_a_small_tenant_keeps_none(connection: Connection[Any]) -> None:
    connection.execute("call rag.pool_tenant('big')")
    Reference(connection, "english").check(" ".join(WORDS[:5]))
    connection.execute("call rag.maintain(promote_at => 1000000)")
    connection.execute("select rag.put('word1 word2', 'last')")
    assert connection.execute(
        "select (select count(*) from rag.posting_sets), (select count(*) from rag.postings)"
    ).fetchall() == [(0, 0)]
