"""The queue under load: how long claims and rag.progress take, and what the doorbell costs.

    python -m loadtests.queue claims [--jobs 1000000] [--tenants 1000] [--claims 50]
    python -m loadtests.queue doorbell [--clients 64] [--seconds 5] [--rounds 5]
    python -m loadtests.queue memory [--jobs 1000000] [--tenants 1000] [--seconds 180]

Each in a database of its own, on the server of DATABASE_URL or the local one, dropped afterwards.
`doorbell` compares puts a second with the doorbell as it is, and without it, in turns, while a
worker keeps to the protocol: it claims as long as there are jobs, and is idle when there are none.
`memory` runs the embedder with its real model beside such a queue and tells what it takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.synchronize import Event
from typing import Any, Final, LiteralString

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from db.server import Server, database_url, default_version
from loadtests.scratch import scratch_database

Connection = psycopg.Connection[tuple[Any, ...]]

PUT: Final = """
\\set n random(1, 1000000000)
select rag.put('a note, number ' || :n, 'uri ' || :client_id);
"""
# One tenant has half of all jobs, the others share the rest.
FILL: Final = """
with places as (
    select
        t.tenant_id,
        t.partition_id,
        row_number() over (order by t.tenant_id) as n,
        count(*) over () as tenants
    from rag.tenants as t
),
made as (
    insert into rag.chunks (
        partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
        content, content_hash
    )
    select
        p.partition_id, p.tenant_id, 0, 0, g.i, 0, 1, 'text ' || g.i, gen_random_uuid()
    from places as p
    cross join lateral generate_series(
        1, case when p.n = 1 then %(jobs)s / 2 else %(jobs)s / 2 / (p.tenants - 1) end
    ) as g (i)
    returning partition_id, tenant_id, chunk_id, content_hash
)
insert into rag.jobs (tenant_id, chunk_id, model_id, partition_id, content_hash, priority)
select m.tenant_id, m.chunk_id, (select o.model_id from rag.models as o where o.is_active),
    m.partition_id, m.content_hash, (array[0, 10])[1 + (m.chunk_id %% 10 > 0)::int]
from made as m
"""
CLAIM: Final = "select job_id, lease_token, dimensions from rag.claim_jobs('load', 64)"
COMPLETE: Final = (
    "select rag.complete_jobs(%s, %s, array_fill(array_fill(1, array[%s])::real[]::vector, "
    "array[%s]))"
)
SILENT: Final = (
    "create or replace function rag._ring() returns void language plpgsql as $$ begin end $$"
)


def milliseconds(call: Callable[[], object], times: int) -> list[float]:
    """How long each call took, sorted."""
    taken: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1000)
    return sorted(taken)


def told(what: str, taken: Sequence[float]) -> None:
    """One line: median, 95th percentile and maximum."""
    p95 = taken[int(len(taken) * 0.95)]
    print(f"{what:<42} p50 {statistics.median(taken):8.1f} ms   p95 {p95:8.1f} ms")


def fill(connection: Connection, jobs: int, tenants: int) -> None:
    """A queue of so many jobs of so many tenants."""
    for n in range(tenants - 1):
        connection.execute("select rag.create_tenant(%s)", [f"tenant {n}"])
    connection.execute(FILL, {"jobs": jobs})
    connection.execute("vacuum analyze rag.jobs")
    row = connection.execute("select count(*) from rag.jobs").fetchone()
    assert row is not None
    print(f"{row[0]:,} jobs of {tenants:,} tenants", flush=True)


def claims(arguments: argparse.Namespace, url: str) -> None:
    """Claims, completions and progress with a long queue."""
    with psycopg.connect(url, autocommit=True) as connection:
        fill(connection, arguments.jobs, arguments.tenants)

        def ask(statement: LiteralString) -> Callable[[], object]:
            return lambda: connection.execute(statement).fetchall()

        claimed: list[list[tuple[Any, ...]]] = []

        def claim() -> None:
            claimed.append(connection.execute(CLAIM).fetchall())

        def complete() -> None:
            rows = claimed.pop()
            connection.execute(
                COMPLETE, [rows[0][1], [job for job, *_ in rows], rows[0][2], len(rows)]
            )

        told("rag.next_due", milliseconds(ask("select rag.next_due()"), arguments.claims))
        told("rag.claim_jobs, 64", milliseconds(claim, arguments.claims))
        told("rag.complete_jobs, 64", milliseconds(complete, arguments.claims))
        told("rag.progress", milliseconds(ask("select * from rag.progress()"), 5))


def memory(arguments: argparse.Namespace, url: str) -> None:
    """What an embedder takes while a long queue waits."""
    with psycopg.connect(url, autocommit=True) as connection:
        fill(connection, arguments.jobs, arguments.tenants)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    variables = {
        "DATABASE_URL": url,
        "RAGDB_HTTP_PORT": str(port),
        "RAGDB_WORD_VECTOR_TEXTS": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "embedder", "run"],
        env=os.environ | variables,
        stderr=subprocess.DEVNULL,
    ) as embedder:
        try:
            started: float | None = None
            while started is None or time.monotonic() - started < arguments.seconds:
                time.sleep(arguments.seconds / 12)
                with suppress(httpx.TransportError):
                    told = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
                    found = {
                        sample.name: sample.value
                        for family in text_string_to_metric_families(told)
                        for sample in family.samples
                    }
                    done = found["ragdb_passages_embedded_total"]
                    started = started or (time.monotonic() if done else None)
                    mb = found["process_resident_memory_bytes"] / 1e6
                    if done:
                        print(f"{done:8,.0f} passages embedded, {mb:6.0f} MB", flush=True)
        finally:
            embedder.terminate()


def work(url: str, end: Event) -> None:
    """A worker that embeds at once, by the protocol of docs/queue.md."""
    with (
        psycopg.connect(url, autocommit=True) as connection,
        psycopg.connect(url, autocommit=True) as listener,
    ):
        listener.execute("listen rag_jobs")
        while not end.is_set():
            rows = connection.execute(CLAIM).fetchall()
            if not rows:
                listener.execute("select rag.worker_idle()")
                rows = connection.execute(CLAIM).fetchall()
                if not rows:
                    for _ in listener.notifies(timeout=1, stop_after=1):
                        pass
                listener.execute("select rag.worker_awake()")
            if rows:
                # As long as a model takes: it is what bounds a worker.
                time.sleep(0.2)
                connection.execute(
                    COMPLETE, [rows[0][1], [job for job, *_ in rows], rows[0][2], len(rows)]
                )


def puts_a_second(url: str, clients: int, seconds: int) -> float:
    """Of all clients together, by pgbench."""
    context = multiprocessing.get_context("spawn")
    end = context.Event()
    worker = context.Process(target=work, args=[url, end])
    worker.start()
    program = Server(version=default_version()).binaries / "pgbench"
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PUT)
        script.flush()
        answer = subprocess.run(
            [
                program,
                "--no-vacuum",
                f"--client={clients}",
                "--jobs=2",
                f"--time={seconds}",
                f"--file={script.name}",
                url,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    end.set()
    worker.join()
    found = re.search(r"tps = ([\d.]+)", answer.stdout)
    assert found is not None, answer.stdout
    return float(found[1])


def doorbell(arguments: argparse.Namespace, url: str) -> None:
    """Puts a second with and without the doorbell."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select pg_get_functiondef('rag._ring'::regproc)").fetchone()
        assert row is not None
        ratios: list[float] = []
        for n in range(arguments.rounds):
            rates: dict[bool, float] = {}
            # The other one first in every second round.
            for is_on in (True, False) if n % 2 else (False, True):
                connection.execute((row[0] if is_on else SILENT).encode())
                rates[is_on] = puts_a_second(url, arguments.clients, arguments.seconds)
            ratios.append(rates[True] / rates[False])
            print(f"with {rates[True]:6.0f}/s, without {rates[False]:6.0f}/s: {ratios[-1]:.2f}")
        print(f"median: {statistics.median(ratios):.2f} of the throughput without the doorbell")


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("claims")
    one.add_argument("--jobs", type=int, default=1_000_000)
    one.add_argument("--tenants", type=int, default=1000)
    one.add_argument("--claims", type=int, default=50)
    one.set_defaults(func=claims)
    other = commands.add_parser("doorbell")
    other.add_argument("--clients", type=int, default=64)
    other.add_argument("--seconds", type=int, default=5)
    other.add_argument("--rounds", type=int, default=5)
    other.set_defaults(func=doorbell)
    last = commands.add_parser("memory")
    last.add_argument("--jobs", type=int, default=1_000_000)
    last.add_argument("--tenants", type=int, default=1000)
    last.add_argument("--seconds", type=int, default=180)
    last.set_defaults(func=memory)
    arguments = parser.parse_args()
    with scratch_database(database_url(start=True), "ragdb_queue_load") as url:
        arguments.func(arguments, url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
