"""2,000 random attempts bring out no canary; and the same attempts see isolation when it is broken.

RAGDB_TEST_ATTEMPTS and RAGDB_TEST_SEED set how many, and which; the seed is printed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, LiteralString

import pytest
from psycopg import sql

from tests.attacks.arena import open_arena
from tests.attacks.attempts import Attacker, Attempt, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.arena import Arena
    from tests.conftest import Databases

ATTEMPTS = int(os.environ.get("RAGDB_TEST_ATTEMPTS", "2000"))
SEED = int(os.environ.get("RAGDB_TEST_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture(scope="module")
def arena(databases: Databases, template: str) -> Iterator[Arena]:
    with open_arena(databases, template) as made:
        yield made


def drop_views(arena: Arena) -> None:
    """Those that attackers left in their schema, which the audit reports rightly."""
    for drop, name in DROPS:
        arena.owner.execute(sql.SQL(drop).format(sql.Identifier(arena.schema, name)))


def tell(attempt: Attempt) -> str:
    return f"seed {SEED}, attempt {attempt.number} ({attempt.kind}): {attempt.statements}"


def test_no_attempt_brings_out_a_canary_or_changes_a_row(arena: Arena) -> None:
    print(f"RAGDB_TEST_SEED={SEED} RAGDB_TEST_ATTEMPTS={ATTEMPTS}")
    attacker = Attacker(arena, SEED)
    before = arena.possessions()
    kinds: Counter[str] = Counter()
    states: Counter[str] = Counter()
    own = 0
    for attempt in attacker.attempts(ATTEMPTS):
        assert not leaks(arena, attempt), tell(attempt)
        attacker.note_seals(attempt)
        kinds[attempt.kind] += 1
        states.update(attempt.states)
        own += arena.own.canary in attempt.heard
    print(dict(kinds), dict(states.most_common(12)), f"own canary {own} times")
    assert arena.possessions() == before
    # The attacks got as far as the data: his own came out, and errors of all kinds.
    assert own > ATTEMPTS / 50
    assert {"00000", "42501", "28000", "RG001", "22023"} <= set(states)


DROPS: tuple[tuple[LiteralString, str], ...] = (
    ("drop view if exists {}", "v"),
    ("drop materialized view if exists {}", "m"),
)

# What is broken, and how it is mended. Each must be seen by the attempts and by rag.audit().
BREAKS = {
    "row-level security is off": (
        "alter table rag.documents disable row level security",
        "alter table rag.documents enable row level security",
    ),
    "a policy is gone": (
        # Not of rag.chunks, where another policy still shows one partition only.
        "alter policy tenant_only on rag.documents using (true)",
        "alter policy tenant_only on rag.documents "
        "using (tenant_id = (select rag._policy_tenant()))",
    ),
    "the context takes the setting at its word": (
        "create or replace function rag._allowed(wanted text) returns rag.tenants language sql "
        "stable as $$ select t from rag.tenants as t where t.name = wanted $$",
        None,
    ),
    "the seal is not looked at": (
        "create or replace function rag._unsealed_tenant(sealed text) returns int language sql "
        "stable as $$ select nullif(split_part(sealed, '.', 2), '')::int $$",
        None,
    ),
    "the signature is not looked at": (
        "create or replace function rag._verified_key(token text) returns rag.token_keys "
        "language sql stable as $$ select k from rag.token_keys as k limit 1 $$",
        None,
    ),
    "a function forgets the tenant": (
        "create function rag.leak(query text) returns setof text language sql stable "
        "security definer set search_path = pg_catalog, public, pg_temp "
        "as $$ select c.content from rag.chunks as c where c.content ilike '%' || query || '%' $$; "
        "grant execute on function rag.leak(text) to rag_app",
        "drop function rag.leak(text)",
    ),
    "a function lets SQL in": (
        "create function rag.hole(name text) returns setof text language plpgsql stable "
        "security definer set search_path = pg_catalog, public, pg_temp as $$ begin "
        "return query execute 'select title from rag.documents where tenant_id = 0 and title = '''"
        " || name || ''''; end $$; grant execute on function rag.hole(text) to rag_app",
        "drop function rag.hole(text)",
    ),
    "partitions may be read": (
        "grant usage on schema rag_data to rag_app; "
        "grant select on all tables in schema rag_data to rag_app; "
        "alter table rag_data.chunks_p3 disable row level security; "
        "alter table rag_data.chunks_p4 disable row level security; "
        "alter table rag_data.chunks_p5 disable row level security",
        "revoke usage on schema rag_data from rag_app; "
        "revoke select on all tables in schema rag_data from rag_app; "
        "alter table rag_data.chunks_p3 enable row level security; "
        "alter table rag_data.chunks_p4 enable row level security; "
        "alter table rag_data.chunks_p5 enable row level security",
    ),
    "an error tells": (
        "create function rag.tells(uri text) returns text language plpgsql stable security definer "
        "set search_path = pg_catalog, public, pg_temp as $$ begin "
        "raise exception 'no such document' using detail = (select string_agg(d.uri, ' ') "
        "from rag.documents as d); end $$; grant execute on function rag.tells(text) to rag_app",
        "drop function rag.tells(text)",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_attempts_and_audit_see_what_is_broken(arena: Arena, what: str) -> None:
    breaks, mends = BREAKS[what]
    definition: list[tuple[str]] = []
    if mends is None:
        name = breaks.split("rag.")[1].split("(")[0]
        definition = arena.owner.execute(
            "select pg_get_functiondef(p.oid) from pg_proc as p "
            "where p.pronamespace = 'rag'::regnamespace and p.proname = %s",
            [name],
        ).fetchall()
    failed = "select a.name from rag.audit() as a where not a.passed order by 1"
    drop_views(arena)
    before = arena.owner.execute(failed).fetchall()
    arena.owner.execute(breaks.encode())
    try:
        assert len(arena.owner.execute(failed).fetchall()) > len(before)
        attacker = Attacker(arena, 1)
        # As often as it takes: the function that was broken is one of many.
        seen = any(leaks(arena, attempt) for attempt in attacker.attempts(10000))
    finally:
        for statement in definition[0] if definition else [str(mends)]:
            arena.owner.execute(statement.encode())
    assert seen
    drop_views(arena)
    assert arena.owner.execute(failed).fetchall() == before
