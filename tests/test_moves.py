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
            -- What goes with HNSW.
            and (a.amname <> 'gin' or c.relname not like 'embeddings%%')
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


def test_a_partition_of_ones_own_is_as_secure(
    connection: Connection, role: RoleFactory, tenant: str
) -> None:
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    with psycopg.connect(role(tenant).url, autocommit=True) as app:
        app.execute("select rag.set_tenant(%s)", [tenant])
        for (name,) in connection.execute(
            "select c.oid::regclass::text from pg_class as c join rag.partitions as p "
            "on c.relname like '%\\_p' || p.partition_id and p.kind = 'dedicated' "
            "where c.relnamespace = 'rag_data'::regnamespace and c.relkind = 'r'"
        ).fetchall():
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(f"select * from {name}".encode())  # noqa: S608
    shapes = connection.execute(SHAPES, {"all": True}).fetchall()
    by_kind = {
        kind: {tuple(shape) for of, *shape in shapes if of == kind}
        for kind in ("shared", "dedicated")
    }
    assert by_kind["shared"] == by_kind["dedicated"]
    assert all(security for _, security, *_ in by_kind["shared"])
    # Attaching took the indexes that were there, and made none while everybody waited.
    assert connection.execute(
        "select count(*) filter (where a.amname = 'hnsw'), "
        "bool_and(x.indisvalid and (a.amname = 'hnsw' "
        "or a.amname = 'gin' and t.relname like 'embeddings%') = (i.inhrelid is null)) "
        "from pg_index as x join pg_class as c on c.oid = x.indexrelid "
        "join pg_am as a on a.oid = c.relam left join pg_inherits as i on i.inhrelid = c.oid "
        "join pg_class as t on t.oid = x.indrelid "
        "join rag.partitions as p on p.kind = 'dedicated' "
        "where t.relname like '%\\_p' || p.partition_id"
    ).fetchall() == [(1, True)]


def test_vectors_stay_in_their_rows(connection: Connection, tenant: str) -> None:
    """Out of line, each would cost a second look-up. The widest that there may be, with facets."""
    connection.execute("call rag.isolate_tenant(%s)", [tenant])
    connection.execute("select rag.add_model('wide', 4000)")
    connection.execute(
        "insert into rag.embeddings (partition_id, tenant_id, chunk_id, model_id, collection_id, "
        "facets, embedding) select e.partition_id, e.tenant_id, e.chunk_id, m.model_id, "
        "e.collection_id, e.facets, array_fill(1 + e.chunk_id %% 7, array[4000])::real[]::halfvec "
        "from rag.embeddings as e join rag.models as m on m.name = 'wide' "
        "join rag.tenants as t using (tenant_id) "
        "where t.name = 'neighbour' or t.name = %s and e.chunk_id %% 20 = 0",
        [tenant],
    )
    # Built anew, in a table that is filled before it is a partition.
    connection.execute("call rag.rebuild_tenant(%s)", [tenant])
    assert connection.execute(
        "select distinct t.name, m.dimensions, pg_column_size(e.embedding), "
        "pg_relation_size(c.reltoastrelid), pg_relation_size(c.oid) > 0 "
        "from rag.embeddings as e join rag.models as m using (model_id) "
        "join rag.tenants as t using (tenant_id) join pg_class as c on c.oid = e.tableoid "
        "order by 1, 2"
    ).fetchall() == [
        (name, dimensions, 8 + 2 * dimensions, 0, True)
        for name in (tenant, "neighbour")
        for dimensions in (384, 4000)
    ]


COUNTS = """
select
    (select count(*) from rag.chunks as c where c.metadata ? 'tenth'),
    (select count(distinct c.chunk_id) from rag.chunks as c where c.metadata ? 'tenth'),
    (select count(*) from rag.embeddings)
"""

KEPT = "select count(*) from rag.chunks as c where c.metadata ? 'tenth'"


def test_moves_under_load(  # noqa: C901, PLR0915
    database: str, connection: Connection, role: RoleFactory, tenant: str
) -> None:
    """Constant search, ingest and embedding: no error, nothing doubled, nothing lost."""
    reader = role(tenant)
    users = Users()

    def count(session: Connection, _n: int) -> None:
        session.execute("select rag.set_tenant(%s)", [tenant])
        [(chunks, ids, vectors)] = session.execute(COUNTS).fetchall()
        assert chunks == ids == CHUNKS, (chunks, ids)
        assert vectors >= CHUNKS

    def recount(session: Connection, n: int) -> None:
        """The same by a plan that is kept, and by snapshots that are older than the plan."""
        if n == 0:
            session.execute("set plan_cache_mode = force_generic_plan")
        with session.transaction():
            if n % 2:
                session.execute("set transaction isolation level repeatable read")
            session.execute("select rag.set_tenant(%s)", [tenant])
            for _ in range(3):
                rows = session.execute(KEPT, prepare=True).fetchall()
                assert rows == [(CHUNKS,)], rows
                time.sleep(0.02)

    def oversee(session: Connection, _n: int) -> None:
        """No policy binds a superuser, who sees the neighbour's 200 as well."""
        rows = session.execute(KEPT).fetchall()
        assert rows == [(CHUNKS + 200,)], rows
        time.sleep(0.005)

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
        users.run(reader.url, "recount", recount),
        users.run(database, "oversee", oversee),
        users.run(reader.url, "write", write),
        users.run(database, "embed", embed),
    ]
    longest = 0.0
    try:
        for n in range(MOVES):
            began = time.monotonic()
            connection.execute(
                f"call rag.{('isolate', 'rebuild', 'pool')[n % 3]}_tenant(%s)".encode(), [tenant]
            )
            longest = max(longest, time.monotonic() - began)
            assert users.errors == []
    finally:
        users.done.set()
        for thread in threads:
            thread.join()
    assert users.errors == []
    print(f"{MOVES} moves, the longest {longest:.1f} s, {dict(users.calls)}")
    print(f"slowest search {users.slowest:.3f} s")
    assert min(users.calls.values()) > MOVES
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


def test_a_long_reader_holds_up_the_move_and_nobody_else(
    database: str, connection: Connection, role: RoleFactory, tenant: str
) -> None:
    """Its neighbours wait as long as the switch does for a lock at most; then the move ends."""
    users = Users()
    slowest = {"put": 0.0, "sql": 0.0}

    def measured(name: str, statement: str) -> Callable[[Connection, int], None]:
        def act(session: Connection, n: int) -> None:
            session.execute("select rag.set_tenant('neighbour')")
            started = time.monotonic()
            session.execute(statement.encode(), [n] if "%s" in statement else None)
            slowest[name] = max(slowest.get(name, 0), time.monotonic() - started)
            time.sleep(0.01)

        return act

    neighbour = role("neighbour")
    with psycopg.connect(role(tenant).url) as reader:
        reader.execute("select rag.set_tenant(%s)", [tenant])
        assert scalar(reader, "select count(*) from rag.chunks") == CHUNKS
        threads = [
            users.run(neighbour.url, "search", measured("search", "select rag.search('common')")),
            users.run(neighbour.url, "put", measured("put", "select rag.put('Text.', 'u' || %s)")),
            users.run(neighbour.url, "sql", measured("sql", "select count(*) from rag.chunks")),
        ]
        try:
            with pytest.raises(psycopg.errors.LockNotAvailable, match="cannot be switched"):
                connection.execute(
                    "call rag.isolate_tenant(%s, tries => 3, lock_timeout => '300 ms')", [tenant]
                )
            assert kind(connection, tenant) == "shared"
            assert scalar(connection, "select stage from rag.moves") == "catching up"
            # It still reads what it did.
            assert scalar(reader, "select count(*) from rag.chunks") == CHUNKS
            mover = threading.Thread(
                target=lambda: connection.execute("call rag.isolate_tenant(%s)", [tenant])
            )
            mover.start()
            with psycopg.connect(database, autocommit=True) as watcher:
                passes = scalar(watcher, "select passes from rag.moves")
                while scalar(watcher, "select passes from rag.moves") < passes + 2:
                    time.sleep(0.05)
            reader.rollback()
            mover.join()
        finally:
            users.done.set()
            for thread in threads:
                thread.join()
    assert users.errors == []
    assert kind(connection, tenant) == "dedicated"
    assert rows(connection, tenant) == (CHUNKS, CHUNKS, CHUNKS)
    # Searches do not wait for that lock at all, the others 0.3 s and then 0.5 s of it.
    print(f"slowest: {slowest}")
    assert max(slowest.values()) < 2


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
