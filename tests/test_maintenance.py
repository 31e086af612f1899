"""rag.maintain does what its plan says, once, whoever calls it and whenever it is killed."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from db.migrate import MigrationError, migrate
from embedder.__main__ import main
from tests.many_chunks import fill

if TYPE_CHECKING:
    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

REPORT = "select action, tenant, result from rag.maintenance_report() order by step"


def scalar(connection: Connection, statement: str, *parameters: object) -> Any:
    """The only value of a statement's only row."""
    [(value,)] = connection.execute(statement.encode(), parameters).fetchall()
    return value


def kinds(connection: Connection) -> dict[str, str]:
    """The kind of each tenant's partition."""
    rows = connection.execute(
        "select t.name, p.kind from rag.tenants as t join rag.partitions as p using (partition_id) "
        "where t.name <> 'default'"
    )
    return dict(rows.fetchall())


def shrink(connection: Connection, tenant: str, left: int) -> None:
    """Delete documents until the tenant has so many."""
    connection.execute("select rag.set_tenant(%s)", [tenant])
    connection.execute(
        "select rag.delete(u.uri) from unnest(array("
        "select d.uri from rag.documents as d where d.tenant_id = "
        "(select c.tenant_id from rag._context() as c) order by d.document_id offset %s"
        ")) as u (uri)",
        [left],
    )


def planned(connection: Connection, arguments: str = "") -> list[tuple[Any, ...]]:
    """Moves that would be made."""
    statement = (
        f"select p.action, p.tenant from rag.maintenance_plan({arguments}) as p "  # noqa: S608
        "where p.action in ('promote', 'demote', 'rebuild', 'resume')"
    )
    return connection.execute(statement.encode()).fetchall()


def test_tenants_are_promoted_and_demoted_but_not_to_and_fro(connection: Connection) -> None:
    fill(connection, "big", 1300)
    fill(connection, "bigger", 1500)
    fill(connection, "middle", 800)
    fill(connection, "small", 50)
    thresholds = "promote_at => 1000, demote_at => 500, bloat => 0.9"
    assert planned(connection, thresholds) == [("promote", "bigger"), ("promote", "big")]
    assert planned(connection) == []
    # Planned is not done.
    assert set(kinds(connection).values()) == {"shared"}
    connection.execute(f"call rag.maintain({thresholds})".encode())
    assert kinds(connection) == {
        "big": "dedicated", "bigger": "dedicated", "middle": "shared", "small": "shared",
    }  # fmt: skip
    assert [row for row in connection.execute(REPORT) if row[1]] == [
        ("promote", "bigger", "moved to a partition of his own"),
        ("promote", "big", "moved to a partition of his own"),
    ]
    # Between the two thresholds each stays where he is.
    shrink(connection, "big", 700)
    shrink(connection, "bigger", 400)
    assert planned(connection, thresholds) == [("demote", "bigger")]
    connection.execute(f"call rag.maintain({thresholds})".encode())
    assert kinds(connection)["big"] == "dedicated"
    assert kinds(connection)["bigger"] == "shared"
    assert planned(connection, thresholds) == []
    # No more partitions than so many.
    assert planned(
        connection, "promote_at => 300, demote_at => 100, bloat => 0.9, most_partitions => 3"
    ) == [("promote", "middle")]
    report = {row[0]: row for row in connection.execute("select * from rag.partition_report()")}
    assert len(report) == 18
    assert sum(row[2] for row in report.values()) == 5
    assert sum(row[3] for row in report.values()) == 700 + 400 + 800 + 50
    dedicated = [row for row in report.values() if row[1] == "dedicated" and row[2] == 1]
    assert [(row[7][0]["rows"], row[7][0]["valid"]) for row in dedicated] == [(700, True)]
    assert all(row[9] == 0 and row[5] > 0 and row[6] > 0 for row in report.values())


@pytest.mark.parametrize(
    "arguments",
    [
        "promote_at => 1000, demote_at => 900",
        "promote_at => 0, demote_at => 0",
        "demote_at => -1",
        "bloat => 0",
        "bloat => null",
        "most_partitions => -1",
    ],
)
def test_thresholds_that_make_no_sense_are_refused(connection: Connection, arguments: str) -> None:
    for statement in ("select * from rag.maintenance_plan(%s)", "call rag.maintain(%s)"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            connection.execute((statement % arguments).encode())


def test_a_bloated_index_is_built_anew(connection: Connection) -> None:
    fill(connection, "big", 2500)
    connection.execute("call rag.isolate_tenant('big')")
    thresholds = "demote_at => 1000"
    bloat = "select p.bloat from rag.partition_report() as p where p.hnsw <> '[]' and p.tenants = 1"
    size = bloat.replace("p.bloat", "(p.hnsw -> 0 ->> 'bytes')::bigint")
    assert scalar(connection, bloat) < 0.1
    before = scalar(connection, size)
    shrink(connection, "big", 1500)
    assert 0.3 < scalar(connection, bloat) < 0.5
    assert planned(connection, thresholds) == [("rebuild", "big")]
    connection.execute("select rag.set_tenant('big')")
    search = "select s.uri, s.score from rag.search('word3 rare17', 20, mode => 'lexical') as s"
    found = connection.execute(search.encode()).fetchall()
    assert len(found) == 20
    connection.execute(f"call rag.maintain({thresholds})".encode())
    assert scalar(connection, bloat) < 0.1
    assert scalar(connection, size) < 0.75 * before
    assert planned(connection, thresholds) == []
    assert connection.execute(search.encode()).fetchall() == found
    assert scalar(connection, "select rag.drop_empty_partitions('0')") is True
    assert scalar(connection, "select count(*) from rag.partitions where kind <> 'shared'") == 1
    # By hand, too; and nothing where there is none.
    connection.execute("call rag.rebuild_tenant('big')")
    connection.execute("call rag.rebuild_tenant('default')")
    assert connection.execute(search.encode()).fetchall() == found
    assert kinds(connection) == {"big": "dedicated"}


def test_autovacuum_leaves_an_hnsw_index_to_a_rebuild(connection: Connection) -> None:
    """One made for a tenant who moves, for a model that comes later, and one built anew."""
    options = (
        "select exists (select from pg_index as i join pg_class as x on x.oid = i.indexrelid "
        "join pg_am as a on a.oid = x.relam where i.indrelid = c.oid and a.amname = 'hnsw'), "
        "array(select o from unnest(c.reloptions) as o where o like 'autovacuum%' order by 1), "
        "count(*) from pg_class as c where c.relname ~ '^embeddings_m[0-9]+_p[0-9]+$' "
        "group by 1, 2 order by 1"
    )
    fill(connection, "big", 100)
    connection.execute("call rag.isolate_tenant('big')")
    connection.execute("select rag.add_model('other', 8)")
    for _ in range(2):
        assert connection.execute(options.encode()).fetchall() == [
            (False, [], 32),
            (
                True,
                [
                    "autovacuum_vacuum_insert_scale_factor=0.5",
                    "autovacuum_vacuum_scale_factor=0.5",
                ],
                2,
            ),
        ]
        connection.execute("call rag.rebuild_tenant('big')")
        assert scalar(connection, "select rag.drop_empty_partitions('0')") is True


@pytest.mark.parametrize("is_vacuumed", [False, True])
def test_new_metadata_bloats_an_index_that_is_never_vacuumed(
    connection: Connection, is_vacuumed: bool
) -> None:
    """An element of the graph points at up to ten rows of the same vector, dead or alive."""
    fill(connection, "big", 200)
    connection.execute("call rag.isolate_tenant('big')")
    connection.execute("select rag.set_tenant('big')")
    table = scalar(
        connection,
        "select format('rag_data.embeddings_m1_p%%s', c.partition_id) from rag._context() as c",
    )
    # Only when this test says so.
    connection.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
    assert planned(connection, "demote_at => 100") == []
    for n in range(11):
        assert connection.execute(
            "select rag.patch_metadata_where(%s, %s)",
            ['{"none": {"$exists": false}}', f'{{"n": {n}}}'],
        ).fetchall() == [(200,)]
        if is_vacuumed:
            connection.execute(f"vacuum {table}".encode())
    expected = [] if is_vacuumed else [("rebuild", "big")]
    assert planned(connection, "demote_at => 100") == expected


def test_one_at_a_time(database: str, connection: Connection) -> None:
    connection.execute("select rag.put('Some words.')")
    with psycopg.connect(database, autocommit=True) as first:
        first.execute("select rag._begin_maintenance(10000, 5000, 0.3, 500)")
        # As between two steps of its own.
        first.execute("begin")
        first.execute("select 1")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="another session is maintain"):
            connection.execute("call rag.maintain()")
        # It has failed there, and its session went back to a pool.
        first.execute("rollback")
        connection.execute("call rag.maintain()")
        # Who was taken for dead finds that he is.
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="the run is over"):
            first.execute("select rag._maintain(min(run_id)) from rag.maintenance_runs")
        first.execute("call rag.maintain()")
    results = connection.execute(
        "select r.run_id, r.finished_at is null, array_agg(distinct s.result) "
        "from rag.maintenance_runs as r left join rag.maintenance_steps as s using (run_id) "
        "group by 1, 2 order by 1"
    ).fetchall()
    assert [is_open for _, is_open, _ in results] == [False] * 3
    assert results[0][2] == ["broken off"]
    assert "broken off" not in results[1][2]


def test_a_run_that_was_killed_is_taken_up(database: str, connection: Connection) -> None:
    fill(connection, "big", 2500)
    thresholds = "promote_at => 2000, demote_at => 1000"
    killed = 0
    for delay in (0.1, 0.2, 0.3, 0.4):
        with psycopg.connect(database, autocommit=True) as session:
            pid = session.info.backend_pid

            def kill(pid: int = pid, delay: float = delay) -> None:
                time.sleep(delay)
                with psycopg.connect(database, autocommit=True) as killer:
                    killer.execute("select pg_terminate_backend(%s, 5000)", [pid])

            thread = threading.Thread(target=kill)
            thread.start()
            try:
                session.execute(f"call rag.maintain({thresholds})".encode())
            except psycopg.OperationalError:
                killed += 1
            thread.join()
    connection.execute(f"call rag.maintain({thresholds})".encode())
    assert killed > 0
    assert kinds(connection) == {"big": "dedicated"}
    assert planned(connection, thresholds) == []
    assert scalar(connection, "select count(*) from rag.moves") == 0


def test_by_command(
    database: str,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(connection, "big", 1200)
    monkeypatch.setenv("DATABASE_URL", database)
    thresholds = ["--promote-at", "1000", "--demote-at", "500"]
    assert main(["maintain", "--dry-run", *thresholds]) == 0
    assert re.search(r"^promote +big +1200 chunks, 1000 or more$", capsys.readouterr().out, re.M)
    assert kinds(connection) == {"big": "shared"}
    assert main(["maintain", *thresholds]) == 0
    assert re.search(r"^promote +big +moved to a partition", capsys.readouterr().out, re.M)
    assert kinds(connection) == {"big": "dedicated"}
    assert main(["maintain", "--promote-at", "1"]) == 1
    with psycopg.connect(database, autocommit=True) as first:
        first.execute("select rag._begin_maintenance(10000, 5000, 0.3, 500)")
        first.execute("begin")
        first.execute("select 1")
        assert main(["maintain"]) == 0
        assert "another session" in capsys.readouterr().err


def test_leftovers_go(connection: Connection) -> None:
    fill(connection, "gone", 30)
    connection.execute("call rag.isolate_tenant('gone')")
    connection.execute("select rag.drop_tenant('gone')")
    connection.execute("select rag.drop_empty_partitions()")
    connection.execute("update rag.partitions set empty_since = empty_since - interval '1 hour'")
    connection.execute("create table rag_data.copied_chunks_p999 (chunk_id bigint)")
    connection.execute("select rag.prepare_query('a question')")
    connection.execute("update rag.queries set created_at = now() - interval '61 minutes'")
    connection.execute("select rag.put('Some words.')")
    connection.execute("select rag.put('Old words.', 'old', lifetime => interval '1 hour')")
    connection.execute("update rag.documents set expires_at = now() where uri = 'old'")
    deltas = "select count(*) from rag.lexeme_statistics where delta_id > 0"
    assert scalar(connection, deltas) > 0
    connection.execute("call rag.maintain()")
    done = dict(
        connection.execute("select action, result from rag.maintenance_report()").fetchall()
    )
    assert done["fold"] == "done"
    assert done["drop table"] == "done"
    assert done["expire"] == "1 rows deleted"
    assert done["purge"] == "done"
    assert scalar(connection, "select count(*) from rag.documents where uri = 'old'") == 0
    assert done["drop partitions"].startswith("1 dropped")
    assert done["settle"] == "1 are settled"
    assert scalar(connection, deltas) == 0
    assert scalar(connection, "select count(*) from rag.partitions") == 16
    assert scalar(connection, "select to_regclass('rag_data.copied_chunks_p999')") is None
    # Then there is nothing left to do.
    connection.execute("call rag.maintain()")
    assert connection.execute("select action from rag.maintenance_plan()").fetchall() == []


def test_the_parents_are_analyzed(connection: Connection) -> None:
    """Autovacuum never does that."""
    fill(connection, "some", 2000)
    connection.execute("call rag.maintain()")
    assert connection.execute(
        "select distinct s.tablename from pg_stats as s "
        "where s.schemaname = 'rag' and s.inherited and s.attname = 'tenant_id' order by 1"
    ).fetchall() == [("chunks",), ("embeddings",), ("lexemes",)]


def test_only_administrators_maintain(role: RoleFactory) -> None:
    for member, allowed in (("rag_app", False), ("rag_worker", False), ("rag_admin", True)):
        user = role("default", member_of=(member,))
        with psycopg.connect(user.url, autocommit=True) as session:
            for statement in (
                "select * from rag.maintenance_plan()",
                "select * from rag.partition_report()",
                "call rag.maintain()",
                "select * from rag.maintenance_report()",
            ):
                if allowed:
                    session.execute(statement.encode())
                    continue
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement.encode())


def test_inside_of_a_transaction_nothing_is_begun(database: str) -> None:
    for call in ("maintain()", "isolate_tenant('default')", "pool_tenant('default')"):
        with psycopg.connect(database) as session:
            with pytest.raises(
                psycopg.errors.InvalidTransactionTermination, match="begin_as_autocommit"
            ):
                session.execute(f"call rag.{call}".encode())
            session.rollback()
            assert scalar(session, "select count(*) from rag.moves") == 0
            assert scalar(session, "select count(*) from rag.maintenance_runs") == 0


def test_an_old_snapshot_finds_its_partition(database: str, connection: Connection) -> None:
    fill(connection, "mover", 1200)
    connection.execute("call rag.isolate_tenant('mover')")
    with psycopg.connect(database) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select rag.set_tenant('mover')")
        search = (
            "select s.chunk_id, s.score from rag.search('word3 rare17', 20, "
            "embedding => array_fill(1, array[384])::vector) as s"
        )
        before = reader.execute(search.encode()).fetchall()
        assert len(before) == 20
        connection.execute("call rag.pool_tenant('mover')")
        assert scalar(connection, "select rag.drop_empty_partitions('0')") is True
        assert reader.execute(search.encode()).fetchall() == before
        assert scalar(connection, "select count(*) from rag.partitions") == 17
    assert scalar(connection, "select rag.drop_empty_partitions('0')") is True
    assert scalar(connection, "select count(*) from rag.partitions") == 16


def test_the_number_of_shared_partitions_is_chosen_once(empty_database: str) -> None:
    for number in (0, 3, 12, 2048):
        with pytest.raises(MigrationError, match="invalid number of shared partitions"):
            migrate(empty_database, partitions=number)
    migrate(empty_database, partitions=4)
    # Told again, or not told, it stays; another number is refused.
    migrate(empty_database, partitions=4)
    migrate(empty_database)
    with pytest.raises(MigrationError, match="is chosen at installation"):
        migrate(empty_database, partitions=8)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        assert scalar(connection, "select count(*) from rag.partitions") == 4
        for n in range(8):
            connection.execute("select rag.create_tenant(%s)", [f"tenant {n}"])
        connection.execute("select rag.set_tenant('tenant 7')")
        connection.execute("select rag.put('Some words.')")
        assert scalar(connection, "select count(*) from rag.search('words')") == 1
        assert scalar(connection, "select count(distinct partition_id) from rag.tenants") == 4
