"""The embedder at work: whole processes, lost connections, kills, and texts that break the model.

Only the model's failures are played, by subclasses of the real one; Postgres is real throughout.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg
import pytest

from db.migrate import migrate
from db.server import Server
from embedder import progress
from embedder.database import Session
from embedder.errors import ModelError, NotMigratedError, UnreachableError
from embedder.models import EmbeddingModel, ModelRow, SentenceTransformerModel
from embedder.stop import Stop
from embedder.worker import Worker
from tests import processes
from tests.processes import until
from tests.working import (
    MARK,
    TEXTS,
    Connection,
    embedded,
    put,
    running,
    settings,
    value,
    waiting,
)

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from tests.conftest import RoleFactory

Start = Callable[..., "BaseProcess"]


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """Starts embedders on `database`; they are killed after the test."""
    started: list[BaseProcess] = []

    def start(*, sleepy: bool = False, url: str = database, **variables: str) -> BaseProcess:
        environment = {"DATABASE_URL": url, "RAGDB_LOG": "json", "RAGDB_POLL_SECONDS": "0.2"}
        process = processes.start(environment | variables, tmp_path / "log", sleepy=sleepy)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def embedding_model(model: SentenceTransformer) -> SentenceTransformerModel:
    return SentenceTransformerModel("all-MiniLM-L6-v2", cast("Any", model))


def listeners(connection: Connection) -> list[int]:
    """Backends of embedders that are listening and idle."""
    rows = connection.execute(
        "select a.pid from pg_stat_activity as a join pg_locks as l using (pid) "
        "where a.application_name = 'ragdb listener' and a.datname = current_database() "
        "and l.locktype = 'advisory' and l.granted"
    ).fetchall()
    return [row[0] for row in rows]


def is_at_work(connection: Connection) -> bool:
    """Is an embedder connected?"""
    return value(
        connection,
        "select exists (select from pg_stat_activity as a "
        "where a.application_name = 'ragdb embedder' and a.datname = current_database())",
    )


def cosines(connection: Connection, model: SentenceTransformer) -> NDArray[np.float32]:
    """Of every stored embedding to what the model itself says of the passage."""
    rows = connection.execute(
        "select c.content, e.embedding::text from rag.embeddings as e "
        "join rag.chunks as c using (tenant_id, chunk_id)"
    ).fetchall()
    stored = np.array([json.loads(row[1]) for row in rows], dtype=np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    bare = cast("Any", model).encode([row[0] for row in rows], normalize_embeddings=True)
    return np.sum(stored * bare, axis=1)


def all_is_right(connection: Connection, model: SentenceTransformer) -> None:
    """Every passage has one embedding, of its own text, and nothing is left to do."""
    assert waiting(connection) == 0
    assert embedded(connection) == value(connection, "select count(*) from rag.chunks")
    assert cosines(connection, model).min() > 0.999


def test_the_whole_path(
    database: str, connection: Connection, model: SentenceTransformer, tmp_path: Path
) -> None:
    put(connection, TEXTS)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedder", "run"],
            env=os.environ
            | {"DATABASE_URL": database, "RAGDB_LOG": "json", "RAGDB_POLL_SECONDS": "30"},
            stderr=log,
        )
        try:
            until(lambda: waiting(connection) == 0)
            all_is_right(connection, model)
            # Idle, and the next look at the queue is half a minute away: the doorbell wakes it.
            until(lambda: listeners(connection))
            started = time.monotonic()
            put(connection, ["One more, later."], "later")
            until(lambda: waiting(connection) == 0)
            assert time.monotonic() - started < 5
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "ready",
        "embedded a batch",
        "embedded a batch",
        "stopped",
    ]
    assert events[1]["batch"] == events[1]["embedded"] == len(TEXTS)
    assert events[1]["passages_per_second"] > 0
    assert events[3]["embedded"] == len(TEXTS) + 1


def test_once_drains_and_ends(
    database: str,
    connection: Connection,
    model: SentenceTransformer,
    embedding_model: SentenceTransformerModel,
) -> None:
    put(connection, TEXTS)
    worker = Worker(settings(database, RAGDB_BATCH="16"), embedding_model)
    assert worker.run(once=True) == 0
    assert worker.totals.embedded == len(TEXTS)
    assert worker.totals.batches == 3
    all_is_right(connection, model)


def test_pgvector_may_live_in_another_schema(
    empty_database: str, model: SentenceTransformer, embedding_model: SentenceTransformerModel
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("create schema extensions")
        connection.execute("create extension vector schema extensions")
        migrate(empty_database)
        put(connection, TEXTS[:5])
        worker = Worker(settings(empty_database), embedding_model)
        assert worker.run(once=True) == 0
        assert worker.totals.embedded == 5
        all_is_right(connection, model)
        # By the vector of a passage, which no search path of this session has a type for.
        assert value(connection, "select to_regtype('vector') is null")
        vector = embedding_model.encode_query(TEXTS[3])
        found = connection.execute(
            "select uri from rag.search(null, 1, embedding => %s::extensions.vector)",
            [str(vector.tolist())],
        ).fetchall()
        assert found == [("document-3",)]


def test_what_the_model_does_not_take_is_stored(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    put(connection, TEXTS[:3])
    long = " ".join(f"word{n}" for n in range(300))
    connection.execute("select rag.put(%s, 'long', chunk_size => 8000)", [long])
    worker = Worker(settings(database), embedding_model)
    assert worker.run(once=True) == 0
    assert worker.totals.truncated == 1
    beyond = embedding_model.count_tokens([long])[0] - embedding_model.max_tokens
    assert beyond > 300
    rows = connection.execute("select uri, truncated_tokens from rag.truncations()").fetchall()
    assert rows == [("long", beyond)]
    assert value(connection, "select count(*) from rag.embeddings where truncated_tokens = 0") == 3


def test_the_rights_of_rag_worker_suffice(
    connection: Connection,
    role: RoleFactory,
    model: SentenceTransformer,
    embedding_model: SentenceTransformerModel,
) -> None:
    put(connection, TEXTS[:5])
    login = role(member_of=("rag_worker",))
    with psycopg.connect(login.url) as restricted, pytest.raises(psycopg.Error) as refusal:
        restricted.execute("select from rag.chunks")
    assert refusal.value.sqlstate == "42501"
    with running(Worker(settings(login.url), embedding_model)):
        until(lambda: waiting(connection) == 0 and listeners(connection))
    all_is_right(connection, model)
    assert progress.wait(login.url, stream=io.StringIO()).embedded == 5


def test_the_doorbell_is_not_needed(start: Start, connection: Connection) -> None:
    # All notifications are lost.
    connection.execute(
        "create or replace function rag._ring() returns void language plpgsql as 'begin end'"
    )
    connection.execute("listen rag_jobs")
    start()
    until(lambda: listeners(connection))
    for turn in range(3):
        put(connection, TEXTS[turn : turn + 1], f"turn-{turn}")
        until(lambda: waiting(connection) == 0 and listeners(connection))
    assert embedded(connection) == 3
    assert not [*connection.notifies(timeout=0)]


def test_a_lost_listener_comes_back(start: Start, connection: Connection) -> None:
    start(RAGDB_POLL_SECONDS="30")
    until(lambda: listeners(connection))
    lost = listeners(connection)
    connection.execute("select pg_terminate_backend(%s, 5000)", lost)
    until(lambda: set(listeners(connection)) - {*lost})
    started = time.monotonic()
    put(connection, TEXTS[:1])
    until(lambda: waiting(connection) == 0)
    assert time.monotonic() - started < 5


def backends(connection: Connection, name: str) -> set[int]:
    """Process ids behind the connections of that name."""
    rows = connection.execute(
        "select a.pid from pg_stat_activity as a "
        "where a.application_name = %s and a.datname = current_database()",
        [name],
    ).fetchall()
    return {row[0] for row in rows}


@contextmanager
def stopped(pid: int) -> Generator[None]:
    """A backend that says nothing more, while the kernel goes on acknowledging what it is sent."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_listener_that_falls_silent_is_left(start: Start, connection: Connection) -> None:
    start(RAGDB_POLL_SECONDS="2")
    # It has just said that it is idle: stopped in the middle of something it would keep a lock of
    # the server, and everybody waiting.
    until(
        lambda: value(
            connection,
            "select exists (select from pg_stat_activity as a where a.datname = current_database() "
            "and a.application_name = 'ragdb listener' and a.state = 'idle' "
            "and a.query ~ 'worker_idle' "
            "and a.state_change > clock_timestamp() - interval '500 ms')",
        )
    )
    [silent] = backends(connection, "ragdb listener")
    with stopped(silent):
        put(connection, TEXTS[:1])
        until(lambda: waiting(connection) == 0, seconds=30)
        # It listens again, and the work goes on.
        until(lambda: backends(connection, "ragdb listener") - {silent}, seconds=30)
        put(connection, TEXTS[1:2], "later")
        until(lambda: waiting(connection) == 0, seconds=10)
    # Awake again, it finds that nobody is there, and lets go of the bell.
    until(lambda: listeners(connection) not in ([], [silent]))
    assert embedded(connection) == 2


def test_a_statement_that_is_not_answered_is_said_again(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.database.ANSWER_SECONDS", 1.0)
    session = Session(database, Stop(), name="silent")
    session.open()
    [silent] = backends(connection, "silent")
    started = time.monotonic()
    with stopped(silent):
        assert [row.name for row in session.rows("models", {}, ModelRow)] == ["all-MiniLM-L6-v2"]
    assert 1 < time.monotonic() - started < 10
    assert session.reconnects == 1
    session.close()


def test_a_lost_connection_costs_nothing(
    start: Start, connection: Connection, model: SentenceTransformer
) -> None:
    process = start(RAGDB_BATCH="8")
    lost = 0
    for turn in range(4):
        put(connection, [f"{turn} {text}" for text in TEXTS], f"turn-{turn}")
        target = len(TEXTS) * turn + 1
        until(lambda target=target: embedded(connection) >= target)
        ended = connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where application_name = 'ragdb embedder' and datname = current_database()"
        )
        lost += ended.rowcount
    assert lost == 4
    until(lambda: waiting(connection) == 0)
    assert process.is_alive()
    all_is_right(connection, model)


def test_killed_at_any_moment_loses_and_doubles_nothing(
    start: Start, connection: Connection, model: SentenceTransformer
) -> None:
    moments = random.Random(4711)
    put(connection, [f"{part} {text}" for part in range(5) for text in TEXTS])
    for kill in range(10):
        process = start(RAGDB_LEASE_SECONDS="1", RAGDB_BATCH="16")
        # From the moment it is connected any moment will do.
        until(lambda: is_at_work(connection))
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} came too late"
        if waiting(connection) < 100:
            put(
                connection, [f"{kill} {part} {text}" for part in "ab" for text in TEXTS], f"k{kill}"
            )
    start(RAGDB_LEASE_SECONDS="1")
    until(lambda: waiting(connection) == 0, seconds=120)
    all_is_right(connection, model)


def test_several_workers_share_the_queue(
    start: Start, connection: Connection, model: SentenceTransformer
) -> None:
    put(connection, [f"{part} {text}" for part in range(3) for text in TEXTS])
    for _ in range(3):
        start(RAGDB_BATCH="8")
    until(lambda: waiting(connection) == 0)
    all_is_right(connection, model)
    # All three are idle and hear the bell.
    until(lambda: listeners(connection))


def test_a_stop_gives_back_what_is_not_done(start: Start, connection: Connection) -> None:
    put(connection, TEXTS)
    process = start(sleepy=True)
    until(lambda: value(connection, "select count(*) from rag.jobs where lease_token is not null"))
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
    assert value(
        connection,
        "select count(*) from rag.jobs "
        "where lease_token is null and attempts = 0 and due_at <= clock_timestamp()",
    ) == len(TEXTS)


def test_a_stop_completes_what_is_done(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    put(connection, TEXTS)
    stop = Stop()

    class StopsTheWorker(SentenceTransformerModel):
        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            stop.requested = True
            return super().encode_documents(texts)

    model = StopsTheWorker(embedding_model.name, embedding_model.library_model)
    model.batch_size = 8
    worker = Worker(settings(database), model, stop)
    assert worker.run() == 0
    assert embedded(connection) == worker.totals.embedded == model.batch_size
    assert value(connection, "select count(*) from rag.jobs where lease_token is null") == (
        len(TEXTS) - model.batch_size
    )


def test_the_second_signal_ends_at_once(start: Start, connection: Connection) -> None:
    put(connection, TEXTS[:1])
    process = start(sleepy=True, RAGDB_GRACE_SECONDS="60")
    until(lambda: value(connection, "select count(*) from rag.jobs where lease_token is not null"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 128 + signal.SIGINT


def test_a_restart_of_the_server(
    server: Server, start: Start, model: SentenceTransformer, tmp_path: Path
) -> None:
    own = Server(server.root / "restarted", server.version)
    own.start()
    try:
        migrate(own.url())
        with psycopg.connect(own.url(), autocommit=True) as connection:
            put(connection, [f"{part} {text}" for part in range(3) for text in TEXTS])
            process = start(url=own.url(), RAGDB_BATCH="8", RAGDB_LEASE_SECONDS="2")
            until(lambda: embedded(connection) > 0)
        own.stop()
        until(lambda: "the database does not answer" in (tmp_path / "log").read_text())
        own.start()
        with psycopg.connect(own.url(), autocommit=True) as connection:
            until(lambda: waiting(connection) == 0)
            all_is_right(connection, model)
            until(lambda: listeners(connection))
        # While it is idle, too; nobody holds the server up.
        own.stop()
        own.start()
        with psycopg.connect(own.url(), autocommit=True) as connection:
            until(lambda: listeners(connection))
            put(connection, ["After the restart."], "later")
            until(lambda: waiting(connection) == 0)
        process.terminate()
        process.join(10)
        assert process.exitcode == 0
        # Once per state change, whatever the number of attempts.
        events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
        assert events.count("the database does not answer, trying again") <= 2
    finally:
        own.stop()


def test_a_stop_while_the_server_is_away(
    server: Server, start: Start, tmp_path: Path, embedding_model: SentenceTransformerModel
) -> None:
    own = Server(server.root / "restarted", server.version)
    own.start()
    try:
        migrate(own.url())
        process = start(url=own.url())
        with psycopg.connect(own.url(), autocommit=True) as connection:
            until(lambda: listeners(connection))
    finally:
        own.stop()
    until(lambda: "the database does not answer" in (tmp_path / "log").read_text())
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
    with pytest.raises(UnreachableError, match=r"^cannot connect to the database: "):
        Worker(settings(own.url()), embedding_model).run()


class Gated(SentenceTransformerModel):
    """The real model behind a gate."""

    def __init__(self, model: SentenceTransformerModel) -> None:
        super().__init__(model.name, model.library_model)
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.calls = 0

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Waits for the gate."""
        self.calls += 1
        self.entered.set()
        assert self.gate.wait(30)
        return super().encode_documents(texts)


def test_a_changed_text_never_gets_the_old_vector(
    database: str,
    connection: Connection,
    model: SentenceTransformer,
    embedding_model: SentenceTransformerModel,
) -> None:
    put(connection, ["The old text, about apples.", "A text that stays."])
    gated = Gated(embedding_model)
    worker = Worker(settings(database), gated)
    with running(worker):
        assert gated.entered.wait(30)
        put(connection, ["The new text, about rivers."])
        gated.gate.set()
        until(lambda: waiting(connection) == 0)
    assert worker.totals.stale == 1
    assert worker.totals.embedded == 2
    all_is_right(connection, model)


def test_the_heartbeat_keeps_a_lease_for_as_long_as_the_model_takes(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    put(connection, TEXTS[:3])
    gated = Gated(embedding_model)
    with running(Worker(settings(database, RAGDB_LEASE_SECONDS="1"), gated)):
        assert gated.entered.wait(30)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert not connection.execute("select rag.claim_jobs('thief')").fetchall()
            time.sleep(0.05)
        gated.gate.set()
        until(lambda: waiting(connection) == 0)
    assert gated.calls == 1
    assert embedded(connection) == 3


def test_a_lost_lease_is_given_up(
    database: str,
    connection: Connection,
    embedding_model: SentenceTransformerModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(connection, TEXTS)
    gated = Gated(embedding_model)
    with running(Worker(settings(database, RAGDB_LEASE_SECONDS="1"), gated)):
        assert gated.entered.wait(30)
        connection.execute("update rag.jobs set due_at = clock_timestamp()")
        tokens = connection.execute(
            "select distinct j.lease_token from rag.claim_jobs('thief', 1000, '1 hour') as j"
        ).fetchall()
        assert len(tokens) == 1
        until(lambda: "lost a lease" in caplog.text)
        gated.gate.set()
    assert gated.calls == 1
    assert embedded(connection) == 0
    assert connection.execute("select distinct lease_token from rag.jobs").fetchall() == tokens


class Choosy(SentenceTransformerModel):
    """The real model, except that a marked text breaks it."""

    def __init__(
        self,
        model: SentenceTransformerModel,
        breaks: Callable[[NDArray[np.float32], int], NDArray[np.float32]],
    ) -> None:
        super().__init__(model.name, model.library_model)
        self._breaks = breaks

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Breaks for each marked text."""
        vectors = super().encode_documents(texts)
        for place, text in enumerate(texts):
            if MARK in text:
                vectors = self._breaks(vectors, place)
        return vectors


def refuses(_vectors: NDArray[np.float32], _place: int) -> NDArray[np.float32]:
    raise ValueError("no such text")


def stumbles(_vectors: NDArray[np.float32], _place: int) -> NDArray[np.float32]:
    raise RuntimeError("out of memory")


def loses_one(vectors: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    return np.delete(vectors, place, axis=0)


def is_not_finite(vectors: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    vectors[place, 3] = np.nan
    return vectors


def is_zero(vectors: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    vectors[place] = 0
    return vectors


def is_long(vectors: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    vectors[place] *= 1e6
    return vectors


@pytest.mark.parametrize(
    ("breaks", "permanent", "error"),
    [
        (refuses, True, "ValueError: no such text"),
        (stumbles, False, "RuntimeError: out of memory"),
        (loses_one, False, "RuntimeError: the model gave 0 vectors for 1 texts"),
        (is_not_finite, True, "the model gave a vector that is not finite"),
        (is_zero, True, "the model gave a vector of length 0, not 1"),
        (is_long, True, "the model gave a vector of length 1e+06, not 1"),
    ],
)
def test_only_the_text_that_breaks_the_model_fails(
    database: str,
    connection: Connection,
    embedding_model: SentenceTransformerModel,
    breaks: Callable[[NDArray[np.float32], int], NDArray[np.float32]],
    permanent: bool,
    error: str,
) -> None:
    put(connection, [*TEXTS[:9], f"A {MARK} text.", *TEXTS[9:19], f"Another {MARK} text."])
    worker = Worker(settings(database), Choosy(embedding_model, breaks))
    assert worker.run(once=True) == 1
    assert worker.totals.failed == 2
    assert embedded(connection) == worker.totals.embedded == 19
    rows = connection.execute(
        "select c.content, j.failed_at is not null, j.error, j.attempts, "
        "j.due_at > clock_timestamp() "
        "from rag.jobs as j join rag.chunks as c using (tenant_id, chunk_id)"
    ).fetchall()
    assert len(rows) == 2
    for content, is_parked, found, attempts, is_later in rows:
        assert MARK in content
        assert (is_parked, found, attempts) == (permanent, error, 1)
        assert is_parked or is_later
    state = progress.wait(database, timeout=0, stream=io.StringIO())
    assert (state.failed, state.left) == ((2, 0) if permanent else (0, 2))


def test_wrong_dimensions_are_never_stored(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    class Shortens(SentenceTransformerModel):
        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return super().encode_documents(texts)[:, :100]

    put(connection, TEXTS[:3])
    shortens = Shortens(embedding_model.name, embedding_model.library_model)
    assert Worker(settings(database), shortens).run(once=True) == 1
    assert embedded(connection) == 0
    assert value(connection, "select distinct error from rag.jobs where failed_at is not null") == (
        "the model gave a vector of shape (100,), not 384"
    )


def test_a_text_that_cannot_be_counted_fails_alone(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    class CannotCount(SentenceTransformerModel):
        def count_tokens(self, texts: Sequence[str]) -> list[int]:
            if any(MARK in text for text in texts):
                raise TypeError("no string")
            return super().count_tokens(texts)

        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.count_tokens(texts)
            return super().encode_documents(texts)

    put(connection, [*TEXTS[:9], f"A {MARK} text."])
    model = CannotCount(embedding_model.name, embedding_model.library_model)
    worker = Worker(settings(database), model)
    assert worker.run(once=True) == 1
    assert (worker.totals.embedded, worker.totals.failed) == (9, 1)


def test_a_database_without_ragdb(
    empty_database: str, embedding_model: SentenceTransformerModel
) -> None:
    with pytest.raises(NotMigratedError, match="has no ragdb in it; run: make migrate"):
        Worker(settings(empty_database), embedding_model).run()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("set name = 'no-such-folder'", "cannot load the model no-such-folder"),
        ("set dimensions = 512", "asks for all-MiniLM-L6-v2 with 512 dimensions"),
    ],
)
def test_another_model_than_the_database_s(
    database: str,
    connection: Connection,
    embedding_model: SentenceTransformerModel,
    change: str,
    problem: str,
) -> None:
    connection.execute(cast("Any", f"update rag.models {change}"))
    with pytest.raises(ModelError, match=problem):
        Worker(settings(database), embedding_model).run()


def test_a_model_that_cannot_be_used_keeps_no_other_from_its_work(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    put(connection, TEXTS[:3])
    worker = Worker(settings(database), embedding_model)
    with running(worker):
        until(lambda: waiting(connection) == 0)
        connection.execute("select rag.add_model('no-such-folder', 384)")
        connection.execute("select rag.add_model('elsewhere', 384, 'another-embedder')")
        put(connection, TEXTS[3:6], "later")
        until(lambda: embedded(connection) == 6)
        until(lambda: listeners(connection))
    # Their jobs went back: nobody has to wait for the lease of a worker that cannot do them.
    assert value(connection, "select count(*) from rag.jobs where lease_token is null") == 12
    assert value(connection, "select max(attempts) from rag.jobs") == 0


def test_a_model_that_fails_in_an_unexpected_way_keeps_no_other_from_its_work(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    def load(_row: ModelRow) -> EmbeddingModel:
        raise TypeError("no number")

    put(connection, TEXTS)
    connection.execute("select rag.add_model('odd', 384)")
    worker = Worker(settings(database), embedding_model, load=load)
    with pytest.raises(ModelError, match="cannot use the model odd: no number"):
        worker.run(once=True)
    assert embedded(connection) == worker.totals.embedded == len(TEXTS)


def test_two_models_side_by_side(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    class Short(SentenceTransformerModel):
        """The first 100 dimensions."""

        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            vectors = embedding_model.encode_documents(texts)[:, :100]
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    put(connection, TEXTS)
    connection.execute("select rag.add_model('short', 100)")
    loaded: list[str] = []

    def load(row: ModelRow) -> EmbeddingModel:
        loaded.append(row.name)
        short = Short(row.name, embedding_model.library_model)
        short.dimensions = 100
        return short

    worker = Worker(settings(database), embedding_model, load=load)
    assert worker.run(once=True) == 0
    assert loaded == ["short"]
    assert connection.execute(
        "select model, embedded, waiting from rag.progress() order by model"
    ).fetchall() == [("all-MiniLM-L6-v2", 40, 0), ("short", 40, 0)]


def test_a_lease_is_kept_while_a_model_is_loaded(
    database: str, connection: Connection, embedding_model: SentenceTransformerModel
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def load(row: ModelRow) -> EmbeddingModel:
        entered.set()
        assert gate.wait(30)
        return SentenceTransformerModel(row.name, embedding_model.library_model)

    put(connection, TEXTS[:3])
    with running(Worker(settings(database, RAGDB_LEASE_SECONDS="1"), embedding_model, load=load)):
        until(lambda: embedded(connection) == 3)
        connection.execute("select rag.add_model('later', 384)")
        assert entered.wait(30)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert not connection.execute("select rag.claim_jobs('thief')").fetchall()
            time.sleep(0.05)
        gate.set()
        until(lambda: embedded(connection) == 6)
    assert value(connection, "select count(*) from rag.jobs") == 0


def test_waiting_shows_rate_and_time_left(
    start: Start, database: str, connection: Connection
) -> None:
    put(connection, TEXTS)
    screen = io.StringIO()
    assert progress.wait(database, timeout=0, stream=screen).left == len(TEXTS)
    assert screen.getvalue() == f"0 passages embedded, {len(TEXTS)} left\n"
    start()
    screen = io.StringIO()
    state = progress.wait(database, stream=screen)
    assert (state.embedded, state.left, state.failed) == (len(TEXTS), 0, 0)
    assert re.search(r"\n?40 passages embedded\n$", screen.getvalue())


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_the_exit_code_of_wait(
    database: str, connection: Connection, *, failed: bool, code: int
) -> None:
    if failed:
        put(connection, TEXTS[:1])
        connection.execute("update rag.jobs set failed_at = now(), error = 'never mind'")
    answer = subprocess.run(
        [sys.executable, "-m", "embedder", "wait", "--timeout", "10"],
        env=os.environ | {"DATABASE_URL": database},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == code
    assert "passages embedded" in answer.stderr


def test_neither_texts_nor_tenants_are_logged(
    database: str,
    connection: Connection,
    embedding_model: SentenceTransformerModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection.execute("select rag.create_tenant('acme')")
    connection.execute("select rag.grant_tenant('postgres', 'acme')")
    connection.execute("select rag.set_tenant('acme')")

    def tells(_vectors: NDArray[np.float32], _place: int) -> NDArray[np.float32]:
        raise ValueError(f"cannot embed: {MARK} in a confidential text")

    put(connection, ["A confidential text.", f"A confidential {MARK} text."])
    caplog.set_level("INFO", logger="embedder")
    assert Worker(settings(database), Choosy(embedding_model, tells)).run(once=True) == 1
    assert len(caplog.records) == 4
    for record in caplog.records:
        for told in (record.getMessage(), str(cast("Mapping[str, object]", vars(record)))):
            assert "confidential" not in told
            assert "acme" not in told
    assert MARK in value(connection, "select error from rag.jobs")
