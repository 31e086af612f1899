"""rag.search(model => ...): a query's vector is compared with vectors of the model that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def two_models(connection: Connection) -> Connection:
    """Two passages: by the active model one points north, by the other one the other does."""
    connection.execute("delete from rag.models")
    connection.execute("select rag._create_model('old', 3, 'test', is_active => true)")
    connection.execute("select rag._create_model('new', 4, 'test')")
    for uri, old, new in (("a", "[1,0,0]", "[0,1,0,0]"), ("b", "[0,1,0]", "[1,0,0,0]")):
        connection.execute("select rag.put(%s, %s)", [f"Text {uri}.", uri])
        connection.execute(
            "insert into rag.embeddings "
            "(partition_id, tenant_id, chunk_id, model_id, collection_id, embedding) "
            "select c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id, "
            "(case m.name when 'old' then %s else %s end)::halfvec "
            "from rag.chunks as c join rag.documents as d using (tenant_id, document_id) "
            "cross join rag.models as m where d.uri = %s",
            [old, new, uri],
        )
    return connection


def first(connection: Connection, vector: str, model: str | None, mode: str = "semantic") -> str:
    row = connection.execute(
        "select uri, similarity from rag.search('north', 1, embedding => %s, mode => %s,"
        " model => %s)",
        [vector, mode, model],
    ).fetchone()
    assert row is not None
    assert row[1] == pytest.approx(1)
    return row[0]


@pytest.mark.parametrize("mode", ["semantic", "hybrid"])
def test_the_named_models_embeddings_are_searched(two_models: Connection, mode: str) -> None:
    assert first(two_models, "[1,0,0]", None, mode) == "a"
    assert first(two_models, "[1,0,0]", "old", mode) == "a"
    assert first(two_models, "[1,0,0,0]", "new", mode) == "b"
    # As after rag.activate_model: who still embeds by the old one goes on.
    two_models.execute("update rag.models set is_active = false")
    two_models.execute("update rag.models set is_active = true where name = 'new'")
    assert first(two_models, "[1,0,0]", "old", mode) == "a"
    assert first(two_models, "[1,0,0,0]", None, mode) == "b"


def test_explain_tells_of_the_named_model(two_models: Connection) -> None:
    rows = two_models.execute(
        "select detail ->> 'model' from rag.explain('north', embedding => '[1,0,0,0]',"
        " model => 'new') where detail ? 'model'"
    ).fetchall()
    assert rows == [("new",)]


def test_a_vector_of_another_size_is_refused(two_models: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="number of dimensions"):
        first(two_models, "[1,0,0]", "new")


def test_a_model_that_is_not_there_is_named(two_models: Connection) -> None:
    with pytest.raises(psycopg.Error, match='model "none" does not exist') as caught:
        first(two_models, "[1,0,0]", "none")
    assert caught.value.sqlstate == "RG005"
    two_models.execute("update rag.models set dropped_at = now() where name = 'new'")
    with pytest.raises(psycopg.Error, match='model "new" does not exist'):
        first(two_models, "[1,0,0,0]", "new")


def test_a_model_without_embeddings_is_no_empty_answer(two_models: Connection) -> None:
    two_models.execute(
        "delete from rag.embeddings as e using rag.models as m"
        " where m.model_id = e.model_id and m.name = 'new'"
    )
    with pytest.raises(psycopg.Error, match='no passage has an embedding of model "new"') as caught:
        first(two_models, "[1,0,0,0]", "new")
    assert caught.value.sqlstate == "RG005"
    assert caught.value.diag.message_detail == "The active model is old."
