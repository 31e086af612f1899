"""Brings a database to the schema of this checkout, in one transaction.

Files of db/migrations run once each, in the order of their numbers, and never change afterwards: a
ledger keeps their sha256. Files of db/functions run every time, so each function is written in one
place only; a function that is in no file any more is dropped.

    python -m db.migrate [--check] [--partitions N]
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, sql

from db.server import ServerError, database_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent

ROLES = ("rag_owner", "rag_admin", "rag_app", "rag_worker")
SCHEMAS = ("rag", "rag_data")

SEARCH_PATH = "set search_path = pg_catalog, public, pg_temp"

# 'ragdb' in ASCII: one migration of a database at a time.
ADVISORY_KEY = int.from_bytes(b"ragdb", "big")
ADVISORY_TIMEOUT = "10min"
# Whoever waits for an exclusive lock makes all later queries on that table wait behind it, so wait
# briefly, let go of everything, and try again.
LOCK_TIMEOUT = "1s"
ATTEMPTS = 30
PAUSE_SECONDS = 1.0

MINIMUM_SERVER = 160000
TRANSACTION_TIMEOUT_SINCE = 170000
MINIMUM_PGVECTOR = (0, 8, 0)

# Faults of pgvector by the version that fixed them.
PGVECTOR_FAULTS = (
    (
        (0, 8, 2),
        (
            "a parallel build of an HNSW index can leak data of other tables or crash the server "
            "(CVE-2026-3172, fixed in 0.8.2)"
        ),
    ),
    (
        (0, 8, 4),
        (
            "vacuum and inserts at the same time can damage an HNSW index (fixed in 0.8.4; "
            "after the update reindex every HNSW index)"
        ),
    ),
)

FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


class MigrationError(Exception):
    """The database was not migrated and is as before; the message is one sentence for people."""


@dataclass(frozen=True)
class Applied:
    """What a run did: names of the migrations it applied and warnings about the server.

    functions are the files that were re-applied, dropped the functions that went.
    """

    migrations: tuple[str, ...]
    warnings: tuple[str, ...]
    functions: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Migration:
    """A file of db/migrations."""

    version: int
    name: str
    sha256: str
    text: str


class _ClashError(Exception):
    """Somebody else was in the way; the whole transaction is worth another attempt."""


def migrate(url: str, root: Path = ROOT, *, partitions: int | None = None) -> Applied:
    """Apply what is pending of root (a folder like db) to the database of url.

    A new database gets so many shared partitions: a power of two, 16 unless told. Runs in one
    transaction, may be run by many at once and by a role that is no superuser. Raises
    MigrationError, and then nothing has changed.
    """
    migrations = read_migrations(root)
    functions = _read_functions(root)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _connect(url) as connection:
                return _Run(connection, root, migrations, functions, partitions).apply()
        except _ClashError as clash:
            if attempt == ATTEMPTS:
                raise MigrationError(
                    f"gave up after {ATTEMPTS} attempts, because other sessions are in the way: "
                    f"{clash}"
                ) from clash
            log.debug("attempt %d: %s", attempt, clash)
        # Runners that met once should not meet again.
        time.sleep(PAUSE_SECONDS * random.SystemRandom().uniform(0.2, 1.0))
    raise AssertionError("unreachable")


def pending(url: str, root: Path = ROOT) -> tuple[str, ...]:
    """Names of the migrations that migrate would apply; changes nothing."""
    migrations = read_migrations(root)
    try:
        with _connect(url) as connection:
            return tuple(m.name for m in _pending(connection, migrations))
    except psycopg.Error as error:
        raise MigrationError(f"the ledger cannot be read: {_message(error)}") from error


def read_migrations(root: Path) -> tuple[Migration, ...]:
    """The files of root/migrations by number."""
    migrations: list[Migration] = []
    for path in sorted((root / "migrations").glob("*.sql")):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is no name for a migration: it needs 0001_name.sql")
        version = int(match[1])
        if migrations and migrations[-1].version == version:
            raise MigrationError(
                f"{migrations[-1].name} and {path.name} have the same number: renumber the newer"
            )
        text = _read(path)
        digest = hashlib.sha256(text.encode()).hexdigest()
        migrations.append(Migration(version, path.name, digest, text))
    return tuple(migrations)


def pgvector_warnings(version: str) -> tuple[str, ...]:
    """The known faults of a version of pgvector; MigrationError when it is too old to use."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    numbers += (0,) * (3 - len(numbers))
    if numbers < MINIMUM_PGVECTOR:
        raise MigrationError(
            f"pgvector {version} is too old, ragdb needs 0.8.0 or newer: install it on the server, "
            "then run: alter extension vector update"
        )
    return tuple(
        f"pgvector {version}: {fault}" for fixed, fault in PGVECTOR_FAULTS if numbers < fixed
    )


def _read(path: Path) -> str:
    """Text of a file; line ends as in the repository, whatever the checkout made of them."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{path.name} is not UTF-8 (byte {error.start})") from error


def _read_functions(root: Path) -> tuple[tuple[str, str], ...]:
    return tuple((path.name, _read(path)) for path in sorted((root / "functions").glob("*.sql")))


def _connect(url: str) -> Connection[tuple[Any, ...]]:
    try:
        connection = psycopg.connect(
            url,
            client_encoding="utf8",
            application_name="ragdb migrate",
            prepare_threshold=None,
        )
    except psycopg.ProgrammingError as error:
        # The message repeats what it could not read, and that may hold a password.
        raise MigrationError("no connection: this is no connection URL of PostgreSQL") from error
    except psycopg.Error as error:
        raise MigrationError(f"no connection: {_message(error)}") from error
    connection.add_notice_handler(_warn)
    # Whatever the role's defaults are: the ledger must be read after the wait for the lock.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.read_only = False
    return connection


def _message(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__


def _warn(diagnostic: errors.Diagnostic) -> None:
    log.warning("%s", diagnostic.message_primary)


def _pending(
    connection: Connection[tuple[Any, ...]], migrations: Sequence[Migration]
) -> list[Migration]:
    """What the ledger does not have yet; refuses files that do not fit to it."""
    applied: dict[int, tuple[str, str]] = {}
    if connection.execute("select to_regclass('rag.migrations')").fetchone() != (None,):
        rows = connection.execute("select version, name, sha256 from rag.migrations")
        applied = {version: (name, sha256) for version, name, sha256 in rows}
    newest = max(applied, default=0)
    on_disk = {m.version: m for m in migrations}
    for version, (name, sha256) in sorted(applied.items()):
        file = on_disk.get(version)
        if file is None:
            raise MigrationError(
                f"{name} was applied to this database but its file is gone: restore it, "
                "or use the checkout that this database belongs to"
            )
        if file.name != name:
            raise MigrationError(
                f"{file.name} was applied to this database as {name}: give it its old name"
            )
        if file.sha256 != sha256:
            raise MigrationError(
                f"{name} was edited after it had been applied to this database: restore it "
                "and put the change into a new migration"
            )
    waiting = [m for m in migrations if m.version not in applied]
    for file in waiting:
        if file.version < newest:
            raise MigrationError(
                f"{file.name} comes before {applied[newest][0]}, which was applied already: "
                "give it a higher number"
            )
    return waiting


class _Run:
    """One attempt, in one transaction."""

    def __init__(
        self,
        connection: Connection[tuple[Any, ...]],
        root: Path,
        migrations: tuple[Migration, ...],
        functions: tuple[tuple[str, str], ...],
        partitions: int | None,
    ) -> None:
        self.connection = connection
        self.partitions = partitions
        self.root = root
        self.migrations = migrations
        self.functions = functions
        self.user = ""
        # What the run is at, for the sentence about an error.
        self.step = "connecting"
        self.text = ""
        # Until roles and schemas are there, a clash with another database's migration looks like
        # an ordinary error.
        self.shared = True

    def apply(self) -> Applied:
        try:
            with self.connection.transaction():
                return self._apply()
        except psycopg.Error as error:
            raise self._explained(error) from error

    def _apply(self) -> Applied:
        self._begin()
        self._file(self.root / "roles.sql")
        schema, warnings = self._pgvector()
        self._schemas(schema)
        self.shared = False
        applied = self._migrate()
        self._functions(schema)
        # Before the grants, which write the row of every function, also of one that is in no file.
        dropped = self._drop_removed()
        self._validate()
        for name in ("grants.sql", "bootstrap.sql"):
            if (self.root / name).exists():
                self._file(self.root / name)
        warnings += self._postgres()
        self.step = "committing"
        return Applied(applied, warnings, tuple(name for name, _ in self.functions), dropped)

    def _begin(self) -> None:
        """Settings of the transaction, and the lock."""
        execute = self.connection.execute
        execute("set local statement_timeout = 0")
        execute("set local idle_in_transaction_session_timeout = 0")
        execute("set local client_min_messages = warning")
        execute("set local search_path = pg_catalog, pg_temp")
        if self.partitions is not None:
            execute("select set_config('rag.shared_partitions', %s, true)", [str(self.partitions)])
        [(self.user, number, version, encoding, standby)] = execute(
            "select current_user, current_setting('server_version_num')::int, "
            "current_setting('server_version'), current_setting('server_encoding'), "
            "pg_is_in_recovery()"
        ).fetchall()
        if number < MINIMUM_SERVER:
            raise MigrationError(f"PostgreSQL {version} is too old: ragdb needs 16 or newer")
        if number >= TRANSACTION_TIMEOUT_SINCE:
            execute("set local transaction_timeout = 0")
        if encoding != "UTF8":
            raise MigrationError(f"the database is encoded in {encoding}: ragdb needs UTF8")
        if standby:
            raise MigrationError("this server is a standby: migrate the primary")
        self.step = "waiting for another migration"
        execute(sql.SQL("set local lock_timeout = {}").format(ADVISORY_TIMEOUT))
        execute("select pg_advisory_xact_lock(%s)", [ADVISORY_KEY])
        execute(sql.SQL("set local lock_timeout = {}").format(LOCK_TIMEOUT))

    def _pgvector(self) -> tuple[str, tuple[str, ...]]:
        """Install pgvector if it is absent; its schema and the warnings about its version."""
        self.step, self.text = "pgvector", ""
        query = (
            "select n.nspname, e.extversion from pg_extension as e "
            "join pg_namespace as n on n.oid = e.extnamespace where e.extname = 'vector'"
        )
        if self.connection.execute(query).fetchone() is None:
            try:
                self.connection.execute("create extension vector schema public")
            except (errors.InsufficientPrivilege, errors.FeatureNotSupported) as error:
                raise self._no_pgvector(error) from error
        [(schema, version)] = self.connection.execute(query).fetchall()
        warnings = pgvector_warnings(version)
        [(usable,)] = self.connection.execute(
            "select has_schema_privilege(%s, 'usage')", [schema]
        ).fetchall()
        if not usable:
            raise MigrationError(
                f"{self.user} may not use schema {schema}, where pgvector lives: let its owner "
                f"run: grant usage on schema {self._quoted(schema)} to {self._quoted(self.user)}"
            )
        path = sql.SQL("set local search_path = pg_catalog, {}, pg_temp")
        self.connection.execute(path.format(sql.Identifier(schema)))
        # Loads the library. Before that hnsw.* are unknown placeholders, which only a superuser
        # may put into a function's set clause.
        self.connection.execute("select '[1]'::vector")
        return schema, warnings

    def _postgres(self) -> tuple[str, ...]:
        """What rag.status() warns of about this minor release; a tree may do without that."""
        self.step, self.text = "the version of PostgreSQL", ""
        name = "rag._postgres_warning(integer)"
        if self.connection.execute("select to_regprocedure(%s)", [name]).fetchone() == (None,):
            return ()
        [(version, warning)] = self.connection.execute(
            "select current_setting('server_version'), "
            "rag._postgres_warning(current_setting('server_version_num')::int)"
        ).fetchall()
        return () if warning is None else (f"PostgreSQL {version}: {warning}",)

    def _no_pgvector(self, error: psycopg.Error) -> MigrationError:
        if isinstance(error, errors.InsufficientPrivilege):
            return MigrationError(
                f"pgvector is not in database {self._database()} and {self.user} may not create "
                "it: let an administrator connect to it and run: create extension vector"
            )
        return MigrationError(
            "this server does not offer pgvector, have version 0.8.4 or newer installed or "
            f"allowed: {_message(error)}"
        )

    def _database(self) -> str:
        return self.connection.info.dbname

    def _schemas(self, vector_schema: str) -> None:
        """Schemas of ours, owned by rag_owner; from here on everything is done as rag_owner."""
        self.step, self.text = "schemas", ""
        execute = self.connection.execute
        for name in SCHEMAS:
            row = execute(
                "select pg_get_userbyid(n.nspowner) from pg_namespace as n where n.nspname = %s",
                [name],
            ).fetchone()
            if row is None:
                try:
                    execute(
                        sql.SQL("create schema {} authorization rag_owner").format(
                            sql.Identifier(name)
                        )
                    )
                except errors.InsufficientPrivilege as error:
                    raise MigrationError(
                        f"{self.user} may not create schemas in database {self._database()}: let "
                        f"its owner run: grant create on database {self._quoted(self._database())}"
                        f" to {self._quoted(self.user)}"
                    ) from error
            elif row != ("rag_owner",):
                raise MigrationError(
                    f"schema {name} is there already and belongs to {row[0]}: rename it, "
                    "ragdb needs that name"
                )
        self._reach(vector_schema)
        execute("set local role rag_owner")
        execute("revoke all on schema rag, rag_data from public")
        execute(
            "alter default privileges for role rag_owner revoke execute on functions from public"
        )

    def _reach(self, schema: str) -> None:
        """The roles must be able to name the type vector; in public they are from the start."""
        query = (
            "select r.name from unnest(%s::text[]) as r (name) "
            "where not has_schema_privilege(r.name, %s, 'usage')"
        )
        barred = self.connection.execute(query, [list(ROLES), schema]).fetchall()
        if not barred:
            return
        statement = sql.SQL("grant usage on schema {} to {}").format(
            sql.Identifier(schema), sql.SQL(", ").join(sql.Identifier(name) for (name,) in barred)
        )
        # A grant by who may not give it is an error or, with rights of its own, only a warning.
        with suppress(errors.InsufficientPrivilege), self.connection.transaction():
            self.connection.execute(statement)
        if self.connection.execute(query, [list(ROLES), schema]).fetchall():
            raise MigrationError(
                f"{self.user} may not let the roles of ragdb use schema {schema}, where pgvector "
                f"lives: let its owner run: grant usage on schema {self._quoted(schema)} to "
                f"{self._quoted(self.user)} with grant option"
            )

    def _quoted(self, name: str) -> str:
        return sql.Identifier(name).as_string(self.connection)

    def _migrate(self) -> tuple[str, ...]:
        self.step, self.text = "the ledger", ""
        execute = self.connection.execute
        execute(
            "create table if not exists rag.migrations ("
            "version int primary key, name text not null, sha256 text not null, "
            "applied_at timestamptz not null default now())"
        )
        execute(
            "comment on table rag.migrations is "
            "'Files of db/migrations that this database has, with the sha256 of each.'"
        )
        execute("set local check_function_bodies = off")
        waiting = _pending(self.connection, self.migrations)
        for migration in waiting:
            self._execute(f"migrations/{migration.name}", migration.text)
            execute(
                "insert into rag.migrations (version, name, sha256) values (%s, %s, %s)",
                [migration.version, migration.name, migration.sha256],
            )
        return tuple(m.name for m in waiting)

    def _functions(self, schema: str) -> None:
        clause = SEARCH_PATH
        if schema != "public":
            clause = SEARCH_PATH.replace("public", self._quoted(schema))
        for name, text in self.functions:
            self._execute(f"functions/{name}", text.replace(SEARCH_PATH, clause))

    def _drop_removed(self) -> tuple[str, ...]:
        """Drop the functions of schema rag that this transaction has not written."""
        self.step, self.text = "dropping functions that are in no file any more", ""
        rows = self.connection.execute(
            "select p.oid::regprocedure::text from pg_proc as p "
            "where p.pronamespace = 'rag'::regnamespace "
            "and p.xmin <> pg_current_xact_id()::xid "
            "and not exists (select from pg_depend as d where d.objid = p.oid "
            "and d.classid = 'pg_proc'::regclass and d.deptype = 'e') order by 1"
        ).fetchall()
        names = tuple(str(name) for (name,) in rows)
        if names:
            # One statement, so that those that depend on each other go together. regprocedure
            # quotes for us.
            self.connection.execute(f"drop routine {', '.join(names)}".encode())
        return names

    def _validate(self) -> None:
        """Check the bodies now: while the files ran, later functions were still missing."""
        rows = self.connection.execute(
            "select p.oid, p.oid::regprocedure::text, l.lanvalidator::regproc::text "
            "from pg_proc as p join pg_language as l on l.oid = p.prolang "
            "where p.pronamespace = 'rag'::regnamespace and p.prokind in ('f', 'p', 'w') "
            "and l.lanname in ('sql', 'plpgsql') order by 2"
        ).fetchall()
        self.connection.execute("set local check_function_bodies = on")
        for oid, name, validator in rows:
            self.step, self.text = f"the body of {name}", ""
            self.connection.execute(f"select {validator}({oid})".encode())

    def _file(self, path: Path) -> None:
        self._execute(path.name, _read(path))

    def _execute(self, step: str, text: str) -> None:
        self.step, self.text = step, text
        self.connection.execute(text.encode())

    def _explained(self, error: psycopg.Error) -> Exception:
        """A sentence, or a further attempt, for what the server said."""
        state = error.sqlstate or ""
        said = _message(error)
        clash = said.startswith("tuple concurrently") or state in ("55P03", "40P01", "40001")
        if self.shared:
            # A role or a grant that the migration of another database has just made.
            clash = clash or state in ("23505", "42710", "42P06")
        if self.step == "waiting for another migration" and state == "55P03":
            return MigrationError("another migration has been running for over ten minutes")
        if clash:
            return _ClashError(f"{self.step}: {said}")
        if state == "42501" and self.step == "roles.sql":
            return self._no_roles()
        line = self._line(error)
        hint = error.diag.message_hint
        if state == "42P13":
            hint = f"{hint or 'drop the function first'} (in a new migration, with if exists)"
        detail = error.diag.message_detail
        more = " ".join(f"({' '.join(part.split())})" for part in (detail, hint) if part)
        return MigrationError(f"{self.step}{line}: {said} [{state}] {more}".rstrip())

    def _line(self, error: psycopg.Error) -> str:
        position = error.diag.statement_position
        if not self.text or not position:
            return ""
        return f" line {self.text.count(chr(10), 0, int(position) - 1) + 1}"

    def _no_roles(self) -> MigrationError:
        """The transaction has failed already; what is missing is asked for in another one."""
        rows = self.connection.execute(
            "select r.name, exists (select from pg_roles as p where p.rolname = r.name) "
            "from unnest(%s::text[]) as r (name)",
            [list(ROLES)],
        ).fetchall()
        self.connection.rollback()
        creations = [f"create role {name} nologin;" for name, there in rows if not there]
        user = self._quoted(self.user)
        grant = f"grant {', '.join(ROLES)} to {user} with inherit true, set true"
        lacking = "make" if creations else "become"
        return MigrationError(
            f"{self.user} may not {lacking} the roles of ragdb: let an administrator run: "
            f"{' '.join([*creations, grant])}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 1 for an error or, with --check, for pending migrations."""
    parser = argparse.ArgumentParser(prog="python -m db.migrate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="only tell what is pending")
    parser.add_argument(
        "--partitions",
        type=int,
        metavar="N",
        help="shared partitions of a new database: a power of two, 16 unless told",
    )
    options = parser.parse_args(arguments)
    try:
        url = database_url(start=True)
        if options.check:
            names = pending(url)
            for name in names:
                print(f"pending {name}")
            if not names:
                print("no migration is pending")
            return 1 if names else 0
        applied = migrate(url, partitions=options.partitions)
    except (MigrationError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in applied.migrations:
        print(f"applied {name}")
    print(f"re-applied {len(applied.functions)} function files")
    for name in applied.dropped:
        print(f"dropped {name}")
    # Nobody can have another release of the embedded server, and `make` migrates it each time.
    if url == os.environ.get("DATABASE_URL", "").strip():
        for warning in applied.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
