"""The migrator, on small trees of its own and on the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from db import migrate as runner
from db.migrate import ROLES, ROOT, Applied, MigrationError, migrate, pending, pgvector_warnings
from db.server import Server, default_version
from tests.conftest import Databases, as_user, empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THINGS = """
create table rag.things (thing_id int primary key, embedding halfvec(3));
"""

COUNT = """
create or replace function rag.count_things()
    returns bigint
    language sql
    stable
    set search_path = pg_catalog, public, pg_temp
    set hnsw.ef_search = 100
as $$ select count(*) from rag.things as t where t.embedding <> rag._origin() $$;
"""

# In a file of its own behind COUNT, which calls it.
ORIGIN = """
create or replace function rag._origin()
    returns halfvec
    language plpgsql
    immutable
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    return '[0, 0, 0]'::halfvec;
end
$$;
"""

WARNING = """
create or replace function rag._postgres_warning(version int) returns text language sql
    return case when version is not null then version || ' has holes' end;
"""

REMOVED = """
create or replace function rag.first() returns int language sql begin atomic select 1; end;
create or replace function rag.second() returns int language sql
    begin atomic select rag.first(); end;
create or replace procedure rag.third() language plpgsql as 'begin null; end';
"""


class Tree:
    """A folder like db, to write files into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("migrations", "functions"):
            (root / name).mkdir()
        shutil.copy(ROOT / "roles.sql", root)
        self.write("migrations/0001_things.sql", THINGS)
        self.write("functions/10_count.sql", COUNT)
        self.write("functions/20_origin.sql", ORIGIN)

    def write(self, name: str, text: str) -> None:
        """Write or replace a file, byte for byte."""
        (self.root / name).write_bytes(text.encode())

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.root / name).unlink()

    def migrate(self, url: str) -> Applied:
        """Bring a database to this tree."""
        return migrate(url, self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """One migration and two files of functions."""
    return Tree(tmp_path)


@pytest.fixture(scope="module")
def lone_server(server: Server) -> Iterator[Server]:
    """A second cluster, for what roles of the whole cluster would disturb."""
    lone = Server(server.root / "lone", server.version)
    lone.start()
    yield lone
    lone.stop(immediate=True)


@pytest.fixture
def bare(lone_server: Server) -> Iterator[Databases]:
    """Makes databases on a server without the roles of ragdb."""
    yield Databases(lone_server)
    # Emptied, not dropped: each drop of a database is a checkpoint.
    maintenance = lone_server.url("postgres")
    for (name,) in ask(maintenance, "select datname from pg_database where datname ~ '^test'"):
        empty(lone_server.url(name))
    with psycopg.connect(maintenance, autocommit=True) as connection:
        for (name,) in connection.execute(
            "select rolname from pg_roles where rolname !~ '^(pg_|postgres$)'"
        ).fetchall():
            run(connection, "drop role {}", name)


def run(connection: psycopg.Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def ask(url: str, query: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def tell(url: str, *statements: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def functions(url: str) -> list[str]:
    rows = ask(
        url,
        "select p.oid::regprocedure::text from pg_proc as p "
        "where p.pronamespace = to_regnamespace('rag') order by 1",
    )
    return [name for (name,) in rows]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(MigrationError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


# The order of things


def test_a_fresh_database_gets_everything_and_a_second_run_only_functions(
    tree: Tree, empty_database: str
) -> None:
    assert pending(empty_database, tree.root) == ("0001_things.sql",)
    first = tree.migrate(empty_database)
    assert first.migrations == ("0001_things.sql",)
    assert first.functions == ("10_count.sql", "20_origin.sql")
    assert first.warnings == ()
    assert pending(empty_database, tree.root) == ()
    second = tree.migrate(empty_database)
    assert (second.migrations, second.dropped) == ((), ())
    assert ask(empty_database, "select version, name, length(sha256) from rag.migrations") == [
        (1, "0001_things.sql", 64)
    ]
    assert ask(empty_database, "select rag.count_things()") == [(0,)]


def test_everything_belongs_to_rag_owner_and_nothing_to_public(
    tree: Tree, empty_database: str
) -> None:
    tree.migrate(empty_database)
    assert ask(
        empty_database,
        "select distinct owner::regrole::text from ("
        "select relowner from pg_class where relnamespace = 'rag'::regnamespace "
        "union all select proowner from pg_proc where pronamespace = 'rag'::regnamespace "
        "union all select nspowner from pg_namespace where nspname in ('rag', 'rag_data')"
        ") as o (owner)",
    ) == [("rag_owner",)]
    assert ask(
        empty_database,
        "select has_schema_privilege('public', 'rag', 'usage'), "
        "has_function_privilege('public', 'rag.count_things()', 'execute')",
    ) == [(False, False)]
    assert ask(
        empty_database,
        "select r.rolname from pg_auth_members as m join pg_roles as r on r.oid = m.roleid "
        "where m.member = current_user::regrole and m.set_option and m.inherit_option order by 1",
    ) == [(name,) for name in sorted(ROLES)]


def test_the_bootstrap_file_runs_last_and_every_time(tree: Tree, empty_database: str) -> None:
    tree.write(
        "bootstrap.sql",
        "insert into rag.things values ((select count(*) + rag.count_things() from rag.things));",
    )
    tree.migrate(empty_database)
    tree.migrate(empty_database)
    assert ask(empty_database, "select count(*) from rag.things") == [(2,)]


def test_line_ends_of_the_checkout_do_not_matter(tree: Tree, empty_database: str) -> None:
    tree.migrate(empty_database)
    tree.write("migrations/0001_things.sql", THINGS.replace("\n", "\r\n"))
    assert tree.migrate(empty_database).migrations == ()


def test_settings_of_the_database_do_not_matter(tree: Tree, empty_database: str) -> None:
    settings = {
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "statement_timeout": "300ms",
        "search_path": "nowhere",
        "check_function_bodies": "off",
    }
    if default_version() >= 17:
        settings["transaction_timeout"] = "300ms"
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(
                sql.SQL("alter database {} set {} to {}").format(
                    sql.Identifier(connection.info.dbname), sql.Identifier(name), value
                )
            )
    tree.write("migrations/0002_slow.sql", "select pg_sleep(0.6);")
    assert len(tree.migrate(empty_database).migrations) == 2


# What is refused


def edit(tree: Tree) -> None:
    tree.write("migrations/0001_things.sql", THINGS + "-- a remark\n")


def vanish(tree: Tree) -> None:
    tree.remove("migrations/0001_things.sql")


def rename(tree: Tree) -> None:
    vanish(tree)
    tree.write("migrations/0001_objects.sql", THINGS)


def come_late(tree: Tree) -> None:
    tree.write("migrations/0000_early.sql", "create table rag.early ();")


def double(tree: Tree) -> None:
    tree.write("migrations/0001_twin.sql", "create table rag.twin ();")


def misname(tree: Tree) -> None:
    tree.write("migrations/2_things.sql", "create table rag.misnamed ();")


def garble(tree: Tree) -> None:
    (tree.root / "migrations/0002_garbled.sql").write_bytes(b"select 'gr\xfcn';")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit, ("0001_things.sql", "edited")),
        (vanish, ("0001_things.sql", "gone")),
        (rename, ("0001_objects.sql", "0001_things.sql", "old name")),
        (come_late, ("0000_early.sql", "0001_things.sql", "higher number")),
        (double, ("0001_things.sql", "0001_twin.sql", "same number")),
        (misname, ("2_things.sql", "0001_name.sql")),
        (garble, ("0002_garbled.sql", "UTF-8", "byte 10")),
    ],
)
def test_files_that_do_not_fit_to_the_ledger_are_refused(
    tree: Tree, empty_database: str, change: Callable[[Tree], None], words: tuple[str, ...]
) -> None:
    tree.migrate(empty_database)
    before = functions(empty_database)
    change(tree)
    tree.write("functions/30_new.sql", COUNT.replace("count_things", "count_again"))
    message = refusal(lambda: tree.migrate(empty_database))
    for word in words:
        assert word in message
    assert functions(empty_database) == before
    assert refusal(lambda: pending(empty_database, tree.root)) == message


def test_a_file_that_fails_is_named_with_its_line_and_nothing_stays(
    tree: Tree, empty_database: str
) -> None:
    tree.write("migrations/0002_wrong.sql", "create table rag.a ();\n\nselect wrong\n  from rag.a;")
    message = refusal(lambda: tree.migrate(empty_database))
    assert message.startswith("migrations/0002_wrong.sql line 3: ")
    assert '"wrong" does not exist' in message
    assert ask(empty_database, "select to_regnamespace('rag')") == [(None,)]


def test_other_kinds_of_database_are_refused(tree: Tree, databases: Databases) -> None:
    url = databases.create(options="encoding 'LATIN1' locale 'C'", template="template0")
    assert "LATIN1" in refusal(lambda: tree.migrate(url))
    databases.close(url)
    url = databases.create()
    tell(url, "create schema rag")
    assert "schema rag is there already" in refusal(lambda: tree.migrate(url))
    databases.close(url)


def test_no_connection_is_a_sentence_without_the_password(tree: Tree) -> None:
    absent = "postgresql://me:secret@/x?host=/nowhere"
    message = refusal(lambda: tree.migrate(absent))
    assert message.startswith("no connection: ")
    message += refusal(lambda: tree.migrate("postgres//me:secret@host/x"))
    assert "secret" not in message


# Functions


def test_a_function_that_left_the_files_leaves_the_database(
    tree: Tree, empty_database: str
) -> None:
    tree.write("functions/30_removed.sql", REMOVED)
    # Grants write the rows of all functions.
    tree.write("grants.sql", "revoke all on all routines in schema rag from public;")
    tree.migrate(empty_database)
    assert "rag.second()" in functions(empty_database)
    tree.remove("functions/30_removed.sql")
    assert tree.migrate(empty_database).dropped == ("rag.first()", "rag.second()", "rag.third()")
    assert functions(empty_database) == ["rag._origin()", "rag.count_things()"]


def test_a_further_parameter_replaces_the_function(tree: Tree, empty_database: str) -> None:
    tree.migrate(empty_database)
    tree.write("functions/10_count.sql", COUNT.replace("s()", "s(fewest int default 0)", 1))
    assert tree.migrate(empty_database).dropped == ("rag.count_things()",)
    assert ask(empty_database, "select rag.count_things()") == [(0,)]


def test_a_changed_return_type_needs_a_migration_that_drops_the_function(
    tree: Tree, empty_database: str
) -> None:
    tree.migrate(empty_database)
    tree.write("functions/10_count.sql", COUNT.replace("bigint", "numeric"))
    message = refusal(lambda: tree.migrate(empty_database))
    assert "functions/10_count.sql" in message
    assert "DROP FUNCTION rag.count_things()" in message
    assert "migration" in message
    tree.write("migrations/0002_count.sql", "drop function if exists rag.count_things();")
    tree.migrate(empty_database)
    assert ask(empty_database, "select pg_typeof(rag.count_things())::text") == [("numeric",)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COUNT.replace("rag.things", "rag.nothing"), ("rag.count_things()", "rag.nothing")),
        (ORIGIN.replace("_origin", "_wrong").replace("return ", "returns "), ("rag._wrong()",)),
    ],
)
def test_a_body_that_cannot_work_is_refused(
    tree: Tree, empty_database: str, text: str, words: tuple[str, ...]
) -> None:
    tree.write("functions/30_wrong.sql", text)
    message = refusal(lambda: tree.migrate(empty_database))
    for word in words:
        assert word in message


# Many at once


def test_many_runners_at_once_apply_once(tree: Tree, empty_database: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(tree.migrate, [empty_database] * 12))
    assert sorted(len(result.migrations) for result in results) == [0] * 11 + [1]
    assert ask(empty_database, "select count(*) from rag.migrations") == [(1,)]


def test_runners_on_many_databases_share_the_roles(tree: Tree, bare: Databases) -> None:
    urls = [bare.create() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(tree.migrate, urls))
    assert [result.migrations for result in results] == [("0001_things.sql",)] * 6


def test_searches_go_on_while_a_migration_waits_for_a_long_one(
    tree: Tree, empty_database: str
) -> None:
    tree.migrate(empty_database)
    tree.write("migrations/0002_more.sql", "alter table rag.things add column more int;")
    slowest = 0.0
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(empty_database) as long,
        psycopg.connect(empty_database, autocommit=True) as searching,
    ):
        long.execute("select count(*) from rag.things")
        migration = pool.submit(tree.migrate, empty_database)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            begun = time.monotonic()
            searching.execute("select count(*) from rag.things")
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.01)
        assert not migration.done()
        long.rollback()
        assert migration.result(timeout=30).migrations == ("0002_more.sql",)
    # It did wait in line behind the migration, for lock_timeout at most.
    assert 0.5 < slowest < 4


def test_a_lock_that_is_never_released_ends_in_a_sentence(
    tree: Tree, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ATTEMPTS", 2)
    monkeypatch.setattr(runner, "LOCK_TIMEOUT", "50ms")
    tree.migrate(empty_database)
    tree.write("migrations/0002_more.sql", "alter table rag.things add column more int;")
    with psycopg.connect(empty_database) as long:
        long.execute("select count(*) from rag.things")
        message = refusal(lambda: tree.migrate(empty_database))
    assert "2 attempts" in message
    assert "migrations/0002_more.sql" in message


# pgvector


@pytest.mark.parametrize("version", ["0.7.4", "0.7", "0.4.10", "0.6.0dev"])
def test_old_versions_of_pgvector_are_refused(version: str) -> None:
    message = refusal(lambda: pgvector_warnings(version))
    assert version in message
    assert "0.8.0" in message


@pytest.mark.parametrize(
    ("version", "faults"),
    [
        ("0.8.0", ["CVE-2026-3172", "vacuum"]),
        ("0.8.1", ["CVE-2026-3172", "vacuum"]),
        ("0.8.2", ["vacuum"]),
        ("0.8.3", ["vacuum"]),
        ("0.8.4", []),
        ("0.8.10", []),
        ("0.9", []),
        ("1.0.0", []),
    ],
)
def test_known_faults_of_pgvector_are_named(version: str, faults: list[str]) -> None:
    warnings = pgvector_warnings(version)
    assert len(warnings) == len(faults)
    for warning, fault in zip(warnings, faults, strict=True):
        assert warning.startswith(f"pgvector {version}: ")
        assert fault in warning


def test_the_version_of_pgvector_is_read_from_the_database(tree: Tree, empty_database: str) -> None:
    tell(
        empty_database,
        "create extension vector",
        "update pg_extension set extversion = '0.7.4' where extname = 'vector'",
    )
    assert "pgvector 0.7.4 is too old" in refusal(lambda: tree.migrate(empty_database))
    assert functions(empty_database) == []
    tell(empty_database, "update pg_extension set extversion = '0.8.1' where extname = 'vector'")
    assert tree.migrate(empty_database).warnings == pgvector_warnings("0.8.1")


def test_minor_releases_of_postgres_with_known_faults_are_told(
    tree: Tree, empty_database: str
) -> None:
    # A tree that does not know of any.
    assert tree.migrate(empty_database).warnings == ()
    tree.write("functions/30_warning.sql", WARNING)
    [warning] = tree.migrate(empty_database).warnings
    [(version, number)] = ask(
        empty_database,
        "select current_setting('server_version'), current_setting('server_version_num')",
    )
    assert warning == f"PostgreSQL {version}: {number} has holes"
    tree.write("functions/30_warning.sql", WARNING.replace("is not null", "is null"))
    assert tree.migrate(empty_database).warnings == ()


def test_pgvector_may_live_in_another_schema(tree: Tree, empty_database: str) -> None:
    tell(
        empty_database,
        'create schema "Extra, Schema"',
        'create extension vector schema "Extra, Schema"',
    )
    tree.migrate(empty_database)
    assert ask(empty_database, "select rag.count_things()") == [(0,)]
    assert ask(
        empty_database, "select proconfig[1] from pg_proc where proname = 'count_things'"
    ) == [('search_path=pg_catalog, "Extra, Schema", pg_temp',)]
    assert ask(
        empty_database, "select has_schema_privilege('rag_app', 'Extra, Schema', 'usage')"
    ) == [(True,)]


# No superuser


def owned(databases: Databases, attributes: LiteralString, *, pgvector: bool = True) -> str:
    """URL of a database for its owner, who is no superuser."""
    url = databases.create()
    tell(url, sql_role(attributes))
    with psycopg.connect(url, autocommit=True) as connection:
        run(connection, "alter database {} owner to keeper", connection.info.dbname)
        if pgvector:
            connection.execute("create extension vector")
    return as_user(url, "keeper")


def sql_role(attributes: LiteralString) -> LiteralString:
    return "create role keeper login " + attributes


@pytest.mark.parametrize("real", [False, True])
def test_an_owner_with_createrole_migrates(tree: Tree, bare: Databases, real: bool) -> None:
    root = ROOT if real else tree.root
    url = owned(bare, "createrole")
    assert migrate(url, root).migrations
    assert migrate(url, root).migrations == ()
    assert ask(url, "select rolname from pg_roles where rolname ~ '^rag_' order by 1") == [
        (name,) for name in sorted(ROLES)
    ]
    assert ask(url, "select nspowner::regrole::text from pg_namespace where nspname = 'rag'") == [
        ("rag_owner",)
    ]


def test_an_owner_migrates_with_roles_that_an_administrator_made(
    tree: Tree, bare: Databases
) -> None:
    url = owned(bare, "")
    message = refusal(lambda: tree.migrate(url))
    assert "keeper may not make the roles" in message
    orders = message.split("run: ")[1]
    tell(as_user(url, "postgres"), "create role rag_app nologin")
    shorter = refusal(lambda: tree.migrate(url)).split("run: ")[1]
    assert "create role rag_app" not in shorter
    with psycopg.connect(as_user(url, "postgres"), autocommit=True) as connection:
        connection.execute("drop role rag_app")
        connection.execute(orders.encode())
    assert tree.migrate(url).migrations == ("0001_things.sql",)
    assert tree.migrate(url).migrations == ()
    assert ask(url, "select rag.count_things()") == [(0,)]


def test_roles_that_were_made_but_not_granted_are_asked_for(tree: Tree, bare: Databases) -> None:
    url = owned(bare, "")
    with psycopg.connect(as_user(url, "postgres"), autocommit=True) as connection:
        for name in ROLES:
            run(connection, "create role {}", name)
    message = refusal(lambda: tree.migrate(url))
    assert "keeper may not become the roles" in message
    with psycopg.connect(as_user(url, "postgres"), autocommit=True) as connection:
        connection.execute(message.split("run: ")[1].encode())
    assert tree.migrate(url).migrations == ("0001_things.sql",)


def test_what_an_administrator_must_do_first_is_told(tree: Tree, bare: Databases) -> None:
    """One obstacle after the other, each removed by what the sentence says."""
    url = owned(bare, "createrole", pgvector=False)
    administrator = as_user(url, "postgres")
    with psycopg.connect(administrator, autocommit=True) as connection:
        run(connection, "alter database {} owner to postgres", connection.info.dbname)
        connection.execute("create schema closed")
        for obstacle in (
            "create extension vector",
            "grant usage on schema closed to keeper",
            "grant create on database",
            "grant usage on schema closed to keeper with grant option",
        ):
            message = refusal(lambda: tree.migrate(url))
            orders = message.rsplit("run: ", 1)[1]
            assert orders.replace('"', "").startswith(obstacle)
            # Where pgvector is not expected makes two obstacles more.
            orders += " schema closed" if orders.startswith("create extension") else ""
            connection.execute(orders.encode())
    assert tree.migrate(url).migrations == ("0001_things.sql",)


# The real files


def test_the_real_tree_is_stable(database: str) -> None:
    before = functions(database)
    again = migrate(database)
    assert (again.migrations, again.dropped) == ((), ())
    assert functions(database) == before
    assert pending(database) == ()


def test_the_real_tree_works_with_pgvector_elsewhere(empty_database: str) -> None:
    tell(
        empty_database,
        "create schema extensions",
        "create extension vector schema extensions",
    )
    assert migrate(empty_database).migrations
    assert ask(
        empty_database,
        "select count(*) from pg_proc where pronamespace = 'rag'::regnamespace "
        "and 'search_path=pg_catalog, public, pg_temp' = any (proconfig)",
    ) == [(0,)]


def test_the_command_line(empty_database: str) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "db.migrate", *arguments],
            cwd=ROOT.parent,
            env={**os.environ, "DATABASE_URL": empty_database},
            capture_output=True,
            text=True,
            check=False,
        )

    check = call("--check")
    assert check.returncode == 1
    assert check.stdout.startswith("pending 0001_")
    first = call()
    [(warning,)] = ask(
        empty_database,
        "select rag._postgres_warning(current_setting('server_version_num')::int)",
    )
    assert first.returncode == 0
    if warning is None:
        assert first.stderr == ""
    else:
        assert first.stderr.startswith("warning: PostgreSQL ")
        assert first.stderr.endswith(f": {warning}\n")
        assert first.stderr.count("\n") == 1
    assert first.stdout.replace("applied", "pending").startswith(check.stdout)
    assert call("--check").stdout == "no migration is pending\n"
    tell(empty_database, "update rag.migrations set sha256 = ''")
    refused = call()
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 0001_")
    assert refused.stderr.count("\n") == 1
