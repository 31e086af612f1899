"""Models and other sessions: no chunk slips through when one is added, searches outlive a drop."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.test_queue_races import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RoleFactory

ADD = "select rag.add_model('new', 3, 'test')"
SEARCH = """
select from rag.search('apples', embedding => array_fill(1, array[384])::real[]::vector)
"""
UNKNOWN = """
select count(*) from rag.chunks as c cross join rag.models as m
where not exists (
    select from rag.jobs as j
    where j.tenant_id = c.tenant_id and j.chunk_id = c.chunk_id and j.model_id = m.model_id
)
"""
ORPHANS = """
select count(*) from rag.jobs as j
where not exists (
    select from rag.chunks as c where c.tenant_id = j.tenant_id and c.chunk_id = j.chunk_id
)
"""


@pytest.fixture
def queue(database: str, role: RoleFactory) -> Iterator[Queue]:
    with ExitStack() as stack:
        yield Queue(database, role, stack)


def test_a_put_under_way_is_waited_for_and_queued(queue: Queue) -> None:
    app, admin = queue.app(), queue.superuser()
    with app.connection.transaction():
        app.put("put before, committed after", "before")
        added = queue.start(lambda: admin.value(ADD))
        queue.wait_until_blocked(admin)
    added.result()
    assert queue.admin.value(UNKNOWN) == 0
    assert queue.admin.value("select count(*) from rag.jobs") == 2


def test_a_put_waits_for_a_model_that_is_being_added(queue: Queue) -> None:
    app, admin = queue.app(), queue.superuser()
    with admin.connection.transaction():
        admin.value(ADD)
        put = queue.start(lambda: app.put("put meanwhile", "meanwhile"))
        queue.wait_until_blocked(app)
    put.result()
    assert queue.admin.value(UNKNOWN) == 0


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_snapshot_from_before_the_model_is_no_way_around_it(queue: Queue, isolation: str) -> None:
    app, admin = queue.app(), queue.superuser()
    app.connection.execute(f"begin isolation level {isolation}".encode())
    app.connection.execute("select count(*) from rag.documents")
    admin.value(ADD)
    with pytest.raises(psycopg.errors.SerializationFailure):
        app.put("put with an old snapshot", "old")
    app.connection.execute("rollback")
    app.put("put again", "again")
    assert queue.admin.value(UNKNOWN) == 0


def test_a_delete_meets_no_job_that_it_cannot_see(queue: Queue) -> None:
    app, admin = queue.app(), queue.superuser()
    app.put("deleted while a model is added", "uri")
    with admin.connection.transaction():
        admin.value(ADD)
        gone = queue.start(lambda: app.value("select rag.delete('uri')"))
        queue.wait_until_blocked(app)
    gone.result()
    assert queue.admin.value(ORPHANS) == 0
    # The other way round.
    app.put("deleted before a model is added", "uri")
    with app.connection.transaction():
        app.value("select rag.delete('uri')")
        added = queue.start(lambda: admin.value("select rag.add_model('newer', 3, 'test')"))
        queue.wait_until_blocked(admin)
    added.result()
    assert queue.admin.value(ORPHANS) == 0
    assert queue.admin.value("select count(*) from rag.jobs") == 0


def test_searches_go_on_while_a_model_is_added_and_activated(queue: Queue) -> None:
    app, admin = queue.app(), queue.superuser()
    app.put("apples and pears", "uri")
    app.connection.execute("set lock_timeout = '1s'")
    with admin.connection.transaction():
        admin.value(ADD)
        assert app.value("select count(*) from rag.search('apples')") == 1
    with admin.connection.transaction():
        assert admin.value("select rag.activate_model('new', force => true)")
        assert app.value("select count(*) from rag.search('apples')") == 1
        assert app.value("select name from rag.active_model()") == "all-MiniLM-L6-v2"
    assert app.value("select name from rag.active_model()") == "new"


def test_a_drop_waits_for_a_search_and_stops_no_other(queue: Queue) -> None:
    app, other, admin = queue.app(), queue.app(), queue.superuser()
    app.put("apples and pears", "uri")
    admin.value(ADD)
    with app.connection.transaction():
        # Locks the embeddings of its model until it ends.
        app.connection.execute(SEARCH)
        dropped = queue.start(lambda: admin.value("select (rag.drop_model('new')).tables_left"))
        queue.wait_until_blocked(admin)
        for _ in range(5):
            other.connection.execute(SEARCH)
    assert dropped.result() == 0
    assert queue.admin.value("select count(*) from rag.models") == 1


def test_two_workers_make_the_table_of_a_model_in_a_partition_once(queue: Queue) -> None:
    app, first, second = queue.app(), queue.worker(), queue.worker()
    app.put("one", "one")
    app.put("two", "two")
    queue.admin.value(ADD)
    table = queue.admin.value(
        "select format('rag_data.embeddings_m%%s_p%%s', m.model_id, t.partition_id) "
        "from rag.models as m cross join rag.tenants as t "
        "where m.name = 'new' and t.name = 'default'"
    )
    queue.admin.connection.execute(f"drop table {table}".encode())
    claim = (
        "select rag.complete_jobs(c.lease_token, array[c.job_id], '{\"[1,2,3]\"}') "
        "from rag.claim_jobs('w', 1, models => '{new}') as c"
    )
    with first.connection.transaction():
        assert first.value(claim) == 1
        late = queue.start(lambda: second.value(claim))
        queue.wait_until_blocked(second)
    assert late.result() == 1
    assert queue.admin.value("select count(*) from rag.embeddings") == 2


def test_word_vectors_wait_for_a_change_of_models_without_holding_their_set(queue: Queue) -> None:
    """Whoever changes models goes on to their sets: who waited for him with one was a deadlock."""
    worker, admin = queue.superuser(), queue.superuser()
    set_id = worker.value("select rag.begin_word_vectors('test', 'all-MiniLM-L6-v2', 'test')")
    worker.connection.execute(
        "select rag.put_word_vectors(%s, array['apple'], array[array_fill(1, array[384])::vector])",
        [set_id],
    )
    with admin.connection.transaction():
        admin.connection.execute("lock table rag.models in exclusive mode")
        activated = queue.start(
            lambda: worker.value(
                "select rag.activate_word_vectors(s.set_id) from rag.word_vector_sets as s"
            )
        )
        queue.wait_until_blocked(worker)
        admin.connection.execute(
            "select from rag.word_vector_sets as s where s.set_id = %s for update nowait", [set_id]
        )
    assert activated.result()
    assert queue.admin.value("select m.word_vector_set from rag.models as m") == set_id
