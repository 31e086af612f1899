"""Three embedders and the server are killed again and again while documents are put and deleted.

In the end every passage has exactly one embedding, of its current text; what was acknowledged is
there; only poisonous texts have failed; the statistics of BM25 are those of a recount. `make
test-crash` does it at 200 moments, and at 50 more with the real model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg
import pytest

from db.migrate import migrate
from db.server import Server
from embedder.models import SentenceTransformerModel
from tests import processes
from tests.crash_points import DIMENSIONS, POINTS, POISON, Death, HashModel, prepare
from tests.processes import until
from tests.test_collection_settings import recounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from embedder.models import EmbeddingModel


WORKERS = 3
# On a busy machine the real model takes seconds over a batch.
LEASE_SECONDS = {"hash": 1, "real": 3}
MOMENTS = int(os.environ.get("RAGDB_TEST_MOMENTS", "10"))
SEED = int(os.environ.get("RAGDB_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
URIS = 40
POISONOUS = 5
# A crash takes the server about two seconds, a worker's costs a tenth.
SERVER_SHARE = 0.08
BACKEND_SHARE = 0.08


@dataclass
class Book:
    """What was put: by uri the acknowledged content, and what may have been stored all the same."""

    certain: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    doubtful: dict[str, set[str | None]] = field(default_factory=dict[str, "set[str | None]"])
    puts: int = 0

    def allows(self, uri: str, content: str | None) -> bool:
        """May the document be this one, or (None) not there?"""
        return content == self.certain.get(uri) or content in self.doubtful.get(uri, set())


class Writer(threading.Thread):
    """Puts, replaces and deletes documents of some passages until it is told to stop."""

    def __init__(self, url: str, chance: random.Random) -> None:
        super().__init__(name="writer")
        self.book = Book()
        self.enough = threading.Event()
        self._url = url
        self._chance = chance
        self._connection: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        """Ends after `enough`; a server that is away is waited for."""
        for n in range(POISONOUS):
            self._write(f"{POISON} {n}", text(self._chance, f"This is {POISON} number {n}."))
        while not self.enough.is_set():
            uri = f"uri {self._chance.randrange(URIS)}"
            self._write(uri, None if self._chance.random() < 0.1 else text(self._chance))
            time.sleep(0.005)
        if self._connection is not None:
            self._connection.close()

    def _write(self, uri: str, content: str | None) -> None:
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._url, autocommit=True)
                if content is None:
                    self._connection.execute("select rag.delete(%s)", [uri])
                else:
                    self._connection.execute(
                        "select rag.put(%s, %s, chunk_size => 60, chunk_overlap => 0)",
                        [content, uri],
                    )
            except psycopg.OperationalError:
                # It may have been committed, and the answer lost.
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                    self.book.doubtful.setdefault(uri, set()).add(content)
                time.sleep(0.05)
            else:
                self.book.certain[uri] = content
                self.book.doubtful.pop(uri, None)
                self.book.puts += 1
                return


def text(chance: random.Random, *also: str) -> str:
    """Some paragraphs, each of which becomes a passage."""
    parts = [f"Paragraph {chance.randrange(1000)} of the rules for parcel {chance.randrange(50)}."]
    parts += [f"And then there is rule {chance.randrange(10**6)} to obey." for _ in range(3)]
    return "\n\n".join([*parts, *also])


class Matrix:
    """A server of its own, the workers, and what has been killed."""

    def __init__(self, server: Server, log: Path, chance: random.Random) -> None:
        self.server = server
        self.url = server.url()
        self.killed: Counter[str] = Counter()
        self.log = log
        self._chance = chance
        self._workers: dict[BaseProcess, Death] = {}

    def start_workers(self, *, seconds: float | None, mortal: bool) -> None:
        """See to it that there are as many as there should be; count those that died meanwhile."""
        for process, death in [*self._workers.items()]:
            if not process.is_alive():
                process.join()
                del self._workers[process]
                # One that begins while the server is away says so and ends.
                if process.exitcode != 1:
                    assert process.exitcode == -signal.SIGKILL, self.log.read_text()[-3000:]
                    self.killed[death.point or "any moment"] += 1
        while len(self._workers) < WORKERS:
            point = self._chance.choice((*POINTS, None)) if mortal else None
            death = Death(point, self._chance.randint(1, 12))
            process = processes.start(
                {
                    "DATABASE_URL": self.url,
                    "RAGDB_POLL_SECONDS": "0.2",
                    "RAGDB_BATCH": "24",
                    "RAGDB_LEASE_SECONDS": str(lease_seconds(seconds)),
                },
                self.log,
                prepare=partial(prepare, death, seconds),
            )
            self._workers[process] = death

    def kill_a_worker(self) -> None:
        """Whatever it is doing."""
        process = self._chance.choice([*self._workers])
        if process.is_alive():
            process.kill()
            process.join()
            self._workers[process] = Death(None)

    def kill_a_backend(self) -> None:
        """All other backends go with it, and the server recovers by itself."""
        with self.connect() as connection:
            pids = connection.execute(
                "select pid from pg_stat_activity where application_name = 'ragdb embedder'"
            ).fetchall()
        if pids:
            os.kill(self._chance.choice(pids)[0], signal.SIGKILL)
            self.killed["backend"] += 1

    def kill_the_server(self) -> None:
        """As when the power fails, but for what the kernel has."""
        pid = int((self.server.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self.killed["server"] += 1
        # What is left of it is not one that accepts connections.
        until(lambda: not self._is_alive(pid))
        self.server.start()

    @staticmethod
    def _is_alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def connect(self) -> psycopg.Connection[Any]:
        """A connection, as soon as the server accepts one again."""
        made: list[psycopg.Connection[Any]] = []

        def answers() -> bool:
            with suppress(psycopg.OperationalError):
                made.append(psycopg.connect(self.url, autocommit=True))
                made[0].execute("select")
                return True
            for one in made:
                one.close()
            made.clear()
            return False

        # It recovers first, and on a busy disk that takes a minute.
        until(answers, seconds=300)
        return made[0]

    def stop_workers(self) -> None:
        """All of them."""
        for process in self._workers:
            process.kill()
            process.join()
        self._workers.clear()


@pytest.fixture
def matrix(server: Server, tmp_path: Path) -> Iterator[Matrix]:
    print(f"\nseed {SEED}")
    # Not that of another test, which has another model.
    own = Server(server.root / tmp_path.name, server.version)
    own.start()
    try:
        migrate(own.url())
        matrix = Matrix(own, tmp_path / "log", random.Random(SEED))
        try:
            yield matrix
        finally:
            matrix.stop_workers()
    finally:
        own.stop(immediate=True)


def lease_seconds(seconds: float | None) -> int:
    """How long a claim is of a model whose pass takes `seconds`; None: the real one's."""
    return LEASE_SECONDS["real" if seconds is None else "hash"]


def overheld(connection: psycopg.Connection[Any], lease: int) -> int:
    """Jobs that are held for longer than a lease."""
    row = connection.execute(
        "select count(*) from rag.jobs as j where j.lease_token is not null "
        "and j.due_at > clock_timestamp() + %s * interval '1 second'",
        [lease],
    ).fetchone()
    assert row is not None
    return row[0]


def settle(matrix: Matrix, seconds: float | None) -> int:
    """Let workers that live work everything off; how many jobs had lost five workers.

    Such a job is parked as one that kills its workers: so many kills meet some five times.
    """
    retried = 0
    with matrix.connect() as connection:

        def is_done() -> bool:
            nonlocal retried
            matrix.start_workers(seconds=seconds, mortal=False)
            retried += connection.execute(
                "update rag.jobs set failed_at = null, error = null, attempts = 0, "
                "due_at = clock_timestamp() where error ^@ 'no worker finished it'"
            ).rowcount
            row = connection.execute(
                "select count(*) from rag.jobs where failed_at is null"
            ).fetchone()
            return row == (0,)

        until(is_done, seconds=300)
    return retried


def test_nothing_is_lost_or_doubled_whatever_is_killed(matrix: Matrix) -> None:
    with psycopg.connect(matrix.url, autocommit=True) as connection:
        connection.execute("select rag.add_model('hash', %s, 'hash')", [DIMENSIONS])
        connection.execute("select rag.activate_model('hash', force => true)")
        connection.execute("select rag.drop_model('all-MiniLM-L6-v2')")
    book = kill_again_and_again(matrix, MOMENTS, seconds=0.02)
    assert matrix.killed["server"]
    with matrix.connect() as connection:
        everything_is_right(connection, book, HashModel("hash", DIMENSIONS))


def test_nothing_is_lost_or_doubled_with_the_real_model(
    matrix: Matrix, model: SentenceTransformer
) -> None:
    book = kill_again_and_again(matrix, max(4, MOMENTS // 4), seconds=None)
    with matrix.connect() as connection:
        minilm = SentenceTransformerModel("all-MiniLM-L6-v2", cast("Any", model))
        everything_is_right(connection, book, minilm)


def kill_again_and_again(matrix: Matrix, moments: int, seconds: float | None) -> Book:
    """Kill at so many moments, then let all be done; what was put.

    A pass of the quick model takes `seconds`; None: the real model embeds.
    """
    chance = random.Random(SEED + 1)
    writer = Writer(matrix.url, random.Random(SEED + 2))
    writer.start()
    started = time.monotonic()
    try:
        while matrix.killed.total() < moments:
            matrix.start_workers(seconds=seconds, mortal=True)
            time.sleep(chance.uniform(0, 0.4))
            dice = chance.random()
            # Each kind at least once, however few moments there are.
            if dice < SERVER_SHARE or (not matrix.killed["server"] and dice < 0.5):
                matrix.kill_the_server()
            elif dice < SERVER_SHARE + BACKEND_SHARE:
                # It may be gone already.
                with suppress(psycopg.OperationalError, ProcessLookupError):
                    matrix.kill_a_backend()
            elif dice < 0.4:
                matrix.kill_a_worker()
            # A server that a backend took down may go a moment after it has answered.
            with suppress(psycopg.OperationalError), matrix.connect() as connection:
                assert overheld(connection, lease_seconds(seconds)) == 0
    finally:
        writer.enough.set()
        writer.join(60)
    assert not writer.is_alive()
    retried = settle(matrix, seconds=None if seconds is None else 0.0)
    print(
        f"{writer.book.puts} puts and deletes, killed in {time.monotonic() - started:.0f} s: "
        f"{dict(matrix.killed)}; {retried} jobs had lost five workers"
    )
    return writer.book


def everything_is_right(
    connection: psycopg.Connection[Any], book: Book, model: EmbeddingModel
) -> None:
    """What was acknowledged is there, each passage has one vector of its text, but for poison."""
    documents = dict(connection.execute("select uri, content from rag.documents").fetchall())
    uris = {*book.certain, *book.doubtful, *documents}
    assert [uri for uri in uris if not book.allows(uri, documents.get(uri))] == []
    passages = connection.execute(
        "select c.content, array(select e.embedding::text from rag.embeddings as e "
        "where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id) from rag.chunks as c"
    ).fetchall()
    assert len(passages) > URIS
    for content, embeddings in passages:
        if POISON in content:
            assert embeddings == []
        else:
            assert len(embeddings) == 1, content
            wanted = model.encode_documents([content])[0]
            found = np.array(json.loads(embeddings[0]), dtype=np.float32)
            assert float(found @ wanted) / float(np.linalg.norm(found)) > 0.999, content
    orphans = connection.execute(
        "select count(*) from rag.embeddings as e where not exists ("
        "select from rag.chunks as c where c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id)"
    ).fetchone()
    assert orphans == (0,)
    failed = connection.execute("select uri, error from rag.failures() order by uri").fetchall()
    assert failed == [(f"{POISON} {n}", "ValueError: no such text") for n in range(POISONOUS)]
    jobs = connection.execute("select count(*), count(lease_token) from rag.jobs as j").fetchone()
    assert jobs == (POISONOUS, 0)
    connection.execute("select rag.set_tenant('default')")
    recounted(connection)
