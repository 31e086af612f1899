"""Many tenants in one database, and what maintenance of a big one costs.

    python -m loadtests.tenants many [--tenants 10000] [--chunks 100000] [--dedicated 0]
    python -m loadtests.tenants bloat [--chunks 50000] [--deleted 0.3]

Each in a database of its own, on the server of DATABASE_URL or the local one, dropped afterwards.
`many` makes tenants of Zipf sizes, with synthetic vectors; then it prints how long searches of a
tenant take by its size, and how long their planning takes and how many locks a call holds, at the
number of tenants and of partitions that there are. `bloat` deletes a share of a big tenant and
compares vacuum of its HNSW index with a new one beside it.
"""

# ruff: noqa: S608 (what is put into statements is written here)

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from typing import Any, Final

import psycopg

from db.server import database_url
from loadtests.scratch import scratch_database

Connection = psycopg.Connection[tuple[Any, ...]]

CREATE: Final = """
select rag.create_tenant('tenant ' || n) from generate_series(%(first)s::int, %(last)s::int) as n
"""
# The n-th tenant has chunks in proportion to 1/n; each of them at least one.
SIZES: Final = """
select
    t.tenant_id,
    t.partition_id,
    n.collection_id,
    r.n,
    greatest(1, floor(%(chunks)s / (r.n * ln(%(tenants)s + 1.0)))::int) as chunks
from rag.tenants as t
join rag.collections as n on n.tenant_id = t.tenant_id
cross join lateral (select substring(t.name from '\\d+')::int as n) as r
where t.name like 'tenant %%' and r.n between %(first)s and %(last)s
"""
# Rows as rag.put and a worker leave them, without the work of it. Words by Zipf's law, too.
FILL: Final = f"""
with sizes as materialized ({SIZES}),
documents as (
    insert into rag.documents (
        tenant_id, collection_id, uri, content, content_hash, language, chunking
    )
    select s.tenant_id, s.collection_id, 'doc/' || i, x.content, rag._hash(x.content), 'english',
        '{{}}'
    from sizes as s
    cross join lateral generate_series(1, s.chunks) as i
    cross join lateral (
        select string_agg('word' || floor(exp(random() * 7))::int, ' ') as content
        from generate_series(1, 30 + 0 * i)
    ) as x
    returning tenant_id, document_id, collection_id, content, content_hash
),
chunks as (
    insert into rag.chunks (
        partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
        content, content_hash
    )
    select s.partition_id, d.tenant_id, d.document_id, d.collection_id, 0, 0, length(d.content),
        d.content, d.content_hash
    from documents as d
    join sizes as s on s.tenant_id = d.tenant_id
    returning partition_id, tenant_id, chunk_id, collection_id
)
insert into rag.embeddings (
    partition_id, tenant_id, chunk_id, model_id, collection_id, embedding
)
select
    c.partition_id, c.tenant_id, c.chunk_id, m.model_id, c.collection_id,
    (
        select array_agg(random() - 0.5)::real[]::vector
        from generate_series(1, m.dimensions + 0 * c.chunk_id::int)
    )::halfvec
from chunks as c
cross join (select o.model_id, o.dimensions from rag.models as o where o.is_active) as m
"""
INDEX: Final = f"""
select rag._index_chunks(s.tenant_id, s.partition_id, array(
    select c.chunk_id
    from rag.chunks as c
    where c.partition_id = s.partition_id and c.tenant_id = s.tenant_id
))
from ({SIZES}) as s
"""
SEARCH: Final = """
select count(*) from rag.search(%s, 10, embedding => %s::vector)
"""
LOCKS: Final = (
    "select count(*) from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid'"
)
BUCKETS: Final = ((1, 3), (4, 10), (11, 30), (31, 100), (101, 1000), (1001, 1_000_000))


def one(connection: Connection, statement: str, *parameters: object) -> Any:  # noqa: ANN401
    """The only value of the only row."""
    row = connection.execute(statement.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]


def vector(generator: random.Random, dimensions: int = 384) -> str:
    """A vector as pgvector writes it."""
    return f"[{','.join(f'{generator.gauss(0, 1):.4f}' for _ in range(dimensions))}]"


def question(generator: random.Random) -> str:
    """Four words, some common and some rare."""
    return " ".join(f"word{int(2.718281828 ** (generator.random() * 7))}" for _ in range(4))


def fill(connection: Connection, arguments: argparse.Namespace) -> None:
    """Make the tenants, tell how long that takes, and fill them."""
    started = time.perf_counter()
    for first in range(1, arguments.tenants + 1, 500):
        last = min(arguments.tenants, first + 499)
        connection.execute(CREATE, {"first": first, "last": last})
    taken = time.perf_counter() - started
    print(f"{arguments.tenants:,} tenants created in {taken:.1f} s", flush=True)
    # A few at a time: the first have most of it.
    bounds = [0, 1, 3, 10, 30, 100, 300, 1000]
    bounds = [b for b in bounds if b < arguments.tenants]
    bounds = [*bounds, *range(2000, arguments.tenants, 1000), arguments.tenants]
    for first, last in itertools.pairwise(bounds):
        given = {
            "first": first + 1, "last": last, "chunks": arguments.chunks,
            "tenants": arguments.tenants,
        }  # fmt: skip
        connection.execute(FILL.encode(), given)
        connection.execute(INDEX.encode(), given)
    for _ in range(arguments.dedicated):
        connection.execute("select rag._create_partition('dedicated')")
    connection.execute("call rag.maintain(promote_at => 1000000000)")
    chunks, partitions = (
        one(connection, f"select count(*) from rag.{name}") for name in ("chunks", "partitions")
    )
    print(f"{chunks:,} chunks, {partitions} partitions", flush=True)


def searched(
    connection: Connection, generator: random.Random, tenant: str
) -> tuple[float, float, int]:
    """One search as a tenant: milliseconds in all, of planning, and the locks that it holds."""
    with connection.transaction():
        connection.execute("select rag.set_tenant(%s, true)", [tenant])
        text, embedding = question(generator), vector(generator)
        started = time.perf_counter()
        connection.execute(SEARCH, [text, embedding]).fetchall()
        taken = (time.perf_counter() - started) * 1000
        locks = one(connection, LOCKS)
        # As a function plans it anew for each call.
        tenant_id, partition_id = connection.execute(
            "select c.tenant_id, c.partition_id from rag._context() as c"
        ).fetchall()[0]
        plan = connection.execute(
            (
                "explain (summary, format json) select e.chunk_id from rag.embeddings as e "
                "join rag.chunks as c on c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id "
                f"where e.model_id = 1 and e.partition_id = {partition_id} "
                f"and c.partition_id = {partition_id} and e.tenant_id = {tenant_id}"
            ).encode()
        ).fetchone()
        assert plan is not None
        return taken, plan[0][0]["Planning Time"], locks


def many(arguments: argparse.Namespace, url: str) -> None:
    """Tenants of all sizes."""
    generator = random.Random(arguments.seed)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        fill(connection, arguments)
        sizes: dict[str, int] = dict(
            connection.execute(
                "select t.name, c.chunks from rag._tenant_chunks() as c "
                "join rag.tenants as t using (tenant_id) where t.name like 'tenant %'"
            ).fetchall()
        )
        connection.execute("load 'vector'")
        searched(connection, generator, "tenant 1")
        print("\n| chunks | tenants | p50 ms | p95 ms | planning ms | locks |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for low, high in BUCKETS:
            names = [name for name, size in sizes.items() if low <= size <= high]
            if not names:
                continue
            got = sorted(
                searched(connection, generator, generator.choice(names))
                for _ in range(arguments.searches)
            )
            taken, planning, locks = zip(*got, strict=True)
            print(
                f"| {low:,} to {min(high, max(sizes[n] for n in names)):,} | {len(names):,} "
                f"| {statistics.median(taken):.1f} | {taken[int(len(taken) * 0.95)]:.1f} "
                f"| {statistics.median(planning):.2f} | {max(locks)} |",
                flush=True,
            )
        for name in ("partition_report()", "maintenance_plan()"):
            started = time.perf_counter()
            connection.execute(f"select * from rag.{name}".encode()).fetchall()
            print(f"rag.{name}: {(time.perf_counter() - started) * 1000:.0f} ms")


def bloat(arguments: argparse.Namespace, url: str) -> None:
    """Vacuum of a big HNSW index that has lost rows, and a new one beside it."""
    given = {"first": 1, "last": 1, "chunks": arguments.chunks, "tenants": 1.718281828}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set maintenance_work_mem = '1GB'")
        connection.execute(CREATE, given)
        connection.execute(FILL.encode(), given)
        connection.execute(INDEX.encode(), given)

        def timed(what: str, statement: str) -> None:
            started = time.perf_counter()
            connection.execute(statement.encode())
            taken = time.perf_counter() - started
            rows = connection.execute(
                "select p.chunks, pg_size_pretty(p.index_bytes), "
                "pg_size_pretty((p.hnsw -> 0 ->> 'bytes')::bigint), round(p.bloat::numeric, 2) "
                "from rag.partition_report() as p where p.kind = 'dedicated' and p.tenants > 0"
            ).fetchall()
            print(f"{what}: {taken:.1f} s; chunks, all indexes, HNSW, bloat: {rows}", flush=True)

        timed("isolate", "call rag.isolate_tenant('tenant 1')")
        connection.execute("select rag.set_tenant('tenant 1')")
        # Autovacuum must not come in between.
        table = one(
            connection,
            "select format('rag_data.embeddings_m1_p%s', partition_id) from rag._context()",
        )
        connection.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
        timed(
            f"delete {arguments.deleted:.0%}",
            "select rag.delete(u.uri) from unnest(array(select d.uri from rag.documents as d "
            "where d.tenant_id = (select tenant_id from rag._context()) "
            f"order by d.document_id limit {int(arguments.chunks * arguments.deleted)})) as u "
            "(uri)",
        )
        # What a rebuild takes does not depend on whether it was vacuumed.
        timed("vacuum of the vectors", f"vacuum {table}")
        timed("rebuild", "call rag.rebuild_tenant('tenant 1')")


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    one_command = commands.add_parser("many")
    one_command.add_argument("--tenants", type=int, default=10_000)
    one_command.add_argument("--chunks", type=int, default=100_000)
    one_command.add_argument("--dedicated", type=int, default=0, help="more, empty partitions")
    one_command.add_argument("--searches", type=int, default=200, help="of each size")
    one_command.add_argument("--seed", type=int, default=1)
    one_command.set_defaults(func=many)
    other = commands.add_parser("bloat")
    other.add_argument("--chunks", type=int, default=50_000)
    other.add_argument("--deleted", type=float, default=0.3)
    other.set_defaults(func=bloat)
    arguments = parser.parse_args()
    with scratch_database(database_url(start=True), "ragdb_tenants") as url:
        arguments.func(arguments, url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
