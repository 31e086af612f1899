"""What shines through from the side: scores, conflicts, errors, what sessions of a role show."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.attacks.arena import claims, embed, open_arena, sign, vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.arena import Arena, Connection
    from tests.conftest import Databases

Rows = list[tuple[Any, ...]]

WORDS = ("common", "words", "refund", "parcel", "answer", "search", "tunnel", "anvil", "coyote")

SEARCHES = [
    query.replace("{}", options)
    for query in (
        "select * from rag.search('common words', 10, {})",
        "select * from rag.search('refund -parcel', 50, {})",
        "select * from rag.search('\"common words\" coyote', 10, {})",
    )
    for options in (
        "mode => 'lexical'",
        "embedding => %(vector)s",
        "embedding => %(vector)s, mode => 'semantic'",
        "embedding => %(vector)s, fusion => 'rrf'",
        "embedding => %(vector)s, fusion => 'linear'",
        'embedding => %(vector)s, filter => \'{"page": {"$gte": 2}}\'',
    )
]


@pytest.fixture(scope="module")
def arena(databases: Databases, template: str) -> Iterator[Arena]:
    with open_arena(databases, template, size=2) as made:
        yield made


def fill(owner: Connection, tenant: str, number: int, seed: int) -> None:
    """Documents of the same few words, embedded and counted."""
    chance = random.Random(seed)
    owner.execute("select rag.set_tenant(%s)", [tenant])
    for n in range(number):
        text = " ".join(chance.choices(WORDS, k=chance.randrange(5, 60)))
        owner.execute(
            "select rag.put(%s, %s, metadata => jsonb_build_object('page', %s::int))",
            [text, f"filled-{n}", n],
        )
    embed(owner, chance)
    owner.execute(
        "select rag._fold_statistics(t.tenant_id, t.partition_id, 0) from rag.tenants as t"
    )


def found(app: Connection) -> list[Rows]:
    """All columns of all results; equal only where every bit of a score is."""
    given = {"vector": vector(random.Random(7))}
    return [app.execute(query.encode(), given).fetchall() for query in SEARCHES]


def explained(app: Connection) -> Rows:
    """What rag.explain says, but for the times."""
    return app.execute(
        "select e.step, e.stage, e.item, e.value from rag.explain('common words refund', "
        "embedding => %s) as e",
        [vector(random.Random(7))],
    ).fetchall()


def test_results_are_the_same_to_the_bit_when_a_neighbour_puts_the_same_words(
    arena: Arena,
) -> None:
    owner = arena.owner
    # In one partition with him: the same tables, the same indexes.
    [(partition,)] = owner.execute(
        "select partition_id from rag.tenants where name = %s", [arena.own.name]
    ).fetchall()
    neighbour = ""
    for n in range(32):
        neighbour = f"neighbour-{n}"
        owner.execute("select rag.create_tenant(%s)", [neighbour])
        [(other,)] = owner.execute(
            "select partition_id from rag.tenants where name = %s", [neighbour]
        ).fetchall()
        if other == partition:
            break
    fill(owner, arena.own.name, 60, seed=1)
    with arena.login(arena.role) as app:
        app.execute("select rag.set_tenant(%s)", [arena.own.name])
        before, told = found(app), explained(app)
        assert all(before)
        fill(owner, neighbour, 300, seed=2)
        assert found(app) == before
        assert explained(app) == told
        # With the statistics of tables that planners have then, and in a new session.
        owner.execute("vacuum analyze")
    with arena.login(arena.role) as app:
        app.execute("select rag.set_tenant(%s)", [arena.own.name])
        assert found(app) == before
        owner.execute("select rag.drop_tenant(%s)", [neighbour])
        assert found(app) == before


def test_what_another_has_is_no_conflict(arena: Arena) -> None:
    """uri, content, collection and evaluation set of somebody else are as good as new."""
    other = arena.foreign[0]
    with arena.login(arena.role) as app:
        app.execute("select rag.set_tenant(%s)", [arena.own.name])
        for uri in (f"uri-{other.canary}", f"new-{other.canary}"):
            [status] = app.execute(
                "select p.status, p.chunks from rag.put_many(jsonb_build_array("
                "jsonb_build_object('content', %s::text, 'uri', %s::text))) as p",
                [f"fails {other.canary}", uri],
            ).fetchall()
            assert status == ("inserted", 1)
            # Nor is his embedding taken for the same text.
            [state] = app.execute(
                "select rag.document_state(d.document_id) from rag.documents as d where d.uri = %s",
                [uri],
            ).fetchall()
            assert state == ("waiting",)
        app.execute("select rag.create_collection('german'), rag.create_collection('known')")
        app.execute("select rag.delete(%s), rag.delete(%s)", [f"uri-{other.canary}", "new"])


def test_sessions_of_one_role_show_each_other_no_parameters(arena: Arena) -> None:
    """Clients with tokens share a login: what they ask has to go in parameters."""
    token = sign(claims(arena.foreign[0].name))
    with arena.login(arena.token_role) as one, arena.login(arena.token_role) as other:
        with one.transaction():
            one.execute("select rag.authenticate(%s)", [token])
            one.execute("select uri from rag.search(%s)", [f"asks {arena.foreign[0].canary}"])
            shown = repr(other.execute("select * from pg_stat_activity").fetchall())
            assert "rag.search($1)" in shown
            assert arena.foreign[0].canary not in shown
        shown = repr(other.execute("select * from pg_stat_activity").fetchall())
        assert token not in shown
        # Nor can it be seen what they have set, or prepared.
        for query in ("select * from pg_settings", "select * from pg_prepared_statements"):
            assert "1." not in repr(
                [row for row in other.execute(query.encode()) if "rag." in repr(row)]
            )


def test_two_that_are_not_there_are_told_apart_by_nothing(arena: Arena) -> None:
    """A tenant's things and things that nobody has get the same answer."""
    other = arena.foreign[0]
    [(run,)] = arena.owner.execute(
        "select min(r.run_id) from rag.eval_runs as r where r.tenant_id = %s", [other.tenant_id]
    ).fetchall()
    pairs: list[tuple[str, object, object]] = [
        ("select rag.document_state(%s)", other.documents[0], 10**9),
        ("select rag.wait_for(%s)", other.documents[0], 10**9),
        ("select rag.compare_runs(%s, 1)", run, 10**9),
        ("select rag.drop_eval_set(%s)", f"set {other.canary}", "set missing"),
        ("select rag.evaluate(%s)", f"set {other.canary}", "set missing"),
        ("select rag.alter_collection(%s)", f"collection {other.canary}", "collection missing"),
        ("select rag.reindex(%s)", f"collection {other.canary}", "collection missing"),
        ("select rag.set_tenant(%s)", other.name, "missing"),
        ("select rag.explain('x', collection => %s)", f"collection {other.canary}", "missing"),
        ("select rag.explain('x', chunk_id => %s)", other.chunks[0], 10**9),
    ]

    def answer(app: Connection, query: str, value: object) -> str:
        try:
            said = repr(app.execute(query.encode(), [value]).fetchall())
        except psycopg.Error as error:
            said = f"{error.sqlstate} {error}"
        # The times of rag.explain are not compared.
        hidden = re.sub(rf"\b{value}\b", "?", said)
        rows = "" if "rag.explain('x', chunk" in query else hidden
        return rows or str("absent" in said)

    with arena.login(arena.role) as app:
        app.execute("select rag.set_tenant(%s)", [arena.own.name])
        for query, theirs, missing in pairs:
            assert answer(app, query, theirs) == answer(app, query, missing), query
