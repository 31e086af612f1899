"""The semantic leg in both kinds of partition: never too few, and the right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.many_chunks import LARGE, fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Databases

SIZES = (1, 5, 50, 3000, LARGE)
# The share of chunks that each keeps: all, 10 %, 1 %, 0.1 %, none.
FILTERS: tuple[dict[str, int] | None, ...] = (
    None,
    {"tenth": 3},
    {"hundredth": 3},
    {"thousandth": 3},
    {"thousandth": 1000},
)
# One after the other, the planner is kept from what it would choose.
PLANS = (
    "reset enable_indexscan; reset enable_bitmapscan; reset enable_sort",
    "set enable_sort = off",
    "set enable_indexscan = off",
)

SEARCH = """
select s.chunk_id
from rag.search(%(query)s, %(k)s, filter => %(filter)s, embedding => %(vector)s,
    mode => %(mode)s) as s
"""

# How many chunks meet the conditions of the queries below.
MATCHING = """
select count(*)
from rag.chunks as c
join rag.tenants as t using (tenant_id)
where
    t.name = %(tenant)s
    and (%(filter)s::jsonb is null or c.metadata @> %(filter)s::jsonb)
    and (%(query)s <> '"common word3"' or c.content ~ 'word3 ')
    and (%(query)s <> '-word4' or c.content !~ 'word4 ')
"""

# What the leg should find: + 0, so that no index is used.
EXACT = """
select e.chunk_id
from rag.embeddings as e
join rag.chunks as c using (partition_id, tenant_id, chunk_id)
join rag.tenants as t using (tenant_id)
where t.name = %(tenant)s and (%(filter)s::jsonb is null or c.metadata @> %(filter)s::jsonb)
order by (e.embedding <=> %(vector)s::halfvec) + 0, e.chunk_id
limit %(k)s
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def tenants(databases: Databases, template: str) -> Iterator[Connection]:
    """Tenants of all sizes, two of each: one in a shared partition, one in one of his own."""
    url = databases.create(template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set maintenance_work_mem = '256MB'")
        for size in SIZES:
            for kind in ("shared", "dedicated"):
                fill(connection, f"{kind} {size}", size)
            connection.execute("call rag.isolate_tenant(%s)", [f"dedicated {size}"])
        yield connection
    databases.close(url)


def vectors(connection: Connection, tenant: str, count: int) -> list[str]:
    """Vectors near to some chunks of the tenant; their nearest are harder to find than questions'.

    By the distances of the 100 nearest (local intrinsic dimension) they lie in some 70 dimensions,
    and real questions among 16,000 real passages and sentences in 22. Of so many the index finds
    0.998 of the ten nearest to these, and 0.9997 of those to questions.
    """
    rows = connection.execute(
        "select (l2_normalize(e.embedding::vector + (select array_agg(0.4 * (random() - 0.5))"
        "::real[]::vector from generate_series(1, 384 + 0 * e.chunk_id::int))))::text "
        "from rag.embeddings as e join rag.tenants as t using (tenant_id) "
        "where t.name = %s order by e.chunk_id * 7919 %% 10007 limit %s",
        [tenant, count],
    ).fetchall()
    return [str(row[0]) for row in rows]


def test_partitions_of_their_own_have_an_hnsw_index(tenants: Connection) -> None:
    rows = tenants.execute(
        "select t.name, t.hnsw_models, p.kind from rag.tenants as t "
        "join rag.partitions as p using (partition_id) where t.name <> 'default'"
    ).fetchall()
    assert {(name.split()[0], tuple(models), kind) for name, models, kind in rows} == {
        ("shared", (), "shared"),
        ("dedicated", (1,), "dedicated"),
    }


@pytest.mark.parametrize("kind", ["shared", "dedicated"])
@pytest.mark.parametrize("size", SIZES)
def test_a_list_is_never_shorter_than_it_need_be(tenants: Connection, kind: str, size: int) -> None:
    tenant = f"{kind} {size}"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    [vector] = vectors(tenants, tenant, 1)
    for plan in PLANS:
        tenants.execute(plan.encode())
        for condition in FILTERS:
            for k in (10, 200):
                for mode, query in (
                    ("semantic", ""),
                    ("semantic", '"common word3"'),
                    ("semantic", "-word4"),
                    ("hybrid", "common"),
                ):
                    row = tenants.execute(
                        MATCHING,
                        {
                            "tenant": tenant,
                            "filter": condition and Jsonb(condition),
                            "query": query,
                        },
                    ).fetchone()
                    assert row is not None
                    found = tenants.execute(
                        SEARCH,
                        {
                            "query": query,
                            "k": k,
                            "filter": condition and Jsonb(condition),
                            "vector": vector,
                            "mode": mode,
                        },
                    ).fetchall()
                    found_ids = {chunk for (chunk,) in found}
                    assert len(found) == len(found_ids) == min(k, row[0]), (
                        plan, condition, k, mode, query,
                    )  # fmt: skip
    tenants.execute(PLANS[0].encode())


@pytest.mark.parametrize("kind", ["shared", "dedicated"])
@pytest.mark.parametrize("condition", FILTERS[:4])
def test_the_nearest_are_found(
    tenants: Connection, kind: str, condition: dict[str, int] | None
) -> None:
    """Recall@10: 1 where all are compared, 0.98 or more by the index, whose graph is random."""
    tenant = f"{kind} {LARGE}"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    # Of 50,000 the index finds 0.990 to 0.993 by five graphs, and 0.03 more or less from question
    # to question: the mean of 30 is off by 0.006, so it is below 0.98 now and then; that of 300 is
    # off by 0.002. Of 12,000 it finds 0.9997, 0.006 more or less.
    count = 300 if kind == "dedicated" and LARGE > 12000 else 30
    hits = wanted = 0
    for vector in vectors(tenants, tenant, count):
        parameters = {
            "query": "",
            "k": 10,
            "filter": condition and Jsonb(condition),
            "vector": vector,
            "mode": "semantic",
            "tenant": tenant,
        }
        exact = {chunk for (chunk,) in tenants.execute(EXACT, parameters)}
        found = {chunk for (chunk,) in tenants.execute(SEARCH, parameters)}
        hits += len(exact & found)
        wanted += len(exact)
    print(f"recall@10, {tenant}, {condition}: {hits / wanted:.4f}")
    # Equal distances may change places at the end of an exact list.
    assert hits / wanted >= (0.98 if kind == "dedicated" else 0.995)


# The leg itself, by a plan that need not be the one that is chosen.
LEG = """
select s.chunk_id
from rag.tenants as t
cross join rag._semantic_leg(
    t.tenant_id, t.partition_id, 1, %(vector)s::halfvec, null, rag._compile_filter(%(filter)s),
    null, %(k)s, null, null, rag._search_facets(t.tenant_id, null, %(filter)s, true), %(share)s,
    %(by_facets)s
) as s
where t.name = %(tenant)s
"""


@pytest.mark.parametrize("size", [50, LARGE])
@pytest.mark.parametrize("unknown", [0, 3, 1])
def test_no_plan_lists_less_than_there_is(tenants: Connection, size: int, unknown: int) -> None:
    """Whether all embeddings have facets, two of three, or none; also where facets know half."""
    tenant = f"dedicated {size}"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    [vector] = vectors(tenants, tenant, 1)
    conditions: list[dict[str, Any]] = [
        *(condition for condition in FILTERS if condition),
        {"tenth": {"$in": [3, 4, 5]}},
        {"tenth": 3, "hundredth": {"$gte": 70}},
        {"$or": [{"tenth": 3}, {"hundredth": 5}], "thousandth": {"$lt": 300}},
        {"tenth": {"$gt": 7}},
    ]
    with tenants.transaction(force_rollback=True):
        tenants.execute(
            "update rag.embeddings as e set facets = '{0}' from rag.tenants as t "
            "where t.name = %s and e.partition_id = t.partition_id "
            "and e.tenant_id = t.tenant_id and (%s = 1 or %s = 3 and e.chunk_id %% 3 = 0)",
            [tenant, unknown, unknown],
        )
        for condition in conditions:
            compiled = tenants.execute(
                "select count(*) from rag.chunks as c join rag.tenants as t using (tenant_id) "
                "where t.name = %s and c.metadata @@ rag._compile_filter(%s)",
                [tenant, Jsonb(condition)],
            ).fetchone()
            assert compiled is not None
            for k in (10, 200):
                for by_facets, share in ((True, 0.01), (False, 0.01), (False, 1)):
                    parameters = {
                        "tenant": tenant, "vector": vector, "filter": Jsonb(condition), "k": k,
                        "share": share, "by_facets": by_facets,
                    }  # fmt: skip
                    found = {chunk for (chunk,) in tenants.execute(LEG, parameters)}
                    assert len(found) == min(k, compiled[0]), (condition, k, by_facets, share)
                    # By facets it is exact.
                    if by_facets and "$" not in str(condition):
                        exact = tenants.execute(EXACT, parameters).fetchall()
                        assert len(found & {chunk for (chunk,) in exact}) >= 0.99 * len(exact)


# What this transaction has read of a tenant's embeddings: how often it scanned their HNSW index,
# and how many rows or entries it took from the table and the other indexes.
READ = """
select
    sum(pg_stat_get_xact_numscans(c.oid)) filter (where a.amname = 'hnsw'),
    sum(pg_stat_get_xact_tuples_returned(c.oid)) filter (where a.amname <> 'hnsw')
from rag.tenants as t
join pg_class as o
    on o.oid = format('rag_data.embeddings_m1_p%%s', t.partition_id)::regclass
left join pg_index as i on i.indrelid = o.oid
join pg_class as c on c.oid in (o.oid, i.indexrelid)
join pg_am as a on a.oid = c.relam
where t.name = %(tenant)s
"""


def reads(connection: Connection, parameters: dict[str, Any]) -> tuple[int, int]:
    """What READ tells of a search, inside of a transaction."""
    [before] = connection.execute(READ, parameters).fetchall()
    assert connection.execute(SEARCH, parameters).fetchall()
    [after] = connection.execute(READ, parameters).fetchall()
    return int(after[0] - before[0]), int(after[1] - before[1])


@pytest.mark.parametrize(
    ("query", "condition"),
    [("", None), ("", {"tenth": {"$gte": 5}}), ("", {"tenth": {"$gte": 8}}), ("-word4", None)],
)
def test_a_search_goes_by_the_hnsw_index(
    tenants: Connection, query: str, condition: dict[str, Any] | None
) -> None:
    """Were it not used, all vectors would be compared: as good a list, only slower."""
    tenant = f"dedicated {LARGE}"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    [vector] = vectors(tenants, tenant, 1)
    with tenants.transaction():
        scans, others = reads(
            tenants,
            {
                "query": query, "k": 10, "filter": condition and Jsonb(condition),
                "vector": vector, "mode": "semantic", "tenant": tenant,
            },
        )  # fmt: skip
    assert scans >= 1
    # Mean and deviation, and the share under a filter, are of a sample of some hundreds.
    assert others < LARGE / 4


def test_settings_of_hnsw_do_not_leak(tenants: Connection) -> None:
    tenant = f"dedicated {LARGE}"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    [vector] = vectors(tenants, tenant, 1)
    names = ("hnsw.ef_search", "hnsw.iterative_scan", "enable_seqscan", "jit")
    before = [tenants.execute(f"show {name}".encode()).fetchone() for name in names]
    # The last is of a fifth, for which a search sets ef_search itself, to 300.
    conditions: tuple[dict[str, Any] | None, ...] = (*FILTERS[:3], {"tenth": {"$gte": 8}})
    scans: list[int] = []
    with tenants.transaction():
        for condition in conditions:
            parameters = {
                "query": "", "k": 5, "filter": condition and Jsonb(condition), "vector": vector,
                "mode": "semantic", "tenant": tenant,
            }  # fmt: skip
            scans.append(reads(tenants, parameters)[0])
        after = [tenants.execute(f"show {name}".encode()).fetchone() for name in names]
    assert scans[-1] >= 1
    assert before == after


def test_deleted_chunks_do_not_use_up_the_list(tenants: Connection) -> None:
    """The nearest 60 deleted in this transaction, not vacuumed: the next nearest are found."""
    tenant = "dedicated 3000"
    tenants.execute("select rag.set_tenant(%s)", [tenant])
    [vector] = vectors(tenants, tenant, 1)
    parameters = {
        "query": "", "k": 60, "filter": None, "vector": vector, "mode": "semantic",
        "tenant": tenant,
    }  # fmt: skip
    with tenants.transaction(force_rollback=True):
        nearest = [chunk for (chunk,) in tenants.execute(SEARCH, parameters)]
        tenants.execute(
            "delete from rag.embeddings as e using rag.tenants as t where t.name = %s "
            "and e.partition_id = t.partition_id and e.tenant_id = t.tenant_id "
            "and e.chunk_id = any(%s)",
            [tenant, nearest],
        )
        found = [chunk for (chunk,) in tenants.execute(SEARCH, {**parameters, "k": 10})]
        exact = [chunk for (chunk,) in tenants.execute(EXACT, {**parameters, "k": 10})]
    assert not set(found) & set(nearest)
    assert len(set(found) & set(exact)) >= 9
