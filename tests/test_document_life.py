"""The life of documents: versions, searches of the past, expiry, deletion, lists, imports."""
# ruff: noqa: S608 -- names of tables and functions are put into statements

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.processes import until

if TYPE_CHECKING:
    from datetime import datetime

    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

OLD = "# Refunds\n\nRefunds are paid within 14 days.\n\n# Parcels\n\nParcels take three days."
NEW = OLD.replace("14", "30")
VECTOR = "array_fill({}::real, array[384])::vector"


def value(connection: Connection, query: str, *parameters: object) -> Any:
    """The first value of the first row."""
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row
    return row[0]


def rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """All rows."""
    return connection.execute(query.encode(), parameters).fetchall()


def put(connection: Connection, content: str, uri: str = "shop", **settings: object) -> int:
    """rag.put in small chunks; the document's id."""
    settings = {"chunk_size": 60, "chunk_overlap": 0, **settings}
    named = ", ".join(f"{name} => %s" for name in settings)
    return value(connection, f"select rag.put(%s, %s, {named})", content, uri, *settings.values())


def now(connection: Connection) -> datetime:
    """The time of the server, between what was before and what comes after."""
    return value(connection, "select clock_timestamp()")


def embed(connection: Connection) -> None:
    """Give every waiting chunk an embedding that depends on nothing but its length."""
    connection.execute(
        """
        select rag.complete_jobs(
            c.lease_token, array_agg(c.job_id order by c.job_id),
            array_agg(
                (array[length(c.content)::real, 1] || array_fill(0::real, array[382]))::vector
                order by c.job_id
            )
        )
        from rag.claim_jobs('test', 1000) as c
        group by c.lease_token
        """
    )


def keep(connection: Connection, versions: int, keep_deleted: str | None = None) -> None:
    """Let the default collection keep versions and deleted documents."""
    connection.execute(
        "select rag.set_retention('default', %s, null, %s::interval)", [versions, keep_deleted]
    )


def found(connection: Connection, query: str, as_of: object = None, **more: object) -> list[str]:
    """Contents that a search brings, best first."""
    named = "".join(f", {name} => %s" for name in more)
    return [
        content
        for (content,) in rows(
            connection,
            f"select content from rag.search(%s, as_of => %s{named})",
            query,
            as_of,
            *more.values(),
        )
    ]


@pytest.fixture
def shop(connection: Connection) -> tuple[Connection, datetime]:
    """A document that was changed, in a collection of three versions; a time before the change."""
    keep(connection, 3)
    put(connection, OLD, metadata=Jsonb({"lang": "en"}))
    before = now(connection)
    put(connection, NEW, metadata=Jsonb({"lang": "en"}))
    return connection, before


def test_nothing_is_kept_unless_it_is_asked_for(connection: Connection) -> None:
    put(connection, OLD)
    before = now(connection)
    put(connection, NEW)
    assert rows(connection, "select version, state from rag.history('shop')") == [(2, "current")]
    assert value(connection, "select count(*) from rag.past_chunks") == 0
    assert found(connection, "refunds", before) == []


def test_so_many_versions_are_kept_and_no_more(shop: tuple[Connection, datetime]) -> None:
    connection, _ = shop
    for number in range(3):
        put(connection, f"{NEW} {number}")
    assert rows(connection, "select version, state, characters from rag.history('shop')") == [
        (5, "current", 82),
        (4, "past", 82),
        (3, "past", 82),
    ]
    keep(connection, 1)
    assert value(connection, "select count(*) from rag.past_documents") == 0
    assert value(connection, "select count(*) from rag.past_embeddings") == 0


def test_the_same_again_is_no_version(shop: tuple[Connection, datetime]) -> None:
    connection, _ = shop
    put(connection, NEW, metadata=Jsonb({"lang": "en"}))
    assert value(connection, "select max(version) from rag.history('shop')") == 2


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_a_search_of_the_past_finds_what_there_was(
    shop: tuple[Connection, datetime], mode: str
) -> None:
    connection, before = shop
    embed(connection)
    assert "14 days" in found(connection, "refunds paid", before, mode=mode)[0]
    assert "30 days" in found(connection, "refunds paid", mode=mode)[0]
    assert not any("14" in text for text in found(connection, "refunds paid 14", mode=mode))
    assert found(connection, "refunds", before, filter=Jsonb({"lang": "de"})) == []
    [whole] = found(connection, "refunds paid", before, k=1, neighbours=1)
    assert whole == OLD
    assert len(found(connection, "refunds parcels", before, max_per_document=1)) == 1
    assert found(connection, "refunds", "2000-01-01") == []


def test_a_past_search_ranks_as_the_search_did_then(connection: Connection) -> None:
    keep(connection, 9)
    for number in range(30):
        # Of different lengths, or their vectors would tie.
        text = f"Text has word{number:02} {'anvil ' * (number % 5)}{'z' * number * 2}."
        put(connection, text, f"u{number}", chunk_size=200)
    embed(connection)
    vector = f"{VECTOR.format(0.5)}"
    query = (
        "select uri, content from rag.search('anvil word07', 20, as_of => %s, "
        f"embedding => {vector}, mode => %s)"
    )
    then = {mode: rows(connection, query, None, mode) for mode in ("lexical", "semantic")}
    before = now(connection)
    for number in range(0, 30, 2):
        put(connection, f"Nothing but this is left of {number}.", f"u{number}")
    for mode, expected in then.items():
        assert rows(connection, query, before, mode) == expected
        assert rows(connection, query, None, mode) != expected


def test_a_citation_stays_valid(shop: tuple[Connection, datetime]) -> None:
    connection, before = shop
    [(chunk, content, start, end)] = rows(
        connection,
        "select chunk_id, content, start_offset, end_offset"
        " from rag.search('refunds', 1, as_of => %s)",
        before,
    )
    assert rows(
        connection, "select uri, version, content, is_current from rag.cite(%s)", chunk
    ) == [("shop", 1, content, False)]
    assert (
        value(
            connection,
            "select substr(content, %s + 1, %s) from rag.get('shop', at_version => 1)",
            start,
            end - start,
        )
        == content
    )
    current = value(connection, "select chunk_id from rag.search('parcels', 1)")
    assert rows(connection, "select version, is_current from rag.cite(%s)", current) == [(2, True)]
    assert value(connection, "select version from rag.cite(%s, 1)", current) == 1
    assert rows(connection, "select 1 from rag.cite(-1)") == []


def test_a_version_is_restored_with_its_embeddings(shop: tuple[Connection, datetime]) -> None:
    connection, _ = shop
    embed(connection)
    # Version 1 was never embedded, so there is one chunk to embed; version 2 is, and stays so.
    value(connection, "select rag.restore('shop')")
    assert value(connection, "select count(*) from rag.jobs") == 1
    assert value(connection, "select content from rag.get('shop')") == OLD
    embed(connection)
    value(connection, "select rag.restore('shop', 2)")
    assert value(connection, "select count(*) from rag.jobs") == 0
    assert value(connection, "select count(*) from rag.embeddings") == 2
    assert [*rows(connection, "select version, state from rag.history('shop')")] == [
        (4, "current"), (3, "past"), (2, "past"),
    ]  # fmt: skip
    with pytest.raises(psycopg.errors.NoDataFound, match="no such version"):
        value(connection, "select rag.restore('shop', 1)")


def test_what_is_deleted_comes_back_until_it_is_purged(connection: Connection) -> None:
    keep(connection, 2, "1 hour")
    put(connection, OLD)
    put(connection, NEW)
    embed(connection)
    assert value(connection, "select rag.delete('shop')")
    assert found(connection, "refunds") == []
    assert value(connection, "select count(*) from rag.chunks") == 0
    assert value(connection, "select rag.count()") == 0
    assert [*rows(connection, "select version, state from rag.history('shop')")] == [
        (2, "deleted"), (1, "past"),
    ]  # fmt: skip
    assert value(connection, "select rag.delete('shop')") is False
    document = value(connection, "select rag.restore('shop')")
    assert "30 days" in found(connection, "refunds")[0]
    assert value(connection, "select count(*) from rag.jobs") == 0
    assert rows(
        connection, "select version, state, purge_at, document_id from rag.history('shop')"
    ) == [(3, "current", None, document), (2, "deleted", None, document)]
    assert value(connection, "select rag.delete('shop', purge => true)")
    assert rows(connection, "select 1 from rag.history('shop')") == []
    assert value(connection, "select count(*) from rag.past_embeddings") == 0


def test_versions_of_one_number_are_told_apart_by_a_restore(connection: Connection) -> None:
    keep(connection, 5, "1 day")
    put(connection, "one")
    value(connection, "select rag.delete('shop')")
    put(connection, "two")
    put(connection, "three")
    # As they were numbered before puts that waited for a delete were told of it.
    connection.execute("update rag.past_documents set version = 1")
    connection.execute("update rag.documents set version = 2")
    assert len(rows(connection, "select * from rag.get('shop', at_version => 1)")) == 1
    connection.execute("update rag.past_documents set version = 2 where is_deleted")
    connection.execute("select rag.restore('shop', 2)")
    assert rows(connection, "select content from rag.get('shop')") == [("one",)]
    history = rows(connection, "select h.version, h.document_id from rag.history('shop') as h")
    assert len({version for version, _ in history}) == len(history) == 4
    assert len({document for _, document in history}) == 1
    assert [
        rows(connection, "select content from rag.get('shop', at_version => %s)", version)
        for version, _ in history
    ] == [[("one",)], [("three",)], [("two",)], [("one",)]]


def test_the_purge_erases_what_is_due(connection: Connection) -> None:
    keep(connection, 2, "1 millisecond")
    put(connection, OLD)
    value(connection, "select rag.delete('shop')")
    until(lambda: rows(connection, "select 1 from rag.history('shop')") == [])
    with pytest.raises(psycopg.errors.NoDataFound):
        value(connection, "select rag.restore('shop')")
    assert value(connection, "select rag.purge_all()") == 1
    assert value(connection, "select count(*) from rag.past_chunks") == 0
    assert value(connection, "select rag.purge()") == 0


def test_an_expired_document_is_not_found(connection: Connection) -> None:
    keep(connection, 2)
    put(connection, "Pumpkins grow here.", "gone", lifetime="1 hour")
    put(connection, "Pumpkins grow there.", "gone", lifetime="1 hour")
    for number in range(5):
        put(connection, f"Pumpkins pumpkins {number}", f"old{number}", lifetime="1 hour")
    before = now(connection)
    put(connection, "Of all that, pumpkins stay.", "stays")
    assert len(found(connection, "pumpkins")) == 7
    chunk = value(
        connection,
        "select c.chunk_id from rag.chunks as c join rag.documents as d using (document_id)"
        " where d.uri = 'gone'",
    )
    connection.execute("update rag.documents set expires_at = now() where uri <> 'stays'")
    for mode in ("lexical", "hybrid"):
        assert found(connection, "pumpkins", k=1, mode=mode) == ["Of all that, pumpkins stay."]
    assert found(connection, "pumpkins", before) == []
    assert rows(connection, "select uri from rag.list()") == [("stays",)]
    assert value(connection, "select rag.count()") == 1
    for call in (
        "rag.get('gone')", "rag.get('gone', at_version => 1)", "rag.history('gone')",
        "rag.cite(%s)", "rag.cite(%s, 1)",
    ):  # fmt: skip
        assert (
            connection.execute(
                f"select from {call}".encode(), [chunk] if "%" in call else []
            ).fetchall()
            == []
        ), call
    assert value(connection, "select rag.purge(4)") == 4
    assert value(connection, "select rag.purge()") == 2
    assert value(connection, "select count(*) from rag.documents") == 1
    assert value(connection, "select count(*) from rag.past_documents") == 0


def test_what_has_expired_does_not_come_back(connection: Connection) -> None:
    keep(connection, 3, "1 hour")
    expire = "update rag.documents set expires_at = now() - interval '1 second'"
    put(connection, OLD, lifetime="1 hour")
    put(connection, OLD + " More.", lifetime="1 hour")
    before = now(connection)
    connection.execute(expire)
    put(connection, NEW)
    assert rows(connection, "select version, state from rag.history('shop')") == [(3, "current")]
    assert found(connection, "refunds", before) == []
    put(connection, OLD, "other", lifetime="1 hour")
    connection.execute(expire)
    value(connection, "select rag.delete('other')")
    with pytest.raises(psycopg.errors.NoDataFound):
        value(connection, "select rag.restore('other')")
    assert value(connection, "select count(*) from rag.past_documents where uri = 'other'") == 0


def test_a_restored_document_lives_as_long_as_it_would_have(connection: Connection) -> None:
    keep(connection, 3, "1 hour")
    put(connection, OLD, lifetime="10 minutes")
    put(connection, NEW, lifetime="10 minutes")
    left = "select round(extract(epoch from expires_at - now()) / 600) from rag.get('shop')"
    value(connection, "select rag.restore('shop', 1)")
    assert value(connection, left) == 1
    value(connection, "select rag.delete('shop')")
    assert value(
        connection, "select bool_and(purge_at < now() + '10 minutes') from rag.history('shop')"
    )
    value(connection, "select rag.restore('shop')")
    assert value(connection, left) == 1


def test_a_put_prolongs_or_ends_a_lifetime(connection: Connection) -> None:
    connection.execute("select rag.set_retention('default', 1, '1 day', null)")
    put(connection, OLD)
    expiry = "select expires_at - now() > '23 hours' from rag.documents"
    assert value(connection, expiry)
    connection.execute("update rag.documents set expires_at = now() - interval '1 hour'")
    assert found(connection, "refunds") == []
    put(connection, OLD)
    assert value(connection, expiry)
    assert value(connection, "select version from rag.documents") == 1
    connection.execute("select rag.set_retention('default', 1, null, null)")
    put(connection, OLD)
    assert value(connection, "select expires_at from rag.documents") is None


def test_metadata_change_without_cutting_or_embedding(connection: Connection) -> None:
    connection.execute("select rag.alter_collection('default', enrich => '{author}')")
    put(connection, OLD, metadata=Jsonb({"author": "Ada", "a": {"b": 1, "c": 2}}))
    embed(connection)
    kept = "select chunk_id, embedding::text from rag.embeddings order by 1"
    chunks = rows(connection, kept)
    assert value(
        connection, "select rag.patch_metadata('shop', %s)",
        Jsonb({"author": "Grace", "a": {"b": None}}),
    )  # fmt: skip
    assert value(connection, "select metadata from rag.get('shop')") == {
        "author": "Grace", "a": {"c": 2},
    }  # fmt: skip
    assert rows(connection, kept) == chunks
    assert value(connection, "select count(*) from rag.jobs") == 0
    assert len(found(connection, "grace")) == 2
    assert found(connection, "ada", mode="lexical") == []
    assert len(found(connection, "days", filter=Jsonb({"author": "Grace"}))) == 2
    assert value(connection, "select rag.set_metadata('shop', '{}')")
    assert found(connection, "grace", mode="lexical") == []
    assert value(connection, "select rag.set_metadata('missing', '{}')") is False
    # What is stored is what a fresh index would have.
    stored = "select chunk_id, lexemes::text, round(length::numeric, 3) from rag.lexemes order by 1"
    before = rows(connection, stored)
    connection.execute(
        "select rag._index_documents(c.tenant_id, c.partition_id, array[d.document_id])"
        " from rag._context() as c, rag.documents as d"
    )
    assert rows(connection, stored) == before


def test_lists_counts_and_changes_by_filter(connection: Connection) -> None:
    items = [{"content": f"text {n}", "uri": f"u{n}", "metadata": {"n": n}} for n in range(25)]
    connection.execute("select rag.put_many(%s)", [Jsonb(items)])
    seen: list[str] = []
    last = 0
    while page := rows(
        connection,
        'select document_id, uri from rag.list(\'{"n": {"$gte": 5}}\', null, 7, %s)',
        last,
    ):
        seen += [uri for _, uri in page]
        last = page[-1][0]
    # One call puts them in the order of their uris.
    assert seen == sorted(f"u{n}" for n in range(5, 25))
    assert value(connection, 'select rag.count(\'{"n": {"$gte": 5}}\')') == 20
    patch = 'select rag.patch_metadata_where(\'{"n": {"$lt": 10}}\', \'{"low": true}\', most => 8)'
    assert [value(connection, patch) for _ in range(3)] == [8, 2, 0]
    delete = "select rag.delete_where('{\"low\": true}', most => 8)"
    assert [value(connection, delete) for _ in range(3)] == [8, 2, 0]
    assert value(connection, "select rag.count()") == 15
    assert value(connection, "select count(*) from rag.lexemes") == 15
    for nothing in ("null", "'{}'"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="a filter is needed"):
            value(connection, f"select rag.delete_where({nothing})")


def test_collections_are_renamed_and_dropped(connection: Connection) -> None:
    connection.execute("select rag.create_collection('drafts')")
    connection.execute("select rag.create_collection('other')")
    connection.execute("select rag.set_retention('drafts', 5, null, '1 hour')")
    for text in (OLD, NEW):
        put(connection, text, collection="drafts")
    put(connection, OLD)
    embed(connection)
    with pytest.raises(psycopg.errors.DuplicateObject):
        value(connection, "select rag.rename_collection('drafts', 'other')")
    value(connection, "select rag.rename_collection('drafts', 'papers')")
    assert value(connection, "select version from rag.get('shop', 'papers')") == 2
    assert value(connection, "select rag.drop_collection('papers')") == 1
    assert rows(connection, "select uri, collection_name from rag.list()") == [("shop", "default")]
    assert len(found(connection, "refunds", mode="lexical")) == 1
    for table in ("past_documents", "past_chunks", "past_embeddings"):
        assert value(connection, f"select count(*) from rag.{table}") == 0, table
    assert value(connection, "select count(*) from rag.chunks") == 2
    for call in ("rename_collection('default', 'x')", "drop_collection('default')"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            value(connection, f"select rag.{call}")
    with pytest.raises(psycopg.Error, match="does not exist"):
        value(connection, "select rag.drop_collection('papers')")


def test_duplicates_are_reported_with_what_they_share(connection: Connection) -> None:
    put(connection, OLD, "a")
    put(connection, OLD, "b")
    put(connection, NEW, "c")
    put(connection, "Something else, and much, much longer than the others were.", "d")
    embed(connection)
    report = "select uri, duplicate_of_uri, kind, shared_chunks from rag.duplicates(null, %s::real)"
    assert rows(connection, report, None) == [("b", "a", "exact", 1.0)]
    assert rows(connection, report, 0.9999)[:2] == [
        ("b", "a", "exact", 1.0), ("c", "a", "near", 0.5),
    ]  # fmt: skip


def test_an_import_loses_nothing_and_tells_what_is_wrong(database: str, role: RoleFactory) -> None:
    del database
    with psycopg.connect(role("default").url, autocommit=True) as app:
        app.execute(
            "create temporary table incoming"
            " (content text, uri text, title text, metadata jsonb, error text)"
        )
        with app.cursor().copy("copy incoming (content, uri, metadata) from stdin") as copy:
            for number in range(40):
                copy.write_row((f"text {number}", f"u{number}", Jsonb({"n": number})))
            copy.write_row(("", "empty", None))
            copy.write_row(("x", "list", Jsonb([1])))
            copy.write_row(("last of its uri", "u3", None))
        assert value(app, "call rag.import('incoming', batch => 16)") == 41
        assert rows(app, "select uri, error from incoming order by 1") == [
            ("empty", "content is empty: Document 1 of the array has no text."),
            (
                "list",
                "metadata is not an object: Document 1 of the array has metadata of type array.",
            ),
        ]
        assert value(app, "select rag.count()") == 40
        assert value(app, "select content from rag.get('u3')") == "last of its uri"
        app.execute("update incoming set content = 'mended', metadata = null, error = null")
        assert rows(app, "call rag.import('incoming')") == [(2, 0)]
        assert value(app, "select count(*) from incoming") == 0
        # A row that inherits has the place of one of the table, which must not stand for it.
        app.execute("create temporary table more () inherits (incoming)")
        app.execute("insert into incoming (content, uri) values ('x', 'u50'), ('', 'none')")
        app.execute("insert into more (content, uri) values ('y', 'u51'), ('z', 'u52')")
        assert rows(app, "call rag.import('incoming')") == [(1, 1)]
        assert rows(app, "select uri, error from more order by 1") == [
            ("u51", None), ("u52", None),
        ]  # fmt: skip
        app.execute("create temporary table wrong (content text)")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="lacks columns"):
            app.execute("call rag.import('wrong')")


def test_the_past_is_its_tenants_own(connection: Connection, role: RoleFactory) -> None:
    keep(connection, 3, "1 hour")
    put(connection, OLD)
    before = now(connection)
    chunk = value(connection, "select min(chunk_id) from rag.chunks")
    put(connection, NEW)
    put(connection, "More of that", "more")
    value(connection, "select rag.delete('more')")
    connection.execute("select rag.create_tenant('other')")
    with psycopg.connect(role("other").url, autocommit=True) as other:
        other.execute("select rag.set_tenant('other')")
        assert found(other, "refunds", before) == []
        for call in (
            "rag.past_documents", "rag.past_chunks", "rag.history('shop')", "rag.list()",
            "rag.get('shop')", "rag.get('shop', at_version => 1)", f"rag.cite({chunk})",
            f"rag.cite({chunk}, 1)", "rag.duplicates()",
        ):  # fmt: skip
            assert rows(other, f"select 1 from {call}") == [], call
        assert value(other, "select rag.count()") == 0
        assert value(other, "select rag.purge()") == 0
        with pytest.raises(psycopg.errors.NoDataFound):
            value(other, "select rag.restore('more')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            value(other, "select count(*) from rag.past_embeddings")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            value(other, "select rag.purge_all()")


def test_the_past_survives_a_move(connection: Connection) -> None:
    keep(connection, 3)
    put(connection, OLD)
    before = now(connection)
    embed(connection)
    put(connection, NEW)
    connection.execute("call rag.isolate_tenant('default')")
    assert "14 days" in found(connection, "refunds paid", before)[0]
    value(connection, "select rag.restore('shop', 1)")
    assert "14 days" in found(connection, "refunds paid")[0]
    assert value(connection, "select count(*) from rag.jobs where tenant_id = 1") <= 1


PRESETS = {
    "documentation": ("markdown", 1500, 200),
    "paper": ("token", 1000, 100),
    "legal": ("sentence", 800, 150),
    "code": ("code", 2000, 300),
    "chat": ("sentence", 500, 50),
    "slides": ("markdown", 600, 100),
    "table": ("recursive", 1200, 0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_taken_and_may_be_changed(connection: Connection, preset: str) -> None:
    known = rows(connection, "select preset from rag.chunking_presets()")
    assert [name for (name,) in known] == [*PRESETS]
    strategy, size, overlap = PRESETS[preset]
    connection.execute("select rag.create_collection(%s, preset => %s)", [preset, preset])
    value(connection, "select rag.put('text', 'a', collection => %s)", preset)
    value(connection, "select rag.put('text', 'b', preset => %s, chunk_overlap => 1)", preset)
    chunking: dict[str, object] = {"strategy": strategy, "size": size, "overlap": overlap}
    if preset == "table":
        chunking["separators"] = ["\n\n", "\n"]
    assert rows(connection, "select uri, chunking from rag.documents order by uri") == [
        ("a", chunking), ("b", {**chunking, "overlap": 1}),
    ]  # fmt: skip
