"""A database of the first version, with its documents, is migrated to this one and goes on.

`golden/version_0.1.0.dump` is what pg_dump said of such a database: two tenants, four documents
with embeddings, and one each that waits, is leased by a worker that died, and has failed. All but
four of its empty partitions and the bodies of its functions are left out: a migration writes every
function anew, and drops those that are no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from db.migrate import migrate, pending
from embedder.models import SentenceTransformerModel
from embedder.worker import Worker
from tests.grants import granted
from tests.test_readme import psql
from tests.working import settings, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer

    from db.server import Server
    from tests.conftest import Databases
    from tests.working import Connection

DUMP = Path(__file__).parent / "golden" / "version_0.1.0.dump"

# What a schema is made of, but for the order of columns and, which a dump adds, parentheses.
SHAPE = """
select format('column %s.%s %s null %s default %s', c.table_name, c.column_name, c.data_type,
    c.is_nullable, c.column_default)
from information_schema.columns as c
where c.table_schema = 'rag'
union all
select format('index %s', i.indexdef) from pg_indexes as i where i.schemaname = 'rag'
union all
select format('policy %s %s %s %s', p.tablename, p.policyname, p.roles, p.qual)
from pg_policies as p
where p.schemaname = 'rag'
union all
select format('constraint %s %s', c.conrelid::regclass,
    translate(pg_get_constraintdef(c.oid), '()', ''))
from pg_constraint as c
where c.connamespace = 'rag'::regnamespace
union all
select format('function %s', p.oid::regprocedure) from pg_proc as p
where p.pronamespace = 'rag'::regnamespace
"""


@pytest.fixture
def upgraded(server: Server, databases: Databases, template: str) -> Iterator[str]:
    """URL of the database, migrated. The roles are there, as they are in its cluster."""
    del template
    url = databases.create()
    psql(server, url, DUMP.read_text(encoding="utf-8"))
    with psycopg.connect(url, autocommit=True) as connection:
        assert value(connection, "select max(version) from rag.migrations") == 7
    migrate(url)
    yield url
    databases.close(url)


def shape(connection: Connection) -> set[str]:
    return {row[0] for row in connection.execute(cast("Any", SHAPE)).fetchall()}


def uris(connection: Connection, query: str) -> list[str]:
    """The documents that a search finds, best first."""
    rows = connection.execute("select uri from rag.search(%s, k => 2)", [query]).fetchall()
    return [row[0] for row in rows]


def test_it_is_as_one_that_was_made_today(upgraded: str, connection: Connection) -> None:
    assert not pending(upgraded)
    with psycopg.connect(upgraded, autocommit=True) as old:
        assert sorted(shape(old) ^ shape(connection)) == []
        assert granted(old) == granted(connection)


def test_everything_goes_on(upgraded: str, model: SentenceTransformer) -> None:
    minilm = SentenceTransformerModel("all-MiniLM-L6-v2", cast("Any", model))
    with psycopg.connect(upgraded, autocommit=True) as connection:
        progress = (
            "select tenant, embedded, waiting, leased, failed from rag.progress() order by tenant"
        )
        before = [("acme", 1, 0, 0, 0), ("default", 2, 1, 1, 1)]
        assert connection.execute(cast("Any", progress)).fetchall() == before
        # By words and, of a query that was asked before, by meaning.
        row = connection.execute(
            "select uri, query_embedding, similarity > 0.99 from rag.search(%s, k => 1)",
            ["when are refunds paid?"],
        ).fetchone()
        assert row == ("refunds", "cached", True)
        assert value(connection, "select ndcg from rag.evaluate('questions')") == 1
        # What waited, and what a worker died over; what has failed waits to be tried again.
        assert Worker(settings(upgraded), minilm).run(once=True) == 0
        after = [("acme", 1, 0, 0, 0), ("default", 4, 0, 0, 1)]
        assert connection.execute(cast("Any", progress)).fetchall() == after
        assert value(connection, "select rag.retry_failed()") == 1
        assert Worker(settings(upgraded), minilm).run(once=True) == 0
        # Nobody knows what was cut from old ones; of new ones it is known.
        assert value(connection, "select count(*) from rag.embeddings") == 6
        assert value(connection, "select count(truncated_tokens) from rag.embeddings") == 3
        # Documents come, change and go.
        assert uris(connection, "boats and the tide") == ["waiting"]
        connection.execute("select rag.put('Boats sail at noon.', 'waiting')")
        connection.execute("select rag.put('A new one about trains.', 'new')")
        assert uris(connection, "sail at noon")[0] == "waiting"
        assert uris(connection, "trains")[0] == "new"
        assert value(connection, "select rag.delete('parcels')")
        assert "parcels" not in uris(connection, "parcels sent on Mondays")
        # Another tenant sees his own, also after a move.
        connection.execute("select rag.set_tenant('acme')")
        assert uris(connection, "who repairs violins?") == ["violins"]
        connection.execute(
            "update rag.embeddings set truncated_tokens = 4 where tenant_id = "
            "(select tenant_id from rag.tenants where name = 'acme')"
        )
        connection.execute("call rag.isolate_tenant('acme')")
        cut = "select truncated_tokens from rag.truncations() where tenant = 'acme'"
        assert value(connection, cut) == 4
        assert uris(connection, "who repairs violins?") == ["violins"]
        assert uris(connection, "refunds are paid") == []
        # And so does a change of models.
        connection.execute("select rag.add_model('short', 2)")
        assert value(connection, "select rag.estimate_model('short') is not null")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="go back to"):
            connection.execute("select rag.rollback_model()")
        connection.execute("select rag.activate_model('short', force => true)")
        assert value(connection, "select rag.rollback_model()") == "all-MiniLM-L6-v2"
        connection.execute("select rag.drop_model('short')")
