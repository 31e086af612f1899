"""Applications at work: searches of several kinds, puts, updates and deletes, by many tenants.

    make load                          # both runs and their table, see loadtests/load.py
    python -m locust -f loadtests/locustfile.py --headless -u 4 -t 60s

One tenant has the whole corpus (`make bench-data`), the others a few hundred chunks each. Most
requests are the big one's. Applications log in as a role that is granted these tenants, so that
row-level security binds them. A user of its own plays the embedder by the queue's protocol, with
vectors known before, so that writes reach the HNSW index as they do in life.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import gevent
import psycopg
from gevent.lock import BoundedSemaphore
from locust import constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.stats import calculate_response_time_percentile
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from loadtests import bench_data, bench_server
from loadtests.corpus import BLOCK, PER_FOLDER, Chunk, shared
from loadtests.postgres_user import Pool, PostgresUser, Row, open_pool

SEARCH: Final = "select chunk_id, content from rag.search(%(query)s, 10)"
SEARCH_VECTOR: Final = (
    "select chunk_id, content from rag.search(%(query)s, 10, embedding => %(vector)b)"
)
SEARCH_FILTERED: Final = (
    "select chunk_id, content from rag.search(%(query)s, 10, filter => %(filter)s, "
    "embedding => %(vector)b)"
)
PUT: Final = "select rag.put(%(content)s, %(uri)s, metadata => %(metadata)s, strategy => 'none')"
DELETE: Final = "select rag.delete(%(uri)s)"

SMALL_TENANT: Final = 200
"""Chunks of each tenant but the big one."""

BIG_SHARE: Final = 0.8
"""Of all requests, those of the tenant with the whole corpus."""


class World:
    """What all users of a process share: tenants, questions, and texts with their vectors."""

    def __init__(self, url: str, sentences: int, tenants: int, role: str) -> None:
        corpus = shared(sentences)
        self.tenants = [f"load-{n:04}" for n in range(1, tenants + 1)]
        self.questions = [
            {"query": question.text, "vector": Vector(question.vector)}
            for question in corpus.questions()
        ]
        # Of a block that the big tenant does not have, far behind those he has.
        block = 1_000_000_000 // BLOCK
        self.chunks: list[Chunk] = corpus.block(block)
        vectors = corpus.vectors(self.chunks, block)
        self.vectors = {
            _key(chunk.content): Vector(vector)
            for chunk, vector in zip(self.chunks, vectors, strict=True)
        }
        self._create(url, role)

    def pick_tenant(self) -> str:
        """The big one mostly; of the small ones each as often as any."""
        if not self.tenants or random.random() < BIG_SHARE:
            return bench_data.TENANT
        return random.choice(self.tenants)

    def _create(self, url: str, role: str) -> None:
        """The small tenants, with their documents, where they are not there; grants of all."""
        documents = Jsonb(
            [
                {"uri": chunk.uri, "content": chunk.content, "metadata": chunk.metadata}
                for chunk in self.chunks[:SMALL_TENANT]
            ]
        )
        with psycopg.connect(url, autocommit=True) as connection:
            known = {name for (name,) in connection.execute("select t.name from rag.tenants as t")}
            for tenant in self.tenants:
                if tenant not in known:
                    connection.execute("select rag.create_tenant(%s)", [tenant])
                    connection.execute("select rag.set_tenant(%s)", [tenant])
                    connection.execute(
                        "select rag.put_many(%s, 'default', strategy => 'none')", [documents]
                    )
            for tenant in (bench_data.TENANT, *self.tenants):
                connection.execute("select rag.grant_tenant(%s, %s)", [role, tenant])
            # What there is to embed now would be a load that no user of the run has made.
            register_vector(connection)
            while self.embed(connection, claim(connection)):
                pass

    def embed(self, connection: psycopg.Connection[Any], claimed: list[Row]) -> int:
        """Complete those of the claimed jobs whose texts are known: how many."""
        known = [row for row in claimed if _key(row[2]) in self.vectors]
        if known:
            connection.execute(
                "select rag.complete_jobs(%s, %s::bigint[], %b)",
                [
                    known[0][1],
                    [row[0] for row in known],
                    [self.vectors[_key(row[2])] for row in known],
                ],
            )
        return len(known)


def claim(connection: psycopg.Connection[Any]) -> list[Row]:
    """Jobs as an embedder takes them: id, token of the lease, text."""
    return connection.execute(
        "select c.job_id, c.lease_token, c.content from rag.claim_jobs('load', 64) as c"
    ).fetchall()


def _key(content: str) -> bytes:
    return hashlib.md5(content.encode(), usedforsecurity=False).digest()


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Options of our own."""
    parser.add_argument("--dsn", default="", help="of a pooler that applications go through")
    parser.add_argument("--size", type=int, default=1_000_000, help="chunks of the big tenant")
    parser.add_argument("--sentences", type=int, default=PER_FOLDER, help="of each folder")
    parser.add_argument("--tenants", type=int, default=20, help="tenants besides the big one")
    parser.add_argument("--writes", type=float, default=0.1, help="share of requests that write")
    parser.add_argument("--connections", type=int, default=8, help="size of the pool")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:  # noqa: ANN401
    """Data and pool, before the clock of the run starts."""
    options = environment.parsed_options
    assert options is not None
    url = bench_server.database(bench_data.name(options.size, options.sentences))
    dsn = options.dsn or bench_server.application(url)
    role = urlsplit(dsn).username or bench_server.APPLICATION
    environment.world = World(url, options.sentences, options.tenants, role)  # type: ignore[attr-defined]
    environment.pool = open_pool(dsn, options.connections)  # type: ignore[attr-defined]
    # Embedders wait for notifications, and go around poolers.
    environment.embedder_pool = open_pool(url, 1)  # type: ignore[attr-defined]
    # Or the corpus is looked through for garbage all the time, on cores that the server needs.
    gc.collect()
    gc.freeze()


@events.test_stop.add_listener
def tidy(environment: Environment, **_: Any) -> None:  # noqa: ANN401
    """Delete what was put, so that each run finds what the first one found."""
    world: World = environment.world  # type: ignore[attr-defined]
    pool: Pool = environment.embedder_pool  # type: ignore[attr-defined]
    with pool.connection() as connection:
        for tenant in (bench_data.TENANT, *world.tenants):
            connection.execute("select rag.set_tenant(%s, true)", [tenant])
            connection.execute(
                "select rag.delete(d.uri) from rag.documents as d "
                "join rag.tenants as t using (tenant_id) "
                "where t.name = %s and d.uri like 'load/%%'",
                [tenant],
            )
            connection.commit()


@events.quitting.add_listener
def sum_up(environment: Environment, **_: Any) -> None:  # noqa: ANN401
    """Write what all searches together took, which Locust's own statistics do not tell."""
    options = environment.parsed_options
    if options is None or not options.csv_prefix:
        return
    times: Counter[int] = Counter()
    requests = failures = 0
    seconds = 0.0
    for (name, _method), entry in environment.stats.entries.items():
        if name.startswith("search"):
            times.update({round(time): count for time, count in entry.response_times.items()})
            requests += entry.num_requests
            failures += entry.num_failures
            seconds = max(seconds, (entry.last_request_timestamp or 0) - entry.start_time)
    if requests:
        found: dict[str, float] = {
            "requests": requests,
            "failures": failures,
            "per_second": requests / seconds,
        }
        for percent in (50, 95, 99):
            found[f"p{percent}"] = calculate_response_time_percentile(
                times, requests, percent / 100
            )
        Path(f"{options.csv_prefix}_searches.json").write_text(json.dumps(found), "utf-8")


class Application(PostgresUser):
    """Searches, and now and then a write; the next request right after the answer."""

    wait_time = constant(0)
    # Documents put by users and not deleted again: (tenant, uri).
    written: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.world: World = environment.world  # type: ignore[attr-defined]

    @task
    def request(self) -> None:
        """A search or a write, by the share of writes."""
        options = self.environment.parsed_options
        assert options is not None
        if random.random() < options.writes:
            self.write()
        else:
            self.search()

    def search(self) -> None:
        """Of ten searches four with a vector, three by text only, three with a filter."""
        parameters: dict[str, Any] = random.choice(self.world.questions)
        tenant = self.world.pick_tenant()
        kind = random.random()
        if kind < 0.4:
            self.run_statement("search, vector", tenant, SEARCH_VECTOR, parameters)
        elif kind < 0.7:
            self.run_statement("search, text only", tenant, SEARCH, parameters)
        else:
            tenth = Jsonb({"tenth": random.randrange(10)})
            self.run_statement(
                "search, filtered", tenant, SEARCH_FILTERED, parameters | {"filter": tenth}
            )

    def write(self) -> None:
        """Of ten writes five put, three update, two delete."""
        kind = random.random()
        if kind < 0.5 or not self.written:
            tenant, uri = self.world.pick_tenant(), f"load/{random.getrandbits(63)}"
            self._put("put", tenant, uri)
            self.written.append((tenant, uri))
        else:
            # Taken out meanwhile, so that no other user deletes what this one updates.
            place = self.written.pop(random.randrange(len(self.written)))
            if kind < 0.8:
                self._put("update", *place)
                self.written.append(place)
            else:
                self.run_statement("delete", place[0], DELETE, {"uri": place[1]})

    def _put(self, name: str, tenant: str, uri: str) -> None:
        chunk = random.choice(self.world.chunks)
        parameters = {
            "content": chunk.content,
            "uri": uri,
            "metadata": Jsonb(chunk.metadata),
        }
        self.run_statement(name, tenant, PUT, parameters)


class Embedder(PostgresUser):
    """Plays the embedder: claims jobs and completes them, as docs/queue.md says."""

    wait_time = constant(0)
    fixed_count = 1
    _one_at_a_time: ClassVar[BoundedSemaphore] = BoundedSemaphore(1)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.pool = environment.embedder_pool  # type: ignore[attr-defined]
        self.world: World = environment.world  # type: ignore[attr-defined]

    @task
    def embed(self) -> None:
        """One batch."""
        with self.pool.connection() as connection:
            claimed = claim(connection)
        if not claimed:
            gevent.sleep(0.1)
            return
        with self.reported("embed a batch") as result, self.pool.connection() as connection:
            result["response_length"] = self.world.embed(connection, claimed)
