"""Tenants move between partitions while they are searched and written to."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.many_chunks import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from db.server import Server
    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

MOVES = int(os.environ.get("RAGDB_TEST_MOVES", "6"))
"""Moves there, anew and back under load; `make test-large` takes 100."""

CHUNKS = 1500
ROWS = """
select
    (select count(*) from rag.chunks as c where c.tenant_id = t.tenant_id),
    (select count(*) from rag.lexemes as l where l.tenant_id = t.tenant_id),
    (select count(*) from rag.embeddings as e where e.tenant_id = t.tenant_id)
from rag.tenants as t
where t.name = %(tenant)s
"""

# What an embedder does, with vectors of no meaning.
EMBED = """
select rag.complete_jobs(
    (array_agg(c.lease_token))[1], array_agg(c.job_id),
    array_agg(array_fill(1, array[384])::vector)
)
from rag.claim_jobs('test', 100) as c
"""

NEAR = """
select s.chunk_id
from rag.search('common', 20, embedding => array_fill(1, array[384])::vector) as s
"""

UNATTACHED = """
select count(*)
from pg_class as c
left join pg_inherits as i on i.inhrelid = c.oid
where c.relnamespace = 'rag_data'::regnamespace and c.relkind = 'r' and i.inhrelid is null
"""

# What a partition's tables are like, but for their names.
SHAPES = """
select distinct
    p.kind,
    split_part(c.relname, '_', 1),
    c.relrowsecurity,
    c.relacl::text,
    (
        select array_agg(
            y.polname || y.polpermissive::text || pg_get_expr(y.polqual, y.polrelid)
            order by y.polname
        )::text
        from pg_policy as y
        where y.polrelid = c.oid
    ),
    (
        select array_agg(d.definition order by d.definition)::text
        from pg_index as x
        join pg_class as i on i.oid = x.indexrelid
        join pg_am as a on a.oid = i.relam and a.amname <> 'hnsw'
        cross join substring(pg_get_indexdef(x.indexrelid) from ' USING .*') as d (definition)
        where x.indrelid = c.oid
    ),
    (
        select array_agg(k.conname || pg_get_constraintdef(k.oid) order by k.conname)::text
        from pg_constraint as k
        where k.conrelid = c.oid and k.contype = 'c'
    )
from pg_class as c
join rag.partitions as p on c.relname like '%%\\_p' || p.partition_id
where c.relnamespace = 'rag_data'::regnamespace and c.relkind = 'r' and %(all)s
"""


@dataclass
class Users:
    """Sessions that search and write until they are told to stop; what they saw."""

    done: threading.Event = field(default_factory=threading.Event)
    errors: list[str] = field(default_factory=list[str])
    calls: Counter[str] = field(default_factory=Counter[str])
    slowest: float = 0

    def run(self, url: str, name: str, act: Callable[[Connection, int], None]) -> threading.Thread:
        """Call act with a connection of the session's own and a number, again and again."""

        def work() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                while not self.done.is_set():
                    started = time.monotonic()
                    try:
                        act(connection, self.calls[name])
                    except (psycopg.Error, AssertionError) as error:
                        self.errors.append(f"{name}: {error!r}")
                        return
                    self.calls[name] += 1
                    if name.startswith("search"):
                        self.slowest = max(self.slowest, time.monotonic() - started)

        thread = threading.Thread(target=work)
        thread.start()
        return thread


def scalar(connection: Connection, statement: str, *parameters: object) -> Any:
    """The only value of a statement's only row."""
    [(value,)] = connection.execute(statement.encode(), parameters).fetchall()
    return value


def kind(connection: Connection, tenant: str) -> str:
    """The kind of the tenant's partition."""
    return scalar(
        connection,
        "select p.kind from rag.partitions as p join rag.tenants as t using (partition_id) "
        "where t.name = %s",
        tenant,
    )


def rows(connection: Connection, tenant: str) -> tuple[int, ...]:
    """Rows of chunks, lexemes and embeddings of the tenant, anywhere."""
    [counts] = connection.execute(ROWS, {"tenant": tenant}).fetchall()
    return counts


@pytest.fixture
def tenant(connection: Connection) -> str:
    """A tenant with chunks, and one beside him."""
    fill(connection, "mover", CHUNKS)
    fill(connection, "neighbour", 200)
    return "mover"


def found(connection: Connection) -> list[tuple[Any, ...]]:
    """What one search finds, the same at any time."""
    return connection.execute(
        "select s.chunk_id, round(s.lexical_score::numeric, 4) from rag.search("
        "'word3 rare17', 20, mode => 'lexical') as s"
    ).fetchall()


def test_a_move_keeps_everything(connection: Connection, tenant: str) -> None:
    connection.execute("select rag.set_tenant(%s)", [tenant])
    before, results = rows(connection, tenant), found(connection)
    for move, after in (("isolate_tenant", "dedicated"), ("pool_tenant", "shared")):
        connection.execute(f"call rag.{move}(%s)".encode(), [tenant])
        assert kind(connection, tenant) == after
        assert rows(connection, tenant) == before == (CHUNKS, CHUNKS, CHUNKS)
        assert rows(connection, "neighbour") == (200, 200, 200)
        assert found(connection) == results
        # Again is a no-op.
        connection.execute(f"call rag.{move}(%s)".encode(), [tenant])
        assert kind(connection, tenant) == after
    # Not at once: a search may be reading them.
    assert scalar(connection, "select count(*) from rag.partitions where kind <> 'shared'") == 1
    assert scalar(connection, "select rag.drop_empty_partitions('0')") is True
    assert scalar(connection, "select count(*) from rag.partitions where kind <> 'shared'") == 0
    assert scalar(connection, "select count(*) from rag.moves") == 0
    assert scalar(connection, UNATTACHED) == 0


def test_a_partition_of_ones_own_is_as_secure(connection: Connection, tenant: str) -> None:
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    shapes = connection.execute(SHAPES, {"all": True}).fetchall()
    by_kind = {
        kind: {tuple(shape) for of, *shape in shapes if of == kind}
        for kind in ("shared", "dedicated")
    }
    assert by_kind["shared"] == by_kind["dedicated"]
    assert all(security for _, security, *_ in by_kind["shared"])


COUNTS = """
select
    (select count(*) from rag.chunks as c where c.metadata ? 'tenth'),
    (select count(distinct c.chunk_id) from rag.chunks as c where c.metadata ? 'tenth'),
    (select count(*) from rag.embeddings)
"""


def test_moves_under_load(  # noqa: PLR0915
    database: str, connection: Connection, role: RoleFactory, tenant: str
) -> None:
    """Constant search, ingest and embedding: no error, nothing doubled, nothing lost."""
    reader = role(tenant)
    users = Users()
    missed: list[tuple[int, ...]] = []

    def count(session: Connection, _n: int) -> None:
        session.execute("select rag.set_tenant(%s)", [tenant])
        rows = session.execute(COUNTS).fetchall()
        if rows[0][0] == 0:
            # PostgreSQL plans a statement before it takes the snapshot that it runs with. Planned
            # just before the switch and run just after it, direct SQL misses the new partition,
            # once; rag.search, which reads the partition's name in its snapshot, does not.
            missed.append(rows[0])
            rows = session.execute(COUNTS).fetchall()
        [(chunks, ids, vectors)] = rows
        assert chunks == ids == CHUNKS, (chunks, ids)
        assert vectors >= CHUNKS

    written: dict[str, str] = {}

    def write(session: Connection, n: int) -> None:
        session.execute("select rag.set_tenant(%s)", [tenant])
        uri, text = f"written/{n % 40}", f"Text {n} about elephants number{n}."
        if n % 7 == 6:
            session.execute("select rag.delete(%s)", [uri])
            written.pop(uri, None)
        else:
            session.execute("select rag.put(%s, %s)", [text, uri])
            written[uri] = text

    def embed(session: Connection, _n: int) -> None:
        session.execute(EMBED)
        time.sleep(0.02)

    # Their scores change with the number of chunks, their order does not.
    with psycopg.connect(reader.url, autocommit=True) as session:
        session.execute("select rag.set_tenant(%s)", [tenant])
        expected = [chunk for chunk, _ in found(session)]

    def search(session: Connection, n: int) -> None:
        session.execute("select rag.set_tenant(%s)", [tenant])
        got = [chunk for chunk, _ in found(session)]
        assert got == expected, f"{len(got)} rows"
        if n % 5 == 0:
            near = session.execute(NEAR).fetchall()
            assert len({c for (c,) in near}) == 20

    threads = [
        users.run(reader.url, "search", search),
        users.run(reader.url, "count", count),
        users.run(reader.url, "write", write),
        users.run(database, "embed", embed),
    ]
    try:
        for n in range(MOVES):
            connection.execute(
                f"call rag.{('isolate', 'rebuild', 'pool')[n % 3]}_tenant(%s)".encode(), [tenant]
            )
            assert users.errors == []
    finally:
        users.done.set()
        for thread in threads:
            thread.join()
    assert users.errors == []
    assert len(missed) <= MOVES
    print(f"{MOVES} moves, {dict(users.calls)}, slowest search {users.slowest:.3f} s")
    assert min(users.calls[name] for name in ("search", "count", "write", "embed")) > MOVES
    assert users.slowest < 2

    # What was written last is there, once, with its embedding, and the statistics are right.
    with psycopg.connect(database, autocommit=True) as session:
        embed(session, 0)
        session.execute("select rag.set_tenant(%s)", [tenant])
        texts = session.execute(
            "select d.uri, d.content from rag.documents as d where d.uri like 'written/%'"
        ).fetchall()
        assert dict(texts) == written
        total = CHUNKS + len(written)
        assert rows(session, tenant) == (total, total, total)
        assert scalar(
            session, "select count(*) from rag.search('elephants', 100, mode => 'lexical')"
        ) == len(written)


def test_a_move_that_was_killed_goes_on(database: str, connection: Connection, tenant: str) -> None:
    """The session is killed at one point after the other; the next call goes on from there."""
    before = rows(connection, tenant)
    connection.execute("select rag.set_tenant(%s)", [tenant])
    results = found(connection)
    stages: set[str] = set()
    for delay in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        with psycopg.connect(database, autocommit=True) as session:
            pid = session.info.backend_pid

            def kill(pid: int = pid, delay: float = delay) -> None:
                time.sleep(delay)
                with psycopg.connect(database, autocommit=True) as killer:
                    killer.execute("select pg_terminate_backend(%s, 5000)", [pid])

            thread = threading.Thread(target=kill)
            thread.start()
            try:
                session.execute("call rag.isolate_tenant(%s)", [tenant])
            except psycopg.OperationalError:
                stages.add("killed")
            thread.join()
        assert rows(connection, tenant) == before
        assert found(connection) == results
        for (stage,) in connection.execute("select stage from rag.moves"):
            stages.add(stage)
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    assert "killed" in stages
    assert kind(connection, tenant) == "dedicated"
    assert rows(connection, tenant) == before
    assert found(connection) == results


def test_a_move_is_given_up(connection: Connection, tenant: str) -> None:
    before = rows(connection, tenant)
    connection.execute("select rag._begin_move(%s)", [tenant])
    tenant_id = scalar(connection, "select tenant_id from rag.moves")
    connection.execute("select rag._move_on(%s, 700)", [tenant_id])
    assert rows(connection, tenant) == before
    assert scalar(connection, "select rag.cancel_move(%s)", tenant) is True
    assert scalar(connection, "select rag.cancel_move(%s)", tenant) is False
    assert rows(connection, tenant) == before
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="the move was given up"):
        connection.execute("select rag._move_on(%s)", [tenant_id])
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    assert rows(connection, tenant) == before


def test_two_cannot_move_the_same_tenant(
    database: str, connection: Connection, tenant: str
) -> None:
    connection.execute("select rag._begin_move(%s)", [tenant])
    tenant_id = scalar(connection, "select tenant_id from rag.moves")
    with psycopg.connect(database) as other:
        other.execute("select rag._move_on(%s)", [tenant_id])
        with pytest.raises(psycopg.errors.LockNotAvailable, match="another session moves or drops"):
            connection.execute("call rag.isolate_tenant(%s)", [tenant])
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    assert kind(connection, tenant) == "dedicated"


def test_only_administrators_move_tenants(
    connection: Connection, role: RoleFactory, tenant: str
) -> None:
    for member, allowed in (("rag_app", False), ("rag_worker", False), ("rag_admin", True)):
        user = role(tenant, member_of=(member,))
        with psycopg.connect(user.url, autocommit=True) as session:
            if allowed:
                session.execute("call rag.isolate_tenant(%s)", [tenant])
                session.execute("call rag.pool_tenant(%s)", [tenant])
                continue
            for move in ("isolate_tenant", "pool_tenant"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(f"call rag.{move}(%s)".encode(), [tenant])
    with pytest.raises(psycopg.Error, match="nobody") as caught:
        connection.execute("call rag.isolate_tenant('nobody')")
    assert caught.value.sqlstate == "RG002"


def test_no_snapshot_from_before_the_writers_it_waited_for(
    connection: Connection, tenant: str
) -> None:
    """In repeatable read a move would leave behind what was committed while it waited."""
    connection.execute("set default_transaction_isolation = 'repeatable read'")
    for statement in (
        "call rag.isolate_tenant('mover')",
        "call rag.pool_tenant('mover')",
        "select rag.add_model('second', 8)",
    ):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="read committed"):
            connection.execute(statement.encode())
    connection.execute("reset default_transaction_isolation")
    assert kind(connection, tenant) == "shared"


def test_a_model_dropped_during_a_move_leaves_nothing(connection: Connection, tenant: str) -> None:
    connection.execute("select rag.add_model('second', 8)")
    connection.execute("select rag._begin_move(%s)", [tenant])
    connection.execute("select rag.drop_model('second')")
    connection.execute("select rag.drop_tenant(%s)", [tenant])
    assert scalar(connection, "select rag.drop_empty_partitions('0')") is True
    assert scalar(connection, UNATTACHED) == 0


def test_a_server_that_dies_during_a_move(
    server: Server, database: str, connection: Connection, tenant: str
) -> None:
    """What was copied is still known afterwards, so what was deleted since does not come back."""
    connection.execute("select rag.set_tenant(%s)", [tenant])
    connection.execute("select rag._begin_move(%s)", [tenant])
    tenant_id = scalar(connection, "select tenant_id from rag.moves")
    while scalar(connection, "select rag._move_on(%s)", tenant_id) != "catching up":
        stage = scalar(connection, "select stage from rag.moves")
        if stage == "catching up":
            break
    server.stop(immediate=True)
    server.start()
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("select rag.set_tenant(%s)", [tenant])
        assert scalar(session, "select rag.delete('many/7')") is True
        session.execute("call rag.isolate_tenant(%s)", [tenant])
        assert rows(session, tenant) == (CHUNKS - 1, CHUNKS - 1, CHUNKS - 1)
