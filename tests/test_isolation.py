"""Isolation from the first day, attacked by real logins: nothing of a tenant reaches another role.

The attacked functions and tables come from the catalog, so that one to come is attacked as well.
What a policy or grant should be is asked by tests/sql/test_00_house_rules.sql; here it is tried.
"""

from __future__ import annotations

import random
import re
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import errors, pq, sql
from psycopg.types.json import Jsonb

from tests.conftest import as_user, drop_role
from tests.grants import GOLDEN, granted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg.abc import QueryNoTemplate

    from tests.conftest import Databases

Connection = psycopg.Connection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]

# In everything that the victim has and the attacker does not know.
CANARY = "canary7f3a"
# What the attacker knows of the victim by name, to try it.
KNOWN = {"tenant": "victim", "uri": "known-uri", "collection": "known-collection"}

GROUPS = ("rag_admin", "rag_app", "rag_worker")


@dataclass
class World:
    """A database with an attacker, who has tenants of his own, and a victim."""

    url: str
    owner: Connection
    victim_id: int
    victim_document: int
    victim_chunk: int

    def login(self, name: str, *, options: str = "") -> Connection:
        """A connection of one of the roles attacker, victim, nobody, worker, admin, stranger."""
        url = as_user(self.url, role_name(name))
        return psycopg.connect(url, autocommit=True, options=options)

    def victims_rows(self) -> dict[str, Rows]:
        """All that the victim has, by table; row versions tell whether anything was touched."""
        tables = tenant_tables(self.owner)
        return {
            table: self.owner.execute(
                about(
                    table,
                    "select t.ctid::text, t::text from {} as t where tenant_id = %s order by 2",
                ),
                [self.victim_id],
            ).fetchall()
            for table in tables
        }


def role_name(name: str) -> str:
    return f"test_isolation_{name}"


def tenant_tables(connection: Connection) -> list[str]:
    """Names of the tables with a tenant_id, partitions left out."""
    rows = connection.execute(
        "select c.oid::regclass::text from pg_class as c join pg_attribute as a "
        "on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped "
        "where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p') order by 1"
    )
    return [name for (name,) in rows]


def about(name: str, query: str) -> bytes:
    """The query with the name of an object in place of {}."""
    return query.replace("{}", name).encode()


def vector(seed: int) -> str:
    chance = random.Random(seed)
    return "[" + ",".join(f"{chance.uniform(-1, 1):.3f}" for _ in range(384)) + "]"


def embed(connection: Connection, batch: int = 1000) -> None:
    connection.execute(
        "select rag.complete_jobs(c.lease_token, array_agg(c.job_id), "
        "array_agg((%s::real[])::vector)) from rag.claim_jobs('w', %s) as c group by c.lease_token",
        [vector(1).replace("[", "{").replace("]", "}"), batch],
    )


@pytest.fixture(scope="module")
def world(databases: Databases, template: str) -> Iterator[World]:
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as owner:
        members = {
            "attacker": ["rag_app"],
            "victim": ["rag_app"],
            "nobody": ["rag_app"],
            "worker": ["rag_worker"],
            "admin": ["rag_admin"],
            "stranger": [],
        }
        for name, groups in members.items():
            owner.execute(sql.SQL("create role {} login").format(sql.Identifier(role_name(name))))
            for group in groups:
                owner.execute(
                    sql.SQL("grant {} to {}").format(
                        sql.Identifier(group), sql.Identifier(role_name(name))
                    )
                )
        for tenant in ("own", "other", "victim", f"tenant {CANARY}"):
            owner.execute("select rag.create_tenant(%s)", [tenant])
        for role, tenant in [("attacker", "own"), ("attacker", "other"), ("victim", "victim")]:
            owner.execute("select rag.grant_tenant(%s, %s)", [role_name(role), tenant])

        owner.execute("select rag.set_tenant('victim')")
        owner.execute("select rag.create_collection(%s)", [KNOWN["collection"]])
        owner.execute("select rag.create_collection(%s, language => 'german')", [f"c {CANARY}"])
        # The first of the database: 1 is their id.
        owner.execute("select rag.upload(%s, 'secret')", [f"{CANARY}.txt"])
        owner.execute("select rag.begin_run('sync', %s)", [CANARY])
        [document] = owner.execute(
            "select rag.put(%s, %s, %s, %s, %s)",
            [
                f"# Heading {CANARY}\n\nThe answer is {CANARY}, common words in it.",
                KNOWN["uri"],
                f"Title {CANARY}",
                Jsonb({"key": CANARY, CANARY: 1}),
                KNOWN["collection"],
            ],
        ).fetchall()[0]
        owner.execute("select rag.put(%s, %s)", [f"common words {CANARY}", f"uri {CANARY}"])
        embed(owner)
        owner.execute("select rag.put(%s, %s)", [f"waits {CANARY}", f"waits {CANARY}"])
        owner.execute("select rag.put(%s, %s)", [f"fails {CANARY}", f"fails {CANARY}"])
        owner.execute(
            "select rag.fail_jobs(c.lease_token, array[c.job_id], %s, permanent => true) "
            "from rag.claim_jobs('w', 1) as c",
            [f"error {CANARY}"],
        )
        owner.execute("select rag.set_tenant('own')")
        owner.execute("select rag.put('common words of the attacker', 'own-uri', 'Own')")
        owner.execute("select rag.put('common words of the attacker', %s)", [KNOWN["uri"]])
        owner.execute(
            "select rag._fold_statistics(t.tenant_id, t.partition_id, 0) from rag.tenants as t"
        )
        # So that the planner has samples of the victim's rows, which must not leak either.
        owner.execute("analyze")
        row = owner.execute(
            "select c.tenant_id, c.document_id, c.chunk_id from rag.chunks as c "
            "where c.document_id = %s",
            [document],
        ).fetchone()
        assert row is not None
        yield World(url, owner, *row)
        for name in members:
            drop_role(owner, role_name(name))
    databases.close(url)


@pytest.fixture
def attacker(world: World) -> Iterator[Connection]:
    with world.login("attacker") as connection:
        connection.execute("select rag.set_tenant('own')")
        connection.execute("set statement_timeout = '20s'")
        yield connection


@contextmanager
def heard(connection: Connection) -> Iterator[list[str]]:
    """Everything that reaches the client besides rows."""
    words: list[str] = []

    def listen(notice: psycopg.errors.Diagnostic) -> None:
        words.append(f"{notice.message_primary} {notice.message_detail} {notice.context}")

    connection.add_notice_handler(listen)
    try:
        yield words
    finally:
        connection.remove_notice_handler(listen)


@dataclass(frozen=True)
class Answer:
    """What the client learns from a statement: rows, notices, or the whole error."""

    state: str
    said: str


def tried(
    connection: Connection, query: QueryNoTemplate, given: Sequence[object] | None = None
) -> Answer:
    """Execute a statement that may fail; in a transaction that goes on all the same."""
    is_idle = connection.info.transaction_status == pq.TransactionStatus.IDLE
    state = "00000"
    with heard(connection) as words:
        try:
            with nullcontext() if is_idle else connection.transaction():
                cursor = connection.execute(query, given)
                if cursor.description:
                    words.append(repr(cursor.fetchall()))
        except psycopg.Error as error:
            state = error.sqlstate or "none"
            diag = error.diag
            parts = (
                diag.message_primary,
                diag.message_detail,
                diag.message_hint,
                diag.context,
                diag.internal_query,
                diag.constraint_name,
            )
            words.append(" ".join(str(part) for part in parts))
    return Answer(state, " ".join(words))


def refused(connection: Connection, query: QueryNoTemplate) -> None:
    """The statement is denied for want of rights, and says nothing."""
    answer = tried(connection, query)
    assert answer.state == "42501", (query, answer)
    assert CANARY not in answer.said, (query, answer)


def relations(connection: Connection) -> list[tuple[str, str]]:
    """Tables, views, sequences and partitions of ours with their kind."""
    return connection.execute(
        "select c.oid::regclass::text, c.relkind::text from pg_class as c "
        "where c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace) "
        "and c.relkind in ('r', 'p', 'v', 'm', 'S') order by 1"
    ).fetchall()


# Functions


def hostile(world: World, kind: str, chance: random.Random) -> object:
    """A value of a type that an attacker would try."""
    texts = [
        *KNOWN.values(),
        "own-uri",
        "default",
        "own",
        "common words",
        '"common words" -attacker',
        "",
        None,
        "%",
        "' or true --",
        "recursive",
        "markdown",
        "english",
        "hybrid",
        "lexical",
        "semantic",
        "rrf",
    ]
    pools: dict[str, list[object]] = {
        "text": texts,
        "integer": [None, 0, 1, 10, 1000, -1, world.victim_id],
        "bigint": [world.victim_document, world.victim_chunk, 1, None, 0, -1, 2**62],
        "bigint[]": [[world.victim_chunk], [world.victim_chunk, None, -1], [], None],
        "boolean": [True, False, None],
        "text[]": [[], ["author", "$file_name"], ["$other"], [None], ["victim"], None],
        "real": [None, 0.0, 0.5, 1.0, -1.0],
        "interval": ["0 seconds", None, "-1 second"],
        "timestamp with time zone": ["now", "-infinity", "infinity", None],
        "regclass": ["rag.past_chunks", "rag.documents", "pg_class", None],
        "integer[]": [[], [1, None], None],
        "double precision[]": [[], [1.0, None], None],
        "jsonb": [
            Jsonb([{"content": "x", "uri": KNOWN["uri"]}]),
            Jsonb({"tenant_id": world.victim_id}),
            Jsonb({"key": {"$exists": True}}),
            Jsonb({"$not": {"missing": 1}}),
            Jsonb([]),
            None,
        ],
        "bytea": [b"text", b"", None],
        "vector": [vector(1), vector(2), None, "[1,2,3]"],
        "vector[]": [[vector(1)], [], None],
    }
    assert kind in pools, f"an attack on functions does not know what to try for type {kind}"
    return chance.choice(pools[kind])


def test_a_search_for_the_very_secret_finds_nothing(attacker: Connection) -> None:
    for mode in ("lexical", "semantic", "hybrid"):
        rows = attacker.execute(
            "select s.uri, s.content from rag.search(%s, 1000, mode => %s, embedding => %s) as s",
            [CANARY, mode, vector(1)],
        ).fetchall()
        assert all(CANARY not in repr(row) for row in rows)
        if mode == "lexical":
            assert rows == []


def test_statistics_of_another_tenant_do_not_shine_through_scores(
    world: World, attacker: Connection
) -> None:
    query = (
        "select s.score, s.lexical_score from rag.search('common words', mode => 'lexical') as s"
    )
    before = attacker.execute(query).fetchall()
    assert before
    world.owner.execute("begin")
    world.owner.execute("select rag.set_tenant('victim', true)")
    for i in range(5):
        world.owner.execute("select rag.put('common common common', %s)", [f"more {i}"])
    # Not committed, but had it been, it would be another tenant's: asked in the same transaction.
    world.owner.execute("select rag.set_tenant('own', true)")
    after = world.owner.execute(query).fetchall()
    world.owner.execute("rollback")
    assert after == before


def test_what_is_not_there_and_what_is_not_ones_own_are_told_apart_by_nothing(
    world: World, attacker: Connection
) -> None:
    pairs: list[tuple[LiteralString, object, object]] = [
        ("select rag.set_tenant(%s)", KNOWN["tenant"], "missng"),
        ("select rag.delete(%s)", KNOWN["uri"] + "x", "known-urx"),
        (
            "select * from rag.search('x', collection => %s)",
            KNOWN["collection"],
            "known-collectiox",
        ),
        ("select rag.put('x', collection => %s)", KNOWN["collection"], "known-collectiox"),
        ("select rag.wait_for(%s)", world.victim_document, 10**6 + world.victim_document),
    ]
    for query, theirs, missing in pairs:
        existing, absent = tried(attacker, query, [theirs]), tried(attacker, query, [missing])
        assert existing.state == absent.state
        assert re.sub(rf"\b{theirs}\b", "?", existing.said) == re.sub(
            rf"\b{missing}\b", "?", absent.said
        )


# Direct SQL

CONTEXTS = ["own", "other", "victim", "missing", "", "1", "'; select 1 --"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_tables_show_own_rows_only_whatever_the_setting(
    world: World, attacker: Connection, context: str
) -> None:
    attacker.execute("select set_config('rag.tenant', %s, false)", [context])
    readable = 0
    for name, kind in relations(world.owner):
        if kind == "S":
            continue
        answer = tried(attacker, about(name, "select * from {}"))
        assert CANARY not in answer.said, name
        if answer.state == "42501":
            continue
        readable += 1
        if name in tenant_tables(world.owner):
            count = attacker.execute(
                about(name, "select count(*) from {} where tenant_id = %s"), [world.victim_id]
            ).fetchone()
            assert count == (0,), name
            if context not in ("own", "other"):
                assert answer == Answer("00000", "[]"), name
    assert readable == 16


def test_a_careless_policy_opens_nothing(world: World, attacker: Connection) -> None:
    """Permissive policies are or-ed, so what keeps tenants apart must be restrictive."""
    tables = [
        name
        for name in tenant_tables(world.owner)
        if tried(attacker, about(name, "select from {}")).state == "00000"
    ]
    assert {"rag.documents", "rag.chunks", "rag.embeddings", "rag.tenants"} < set(tables)
    own = {name: attacker.execute(about(name, "select from {}")).rowcount for name in tables}
    for name in tables:
        world.owner.execute(about(name, "create policy careless on {} using (true)"))
    try:
        with world.login("attacker") as without, world.login("nobody") as nobody:
            for name in tables:
                answer = tried(attacker, about(name, "select * from {}"))
                assert CANARY not in answer.said, name
                assert attacker.execute(about(name, "select from {}")).rowcount == own[name], name
                for connection in (without, nobody):
                    rows = tried(connection, about(name, "select * from {}"))
                    assert rows == Answer("00000", "[]"), name
    finally:
        for name in tables:
            world.owner.execute(about(name, "drop policy careless on {}"))


def test_partitions_and_what_is_not_granted_cannot_be_reached(
    world: World, attacker: Connection
) -> None:
    tables = relations(world.owner)
    assert sum(name.startswith("rag_data.") for name, _ in tables) >= 49
    for name, kind in tables:
        if name.startswith("rag_data."):
            refused(attacker, about(name, "select from {}"))
            refused(attacker, about(name, "select tableoid from {} where tenant_id = 1"))
        if kind == "S":
            refused(attacker, about(name, "select nextval('{}')"))
            refused(attacker, about(name, "select last_value from {}"))
            refused(attacker, about(name, "select setval('{}', 1)"))
    for name in (
        "rag.jobs",
        "rag.lexemes",
        "rag.tenant_grants",
        "rag.completions",
        "rag.lexeme_statistics",
        "rag.posting_sets",
        "rag.postings",
        "rag.partitions",
        "rag.migrations",
    ):
        refused(attacker, about(name, "select from {}"))


WRITES = [
    "insert into {} default values",
    "delete from {}",
    "truncate {}",
    "truncate {} cascade",
    "merge into {} as t using (values (1)) as v (x) on true when matched then delete",
    "copy {} from stdin",
    "select * from {} for update",
    "select * from {} for key share",
    "alter table {} disable row level security",
    "alter table {} no force row level security",
    "alter table {} owner to current_user",
    "create policy mine on {} using (true)",
    "create trigger mine before insert on {} execute function suppress_redundant_updates_trigger()",
    "create index on {} ((1))",
    "comment on table {} is 'mine'",
    "drop table {}",
    "reindex table {}",
    "create rule mine as on insert to {} do instead nothing",
]
WRITES_TO_TENANTS = [
    "update {} set tenant_id = default",
    "update {} set tenant_id = default where tenant_id = 1 returning *",
    "drop policy tenant_only on {}",
    "alter policy tenant_only on {} using (true)",
    "create statistics mine on tenant_id, (tenant_id + 1) from {}",
]


@pytest.mark.parametrize("statement", [*WRITES, *WRITES_TO_TENANTS])
def test_nothing_but_reading_is_allowed_on_tables(
    world: World, attacker: Connection, statement: LiteralString
) -> None:
    names = tenant_tables(world.owner)
    if statement in WRITES:
        names = [name for name, kind in relations(world.owner) if kind in ("r", "p")]
    # Of the partitions one of each kind will do: they are all made by the same function.
    for name in names:
        if name.startswith("rag.") or re.search(r"(_m1|_p1)$", name):
            refused(attacker, about(name, statement))


def test_a_foreign_key_cannot_probe_for_rows(world: World, attacker: Connection) -> None:
    # In a schema of its own, where a table may refer to ours, were it allowed to.
    schema = sql.Identifier(role_name("schema"))
    world.owner.execute(
        sql.SQL("create schema {} authorization {}").format(
            schema, sql.Identifier(role_name("attacker"))
        )
    )
    refused(
        attacker,
        sql.SQL("create table {}.probe (t int references rag.tenants (tenant_id))").format(schema),
    )


def test_copy_gives_own_rows_only(attacker: Connection) -> None:
    for query in (
        "copy rag.documents to stdout",
        "copy (select * from rag.chunks) to stdout",
        "copy rag.tenants to stdout",
    ):
        try:
            with attacker.cursor().copy(query) as copy:
                said = b"".join(bytes(block) for block in copy).decode()
        except psycopg.Error as error:
            said = str(error)
        assert CANARY not in said
        assert KNOWN["tenant"] not in said


LEAKS: list[LiteralString] = [
    "select count(*) from {} where pg_temp.tell({column})",
    "select count(*) from {} as t where pg_temp.tell(t)",
    "select count(*) from {} where {column}::int = 0",
    "select count(*) from {} where 1 / (length({column}) - length({column})) = 1",
    "explain select * from {} where {column} operator(pg_temp.<<<) 'zzz'",
    "select count(*) from {} where {column} operator(pg_temp.<<<) 'zzz'",
    "select {column} from {} group by rollup ({column}, tenant_id) having pg_temp.tell({column})",
    "explain (analyze, verbose) select * from {} where pg_temp.tell({column})",
]


def test_functions_in_a_condition_see_own_rows_only(attacker: Connection) -> None:
    attacker.execute(
        "create function pg_temp.tell(anyelement) returns boolean language plpgsql "
        "cost 0.0000001 as $$ begin raise notice 'told: %', $1; return true; end $$"
    )
    attacker.execute(
        "create function pg_temp.less(text, text) returns boolean language plpgsql "
        "cost 0.0000001 as $$ begin raise notice 'told: % %', $1, $2; return $1 < $2; end $$"
    )
    # With an estimator the planner may ask the operator about the most common values it sampled.
    attacker.execute(
        "create operator pg_temp.<<< (leftarg = text, rightarg = text, "
        "function = pg_temp.less, restrict = scalarltsel)"
    )
    for table, column in [
        ("rag.documents", "content"),
        ("rag.documents", "uri"),
        ("rag.documents", "metadata::text"),
        ("rag.chunks", "content"),
        ("rag.chunks", "heading_path::text"),
        ("rag.collections", "name"),
        ("rag.tenants", "name"),
        ("rag.embeddings", "embedding::text"),
    ]:
        for query in LEAKS:
            said = query.replace("{column}", column)
            answer = tried(attacker, about(table, said))
            assert CANARY not in answer.said, (said, answer)
            assert KNOWN["tenant"] not in answer.said, (said, answer)
    answer = tried(attacker, "select from rag.documents where pg_temp.tell(content)")
    assert "told: common words of the attacker" in answer.said


def test_catalogs_show_no_samples_of_rows(world: World, attacker: Connection) -> None:
    assert "common" in repr(
        world.owner.execute(
            "select most_common_vals, histogram_bounds from pg_stats where schemaname = 'rag'"
        ).fetchall()
    )
    for query in (
        "select * from pg_stats where schemaname in ('rag', 'rag_data')",
        "select * from pg_stats_ext where schemaname in ('rag', 'rag_data')",
        "select * from pg_statistic",
        "select * from pg_stat_activity",
        "select * from pg_sequences where schemaname = 'rag'",
        "select * from pg_prepared_statements",
        "select * from pg_cursors",
    ):
        assert CANARY not in tried(attacker, query).said
    assert attacker.execute(
        "select count(*) from pg_stats where schemaname in ('rag', 'rag_data') "
        "and tablename !~ '^(models)$'"
    ).fetchone() == (0,)
    assert attacker.execute(
        "select count(*) from pg_sequences where schemaname = 'rag' and last_value is not null"
    ).fetchone() == (0,)


def test_what_others_run_is_hidden_and_what_they_notify_is_empty(
    world: World, attacker: Connection
) -> None:
    attacker.execute("listen rag_jobs")
    with world.login("victim") as victim, world.login("worker") as worker:
        worker.execute("select rag.worker_idle()")
        victim.execute("select rag.set_tenant('victim')")
        with victim.transaction(force_rollback=True):
            # The text of the statement, as a client without parameters would send it.
            victim.execute(f"select rag.put('{CANARY}', 'running')".encode())
            assert CANARY not in tried(attacker, "select * from pg_stat_activity").said
        victim.execute("select rag.put('something new', 'news')")
        victim.execute("select rag.delete('news')")
        worker.execute("select rag.worker_awake()")
    notifications = list(attacker.notifies(timeout=5, stop_after=1))
    assert [n.payload for n in notifications] == [""]


# Rights and settings


@pytest.mark.parametrize(
    "statement",
    [
        "set role rag_owner",
        "set role rag_admin",
        "set role rag_worker",
        f"set role {role_name('victim')}",
        "set role postgres",
        f"set session authorization {role_name('victim')}",
        f"grant rag_owner to {role_name('attacker')}",
        f"grant {role_name('victim')} to {role_name('attacker')}",
        f"alter role {role_name('attacker')} bypassrls",
        f"alter role {role_name('attacker')} superuser",
        f"alter role {role_name('victim')} set rag.tenant = 'own'",
        "alter role rag_app set rag.tenant = 'victim'",
        "create role mine in role rag_admin",
        "create schema mine",
        "create table rag.mine ()",
        "create table rag_data.mine ()",
        "create table public.mine ()",
        "create function rag.mine() returns int language sql as 'select 1'",
        "create or replace function rag._allowed_tenant(wanted text) returns int "
        "language sql as 'select 1'",
        "create or replace function rag._allowed(wanted text) returns rag.tenants "
        "language sql as 'select t from rag.tenants as t'",
        "create function public.mine() returns int language sql as 'select 1'",
        "alter function rag._context() security invoker",
        "alter function rag._context() reset all",
        "drop function rag._policy_tenant() cascade",
        "grant execute on function rag._allowed_tenant(text) to public",
        "drop schema rag cascade",
        "alter schema rag_data owner to current_user",
        "grant usage on schema rag_data to current_user",
        "alter default privileges for role rag_owner grant select on tables to public",
        "drop extension vector cascade",
        "alter system set row_security = off",
        "create publication mine for tables in schema rag",
        "create subscription mine connection '' publication mine with (connect = false)",
        "set session_replication_role = replica",
        "copy (select 1) to program 'id'",
        "select pg_read_file('postgresql.conf')",
        "select lo_import('/etc/passwd')",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
    ],
)
def test_a_login_of_rag_app_cannot_become_more(
    attacker: Connection, statement: LiteralString
) -> None:
    refused(attacker, statement)


def test_row_security_off_is_an_error_not_a_way_around(attacker: Connection) -> None:
    attacker.execute("set row_security = off")
    refused(attacker, "select * from rag.documents")
    rows = attacker.execute("select rag.put('x', 'rls'), rag.delete('rls')").fetchall()
    assert len(rows) == 1


@pytest.mark.parametrize("setting", ["rag.tenant", "rag.tenant_id", "rag.role", "role"])
def test_settings_at_login_gain_nothing(world: World, setting: str) -> None:
    for value in ("victim", str(world.victim_id), role_name("victim")):
        try:
            login = world.login("attacker", options=f"-c {setting}={value}")
        except psycopg.OperationalError:
            # What may not be set at all, such as the role of another one.
            assert setting == "role"
            continue
        with login:
            assert CANARY not in tried(login, "select * from rag.documents").said
            answer = tried(login, "select * from rag.search('common words')")
            assert answer.state in ("42501", "RG001")


def test_a_setting_of_ones_own_role_gains_nothing(world: World, attacker: Connection) -> None:
    refused(attacker, f"alter role {role_name('attacker')} set rag.tenant = 'victim'".encode())
    # A superuser may, and it only says what is wanted.
    world.owner.execute(f"alter role {role_name('attacker')} set rag.tenant = 'victim'".encode())
    try:
        with world.login("attacker") as login:
            refused(login, "select rag.current_tenant()")
            assert login.execute("select count(*) from rag.documents").fetchone() == (0,)
            login.execute("select rag.set_tenant('own')")
            assert login.execute("select rag.current_tenant()").fetchone() == ("own",)
    finally:
        world.owner.execute(f"alter role {role_name('attacker')} reset all".encode())


@pytest.mark.parametrize(
    "setting",
    [
        "search_path = pg_temp, public",
        "quote_all_identifiers = on",
        "transform_null_equals = on",
        "plan_cache_mode = force_generic_plan",
        "enable_partition_pruning = off",
        "constraint_exclusion = off",
        "default_transaction_isolation = 'serializable'",
        "default_text_search_config = 'simple'",
        "array_nulls = off",
        "from_collapse_limit = 1",
        "enable_seqscan = off",
        "client_min_messages = debug5",
        "debug_print_plan = on",
        "datestyle = 'german'",
        "timezone = 'Pacific/Kiritimati'",
    ],
)
def test_settings_of_the_session_change_no_answer(
    attacker: Connection, setting: LiteralString
) -> None:
    queries: list[LiteralString] = [
        "select rag.current_tenant()",
        "select s.uri, s.content from rag.search('common words') as s order by 1",
        "select d.uri, d.content from rag.documents as d order by 1",
        "select p.tenant from rag.progress() as p",
    ]
    before = [attacker.execute(query).fetchall() for query in queries]
    attacker.execute(b"set " + setting.encode())
    with heard(attacker) as words:
        assert [attacker.execute(query).fetchall() for query in queries] == before
        refused(attacker, "select rag.set_tenant('victim')")
    assert CANARY not in " ".join(words)


def test_objects_of_the_caller_do_not_shadow_ours(world: World, attacker: Connection) -> None:
    queries: list[LiteralString] = [
        "select rag.current_tenant()",
        "select s.uri, s.content "
        "from rag.search('common words', embedding => %s::public.vector) as s",
        "select s.uri from rag.search('common words', filter => '{{\"a\": 1}}') as s",
        "select p.tenant, p.embedded, p.waiting from rag.progress() as p",
        "select f.* from rag.failures() as f",
        "select rag.put('shadow', 'shadow'), rag.delete('shadow') is not null",
        'select m.uri, m.status from rag.put_many(\'[{{"content": "shadow", "uri": "s"}}]\') as m',
        "select rag.delete('s')",
        "select rag.put('shadow', 'fleeting', lifetime => '1 day')",
        "select g.expires_at > '2000-01-01'::timestamptz from rag.get('fleeting') as g",
        "select rag.delete('fleeting')",
        "select s.uri, s.similarity "
        "from rag.search('', mode => 'semantic', embedding => %s::public.vector) as s",
        "select count(*) from rag.documents",
    ]

    attacker.execute(
        "select from rag.import_documents(rag.begin_run('import', 'vectors'), "
        '\'[{"uri": "vector", "content": "It has a vector."}]\', array[%s::public.vector], '
        "'all-MiniLM-L6-v2')",
        [vector(3)],
    )

    def answers() -> list[Rows]:
        found: list[Rows] = []
        for query in queries:
            given = [vector(3)] if "%s" in query else None
            text = query if given else query.replace("{{", "{").replace("}}", "}")
            rows = attacker.execute(text.encode(), given).fetchall()
            # Ids of documents put on the way differ from run to run.
            found.append([row for row in rows if "shadow" not in query])
        return found

    before = answers()
    # Functions and operators of pg_temp are never called by their bare names: for them a schema of
    # the attacker's own is searched first.
    schema = role_name("shadows")
    world.owner.execute(
        sql.SQL("create schema {} authorization {}").format(
            sql.Identifier(schema), sql.Identifier(role_name("attacker"))
        )
    )
    # Without the right to use it, it would be passed over while a function runs as rag_owner.
    attacker.execute(f"grant usage on schema {schema} to public".encode())
    attacker.execute(f"set search_path = {schema}, pg_temp, pg_catalog, public".encode())
    names = [name.removeprefix("rag.") for name in tenant_tables(world.owner)]
    for name in [*names, "models", "partitions"]:
        attacker.execute(
            f"create temporary table {name} as select {world.victim_id} as tenant_id, "
            "1 as partition_id, 'victim'::text as name, 1 as collection_id".encode()
        )
    victim = world.victim_id
    functions: list[str] = [
        "to_regrole(text) returns regrole language sql as 'select 10::regrole'",
        "quote_ident(text) returns text language sql as $$ select 'postgres' $$",
        "current_setting(text) returns text language sql as $$ select 'postgres' $$",
        "current_setting(text, boolean) returns text language sql as $$ select 'victim' $$",
        "pg_has_role(regrole, regrole, text) returns boolean language sql as 'select true'",
        "now() returns timestamptz language sql as $$ select timestamptz '-infinity' $$",
        f"_allowed_tenant(text) returns int language sql as 'select {victim}'",
        f"_policy_tenant() returns int language sql as 'select {victim}'",
        f"format(text, text) returns text language sql as $$ select '{CANARY}' $$",
        f"format(text, regrole, text) returns text language sql as $$ select '{CANARY}' $$",
    ]
    operators = [
        ("=", "int", "boolean", "true"),
        ("<=>", "public.vector", "double precision", "0.5"),
        ("<=>", "public.halfvec", "double precision", "0.5"),
    ]
    for _, kind, answer, said in operators:
        functions.append(f"of({kind}, {kind}) returns {answer} language sql as 'select {said}'")
    shadows = [
        *(f"function {schema}.{function}" for function in functions),
        *(
            f"operator {schema}.{name} (leftarg = {kind}, rightarg = {kind}, "
            f"function = {schema}.of)"
            for name, kind, _, _ in operators
        ),
        "type pg_temp.regrole as (x int)",
        "type pg_temp.halfvec as (x int)",
        "type pg_temp.jsonpath as (x int)",
        "domain pg_temp.tsquery as int",
    ]
    for shadow in shadows:
        attacker.execute(f"create {shadow}".encode())
    # They are found, or they would prove nothing.
    assert attacker.execute(
        "select now() < '2000-01-01', public.vector '[1, 0]' <=> '[0, 1]', "
        "format('a'::text, 'b'::text), 1 = 2"
    ).fetchone() == (True, 0.5, CANARY, True)
    assert answers() == before
    refused(attacker, "select rag.set_tenant('victim')")
    attacker.execute("select rag.delete('vector')")


def test_whoever_may_write_pgvectors_schema_is_warned_of(
    databases: Databases, template: str
) -> None:
    """A function there may be a better match than one of pg_catalog, and would run as rag_owner."""
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as owner:
        warnings = "select warning from rag.status() where item = 'schema of pgvector'"
        assert owner.execute(warnings).fetchall() == [(None,)]
        owner.execute("grant create on schema public to public")
        [(warning,)] = owner.execute(warnings).fetchall()
        assert "revoke create on schema public from public" in warning
    databases.close(url)


def test_advisory_locks_of_one_tenant_do_not_hold_up_another(
    world: World, attacker: Connection
) -> None:
    """Everybody may take any advisory lock, so nothing may wait for one."""
    classes = world.owner.execute(
        "select p.oid::regprocedure::text from pg_proc as p "
        "where p.pronamespace = 'rag'::regnamespace and p.pronargs = 0 "
        "and p.provolatile = 'i' and p.prorettype = 'int'::regtype"
    ).fetchall()
    assert classes
    for (name,) in classes:
        [(number,)] = world.owner.execute(f"select {name}".encode()).fetchall()
        for key in (0, world.victim_id):
            attacker.execute("select pg_advisory_lock(%s, %s)", [number, key])
    with world.login("victim") as victim:
        victim.execute("set statement_timeout = '5s'")
        victim.execute("select rag.set_tenant('victim')")
        victim.execute("select rag.put('held up?', 'held')")
        victim.execute("select * from rag.search('held')")
        victim.execute("select rag.delete('held')")


# Sessions


def test_a_local_context_ends_with_its_transaction(attacker: Connection) -> None:
    attacker.execute("reset rag.tenant")
    with attacker.transaction():
        attacker.execute("select rag.set_tenant('own', is_local => true)")
        assert attacker.execute("select rag.current_tenant()").fetchone() == ("own",)
    # The setting reads '' now, not null.
    assert attacker.execute("select current_setting('rag.tenant', true)").fetchone() == ("",)
    for _ in range(2):
        assert tried(attacker, "select rag.current_tenant()").state == "RG001"
        assert attacker.execute("select count(*) from rag.documents").fetchone() == (0,)
    attacker.execute("begin")
    attacker.execute("select rag.set_tenant('own', is_local => true)")
    with pytest.raises(errors.DivisionByZero):
        attacker.execute("select 1 / 0")
    attacker.execute("rollback")
    assert tried(attacker, "select rag.current_tenant()").state == "RG001"
    attacker.execute("select rag.set_tenant('own')")
    with attacker.transaction():
        attacker.execute("select rag.set_tenant('other', true)")
        assert attacker.execute("select rag.current_tenant()").fetchone() == ("other",)
    assert attacker.execute("select rag.current_tenant()").fetchone() == ("own",)
    with attacker.transaction(force_rollback=True):
        attacker.execute("select rag.set_tenant('other')")
    assert attacker.execute("select rag.current_tenant()").fetchone() == ("own",)
    attacker.execute("discard all")
    assert tried(attacker, "select rag.current_tenant()").state == "RG001"


def test_a_plan_made_for_one_tenant_serves_the_next_one_right(attacker: Connection) -> None:
    attacker.execute("prepare mine as select uri from rag.documents order by 1")
    attacker.execute("prepare found as select uri from rag.search('common words')")
    attacker.execute("set plan_cache_mode = force_generic_plan")
    own = [("known-uri",), ("own-uri",)]
    for _ in range(7):
        attacker.execute("select rag.set_tenant('own')")
        assert attacker.execute("execute mine").fetchall() == own
        assert sorted(attacker.execute("execute found").fetchall()) == own
        attacker.execute("select rag.set_tenant('other')")
        assert attacker.execute("execute mine").fetchall() == []
        assert attacker.execute("execute found").fetchall() == []
        attacker.execute("set rag.tenant = 'victim'")
        assert attacker.execute("execute mine").fetchall() == []
        refused(attacker, "execute found")


def test_a_revoked_grant_ends_in_running_sessions(world: World) -> None:
    with world.login("nobody") as nobody, world.login("admin") as admin:
        admin.execute("select rag.grant_tenant(%s, 'other')", [role_name("nobody")])
        nobody.execute("select rag.set_tenant('other')")
        nobody.execute("begin isolation level read committed")
        nobody.execute("select rag.put('mine', 'mine')")
        assert nobody.execute("select count(*) from rag.documents").fetchone() == (1,)
        assert admin.execute(
            "select rag.revoke_tenant(%s, 'other')", [role_name("nobody")]
        ).fetchone() == (True,)
        assert nobody.execute("select count(*) from rag.documents").fetchone() == (0,)
        refused(nobody, "select rag.put('more', 'more')")


def test_a_pool_that_switches_roles_keeps_them_apart(world: World) -> None:
    """As PostgREST does: one login, SET ROLE for each transaction."""
    name = role_name("authenticator")
    quoted = sql.Identifier(name)
    world.owner.execute(sql.SQL("create role {} login noinherit").format(quoted))
    try:
        for member in ("attacker", "victim"):
            world.owner.execute(
                sql.SQL("grant {} to {}").format(sql.Identifier(role_name(member)), quoted)
            )
        with world.login("authenticator") as login:
            for role, tenant, foreign in [
                ("attacker", "own", "victim"),
                ("victim", "victim", "own"),
                ("attacker", "other", "victim"),
            ]:
                with login.transaction():
                    login.execute(f"set local role {role_name(role)}".encode())
                    login.execute("select rag.set_tenant(%s, true)", [tenant])
                    assert login.execute("select rag.current_tenant()").fetchone() == (tenant,)
                with login.transaction():
                    login.execute(f"set local role {role_name(role)}".encode())
                    refused(
                        login,
                        sql.SQL("select rag.set_tenant({}, true)").format(sql.Literal(foreign)),
                    )
    finally:
        drop_role(world.owner, name)


# Other roles


def test_the_worker_reads_no_table_and_acts_as_no_tenant(world: World) -> None:
    with world.login("worker") as worker:
        for name, kind in relations(world.owner):
            if kind != "S" and name != "rag.models":
                refused(worker, about(name, "select from {}"))
        for query in (
            "select rag.set_tenant('victim')",
            "select rag.put('x')",
            "select rag.delete('x')",
            "select * from rag.search('x')",
            "select rag.create_tenant('x')",
            "select rag.drop_tenant('victim')",
            "select * from rag.status()",
            "select rag.retry_failed()",
        ):
            refused(worker, query)


def test_the_administrator_reads_no_text(world: World) -> None:
    with world.login("admin") as admin:
        allowed = {
            "rag.partitions",
            "rag.moves",
            "rag.erasures",
            "rag.models",
            "rag.migrations",
        }
        for name, kind in relations(world.owner):
            if kind != "S" and name not in allowed:
                refused(admin, about(name, "select from {}"))
        for query in (
            "select rag.put('x')",
            "select rag.set_tenant('victim')",
            "select * from rag.search('x')",
            "select * from rag.claim_jobs('x')",
            "select * from rag._context()",
        ):
            refused(admin, query)
        assert CANARY not in tried(admin, "select * from rag.status()").said


def test_nobody_in_particular_can_do_nothing(world: World) -> None:
    functions = world.owner.execute(
        "select format('select %s(%s)', p.oid::regproc, (select string_agg("
        "format('null::%s', format_type(t.oid, null)), ', ') "
        "from unnest(p.proargtypes::oid[]) as t (oid))) "
        "from pg_proc as p where p.pronamespace = 'rag'::regnamespace"
    ).fetchall()
    assert len(functions) > 50
    with world.login("stranger") as stranger:
        for (call,) in functions:
            refused(stranger, call.encode())
        for name, kind in relations(world.owner):
            verb = "select last_value from" if kind == "S" else "select from"
            refused(stranger, f"{verb} {name}".encode())


def test_a_member_of_rag_app_without_a_grant_is_nobody(world: World) -> None:
    with world.login("nobody") as nobody:
        for name in tenant_tables(world.owner):
            answer = tried(nobody, about(name, "select * from {}"))
            assert answer.state == "42501" or answer.said == "[]", (name, answer)
        for query in (
            "select rag.current_tenant()",
            "select * from rag.search('x')",
            "select rag.put('x')",
            'select rag.put_many(\'[{"content": "x"}]\')',
            "select rag.delete('x')",
            "select rag.create_collection('x')",
            "select * from rag.progress()",
            "select * from rag.failures()",
            "select rag.wait_for(1)",
        ):
            answer = tried(nobody, query)
            assert answer.state == "RG001", (query, answer)


def test_rights_are_as_reviewed(world: World) -> None:
    assert granted(world.owner) == GOLDEN.read_text(), (
        "rights have changed: python -m tests.grants writes them anew, git diff shows how"
    )


# The last one: what it puts and deletes in the attacker's own tenant stays.
def test_no_function_gives_or_changes_anything_of_another_tenant(
    world: World, attacker: Connection
) -> None:
    functions = world.owner.execute(
        "select p.oid::regproc::text, array(select format_type(t.oid, null) "
        "from unnest(p.proargtypes::oid[]) as t (oid))::text[] "
        "from pg_proc as p where p.pronamespace = 'rag'::regnamespace "
        "and has_function_privilege(%s, p.oid, 'execute')",
        [role_name("attacker")],
    ).fetchall()
    assert len(functions) >= 14
    before = world.victims_rows()
    chance = random.Random(1)
    states: set[str] = set()
    for name, kinds in functions:
        places = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Placeholder(), sql.SQL(kind)) for kind in kinds
        )
        call = sql.SQL("select * from {}({})").format(sql.SQL(name), places)
        for turn in range(60 if kinds else 3):
            # Under its own tenant, under the other one, and with the setting made by hand.
            context = ("own", "other", "victim", "", "missing")[turn % 5]
            attacker.execute("select set_config('rag.tenant', %s, false)", [context])
            answer = tried(attacker, call, [hostile(world, kind, chance) for kind in kinds])
            states.add(answer.state)
            assert CANARY not in answer.said, (name, answer)
    # The attack got through to the functions, and was refused where it should be.
    assert {"42501", "RG001", "RG003", "22023"} <= states
    assert world.victims_rows() == before
