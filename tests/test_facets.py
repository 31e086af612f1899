"""Facets: a filter is asked of the lexical index, and the index knows the metadata of today."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

STALE = """
select count(*)
from rag.lexemes as l
join rag.chunks as c using (partition_id, tenant_id, chunk_id)
where l.facets <> rag._facets(c.tenant_id, c.collection_id, c.metadata)
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


def stale(connection: Connection) -> int:
    row = connection.execute(STALE.encode()).fetchone()
    assert row is not None
    return row[0]


def test_what_changes_the_metadata_changes_the_facets(connection: Connection) -> None:
    put(connection, "a", {"lang": "en", "tags": ["x", {"deep": 1.0}]})
    put(connection, "b", {"lang": "de"})
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
    before = found(connection, {"n": 3})
    assert len(before) == 5
    connection.execute("call rag.isolate_tenant('default')")
    assert found(connection, {"n": 3}) == before
    put(connection, "d3", {"n": 5})
    assert found(connection, {"n": 3}) == before - {"d3"}
    connection.execute("call rag.pool_tenant('default')")
    assert found(connection, {"n": 3}) == before - {"d3"}
    assert stale(connection) == 0


def test_a_clone_has_facets_of_its_own(connection: Connection) -> None:
    put(connection, "a", {"n": 1})
    connection.execute("select from rag.clone_tenant('default', 'clone')")
    connection.execute("select rag.set_tenant('clone')")
    assert found(connection, {"n": 1}) == {"a"}
    assert stale(connection) == 0
