"""Random attempts to get at another tenant's data: from the catalog, so that nothing is left out.

Functions, their parameters and tables are read from the database, so one that is new tomorrow is
attacked tomorrow. The same seed makes the same attempts on the same schema.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from tests.attacks.arena import claims, sign, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.attacks.arena import Arena, Connection

Statement = tuple[str, "Sequence[object] | None"]

# What would be another statement, another condition or another pattern, were it ever made part of
# one: in SQL, in tsquery, in jsonpath, in format(), in a regular expression, in COPY.
INJECTIONS = [
    "' or true --",
    "' or 1=1) --",
    "x' union all select content from rag.chunks --",
    "x') union all select d.content from rag.documents as d --",
    "'; select content from rag.documents; --",
    "$$; select content from rag.chunks; $$",
    "default' or name <> '",
    '"; drop table rag.documents; --',
    "%s %I %L %1$s %%",
    "\\'; select 1; --",
    "{rag.documents}",
    "pg_catalog.pg_authid",
    "rag.documents",
    "a' | 'b' & !'c",
    "'a':* | 'b'",
    '"common words" or -x',
    "!!() & <-> |",
    "common:*A",
    '") || true || (@ == "',
    '" || exists(@.*) || "',
    '$.** ? (@ like_regex ".*" flag "i")',
    "(.*)+$",
    "%",
    "_%",
    "recursive' || (select string_agg(content, '') from rag.chunks) || '",
    "english'::regconfig, (select content from rag.documents limit 1)) --",
    "../../tenant-1",
    "tenant-1",
    "known-uri",
    "shared-name",
    "\u202etenant-1",
    "\uff54enant-1",
    "x" * 3000,
    "",
    " ",
]

# Filters, of which every word is the attacker's.
FILTERS: list[object] = [
    {"tenant_id": 2},
    {"owner": {"$exists": True}},
    {"owner": {"$ne": ""}},
    {"$not": {"owner": "x"}},
    {"$or": [{"owner": {"$exists": True}}, {"x": {"$exists": False}}]},
    {'a" || true || "': 1},
    {"a": {"$eq": '" || exists(@.*) || "'}},
    {"a": {"$contains": "' or true --"}},
    {"$where": "true"},
    {"$and": []},
    {"owner": {"$in": ["x", None]}},
    [{"content": "x", "uri": "known-uri"}],
    [{"content": "x", "uri": "known-uri", "tenant_id": 2}],
    [{"query": "common", "uri": "known-uri", "grade": 1}],
    [],
    None,
]

ENUMERATED = [
    "default", "hybrid", "lexical", "semantic", "rrf", "linear", "standard", "markdown",
    "recursive", "english", "german", "common words", "refund", None,
]  # fmt: skip

READS = [
    "select * from {}",
    "select * from {} where tenant_id = %(tenant)s",
    "select t::text from {} as t where t.tenant_id <> %(own)s",
    "select to_jsonb(t) from {} as t limit 100",
    "select t.tableoid::regclass, t.ctid, t.* from {} as t where t.ctid < '(10,1)'",
    "select * from only {}",
    "select * from {} tablesample system (100)",
    "select * from {} for update",
    "select * from {} where tenant_id in (select n from generate_series(1, 50) as n)",
    "select a.* from {} as a full join {} as b on false",
    "select max(t::text), min(t::text) from {} as t",
    "with x as materialized (select * from {}) select * from x",
    "select (select string_agg(t::text, '') from {} as t)",
    "select * from {} order by tenant_id = %(own)s limit 20",
    "explain (analyze, verbose, buffers, settings) select * from {} where tenant_id = %(tenant)s",
    "explain (format json) select * from {} where tenant_id <> %(own)s",
    "select * from query_to_xml('select * from {}', true, true, '')",
    "select * from table_to_xml('{}', true, true, '')",
    "select * from {} as t where pg_temp.tell(t)",
    "select count(*) from {} as t where t::text operator(pg_temp.<<<) 'zzz'",
    "declare c cursor with hold for select * from {}",
    "prepare p as select * from {}",
    "create temporary table stolen as select * from {}",
    "create temporary view v as select * from {}",
    "copy {} to stdout",
    "copy (select * from {} where tenant_id = %(tenant)s) to stdout",
]

WRITES = [
    "insert into {} default values",
    "insert into {} (tenant_id) values (%(tenant)s) on conflict do nothing returning *",
    "update {} set tenant_id = %(own)s where tenant_id = %(tenant)s returning *",
    "delete from {} where tenant_id = %(tenant)s returning *",
    "truncate {}",
    "merge into {} as t using (values (1)) as v (x) on true when matched then delete",
    "create temporary table probe (tenant_id int references {})",
    "create table {schema}.probe (tenant_id int references {})",
    "create table {schema}.heir () inherits ({})",
    "create view {schema}.v as select * from {}; select * from {schema}.v",
    "create materialized view {schema}.m as select * from {}; select * from {schema}.m",
    "create table pg_temp.probe2 (like {} including all)",
    "create trigger mine before insert on {} execute function pg_temp.steal()",
    "create rule mine as on select to {} do instead select 1",
    "create policy mine on {} using (true)",
    "alter table {} disable row level security",
    "create statistics mine on tenant_id, (tenant_id + 1) from {}",
    "lock table {} in access exclusive mode",
    "grant select on {} to public",
    "analyze {}",
    "vacuum full {}",
    "comment on table {} is 'mine'",
    "security label on table {} is 'x'",
]

CATALOGS = [
    "select * from pg_stats",
    "select * from pg_stats_ext",
    "select * from pg_stats_ext_exprs",
    "select * from pg_statistic",
    "select * from pg_stat_activity",
    "select * from pg_stat_get_activity(null)",
    "select * from pg_locks",
    "select * from pg_cursors",
    "select * from pg_prepared_statements",
    "select * from pg_sequences",
    "select * from pg_class where relnamespace in ('rag'::regnamespace)",
    "select * from pg_description",
    "select * from pg_db_role_setting",
    "select * from pg_settings where name like 'rag%%'",
    "select * from pg_file_settings",
    "select * from pg_hba_file_rules",
    "select * from pg_shdescription",
    "select * from pg_stat_user_tables",
    "select * from pg_statio_user_indexes",
    "select * from pg_stat_progress_create_index",
    "select * from pg_notification_queue_usage()",
    "select pg_get_expr(p.polqual, p.polrelid) from pg_policy as p",
    "select * from pg_largeobject",
    "select pg_read_file('postgresql.conf')",
    "select pg_ls_dir('base')",
    "select * from pg_ls_logdir()",
    "select lo_import('/etc/passwd')",
    "select pg_read_binary_file('base/1/1259')",
    "select * from information_schema.columns where table_schema = 'rag'",
    "select set_config('session_preload_libraries', 'x', false)",
    "load 'plpgsql'",
]

POWERS = [
    "set role rag_owner",
    "set role rag_admin",
    "set session authorization postgres",
    "set local role postgres",
    "reset session authorization",
    "set row_security = off",
    "set session_replication_role = replica",
    "set search_path = pg_temp, rag_data, rag, public, pg_catalog",
    "set default_table_access_method = heap",
    "alter role current_user set rag.tenant = 'tenant-1'",
    "alter role current_user bypassrls",
    "grant rag_owner to current_user",
    "create schema mine",
    "create table public.mine ()",
    "create function rag.mine() returns int language sql as 'select 1'",
    "create or replace function rag._caller() returns int language sql as 'select 2'",
    "alter function rag._context() security invoker",
    "drop function rag._policy_tenant() cascade",
    "create extension plpgsql",
    "drop extension vector cascade",
    "create cast (text as int) without function as implicit",
    "create event trigger mine on ddl_command_start execute function pg_temp.steal()",
    "create publication mine for all tables",
    "select dblink('', '')",
    "do language plpgsql $$ begin execute 'select content from rag.chunks' ; end $$",
    "do language plpgsql $$ declare r record; begin for r in select * from rag.documents loop "
    "raise notice '%%', r; end loop; end $$",
]

SHADOWS = [
    "create function pg_temp.tell(anyelement) returns boolean language plpgsql "
    "cost 0.0000001 as $$ begin raise notice 'told: %%', $1; return true; end $$",
    "create function pg_temp.less(text, text) returns boolean language plpgsql "
    "cost 0.0000001 as $$ begin raise notice 'told: %% %%', $1, $2; return $1 < $2; end $$",
    "create operator pg_temp.<<< (leftarg = text, rightarg = text, function = pg_temp.less, "
    "restrict = scalarltsel)",
    "create function pg_temp.steal() returns trigger language plpgsql as $$ begin "
    "raise notice '%%', new; return new; end $$",
    "create function pg_temp.equal(int, int) returns boolean language sql as 'select true'",
    "create operator pg_temp.= (leftarg = int, rightarg = int, function = pg_temp.equal)",
    "create function pg_temp.current_setting(text, boolean) returns text language sql "
    "as $$ select 'tenant-1' $$",
    "create function pg_temp._caller() returns int language sql as 'select 2'",
    "create function pg_temp._allowed_tenant(text) returns int language sql as 'select 2'",
    "create function pg_temp._allowed(text) returns rag.tenants language sql "
    "as 'select t from rag.tenants as t where t.tenant_id = 2'",
    "create function pg_temp.pg_has_role(oid, oid, text) returns boolean language sql "
    "as 'select true'",
    "create function pg_temp.sha256(bytea) returns bytea language sql as $$ select ''::bytea $$",
    "create temporary table tenants as select 2 as tenant_id, 'tenant-0'::text as name, "
    "1 as partition_id, false as is_suspended",
    "create temporary table token_keys as select 1 as key_id, ''::bytea as seal",
    "create temporary table tenant_grants as select 10::oid as role, null::int as tenant_id",
    "create temporary table chunks as select 2 as tenant_id, 1 as partition_id",
]


@dataclass(frozen=True)
class Attempt:
    """Statements of one transaction or session, and all that came out of them."""

    number: int
    kind: str
    statements: tuple[Statement, ...]
    heard: str
    states: tuple[str, ...]


@dataclass
class Attacker:
    """Makes attempts on an arena and keeps what came out."""

    arena: Arena
    seed: int
    chance: random.Random = field(init=False)
    functions: list[tuple[str, bool, list[str]]] = field(init=False)
    relations: list[str] = field(init=False)
    # Contexts that were seen in sessions, to be used in other ones.
    seals: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        rows = self.arena.owner.execute(
            "select p.oid::regproc::text, p.prokind = 'p', array(select format_type(t.oid, null) "
            "from unnest(p.proargtypes::oid[]) as t (oid))::text[] from pg_proc as p "
            "where p.pronamespace = 'rag'::regnamespace and p.prokind in ('f', 'p') "
            "and has_function_privilege(%s, p.oid, 'execute') order by p.oid::regprocedure::text",
            [self.arena.role],
        )
        self.functions = [(name, is_procedure, kinds) for name, is_procedure, kinds in rows]
        rows = self.arena.owner.execute(
            "select c.oid::regclass::text from pg_class as c "
            "where c.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace) "
            "and c.relkind in ('r', 'p', 'v', 'm', 'S') order by c.relkind, c.relname"
        )
        names = [str(name) for (name,) in rows]
        # Those that are read by the role are tried as often as all the others together.
        self.relations = [name for name in names if name.startswith("rag.")]
        self.relations += self.chance.sample([n for n in names if n.startswith("rag_data.")], 12)

    def attempts(self, number: int) -> Iterator[Attempt]:
        """So many attempts, one after the other."""
        makers: list[tuple[str, int, Callable[[], list[Statement]]]] = [
            ("call", 8, self._calls),
            ("injection", 6, self._injections),
            ("read", 6, self._reads),
            ("write", 3, self._writes),
            ("catalog", 2, self._catalogs),
            ("power", 3, self._powers),
            ("shadow", 3, self._shadows),
            ("token", 4, self._tokens),
            ("left over", 3, self._left_overs),
        ]
        connections = [
            self.arena.login(role)
            for role in (self.arena.role, self.arena.token_role, self.arena.role)
        ]
        try:
            for n in range(number):
                [(kind, _, make)] = self.chance.choices(makers, [weight for _, weight, _ in makers])
                place = self.chance.randrange(len(connections))
                statements = [*self._context(), *make()]
                heard, states = self._run(connections[place], statements)
                yield Attempt(n, kind, tuple(statements), heard, states)
                if connections[place].closed:
                    connections[place] = self.arena.login(self.arena.role)
        finally:
            for connection in connections:
                connection.close()

    # What is said

    def _run(
        self, connection: Connection, statements: list[Statement]
    ) -> tuple[str, tuple[str, ...]]:
        in_transaction = self.chance.random() < 0.5
        states: list[str] = []
        with listening(connection) as heard:
            begin: list[Statement] = [("begin", None)] if in_transaction else []
            for query, given in [("set statement_timeout = '3s'", None), *begin, *statements]:
                state = _execute(connection, query, given, heard)
                if state == "25P02":
                    # Without the transaction that an error has ended it may get further.
                    _execute(connection, "rollback", None, heard)
                    state = _execute(connection, query, given, heard)
                states.append(state)
            _execute(connection, "rollback", None, heard)
            # A pool that is not tidy goes on with what the one before left.
            if self.chance.random() < 0.7:
                _execute(connection, "discard all", None, heard)
        return "\n".join(heard), tuple(states)

    def _context(self) -> list[Statement]:
        """As whom: himself, whom he would like to be, or nobody."""
        other = self.chance.choice(self.arena.foreign).name
        is_local = self.chance.random() < 0.5
        own = sign(claims(self.arena.own.name))
        ways: list[list[Statement]] = [
            [("select rag.set_tenant(%s, %s)", [self.arena.own.name, is_local])],
            [("select rag.set_tenant(%s, %s)", [self.arena.own.name, is_local])],
            [("select rag.set_tenant(%s, %s)", [other, is_local])],
            [("select set_config('rag.tenant', %s, %s)", [other, is_local])],
            [("select rag.authenticate(%s, %s)", [own, is_local])],
            [
                ("select rag.authenticate(%s, %s)", [own, is_local]),
                ("select set_config('rag.tenant', %s, %s)", [other, is_local]),
            ],
            [("select set_config('rag.authenticated', %s, %s)", [self._seal(), is_local])],
            [],
        ]
        return self.chance.choice(ways)

    def _seal(self) -> str:
        """A context that was copied, changed or made up."""
        tenant = self.chance.choice(self.arena.foreign)
        late = int(time.time()) + 500
        made_up = [
            f"1.{tenant.tenant_id}.{late}.t." + "0" * 64,
            f"1.{tenant.tenant_id}.{late}.s." + "f" * 64,
            f"0.{tenant.tenant_id}.{late}.t.",
            str(tenant.tenant_id),
            tenant.name,
            "-",
            "' or true --",
            f"1.{tenant.tenant_id}.999999999999.s." + "a" * 64,
        ]
        if not self.seals or self.chance.random() < 0.3:
            return self.chance.choice(made_up)
        seal = self.chance.choice(self.seals)
        parts = seal.split(".")
        if len(parts) == 5 and self.chance.random() < 0.7:
            place = self.chance.randrange(5)
            parts[place] = ["2", str(tenant.tenant_id), str(late + 9999), "s", "0" * 64][place]
        return ".".join(parts)

    def _value(self, kind: str) -> object:
        """A value of that type that an attacker would try."""
        chance = self.chance
        victim = chance.choice(self.arena.foreign)
        ids: list[object] = [*victim.documents, *victim.chunks, victim.tenant_id]
        whole: list[object] = [None, 0, 1, 2, 5, 10, 100, -1, 2**31 - 1]
        text: list[object] = [*INJECTIONS, *ENUMERATED, *ENUMERATED, victim.name]
        numbers = [None, 0.0, 0.5, 1.0, -1.0, float("nan"), float("inf")]
        pools: dict[str, list[object]] = {
            "text": text,
            "name": text,
            "integer": [*whole[:8], victim.tenant_id],
            "smallint": list(whole[:8]),
            "bigint": [*ids, *ids, *whole],
            "boolean": [True, False, None],
            "text[]": [chance.choices(text, k=n) for n in range(4)],
            "bigint[]": [chance.choices(ids, k=n) for n in range(4)],
            "integer[]": [[victim.tenant_id], [], None],
            "jsonb": [None, *(Jsonb(given) for given in (*FILTERS, *INJECTIONS))],
            "json": [None, *(Jsonb(given) for given in (*FILTERS, *INJECTIONS))],
            "real": [*numbers],
            "double precision": [*numbers],
            "numeric": [*numbers],
            "interval": [None, "0 seconds", "-1 hour", "1 millisecond"],
            "vector": [None, vector(chance), vector(chance), "[1,2,3]"],
            "halfvec": [None, vector(chance), "[1,2,3]"],
            "bytea": [None, b"", b"x" * 32],
        }
        # A type that is new here is tried with null until somebody gives it values.
        return chance.choice(pools.get(kind, [None]))

    # Kinds of attempts

    def _call(self, name: str, values: list[object], kinds: list[str], *, call: bool) -> Statement:
        places = ", ".join(f"%s::{kind}" for kind in kinds)
        return (f"{'call' if call else 'select * from'} {name}({places})", values)

    def _calls(self) -> list[Statement]:
        name, is_procedure, kinds = self.chance.choice(self.functions)
        values = [self._value(kind) for kind in kinds]
        return [self._call(name, values, kinds, call=is_procedure)]

    def _injections(self) -> list[Statement]:
        """Sensible values, so that the call gets far, and one that is not."""
        usable = [f for f in self.functions if {"text", "jsonb", "text[]"} & set(f[2])]
        name, is_procedure, kinds = self.chance.choice(usable)
        values = [self._value(kind) for kind in kinds]
        for n, kind in enumerate(kinds):
            if kind == "text":
                values[n] = self.chance.choice(["common words", "default", None])
        place = self.chance.choice(
            [n for n, kind in enumerate(kinds) if kind in ("text", "jsonb", "text[]")]
        )
        bad = self.chance.choice(INJECTIONS)
        values[place] = {
            "text": bad,
            "jsonb": Jsonb(self.chance.choice([bad, {bad: bad}, [{"content": bad, "uri": bad}]])),
            "text[]": [bad],
        }[kinds[place]]
        return [self._call(name, values, kinds, call=is_procedure)]

    def _about(self, template: str) -> Statement:
        names = {
            "tenant": self.chance.choice(self.arena.foreign).tenant_id,
            "own": self.arena.own.tenant_id,
        }
        query = template.replace("{}", self.chance.choice(self.relations))
        query = query.replace("{schema}", self.arena.schema)
        # COPY and DDL take no parameters.
        return (
            query.replace("%(tenant)s", str(names["tenant"])).replace("%(own)s", str(names["own"])),
            None,
        )

    def _reads(self) -> list[Statement]:
        query = self._about(self.chance.choice(READS))
        helpers = [(text.replace("%%", "%"), None) for text in SHADOWS[:3]]
        return [*(helpers if "pg_temp" in query[0] else []), query, *self._later(query[0])]

    def _later(self, query: str) -> list[Statement]:
        """What was opened as himself is read as somebody else."""
        other = self.chance.choice(self.arena.foreign).name
        change: Statement = ("select set_config('rag.tenant', %s, false)", [other])
        if query.startswith("declare"):
            return [change, ("fetch all from c", None)]
        if query.startswith("prepare"):
            # The sixth time with a plan that knows no parameters.
            execute: Statement = ("execute p", None)
            return [*[execute] * 6, change, execute]
        if "create temporary view" in query:
            return [change, ("select * from pg_temp.v", None)]
        if "stolen" in query:
            return [("select * from stolen", None), ("drop table if exists stolen", None)]
        return []

    def _writes(self) -> list[Statement]:
        return [self._about(self.chance.choice(WRITES))]

    def _catalogs(self) -> list[Statement]:
        return [(self.chance.choice(CATALOGS).replace("%%", "%"), None)]

    def _powers(self) -> list[Statement]:
        return [
            (self.chance.choice(POWERS).replace("%%", "%"), None),
            self._about("select * from {}"),
            *self._calls(),
        ]

    def _shadows(self) -> list[Statement]:
        # In their order: operators need their functions.
        left = self.chance.randrange(len(SHADOWS))
        return [
            *(
                (text.replace("%%", "%"), None)
                for n, text in enumerate(SHADOWS)
                if n < 3 or n != left
            ),
            ("set search_path = pg_temp, pg_catalog, public", None),
            *self._calls(),
            ("select uri, content from rag.search('common words')", None),
            self._about("select * from {}"),
        ]

    def _tokens(self) -> list[Statement]:
        token = self._token()
        return [
            ("select rag.authenticate(%s, %s)", [token, self.chance.random() < 0.5]),
            ("select content from rag.documents", None),
            ("select uri, content from rag.search('common words')", None),
        ]

    def _token(self) -> str:
        """A token that is forged, changed, cut, too old, or made for something else."""
        victim = self.chance.choice(self.arena.foreign).name
        now = time.time()
        good = sign(claims(self.arena.own.name))
        parts = good.split(".")
        theirs = sign(claims(victim), secret=b"x" * 32).split(".")
        forged: list[str] = [
            ".".join(theirs),
            ".".join([parts[0], theirs[1], parts[2]]),
            ".".join([parts[0], theirs[1], ""]),
            sign(claims(victim), header={"alg": "none"}).rsplit(".", 1)[0] + ".",
            sign(claims(victim), header={"alg": "None", "typ": "JWT"}),
            sign(claims(victim), header={"alg": "RS256", "typ": "JWT"}),
            sign(claims(victim), secret=b"", header={"alg": "HS256", "kid": "missing"}),
            sign(claims(victim), secret=b"", header={"alg": "HS256", "kid": "' or true --"}),
            sign(claims(victim), secret=b""),
            sign(claims(self.arena.own.name, exp=now - 60)),
            sign(claims(self.arena.own.name, exp=None)),
            sign(claims(self.arena.own.name, nbf=now + 600)),
            sign(claims(self.arena.own.name, aud="other")),
            good[: self.chance.randrange(len(good))],
            good + self.chance.choice(["x", ".", ".x", "=", "\n", " "]),
        ]
        place = self.chance.randrange(len(good))
        forged.append(good[:place] + self.chance.choice("AbC-_.9") + good[place + 1 :])
        return self.chance.choice(forged)

    def _left_overs(self) -> list[Statement]:
        """A context taken back, committed, copied and used again."""
        own = sign(claims(self.arena.own.name))
        use: list[Statement] = [
            ("select content from rag.documents", None),
            ("select uri, content from rag.search('common words')", None),
        ]
        copied: list[Statement] = [
            ("select 'seal ' || current_setting('rag.authenticated', true)", None)
        ]
        again: list[Statement] = [
            ("select set_config('rag.authenticated', %s, false)", [self._seal()])
        ]
        games: list[list[Statement]] = [
            [("begin", None), ("select rag.authenticate(%s)", [own]), *copied, ("commit", None)],
            [("begin", None), ("select rag.authenticate(%s)", [own]), *copied, ("rollback", None)],
            [
                ("begin", None),
                ("savepoint s", None),
                ("select rag.authenticate(%s)", [own]),
                *copied,
                ("rollback to s", None),
            ],
            [("select rag.authenticate(%s, false)", [own]), *copied, ("reset all", None)],
            [("select rag.authenticate(%s, false)", [own]), *copied, ("discard all", None)],
        ]
        return [*self.chance.choice(games), *use, *again, *use]

    def note_seals(self, attempt: Attempt) -> None:
        """Keep the contexts that an attempt has read, for those to come."""
        for line in attempt.heard.splitlines():
            if "seal 1." in line:
                self.seals.append(line.split("seal ", 1)[1].split("'")[0])


def _execute(
    connection: Connection, query: str, given: Sequence[object] | None, heard: list[str]
) -> str:
    """Execute a statement; its SQLSTATE. All that it says is added to heard."""
    try:
        if query.startswith("copy"):
            with connection.cursor().copy(query.encode()) as copy:
                heard.append(b"".join(bytes(block) for block in copy).decode())
            return "00000"
        cursor = connection.execute(query.encode(), given)
        if cursor.description:
            heard.append(repr(cursor.fetchall()))
    except psycopg.Error as error:
        said: list[Any] = [
            getattr(error.diag, name) for name in dir(error.diag) if not name.startswith("_")
        ]
        heard.append(" ".join(str(part) for part in said) + str(error))
        return error.sqlstate or "none"
    return "00000"


@contextmanager
def listening(connection: Connection) -> Iterator[list[str]]:
    """Everything that reaches the client besides rows: notices and notifications."""
    heard: list[str] = []

    def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
        heard.append(
            f"{diagnostic.message_primary} {diagnostic.message_detail} {diagnostic.context}"
        )

    def notify(notification: psycopg.Notify) -> None:
        heard.append(f"{notification.channel} {notification.payload}")

    connection.add_notice_handler(notice)
    connection.add_notify_handler(notify)
    try:
        yield heard
    finally:
        connection.remove_notice_handler(notice)
        connection.remove_notify_handler(notify)


def leaks(arena: Arena, attempt: Attempt) -> list[str]:
    """The foreign tenants whose canaries an attempt has brought out."""
    heard = attempt.heard.lower()
    return [tenant.name for tenant in arena.foreign if tenant.canary in heard]
