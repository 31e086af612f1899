"""rag.audit() passes on a fresh database, and each of its checks goes red when that is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Databases, RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

ROLE = "test_audit_role"

# What breaks each check, as a superuser does it by accident; and what its detail names.
BREAKS: list[tuple[str, LiteralString, str]] = [
    (
        "row-level security",
        "alter table rag.documents disable row level security",
        "rag.documents",
    ),
    (
        "row-level security",
        "alter table rag_data.chunks_p1 disable row level security",
        "rag_data.chunks_p1",
    ),
    (
        "row-level security",
        "create table rag.extra (tenant_id int primary key)",
        "rag.extra",
    ),
    ("owner of tables", "alter table rag.documents owner to postgres", "rag.documents"),
    (
        "policies",
        "create policy open on rag.documents for select using (true)",
        "rag.documents has open",
    ),
    ("policies", "drop policy tenant_only on rag.chunks", "rag.chunks lacks tenant_only"),
    (
        "policies",
        "alter policy tenant_only on rag.chunks using (tenant_id is not null)",
        "rag.chunks lacks tenant_only",
    ),
    (
        "policies",
        "drop policy tenant_only on rag.chunks; create policy tenant_only on rag.chunks "
        "using (tenant_id = (select rag._policy_tenant()))",
        "rag.chunks lacks tenant_only",
    ),
    ("policies", "alter policy app_reads on rag.chunks to public", "rag.chunks lacks app_reads"),
    ("policies", "drop policy in_its_place on rag.chunks", "rag.chunks lacks in_its_place"),
    (
        "policies",
        "create policy in_its_place on rag.documents as restrictive using (true)",
        "rag.documents has in_its_place",
    ),
    (
        "policies",
        "alter policy tenant_only on rag_data.chunks_p1 using (true)",
        "rag_data.chunks_p1 lacks",
    ),
    ("partitions", "grant select on rag_data.chunks_p1 to rag_app", "rag_data.chunks_p1"),
    ("partitions", "alter table rag_data.lexemes_p2 set schema public", "schema public"),
    ("partitions", "alter table rag_data.lexemes_p2 set schema rag", "lies in schema rag"),
    (
        "partitions",
        "create table rag_data.rest partition of rag.lexemes default",
        "rag.lexemes has a default partition",
    ),
    (
        "views",
        "create view rag.all_documents as select * from rag.documents",
        "rag.all_documents",
    ),
    (
        "views",
        "create view public.report as select * from rag.documents",
        "report reads rag.documents",
    ),
    (
        "views",
        "create materialized view public.report as select * from rag.chunks",
        "report reads rag.chunks",
    ),
    ("keys", "create unique index on rag.documents (uri)", "unique without tenant_id"),
    (
        "keys",
        "alter table rag.documents add constraint bare unique (document_id); "
        "create table public.link (document_id bigint references rag.documents (document_id))",
        "refers to rag.documents without tenant_id",
    ),
    (
        "statistics and caches",
        "alter table rag.query_embeddings drop constraint query_embeddings_pkey",
        "rag.query_embeddings",
    ),
    (
        "statistics and caches",
        "create statistics public.s on uri, title from rag.documents",
        "keeps samples of rag.documents",
    ),
    (
        "triggers and rules",
        "create trigger t before insert on rag.documents for each row "
        "execute function suppress_redundant_updates_trigger()",
        "t on rag.documents",
    ),
    (
        "triggers and rules",
        "create rule r as on insert to rag.documents do also select 1",
        "r on rag.documents",
    ),
    (
        "functions",
        "create function rag.mine() returns int security definer language sql as 'select 1'",
        "rag.mine(): was not there",
    ),
    (
        "functions",
        "create or replace function rag._caller() returns int language sql as 'select 1'",
        "rag._caller(): was changed",
    ),
    ("functions", "alter function rag.chunk security invoker", "rag.chunk"),
    ("functions", "alter function rag.usage() owner to postgres", "rag.usage(): was changed"),
    ("functions", "drop function rag.usage()", "rag.usage(): is gone"),
    ("search paths", "alter function rag.current_tenant() reset all", "rag.current_tenant()"),
    (
        "search paths",
        "alter function rag.current_tenant() set search_path = rag, public",
        "rag.current_tenant()",
    ),
    (
        "schemas on the search path",
        "grant create on schema public to public",
        "PUBLIC may create in schema public",
    ),
    (
        "schemas on the search path",
        "grant create on schema public to rag_app",
        "rag_app may create in schema public",
    ),
    (
        "leakproof functions",
        "create function public.f(text) returns boolean language sql leakproof as 'select true'",
        "f(text)",
    ),
    ("rights", "grant select on rag.jobs to rag_app", "rag.jobs: rag_app select"),
    ("rights", "revoke select on rag.documents from rag_app", "rag.documents"),
    (
        "rights",
        "grant execute on function rag.drop_tenant(text) to rag_app",
        "rag.drop_tenant(text)",
    ),
    ("rights", "grant select (content) on rag.documents to rag_worker", "rag.documents.content"),
    ("rights", "grant usage on schema rag_data to rag_app", "rag_data"),
    ("rights", f"grant select on rag.documents to {ROLE}", ROLE),
    (
        "rights",
        "grant execute on function rag.search to rag_app with grant option",
        "(may grant)",
    ),
    ("PUBLIC", "grant execute on function rag.usage() to public", "rag.usage(): EXECUTE"),
    ("PUBLIC", "grant select on rag.models to public", "rag.models: SELECT"),
    (
        "PUBLIC",
        "alter default privileges in schema rag grant select on tables to rag_app",
        "will create in rag",
    ),
    ("roles of ragdb", "alter role rag_app login", "rag_app"),
    ("roles of ragdb", "alter role rag_owner bypassrls", "rag_owner"),
    (
        "roles of ragdb",
        "grant pg_read_all_data to rag_app",
        "rag_app is a member of pg_read_all_data",
    ),
    (
        "roles of applications",
        "select rag.create_tenant('t'); "
        f"select rag.grant_tenant('{ROLE}', 't'); alter role {ROLE} superuser",
        f"{ROLE} is a superuser",
    ),
    (
        "roles of applications",
        f"select rag.grant_all_tenants('{ROLE}'); alter role {ROLE} bypassrls",
        f"{ROLE} has bypassrls",
    ),
    (
        "roles of applications",
        f"select rag.grant_tenant('{ROLE}', 'default'); grant rag_admin to {ROLE}",
        f"{ROLE} is a member of rag_admin",
    ),
    (
        "roles of applications",
        f"select rag.create_tenant('t'); select rag.grant_tenant('{ROLE}', 't'); "
        f"grant rag_owner to {ROLE}",
        f"{ROLE} is a member of rag_owner",
    ),
    ("keys of tokens", f"grant select (seal) on rag.token_keys to {ROLE}", ROLE),
    ("keys of tokens", "grant insert on rag.tenant_grants to rag_app", "rag_app"),
    (
        "context",
        "create or replace function rag._allowed(wanted text) returns rag.tenants language sql "
        "stable as 'select t from rag.tenants as t order by t.tenant_id limit 1'",
        "no tenant of this name",
    ),
    (
        "context",
        "create or replace function rag._unsealed_tenant(sealed text) returns int language sql "
        "stable as 'select min(t.tenant_id) from rag.tenants as t'",
        "rag.authenticated",
    ),
    ("defaults of rag.*", "alter role rag_app set rag.tenant = 'default'", "rag_app"),
    ("defaults of rag.*", f"alter role {ROLE} set rag.authenticated = '-'", ROLE),
    ("pgvector", "update pg_extension set extversion = '0.8.1'", "0.8.2"),
]

# The embedded server is a minor release behind; on a new one it passes.
VERSION = "PostgreSQL"


@pytest.fixture(scope="module")
def owner(databases: Databases, template: str) -> Iterator[Connection]:
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {ROLE}")
        yield connection
        connection.execute(f"drop role {ROLE}")
    databases.close(url)


def failed(connection: Connection) -> dict[str, str]:
    rows = connection.execute(
        "select a.name, a.detail from rag.audit() as a where not a.passed"
    ).fetchall()
    return {name: detail for name, detail in rows if name != VERSION}


def test_a_fresh_database_passes(owner: Connection) -> None:
    rows = owner.execute("select * from rag.audit()").fetchall()
    assert failed(owner) == {}
    assert {name for name, _, _, _ in rows} == {name for name, _, _ in BREAKS} | {VERSION}
    for _, passed, detail, what_to_do in rows:
        assert (detail is None) == (what_to_do is None) == passed


@pytest.mark.parametrize(("check", "statement", "named"), BREAKS)
def test_a_check_goes_red_when_it_is_broken(
    owner: Connection, check: str, statement: LiteralString, named: str
) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute(statement)
        found = failed(owner)
        assert check in found
        assert named in found[check]


@pytest.mark.parametrize(
    ("version", "is_told"),
    [
        (160014, True),
        (160015, False),
        (170010, True),
        (170011, False),
        (180004, True),
        (180005, False),
        (190000, False),
    ],
)
def test_minor_releases_with_known_holes_are_told(
    owner: Connection, version: int, *, is_told: bool
) -> None:
    row = owner.execute("select rag._postgres_warning(%s) is not null", [version]).fetchone()
    assert row == (is_told,)
    [current] = owner.execute(
        "select a.passed, rag._postgres_warning(current_setting('server_version_num')::int) is null"
        " from rag.audit() as a where a.name = 'PostgreSQL'"
    ).fetchall()
    assert current[0] == current[1]


def test_it_leaves_the_context_as_it_was(owner: Connection) -> None:
    owner.execute("select rag.set_tenant('default')")
    owner.execute("select * from rag.audit()")
    assert owner.execute("select rag.current_tenant()").fetchone() == ("default",)
    owner.execute("reset rag.tenant")


def test_it_is_for_administrators(role: RoleFactory) -> None:
    with psycopg.connect(role(member_of=("rag_admin",)).url) as admin:
        rows = admin.execute("select a.name from rag.audit() as a where not a.passed").fetchall()
        assert rows in ([], [(VERSION,)])
    with (
        psycopg.connect(role().url) as app,
        pytest.raises(errors.InsufficientPrivilege),
    ):
        app.execute("select * from rag.audit()")
