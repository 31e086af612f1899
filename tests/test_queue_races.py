"""The queue with several sessions at once: claims, fencing, deletes, locks and the doorbell."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RoleFactory

# A stand-in for a model: another text, another vector.
EMBED = """
create function public.embed(content text) returns vector
language sql immutable parallel safe
as $$
    select array_agg((hashtextextended(content, n) & 1023) + 1)::real[]::vector
    from generate_series(1, 384) as n
$$;
"""

# Chunks of a tenant without documents, at once.
BULK = """
with made as (
    insert into rag.chunks (
        partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
        content, content_hash
    )
    select t.partition_id, t.tenant_id, 0, 0, n, 0, 1, x.content, rag._hash(x.content)
    from rag.tenants as t
    cross join generate_series(1, %(count)s) as n
    cross join lateral (select t.name || ' ' || n as content) as x
    where t.name = %(tenant)s
    returning partition_id, tenant_id, chunk_id
)
select rag._enqueue(m.tenant_id, m.partition_id, array_agg(m.chunk_id), 10::smallint)
from made as m
group by m.tenant_id, m.partition_id
"""

# What must hold when nothing is under way; each line counts offenders.
INVARIANTS = """
select
    (
        select count(*)
        from rag.chunks as c
        where (
            select count(*) from rag.embeddings as e
            where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id
        ) <> 1
    ) as chunks_without_exactly_one_embedding,
    (
        select count(*)
        from rag.embeddings as e
        join rag.chunks as c using (tenant_id, chunk_id)
        where e.embedding <=> public.embed(c.content)::halfvec > 0.00001
    ) as embeddings_of_another_text,
    (
        select count(*)
        from rag.embeddings as e
        where not exists (
            select from rag.chunks as c
            where c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id
        )
    ) as embeddings_without_a_chunk,
    (select count(*) from rag.jobs) as jobs
"""


@dataclass(frozen=True)
class Claim:
    """What rag.claim_jobs gave."""

    token: UUID | None
    jobs: tuple[int, ...]
    texts: tuple[str, ...]


class Session:
    """A connection with the calls that the tests make."""

    def __init__(self, url: str) -> None:
        # A test that waits for ever fails instead.
        options = "-c statement_timeout=20s"
        self.connection = psycopg.connect(url, autocommit=True, options=options)
        self.pid = self.connection.info.backend_pid

    def value(self, statement: LiteralString, *parameters: object) -> Any:
        """The one value that a statement returns."""
        row = self.connection.execute(statement, parameters).fetchone()
        assert row is not None
        return row[0]

    def put(self, content: str, uri: str) -> int:
        """rag.put; the document's id."""
        return self.value("select rag.put(%s, %s)", content, uri)

    def put_many(self, *contents: str) -> None:
        """rag.put_many of documents that are their own uris."""
        self.connection.execute(
            "select from rag.put_many((select jsonb_agg(jsonb_build_object('content', c, 'uri', c))"
            " from unnest(%s::text[]) as c))",
            [list(contents)],
        )

    def claim(self, batch: int = 64, lease: str = "2 minutes") -> Claim:
        """rag.claim_jobs."""
        rows = self.connection.execute(
            "select lease_token, job_id, content from rag.claim_jobs('test', %s, %s)",
            [batch, lease],
        ).fetchall()
        token = rows[0][0] if rows else None
        return Claim(token, tuple(row[1] for row in rows), tuple(row[2] for row in rows))

    def complete(self, claim: Claim) -> int:
        """rag.complete_jobs with the vectors of the texts that were claimed; how many it stored."""
        return self.value(
            "select rag.complete_jobs(%s, %s, array(select public.embed(t.content)"
            " from unnest(%s::text[]) with ordinality as t (content, n) order by t.n))",
            claim.token,
            list(claim.jobs),
            list(claim.texts),
        )

    def drain(self) -> tuple[int, int]:
        """Claim and complete until no job is left; how many were claimed and stored."""
        claimed = stored = 0
        while self.value("select rag.next_due()") is not None:
            claim = self.claim(50)
            claimed += len(claim.jobs)
            stored += self.complete(claim)
            if not claim.jobs:
                time.sleep(0.01)
        return claimed, stored

    def listen(self) -> None:
        """Hear the doorbell."""
        self.connection.execute("listen rag_jobs")

    def idle(self) -> None:
        """rag.worker_idle."""
        self.connection.execute("select rag.worker_idle()")

    def awake(self) -> None:
        """rag.worker_awake."""
        self.connection.execute("select rag.worker_awake()")

    def heard(self) -> int:
        """How often the doorbell has rung since it was asked last."""
        # A notification is there once its transaction is, and sent before the next answer.
        self.connection.execute("select")
        return len(list(self.connection.notifies(timeout=0)))


class Queue:
    """A database of the test's own, with sessions of whom the queue is for."""

    def __init__(self, url: str, role: RoleFactory, stack: ExitStack) -> None:
        self._stack = stack
        self._url = url
        self._app = role("default")
        self._worker = role(member_of=("rag_worker",))
        self.admin = self.superuser()
        self.admin.connection.execute(EMBED)

    def superuser(self) -> Session:
        """Somebody who may do everything."""
        return self._session(self._url)

    def app(self) -> Session:
        """Somebody who puts documents."""
        return self._session(self._app.url)

    def worker(self) -> Session:
        """A worker: it may call the functions of the queue and nothing else of ours."""
        return self._session(self._worker.url)

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        """Call it in a thread of its own."""
        return self._stack.enter_context(ThreadPoolExecutor(1)).submit(call)

    def wait_until_blocked(self, session: Session) -> None:
        """Return once the session waits for a lock of another."""
        for _ in range(500):
            if self.admin.value("select cardinality(pg_blocking_pids(%s)) > 0", session.pid):
                return
            time.sleep(0.01)
        pytest.fail("the session does not wait for anybody")

    def offenders(self) -> dict[str, int]:
        """Which invariants do not hold, and how many rows offend."""
        cursor = self.admin.connection.execute(INVARIANTS)
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        row = cursor.fetchone()
        assert row is not None
        return {name: count for name, count in zip(names, row, strict=True) if count}

    def counts(self) -> tuple[int, int, int]:
        """How many chunks, embeddings and jobs there are."""
        row = self.admin.connection.execute(
            "select (select count(*) from rag.chunks), (select count(*) from rag.embeddings),"
            " (select count(*) from rag.jobs)"
        ).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def locks(self) -> int:
        """How many locks of the doorbell are held."""
        return self.admin.value(
            "select count(*) from pg_locks as l join pg_database as d on d.oid = l.database"
            " where l.locktype = 'advisory' and d.datname = current_database()"
            " and l.classid::bigint = rag._doorbell()"
        )

    def _session(self, url: str) -> Session:
        session = Session(url)
        self._stack.callback(session.connection.close)
        return session


@pytest.fixture
def queue(database: str, role: RoleFactory) -> Iterator[Queue]:
    with ExitStack() as stack:
        yield Queue(database, role, stack)


def test_two_claims_at_once_share_no_job(queue: Queue) -> None:
    queue.app().put_many(*(f"text {n}" for n in range(40)))
    first, second, third = (queue.worker() for _ in range(3))
    second.connection.execute("set lock_timeout = '1s'")
    with first.connection.transaction(force_rollback=True):
        one = first.claim(10)
        two = second.claim(10)
        three = third.claim(100)
    again = second.claim(100)
    assert [len(c.jobs) for c in (one, two, three, again)] == [10, 10, 20, 10]
    assert len({*one.jobs, *two.jobs, *three.jobs}) == 40
    assert set(again.jobs) == set(one.jobs), "a claim that is rolled back leaves no trace"


def test_eight_workers_store_each_embedding_once(queue: Queue) -> None:
    tenants = ("default", "a", "b", "c")
    for tenant in tenants[1:]:
        queue.admin.connection.execute("select rag.create_tenant(%s)", [tenant])
    for tenant in tenants:
        queue.admin.connection.execute(BULK, {"tenant": tenant, "count": 500})
    drains = [queue.start(queue.worker().drain) for _ in range(8)]
    claimed, stored = map(sum, zip(*(d.result() for d in drains), strict=True))
    assert (claimed, stored) == (2000, 2000)
    assert queue.counts() == (2000, 2000, 0)
    assert queue.offenders() == {}


def test_a_completion_whose_lease_went_to_another_is_dropped(queue: Queue) -> None:
    queue.app().put("text", "uri")
    first, second = queue.worker(), queue.worker()
    lost = first.claim(lease="1 ms")
    time.sleep(0.01)
    held = second.claim()
    assert held.jobs == lost.jobs
    assert first.complete(lost) == 0
    assert queue.counts() == (1, 0, 1)
    assert second.complete(held) == 1
    assert first.complete(lost) == 0
    assert queue.offenders() == {}


def test_a_completion_during_another_claim_is_dropped(queue: Queue) -> None:
    queue.app().put("text", "uri")
    first, second = queue.worker(), queue.worker()
    lost = first.claim(lease="1 ms")
    time.sleep(0.01)
    with second.connection.transaction():
        held = second.claim()
        late = queue.start(lambda: first.complete(lost))
        queue.wait_until_blocked(first)
    assert late.result() == 0
    assert second.complete(held) == 1
    assert queue.offenders() == {}


def test_a_claim_during_a_late_completion_gets_nothing(queue: Queue) -> None:
    queue.app().put("text", "uri")
    first, second = queue.worker(), queue.worker()
    late = first.claim(lease="1 ms")
    time.sleep(0.01)
    with first.connection.transaction():
        assert first.complete(late) == 1
        assert second.claim().jobs == ()
    assert second.claim().jobs == ()
    assert queue.offenders() == {}


@pytest.mark.parametrize("text", [None, "new"], ids=["deleted", "replaced"])
def test_a_text_that_goes_while_it_is_claimed_gets_no_embedding(
    queue: Queue, text: str | None
) -> None:
    app, worker = queue.app(), queue.worker()

    def go() -> None:
        if text is None:
            app.connection.execute("select rag.delete('uri')")
        else:
            app.put(text, "uri")

    # Before the completion.
    app.put("old", "uri")
    claim = worker.claim()
    go()
    assert worker.complete(claim) == 0

    # The completion waits for it.
    app.put("old", "uri")
    claim = worker.claim()
    with app.connection.transaction():
        go()
        completion = queue.start(lambda: worker.complete(claim))
        queue.wait_until_blocked(worker)
    assert completion.result() == 0

    # It waits for the completion.
    app.put("old", "uri")
    claim = worker.claim()
    with worker.connection.transaction():
        assert worker.complete(claim) == 1
        gone = queue.start(go)
        queue.wait_until_blocked(app)
    gone.result()

    worker.drain()
    assert queue.counts() == ((0, 0, 0) if text is None else (1, 1, 0))
    assert queue.offenders() == {}


def test_no_embedding_is_ever_of_an_old_text(queue: Queue) -> None:
    """Writers replace and delete a few documents while workers lose most of their leases."""
    deadline = time.monotonic() + 2

    def write(app: Session, chance: random.Random) -> int:
        puts = 0
        while time.monotonic() < deadline:
            uri = f"uri {chance.randrange(5)}"
            if chance.random() < 0.2:
                app.connection.execute("select rag.delete(%s)", [uri])
            else:
                app.put(f"text {chance.randrange(30)}", uri)
                puts += 1
        return puts

    def work(worker: Session, chance: random.Random) -> int:
        stored = 0
        while time.monotonic() < deadline:
            claim = worker.claim(3, lease="5 ms")
            time.sleep(chance.random() / 100)
            stored += worker.complete(claim)
        return stored

    runs = [
        *(partial(write, queue.app(), random.Random(n)) for n in range(2)),
        *(partial(work, queue.worker(), random.Random(n)) for n in range(3)),
    ]
    done = [run.result() for run in [queue.start(run) for run in runs]]
    assert min(done[:2]) > 20
    assert sum(done[2:]) > 20
    queue.admin.connection.execute("select rag.retry_failed()")
    queue.worker().drain()
    assert queue.offenders() == {}


@pytest.mark.parametrize(
    "call",
    ["select rag.extend_lease(%s)", "select rag.release_jobs(%s)", "select rag.delete('uri', %s)"],
    ids=["heartbeat", "release", "delete"],
)
def test_nobody_and_a_completion_wait_for_each_other(queue: Queue, call: LiteralString) -> None:
    app, worker, holder = queue.app(), queue.worker(), queue.admin
    app.value(
        "select rag.put(%s, 'uri', chunk_size => 50, chunk_overlap => 0)",
        "The first of two passages, long enough.\n\nAnd the second one, long enough too.",
    )
    claim = worker.claim()
    assert len(claim.jobs) == 2
    other = app if "delete" in call else queue.worker()
    parameter = "default" if "delete" in call else claim.token
    # The older job now lies behind the newer one: in the order of the table they would deadlock.
    holder.connection.execute(
        "update rag.jobs set due_at = due_at + interval '1 s' where job_id = %s", [min(claim.jobs)]
    )
    with holder.connection.transaction():
        holder.connection.execute(
            "select from rag.jobs where job_id = %s for update", [max(claim.jobs)]
        )
        first = queue.start(lambda: other.value(call, parameter))
        queue.wait_until_blocked(other)
        completion = queue.start(lambda: worker.complete(claim))
        queue.wait_until_blocked(worker)
    first.result()
    assert completion.result() == (2 if "extend" in call else 0)


def test_the_doorbell_rings_once_a_put_while_a_worker_is_idle(queue: Queue) -> None:
    app, worker = queue.app(), queue.worker()
    worker.listen()
    app.put("before", "uri")
    assert worker.heard() == 0, "nobody asked to be woken"
    worker.idle()
    app.put("first", "uri")
    assert worker.heard() == 1
    app.put_many(*(f"text {n}" for n in range(50)))
    assert worker.heard() == 1, "fifty documents are one bell"
    app.put("first", "uri")
    assert worker.heard() == 0, "nothing to do, no bell"
    with app.connection.transaction():
        for n in range(20):
            app.put(f"{n}", f"uri {n}")
        assert worker.heard() == 0, "it cannot see them yet"
    assert worker.heard() == 1, "twenty puts of one transaction are one bell"
    worker.awake()
    app.put("later", "uri")
    assert worker.heard() == 0, "who is at work looks for jobs by itself"


def test_the_payload_of_the_doorbell_tells_nothing(queue: Queue) -> None:
    worker = queue.worker()
    worker.listen()
    worker.idle()
    queue.app().put("a secret", "uri")
    worker.connection.execute("select")
    assert [n.payload for n in worker.connection.notifies(timeout=0)] == [""]


def test_parked_jobs_that_are_tried_again_ring_too(queue: Queue) -> None:
    worker = queue.worker()
    queue.app().put("text", "uri")
    claim = worker.claim()
    worker.value("select rag.fail_jobs(%s, %s, 'no', true)", claim.token, list(claim.jobs))
    worker.listen()
    worker.idle()
    queue.admin.connection.execute("select rag.retry_failed()")
    assert worker.heard() == 1


def test_all_idle_workers_hear_the_doorbell(queue: Queue) -> None:
    workers = [queue.worker() for _ in range(3)]
    for worker in workers:
        worker.listen()
        worker.idle()
    queue.app().put("text", "uri")
    assert [w.heard() for w in workers] == [1, 1, 1]


def test_falling_asleep_twice_is_like_once(queue: Queue) -> None:
    worker = queue.worker()
    worker.awake()
    worker.idle()
    worker.idle()
    assert queue.locks() == 1
    worker.awake()
    assert queue.locks() == 0
    worker.awake()


def test_a_long_transaction_keeps_no_worker_from_falling_asleep(queue: Queue) -> None:
    writer, other, worker = queue.app(), queue.app(), queue.worker()
    worker.connection.execute("set lock_timeout = '1s'")
    worker.listen()
    # The first put of a collection holds up others, which is no matter of the queue.
    writer.put("zero", "zero")
    worker.idle()
    with writer.connection.transaction():
        # Once it found somebody idle, once nobody.
        writer.put("one", "one")
        worker.awake()
        writer.put("two", "two")
        assert queue.locks() == 0, "the put holds nothing"
        worker.idle()
        assert queue.locks() == 1
        other.put("three", "three")
        assert worker.heard() == 1
    assert worker.heard() == 1


def test_a_killed_worker_leaves_nobody_ringing(queue: Queue) -> None:
    killed, listener = queue.worker(), queue.worker()
    listener.listen()
    killed.idle()
    assert queue.admin.value("select pg_terminate_backend(%s, 5000)", killed.pid)
    assert queue.locks() == 0
    queue.app().put("text", "uri")
    assert listener.heard() == 0
    listener.idle()
    assert queue.locks() == 1


def test_a_cancelled_put_leaves_no_lock(queue: Queue) -> None:
    """Cancelled between taking and giving back its lock, a session would keep it for ever."""
    writer = queue.superuser()
    for n in range(40):
        cancel = threading.Timer(
            0.002 + n / 20_000,
            lambda: queue.admin.connection.execute("select pg_cancel_backend(%s)", [writer.pid]),
        )
        cancel.start()
        # Now and then the cancellation comes before there is anything to cancel.
        with suppress(errors.QueryCanceled):
            writer.connection.execute(
                "do 'begin for i in 1 .. 5000 loop perform rag._ring(); end loop; end'"
            )
        cancel.join()
        assert queue.locks() == 0


def test_waiting_for_a_document_ends_when_it_is_embedded(queue: Queue) -> None:
    app, worker = queue.app(), queue.worker()
    document = app.put("text", "uri")
    wait = queue.start(lambda: app.value("select rag.wait_for(%s, '15 s')", document))
    time.sleep(0.2)
    assert not wait.done()
    worker.drain()
    begin = time.monotonic()
    assert wait.result() is True
    assert time.monotonic() - begin < 2


def test_waiting_for_a_document_ends_when_it_fails(queue: Queue) -> None:
    app, worker = queue.app(), queue.worker()
    document = app.put("text", "uri")
    wait = queue.start(lambda: app.value("select rag.wait_for(%s, '15 s')", document))
    claim = worker.claim()
    worker.value("select rag.fail_jobs(%s, %s, 'no', true)", claim.token, list(claim.jobs))
    begin = time.monotonic()
    assert wait.result() is False
    assert time.monotonic() - begin < 2


def test_waiting_for_a_document_that_is_deleted_meanwhile_is_an_error(queue: Queue) -> None:
    app, other = queue.app(), queue.app()
    document = app.put("text", "uri")
    wait = queue.start(lambda: app.value("select rag.wait_for(%s, '15 s')", document))
    time.sleep(0.1)
    other.connection.execute("select rag.delete('uri')")
    with pytest.raises(errors.NoDataFound, match="does not exist"):
        wait.result()
