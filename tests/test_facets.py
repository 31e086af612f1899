"""Facets: a filter is asked of the lexical index, and the index knows the metadata of today."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.processes import until

Connection = psycopg.Connection[tuple[Any, ...]]

STALE = """
select count(*)
from rag.chunks as c
cross join lateral (
    select l.facets
    from rag.lexemes as l
    where l.partition_id = c.partition_id and l.tenant_id = c.tenant_id and l.chunk_id = c.chunk_id
    union all
    select e.facets
    from rag.embeddings as e
    where e.partition_id = c.partition_id and e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id
) as i
where i.facets <> rag._facets(c.tenant_id, c.collection_id, c.metadata)
"""

# What an embedder does: job n is near to the n-th axis.
EMBED = """
select rag.complete_jobs(
    (array_agg(c.lease_token))[1],
    array_agg(c.job_id),
    array_agg((
        array_fill(0.1::real, array[(c.job_id % 384)::int]) || 1::real
        || array_fill(0::real, array[383 - (c.job_id % 384)::int])
    )::vector)
)
from rag.claim_jobs('test', 1000) as c
"""

TEXT = "\n\n".join(
    f"This passage is long enough to be one of its own: {fruit}." for fruit in ("apple", "pear")
)


def put(connection: Connection, uri: str, metadata: dict[str, Any], text: str = TEXT) -> None:
    connection.execute(
        "select rag.put(%s, %s, metadata => %s, chunk_size => 80, chunk_overlap => 0)",
        [text, uri, Jsonb(metadata)],
    )


def found(
    connection: Connection, condition: dict[str, Any], collection: str | None = None
) -> set[str]:
    """The uris that a search finds."""
    rows = connection.execute(
        "select uri from rag.search(%s, 100, filter => %s, collection => %s, mode => 'lexical')",
        ["apple", Jsonb(condition), collection],
    )
    return {uri for (uri,) in rows}


def near(connection: Connection, condition: dict[str, Any]) -> set[str]:
    """The uris that a search by meaning finds."""
    rows = connection.execute(
        "select uri from rag.search('', 100, filter => %s, mode => 'semantic', "
        "embedding => array_fill(1, array[384])::vector)",
        [Jsonb(condition)],
    )
    return {uri for (uri,) in rows}


def plan(connection: Connection, condition: dict[str, Any]) -> str:
    """How a search by meaning looks for them."""
    row = connection.execute(
        "select value from rag.explain('', 5, filter => %s, mode => 'semantic', "
        "embedding => array_fill(1, array[384])::vector) where item = 'semantic plan'",
        [Jsonb(condition)],
    ).fetchone()
    assert row is not None
    return str(row[0])


def embedded(connection: Connection) -> None:
    """Embed what waits."""
    connection.execute(EMBED.encode())


def stale(connection: Connection) -> int:
    row = connection.execute(STALE.encode()).fetchone()
    assert row is not None
    return row[0]


def test_what_changes_the_metadata_changes_the_facets(connection: Connection) -> None:
    put(connection, "a", {"lang": "en", "tags": ["x", {"deep": 1.0}]})
    put(connection, "b", {"lang": "de"})
    embedded(connection)
    assert found(connection, {"lang": "en"}) == {"a"}
    assert found(connection, {"tags": {"deep": 1}}) == {"a"}
    # Other metadata only; other text, of which some passages stay; both; a title.
    put(connection, "a", {"lang": "fr"})
    assert found(connection, {"lang": "en"}) == set()
    assert found(connection, {"lang": {"$in": ["fr", "de"]}}) == {"a", "b"}
    put(connection, "a", {"lang": "es"}, TEXT.replace("pear", "quince"))
    assert found(connection, {"lang": "es"}) == {"a"}
    assert found(connection, {"lang": "fr"}) == set()
    connection.execute(
        "select from rag.put_many(%s, chunk_size => 80, chunk_overlap => 0)",
        [
            Jsonb(
                [
                    {"content": TEXT, "uri": "a", "title": "T", "metadata": {"lang": "it"}},
                    {"content": TEXT, "uri": "b", "metadata": {"lang": "it", "n": None}},
                    {"content": TEXT, "uri": "c", "metadata": {"lang": "it"}},
                ]
            )
        ],
    )
    assert found(connection, {"lang": "it"}) == {"a", "b", "c"}
    assert found(connection, {"lang": "it", "n": {"$exists": True}}) == {"b"}
    assert stale(connection) == 0
    embedded(connection)
    assert near(connection, {"lang": "it"}) == {"a", "b", "c"}
    for change in ("patch_metadata", "set_metadata"):
        connection.execute(f"select rag.{change}('c', %s)", [Jsonb({"lang": change})])
        assert near(connection, {"lang": change}) == {"c"}
    assert stale(connection) == 0
    # Who brings vectors of his own, and a version that is there again.
    connection.execute("select rag.set_retention('default', 3)")
    put(connection, "c", {"lang": "it"}, "Something else, which nobody has said before.")
    put(connection, "d", {"lang": "pt"}, "Something else, which nobody has said before.")
    connection.execute("select rag.restore('c')")
    embedded(connection)
    assert near(connection, {"lang": "set_metadata"}) == {"c"}
    assert stale(connection) == 0


def test_a_chunk_with_too_many_values_is_found_by_each(connection: Connection) -> None:
    put(connection, "many", {"tags": [f"t{n}" for n in range(1500)]})
    put(connection, "few", {"tags": ["t7"]})
    assert found(connection, {"tags": "t7"}) == {"many", "few"}
    assert found(connection, {"tags": "t1499"}) == {"many"}
    assert found(connection, {"tags": "t1500"}) == set()


def test_chunks_without_facets_are_found_until_all_are_indexed_anew(connection: Connection) -> None:
    """As after the migration that brought facets."""
    connection.execute("select rag.create_collection('c')")
    for uri in ("a", "b"):
        put(connection, uri, {"uri": uri})
        connection.execute(
            "select rag.put(%s, %s, collection => 'c', metadata => %s)",
            [TEXT, uri, Jsonb({"uri": uri})],
        )
    connection.execute("update rag.lexemes set facets = '{}'")
    connection.execute(
        "update rag.collections set index_version = index_version + 1, reindexed_to = 0"
    )
    assert found(connection, {"uri": "a"}, collection="c") == {"a"}
    row = connection.execute("select rag.reindex('c')").fetchone()
    assert row is not None
    assert row[0] > 0
    assert found(connection, {"uri": "a"}, collection="c") == {"a"}
    assert found(connection, {"uri": "b"}) == {"b"}
    while (row := connection.execute("select rag.reindex()").fetchone()) and row[0]:
        pass
    assert stale(connection) == 0
    facets = connection.execute(
        'select rag._search_facets(t.tenant_id, null, \'{"uri": "a"}\', false)'
        " from rag.tenants as t where t.name = 'default'"
    ).fetchone()
    assert facets is not None
    assert len(facets[0]) == 2, "the tenant and the uri"
    assert found(connection, {"uri": "a"}) == {"a"}


def test_a_tenant_moves_with_his_facets(connection: Connection) -> None:
    for n in range(20):
        put(connection, f"d{n}", {"n": n % 4})
    embedded(connection)
    before = found(connection, {"n": 3})
    assert len(before) == 5
    connection.execute("call rag.isolate_tenant('default')")
    assert found(connection, {"n": 3}) == near(connection, {"n": 3}) == before
    assert "facets" in plan(connection, {"n": 3})
    put(connection, "d3", {"n": 5})
    assert found(connection, {"n": 3}) == near(connection, {"n": 3}) == before - {"d3"}
    put(connection, "d3", {"n": 3}, "Something else.")
    embedded(connection)
    assert near(connection, {"n": 3}) == before
    connection.execute("select rag.patch_metadata('d3', '{\"n\": 5}')")
    connection.execute("call rag.pool_tenant('default')")
    assert found(connection, {"n": 3}) == near(connection, {"n": 3}) == before - {"d3"}
    assert stale(connection) == 0


def test_embeddings_without_facets_are_found_until_they_have_them(connection: Connection) -> None:
    """As after the migration that brought them."""
    for n in range(40):
        put(connection, f"d{n}", {"n": n % 4})
    embedded(connection)
    wanted = {f"d{n}" for n in range(3, 40, 4)}
    connection.execute("update rag.embeddings set facets = '{0}'")
    # They come with a move …
    connection.execute("call rag.isolate_tenant('default')")
    assert stale(connection) == 0
    assert "facets" in plan(connection, {"n": 3})
    # … and where they are missing then, are asked the long way …
    connection.execute("update rag.embeddings set facets = '{0}' where chunk_id % 3 = 0")
    assert "facets" not in plan(connection, {"n": 3})
    assert near(connection, {"n": 3}) == wanted
    connection.execute("update rag.embeddings set facets = '{0}'")
    assert near(connection, {"n": 3}) == wanted
    assert near(connection, {"n": 4}) == set()
    # … until maintenance fills them in: of more than a thousand it makes the partition anew.
    due = "select reason from rag.maintenance_plan(demote_at => 0) where action = 'facets'"
    embeddings = connection.execute("select count(*) from rag.embeddings").fetchone()
    assert embeddings is not None
    assert connection.execute(due).fetchall() == [(f"{embeddings[0]} have none yet",)]
    connection.execute("call rag.maintain(demote_at => 0)")
    assert connection.execute(due).fetchall() == []
    assert stale(connection) == 0
    assert near(connection, {"n": 3}) == wanted
    # So they do where all is indexed anew.
    connection.execute("update rag.embeddings set facets = '{0}'")
    connection.execute(
        "update rag.collections set index_version = index_version + 1, reindexed_to = 0"
    )
    assert near(connection, {"n": 3}) == wanted
    while (row := connection.execute("select rag.reindex()").fetchone()) and row[0]:
        pass
    assert stale(connection) == 0


def test_a_filter_that_facets_know_half_of(connection: Connection) -> None:
    """Few have the facets, and fewer meet the filter: the list is as long as it can be."""
    items = [
        {"content": f"text {n}", "uri": f"d{n}", "metadata": {"half": n % 2, "n": n}}
        for n in range(600)
    ]
    connection.execute("select rag.put_many(%s)", [Jsonb(items)])
    embedded(connection)
    connection.execute("call rag.isolate_tenant('default')")
    condition = {"half": 1, "n": {"$gte": 580}}
    assert "facets" in plan(connection, condition)
    assert near(connection, condition) == {f"d{n}" for n in range(581, 600, 2)}
    assert near(connection, {"half": 1, "n": {"$gte": 700}}) == set()


@pytest.mark.parametrize("is_patch_first", [True, False])
def test_metadata_changes_while_its_passage_is_embedded(
    database: str, connection: Connection, *, is_patch_first: bool
) -> None:
    """Whoever changes metadata waits for whoever stores an embedding, who stores none else."""
    put(connection, "a", {"n": 1}, "One passage.")
    row = connection.execute("select lease_token, job_id from rag.claim_jobs('test')").fetchone()
    assert row is not None
    store = (
        "select rag.complete_jobs(%s, array[%s]::bigint[], "
        "array[array_fill(1, array[384])::vector])",
        row,
    )
    patch = ("select rag.patch_metadata('a', '{\"n\": 2}')", ())
    first, second = (patch, store) if is_patch_first else (store, patch)
    with psycopg.connect(database) as other:
        other.execute("select rag.set_tenant('default')")
        other.execute(*first)
        behind = threading.Thread(target=connection.execute, args=second)
        behind.start()
        if is_patch_first:
            behind.join()
        else:
            until(lambda: other.execute("select from pg_locks where not granted").rowcount)
        other.commit()
        behind.join()
    assert near(connection, {"n": 2}) == {"a"}
    assert near(connection, {"n": 1}) == set()
    # Unknown ones are filled in by maintenance where there is an index of them.
    connection.execute("call rag.isolate_tenant('default')")
    assert stale(connection) == 0


def test_a_clone_has_facets_of_its_own(connection: Connection) -> None:
    put(connection, "a", {"n": 1})
    embedded(connection)
    connection.execute("select from rag.clone_tenant('default', 'clone')")
    connection.execute("select rag.set_tenant('clone')")
    assert found(connection, {"n": 1}) == near(connection, {"n": 1}) == {"a"}
    # By an export, too.
    lines = [line for (line,) in connection.execute("select rag.export_tenant('clone')")]
    connection.execute("select rag.create_tenant('again')")
    connection.execute("select from rag.import_lines('again', %s)", [lines])
    connection.execute("select rag.set_tenant('again')")
    assert near(connection, {"n": 1}) == {"a"}
    assert stale(connection) == 0
