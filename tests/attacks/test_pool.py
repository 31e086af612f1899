"""50 clients of 20 tenants on a few connections of a transaction pool: nobody gets another's rows.

RAGDB_TEST_REQUESTS sets how many requests they make; make test-attacks makes 10,000.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.attacks import pooler
from tests.attacks.arena import claims, open_arena, sign
from tests.attacks.pooler import transaction_pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.attacks.arena import Arena, Connection, Tenant
    from tests.conftest import Databases

pytestmark = pytest.mark.skipif(
    pooler.BINARY is None, reason="pgbouncer is not installed: apt-get install pgbouncer"
)

REQUESTS = int(os.environ.get("RAGDB_TEST_REQUESTS", "2000"))
SEED = int(os.environ.get("RAGDB_TEST_SEED") or random.SystemRandom().randrange(2**32))
CLIENTS = 50
TENANTS = 20

READS = (
    "select uri, content from rag.search('common words', 3)",
    "select uri, content from rag.search('refund', 3, mode => 'lexical')",
    "select uri, content from rag.documents",
    "select content, metadata from rag.chunks",
    "select name from rag.tenants",
    "select rag.current_tenant()",
)


@dataclass
class Pool:
    """The arena behind its pool."""

    arena: Arena
    url: str

    def login(self, role: str) -> Connection:
        """A connection of the pool; prepared statements would be another client's."""
        parts = urlsplit(self.url)
        address = parts.netloc.rpartition("@")[2]
        return psycopg.connect(
            parts._replace(netloc=f"{role}@{address}").geturl(),
            autocommit=True,
            prepare_threshold=None,
        )


@pytest.fixture(scope="module")
def pool(
    databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    folder: Path = tmp_path_factory.mktemp("pgbouncer")
    with open_arena(databases, template, size=TENANTS, everywhere=False) as arena:
        users = [arena.service_role, arena.token_role, arena.role]
        with transaction_pool(arena.url, users, folder) as url:
            yield Pool(arena, url)


@dataclass
class Client:
    """One of many clients; each keeps to itself but for the contexts that it lets others copy."""

    pool: Pool
    number: int
    copied: list[str]
    done: Counter[str] = field(default_factory=Counter[str])
    foreign: list[str] = field(default_factory=list[str])
    backends: set[int] = field(default_factory=set[int])

    def run(self, requests: int) -> None:
        """Make requests, each for a random tenant in one of the ways, and look at all rows."""
        chance = random.Random(f"{SEED}-{self.number}")
        role = (self.pool.arena.service_role, self.pool.arena.token_role)[self.number % 2]
        connection = self.pool.login(role)
        for _ in range(requests):
            tenant = chance.choice(self.pool.arena.tenants)
            # The server's connection may be broken by a timeout; a client comes again.
            if connection.closed:
                connection = self.pool.login(role)
            try:
                self._request(connection, chance, tenant)
            except psycopg.Error as error:
                self.done[error.sqlstate or "none"] += 1
                if not connection.closed:
                    connection.execute("rollback")
        connection.close()

    def _request(self, connection: Connection, chance: random.Random, tenant: Tenant) -> None:
        end = chance.choice(["commit", "commit", "commit", "rollback", "error", "timeout"])
        # Not every client tells who it is, and some lie.
        entry = chance.choices(["honest", "nobody", "copied"], [8, 1, 1])[0]
        if entry == "nobody" and chance.random() < 0.5:
            self._read(connection, chance, None)
            return
        connection.execute("begin")
        self._enter(connection, tenant, entry, chance)
        self._read(connection, chance, tenant if entry == "honest" else None)
        [(backend,)] = connection.execute("select pg_backend_pid()").fetchall()
        self.backends.add(backend)
        if end == "error":
            connection.execute("select 1 / 0")
        elif end == "timeout":
            connection.execute("set local statement_timeout = '5ms'")
            connection.execute("select pg_sleep(1)")
        connection.execute("rollback" if end == "rollback" else "commit")
        self.done[f"{entry} {end}"] += 1

    def _enter(
        self, connection: Connection, tenant: Tenant, entry: str, chance: random.Random
    ) -> None:
        if entry == "nobody":
            return
        if entry == "copied":
            if self.copied:
                value = chance.choice(self.copied)
                connection.execute("select set_config('rag.authenticated', %s, true)", [value])
            return
        if self.number % 2 == 0:
            connection.execute("select rag.set_tenant(%s, is_local => true)", [tenant.name])
            return
        connection.execute("select rag.authenticate(%s)", [sign(claims(tenant.name))])
        [(seal,)] = connection.execute("select current_setting('rag.authenticated')").fetchall()
        self.copied.append(seal)

    def _read(self, connection: Connection, chance: random.Random, tenant: Tenant | None) -> None:
        """Read as the tenant, or as nobody; note rows of somebody else."""
        query = chance.choice(READS)
        try:
            rows = repr(connection.execute(query.encode()).fetchall())
        except psycopg.Error as error:
            self.done["refused"] += tenant is None and error.sqlstate in ("RG001", "28000")
            raise
        for other in self.pool.arena.tenants:
            if other is not tenant and (other.canary in rows or f"'{other.name}'" in rows):
                self.foreign.append(f"{query} as {tenant and tenant.name}: {rows}")
        if tenant is not None:
            assert tenant.canary in rows or f"'{tenant.name}'" in rows
            self.done["own rows"] += 1
        else:
            assert rows == "[]"
            self.done["no rows"] += 1


def test_nobody_gets_a_row_of_another_through_the_pool(pool: Pool) -> None:
    print(f"RAGDB_TEST_SEED={SEED} RAGDB_TEST_REQUESTS={REQUESTS}")
    copied: list[str] = []
    clients = [Client(pool, n, copied) for n in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda client: client.run(REQUESTS // CLIENTS), clients))
    done = sum((client.done for client in clients), Counter[str]())
    backends = set[int]().union(*(client.backends for client in clients))
    print(dict(done), len(backends), "connections of the server")
    assert [rows for client in clients for rows in client.foreign] == []
    # Clients have shared connections, were answered, refused, interrupted, and rolled back.
    assert 1 < len(backends) <= 2 * pooler.USER_CONNECTIONS
    assert done["own rows"] > REQUESTS / 2
    assert min(done["refused"], done["no rows"], done["57014"], done["22012"]) > 0
    assert done["honest rollback"] > 0


def test_a_listener_goes_around_the_pool(pool: Pool) -> None:
    """NOTIFY comes out of the pool, LISTEN does not go through it: the listener has its own."""
    heard: list[psycopg.Notify] = []
    ready = threading.Event()

    def listen() -> None:
        with psycopg.connect(pool.arena.url, autocommit=True) as listener:
            listener.execute("listen rag_jobs")
            listener.execute("select rag.worker_idle()")
            ready.set()
            heard.extend(listener.notifies(timeout=20, stop_after=1))

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(20)
    with pool.login(pool.arena.service_role) as client, client.transaction():
        client.execute("select rag.set_tenant(%s, true)", [pool.arena.own.name])
        client.execute("select rag.put('rings', 'rings')")
    thread.join(30)
    assert [(n.channel, n.payload) for n in heard] == [("rag_jobs", "")]


def test_a_context_for_the_session_leaks_through_a_pool_as_the_docs_say(pool: Pool) -> None:
    """Why is_local is for poolers: what the session keeps, the next client gets."""
    # One connection of the server for both: the second begins when the first has ended.
    with pool.login(pool.arena.role) as first, pool.login(pool.arena.role) as second:
        first.execute("select rag.set_tenant(%s)", [pool.arena.own.name])
        names = set[object]()
        for _ in range(20):
            with suppress(psycopg.DatabaseError):
                names.add(second.execute("select rag.current_tenant()").fetchone())
        first.execute("discard all")
    # Never another one than the role was granted.
    assert names <= {(pool.arena.own.name,)}
