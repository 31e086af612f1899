"""Ingest where it needs commits, two sessions or size; see tests/sql/test_30_ingest.sql too."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from db.migrate import migrate
from tests.grants import granted, policies
from tests.many_chunks import fill

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from db.server import Server
    from tests.conftest import Databases, RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]

# Everything of a tenant hangs together: no chunk without document, no embedding, lexemes or job
# without chunk, and every chunk has its embedding or a job.
FAULTS = """
select 'chunk without document', c.chunk_id
from rag.chunks as c
where not exists (
    select from rag.documents as d
    where d.tenant_id = c.tenant_id and d.document_id = c.document_id
)
union all
select 'without chunk: ' || r.kind, r.chunk_id
from (
    select 'embedding' as kind, e.tenant_id, e.chunk_id from rag.embeddings as e
    union all
    select 'lexemes', l.tenant_id, l.chunk_id from rag.lexemes as l
    union all
    select 'job', j.tenant_id, j.chunk_id from rag.jobs as j
) as r
where not exists (
    select from rag.chunks as c where c.tenant_id = r.tenant_id and c.chunk_id = r.chunk_id
)
union all
select 'embedding or job', c.chunk_id
from rag.chunks as c
where
    (
        select count(*)
        from rag.embeddings as e
        where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id
    ) + (
        select count(*)
        from rag.jobs as j
        where j.tenant_id = c.tenant_id and j.chunk_id = c.chunk_id
    ) <> 1
union all
select 'lexemes', c.chunk_id
from rag.chunks as c
where not exists (
    select from rag.lexemes as l where l.tenant_id = c.tenant_id and l.chunk_id = c.chunk_id
)
union all
select 'text', c.chunk_id
from rag.chunks as c
join rag.documents as d on d.tenant_id = c.tenant_id and d.document_id = c.document_id
where substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset) <> c.content
"""


@dataclass
class Session:
    """A second connection that works in a thread, so that it can wait for the first."""

    connection: Connection
    watcher: Connection
    executor: ThreadPoolExecutor

    def execute(self, query: LiteralString, parameters: Sequence[object] = ()) -> Rows:
        """Run a statement here and now; its rows."""
        cursor = self.connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def start(self, query: LiteralString, parameters: Sequence[object] = ()) -> Future[Rows]:
        """Run a statement that has to wait for a lock; returns once it does wait."""
        future = self.executor.submit(self.execute, query, parameters)
        pid = self.connection.info.backend_pid
        deadline = time.monotonic() + 20
        while not future.done():
            row = self.watcher.execute(
                "select wait_event_type from pg_stat_activity where pid = %s", [pid]
            ).fetchone()
            if row == ("Lock",):
                return future
            assert time.monotonic() < deadline, "the statement neither ended nor waited for a lock"
        future.result()
        pytest.fail("the statement did not wait")


class Sessions:
    """Makes sessions of one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._executor = ThreadPoolExecutor(max_workers=8)
        self._watcher = self._connect()
        self._made: list[Connection] = []

    def open(self) -> Session:
        connection = self._connect()
        connection.execute("set statement_timeout = '30s'")
        self._made.append(connection)
        return Session(connection, self._watcher, self._executor)

    def close(self) -> None:
        for connection in self._made:
            connection.cancel()
        self._executor.shutdown()
        for connection in [*self._made, self._watcher]:
            connection.close()

    def _connect(self) -> Connection:
        return psycopg.connect(self.url, autocommit=True)


@pytest.fixture(scope="module")
def shared_database(databases: Databases, template: str) -> Iterator[str]:
    """One database for the tests of this file: a new one for each would take half the time."""
    url = databases.create(template)
    yield url
    databases.close(url)


@pytest.fixture
def sessions(shared_database: str) -> Iterator[Sessions]:
    """Sessions of a database with the tenant default and nothing in it."""
    sessions = Sessions(shared_database)
    yield sessions
    sessions.close()
    with psycopg.connect(shared_database, autocommit=True) as connection:
        for (name,) in connection.execute("select name from rag.tenants").fetchall():
            connection.execute("select * from rag.drop_tenant(%s)", [name])
        connection.execute("select rag.create_tenant('default')")
        connection.execute("select rag.grant_tenant(session_user::text, 'default')")


@pytest.fixture
def session(sessions: Sessions) -> Session:
    """One session, where one is enough."""
    return sessions.open()


def ids(session: Session) -> Rows:
    return session.execute('select uri, content from rag.documents order by uri collate "C"')


def assert_sound(session: Session) -> None:
    assert session.execute(FAULTS) == []


def claim(session: Session) -> tuple[str, list[int]]:
    """Claim every job; the token and the ids."""
    rows = session.execute("select lease_token, job_id from rag.claim_jobs('test', 1000)")
    assert rows, "there is nothing to claim"
    return rows[0][0], [row[1] for row in rows]


COMPLETE: LiteralString = """
select rag.complete_jobs(
    %s, %s::bigint[],
    array(select array_fill(0.1::real, array[384])::vector from unnest(%s::bigint[]))
)
"""


def complete(claimed: tuple[str, list[int]]) -> Sequence[object]:
    """The parameters of COMPLETE."""
    token, jobs = claimed
    return token, jobs, jobs


# Two sessions, one uri


def test_two_sessions_that_put_the_same_uri_make_one_document(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("begin")
    first_id = first.execute("select rag.put('one', 'u', 'First')")
    waiting = second.start("select rag.put('two', 'u', 'Second')")
    first.execute("commit")
    assert waiting.result() == first_id
    assert first.execute("select content, title from rag.documents") == [("two", "Second")]
    assert first.execute("select content from rag.chunks") == [("two",)]
    assert_sound(first)


def test_the_second_of_two_that_put_the_same_finds_it_unchanged(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("begin")
    first.execute("select rag.put('one', 'u')")
    waiting = second.start(
        """select status from rag.put_many('[{"content": "one", "uri": "u"}]')"""
    )
    first.execute("commit")
    assert waiting.result() == [("unchanged",)]
    assert_sound(first)


def test_who_waits_for_a_put_that_is_rolled_back_inserts(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("begin")
    first.execute("select rag.put('one', 'u')")
    waiting = second.start(
        """select status from rag.put_many('[{"content": "two", "uri": "u"}]')"""
    )
    first.execute("rollback")
    assert waiting.result() == [("inserted",)]
    assert ids(first) == [("u", "two")]
    assert_sound(first)


def test_two_edits_of_one_document_come_one_after_the_other(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("select rag.put('zero', 'u')")
    first.execute("begin")
    first.execute("select rag.put('one', 'u')")
    waiting = second.start("select rag.put('two', 'u')")
    first.execute("commit")
    waiting.result()
    assert first.execute("select content from rag.chunks") == [("two",)]
    assert first.execute("select count(*) from rag.jobs") == [(1,)]
    assert_sound(first)


def test_a_put_in_an_old_snapshot_fails_and_can_be_tried_again(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("begin isolation level repeatable read")
    first.execute("select count(*) from rag.documents")
    second.execute("select rag.put('two', 'u')")
    with pytest.raises(errors.SerializationFailure):
        first.execute("select rag.put('one', 'u')")
    first.execute("rollback")
    first.execute("select rag.put('one', 'u')")
    assert ids(first) == [("u", "one")]
    assert_sound(first)


def documents(uris: Sequence[str], content: str) -> Jsonb:
    return Jsonb([{"uri": uri, "content": f"{content} {uri}"} for uri in uris])


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
def test_put_many_in_opposite_orders_does_not_deadlock(sessions: Sessions, is_new: bool) -> None:
    holder, up, down = sessions.open(), sessions.open(), sessions.open()
    uris = [f"{letter}é" for letter in "aBcDeFgHiJkLmNoP"]
    if not is_new:
        holder.execute("select * from rag.put_many(%s)", [documents(uris, "old")])
    # Both get to the middle, each holding what it took before.
    holder.execute("begin")
    holder.execute("select rag.put('held', %s)", [uris[8]])
    query: LiteralString = "select count(*) from rag.put_many(%s)"
    first = up.start(query, [documents(uris, "up")])
    second = down.start(query, [documents(uris[::-1], "down")])
    holder.execute("commit")
    assert first.result() == second.result() == [(len(uris),)]
    contents = {content.split()[0] for _, content in ids(holder)}
    assert contents in ({"up"}, {"down"})
    assert_sound(holder)


def test_puts_of_many_sessions_at_random_neither_deadlock_nor_double(sessions: Sessions) -> None:
    watcher = sessions.open()
    uris = [f"u{i}" for i in range(12)]

    def work(number: int) -> None:
        chance = random.Random(number)
        session = sessions.open()
        for turn in range(12):
            some = chance.sample(uris, 5)
            if chance.random() < 0.3:
                session.execute("select rag.delete(%s)", [some[0]])
            else:
                given = documents(some, f"text {number} {turn}")
                rows = session.execute("select uri from rag.put_many(%s)", [given])
                assert [uri for (uri,) in rows] == some

    with ThreadPoolExecutor(max_workers=4) as executor:
        list(executor.map(work, range(4)))
    assert watcher.execute("select uri from rag.documents group by uri having count(*) > 1") == []
    assert_sound(watcher)


# Put and delete


def test_a_put_that_waits_for_a_delete_makes_a_new_document(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    [(old,)] = first.execute("select rag.put('one', 'u')")
    first.execute("begin")
    assert first.execute("select rag.delete('u')") == [(True,)]
    waiting = second.start("select rag.put('one', 'u')")
    first.execute("commit")
    assert waiting.result()[0][0] > old
    assert ids(first) == [("u", "one")]
    assert_sound(first)


def test_a_put_that_waits_for_a_delete_goes_on_counting_versions(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("select rag.create_collection('kept')")
    first.execute("select rag.set_retention('kept', 5, null, '1 day')")
    first.execute("select rag.put('one', 'u', collection => 'kept')")
    first.execute("begin")
    first.execute("select rag.delete('u', 'kept')")
    waiting = second.start("select rag.put('two', 'u', collection => 'kept')")
    first.execute("commit")
    waiting.result()
    first.execute("select rag.put('three', 'u', collection => 'kept')")
    history = "select version, state from rag.history('u', 'kept')"
    assert first.execute(history) == [(3, "current"), (2, "past"), (1, "deleted")]
    assert first.execute("select content from rag.get('u', 'kept', 1)") == [("one",)]
    first.execute("select rag.restore('u', 1, 'kept')")
    assert first.execute("select content from rag.get('u', 'kept')") == [("one",)]
    assert [version for version, _ in first.execute(history)] == [4, 3, 2, 1]


def test_a_put_that_waits_for_a_delete_rolled_back_finds_the_document(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    old = first.execute("select rag.put('one', 'u')")
    first.execute("begin")
    first.execute("select rag.delete('u')")
    waiting = second.start("select rag.put('one', 'u')")
    first.execute("rollback")
    assert waiting.result() == old
    assert_sound(first)


def test_a_delete_that_waits_for_a_put_takes_what_it_put(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("select rag.put('zero', 'u')")
    first.execute("begin")
    first.execute("select rag.put(E'one\\n\\ntwo', 'u')")
    waiting = second.start("select rag.delete('u')")
    first.execute("commit")
    assert waiting.result() == [(True,)]
    assert (
        first.execute(
            "select 1 from rag.documents union all select 2 from rag.chunks "
            "union all select 3 from rag.lexemes union all select 4 from rag.jobs"
        )
        == []
    )


def test_of_two_deletes_one_says_that_it_was_there(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("select rag.put('one', 'u')")
    first.execute("begin")
    assert first.execute("select rag.delete('u')") == [(True,)]
    waiting = second.start("select rag.delete('u')")
    first.execute("commit")
    assert waiting.result() == [(False,)]


# Delete and the embedder

CHANGES = [
    pytest.param("select rag.delete('u')", id="delete"),
    pytest.param("select rag.put('another text', 'u')", id="edit"),
    pytest.param("select * from rag.drop_tenant('default')", id="drop"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_deleted_while_it_is_completed_leaves_no_embedding(
    sessions: Sessions, change: LiteralString
) -> None:
    user, worker = sessions.open(), sessions.open()
    user.execute("select rag.put('one', 'u')")
    claimed = claim(worker)
    worker.execute("begin")
    assert worker.execute(COMPLETE, complete(claimed)) == [(1,)]
    waiting = user.start(change)
    worker.execute("commit")
    waiting.result()
    assert user.execute("select count(*) from rag.embeddings") == [(0,)]
    assert_sound(user)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_completed_while_it_is_deleted_is_dropped(
    sessions: Sessions, change: LiteralString
) -> None:
    user, worker = sessions.open(), sessions.open()
    user.execute("select rag.put('one', 'u')")
    claimed = claim(worker)
    user.execute("begin")
    user.execute(change)
    waiting = worker.start(COMPLETE, complete(claimed))
    user.execute("commit")
    assert waiting.result() == [(0,)]
    assert user.execute("select count(*) from rag.embeddings") == [(0,)]
    assert_sound(user)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_completed_while_a_delete_is_rolled_back_is_stored(
    sessions: Sessions, change: LiteralString
) -> None:
    user, worker = sessions.open(), sessions.open()
    user.execute("select rag.put('one', 'u')")
    claimed = claim(worker)
    user.execute("begin")
    user.execute(change)
    waiting = worker.start(COMPLETE, complete(claimed))
    user.execute("rollback")
    assert waiting.result() == [(1,)]
    assert_sound(user)


@pytest.mark.parametrize("change", CHANGES)
def test_delete_and_complete_lock_jobs_in_the_same_order(
    sessions: Sessions, change: LiteralString
) -> None:
    user, worker, holder = sessions.open(), sessions.open(), sessions.open()
    text = "\n\n".join(f"{word} " * 100 for word in ("one", "two", "three", "four"))
    user.execute("select rag.put(%s, 'u', chunk_size => 600)", [text])
    token, jobs = claim(worker)
    first, last = min(jobs), max(jobs)
    assert first < last
    # The first job's row moves behind the others, where a scan of the table meets it last; the
    # index would meet it first. A lock is what both of them wait for.
    user.execute("update rag.jobs set worker = 'moved' where job_id = %s", [first])
    holder.execute("begin")
    holder.execute("select from rag.jobs where job_id = %s for update", [first])
    completing = worker.start(COMPLETE, complete((token, jobs)))
    user.execute("set enable_indexscan = off")
    user.execute("set enable_bitmapscan = off")
    changing = user.start(change)
    holder.execute("commit")
    completing.result()
    changing.result()
    assert_sound(user)


# Dropping a tenant


def test_a_tenant_is_dropped_after_the_put_that_is_under_way(sessions: Sessions) -> None:
    user, admin = sessions.open(), sessions.open()
    user.execute("begin")
    user.execute("select rag.put('one', 'u')")
    waiting = admin.start("select kind, rows from rag.drop_tenant('default') where rows > 0")
    user.execute("commit")
    assert dict(waiting.result())["documents"] == 1
    assert admin.execute("select count(*) from rag.chunks") == [(0,)]


@pytest.mark.parametrize("change", ["select rag.put('one', 'u')", "select rag.delete('u')"])
def test_a_write_that_waits_for_the_drop_of_its_tenant_is_refused(
    sessions: Sessions, change: LiteralString
) -> None:
    user, admin = sessions.open(), sessions.open()
    admin.execute("begin")
    admin.execute("select * from rag.drop_tenant('default')")
    waiting = user.start(change)
    admin.execute("commit")
    with pytest.raises(psycopg.Error) as refused:
        waiting.result()
    assert refused.value.sqlstate == "RG002"
    assert admin.execute("select count(*) from rag.documents") == [(0,)]


def test_of_two_drops_the_second_finds_no_tenant(sessions: Sessions) -> None:
    first, second = sessions.open(), sessions.open()
    first.execute("begin")
    first.execute("select * from rag.drop_tenant('default')")
    waiting = second.start("select * from rag.drop_tenant('default')")
    first.execute("commit")
    with pytest.raises(psycopg.Error) as refused:
        waiting.result()
    assert refused.value.sqlstate == "RG002"


def test_a_put_that_waits_for_a_drop_rolled_back_goes_on(sessions: Sessions) -> None:
    user, admin = sessions.open(), sessions.open()
    admin.execute("begin")
    admin.execute("select * from rag.drop_tenant('default')")
    waiting = user.start("select rag.put('one', 'u')")
    admin.execute("rollback")
    waiting.result()
    assert ids(admin) == [("u", "one")]
    assert_sound(admin)


# Bad input and interruptions


def test_an_error_in_the_middle_of_put_many_leaves_nothing(session: Session) -> None:
    given = [{"content": f"text {i}", "uri": f"u{i}"} for i in range(50)]
    given[25]["content"] = " "
    with pytest.raises(errors.InvalidParameterValue) as refused:
        session.execute("select * from rag.put_many(%s)", [Jsonb(given)])
    assert "26" in (refused.value.diag.message_detail or "")
    assert ids(session) == []


def test_a_put_that_is_cancelled_leaves_nothing(sessions: Sessions) -> None:
    session, watcher = sessions.open(), sessions.open()
    text = "\n\n".join(f"Paragraph {i} tells of the number {i * i}. " * 8 for i in range(20_000))
    future = sessions.open().executor.submit(session.execute, "select rag.put(%s, 'u')", [text])
    pid = session.connection.info.backend_pid
    # Its document is written, its chunks are not.
    while not future.done():
        [(held,)] = watcher.execute(
            "select count(*) from pg_locks where pid = %s and mode = 'RowExclusiveLock' "
            "and relation = 'rag.documents'::regclass",
            [pid],
        )
        if held:
            break
    watcher.execute("select pg_cancel_backend(%s)", [pid])
    with pytest.raises(errors.QueryCanceled):
        future.result()
    assert ids(watcher) == []
    assert watcher.execute("select count(*) from rag.chunks") == [(0,)]
    session.execute("select rag.put('one', 'u')")
    assert_sound(watcher)


@pytest.mark.parametrize(
    ("query", "parameter", "error"),
    [
        ("select rag.put(%s)", "a\0b", psycopg.DataError),
        ("select rag.put('x', %s)", "a\0b", psycopg.DataError),
        ("select rag.put('x', metadata => %s)", Jsonb({"a": "\0"}), psycopg.DataError),
        ("select rag.put_many(%s)", Jsonb([{"content": "a\0b"}]), psycopg.DataError),
        ("select rag.put(%s)", "half \ud83d pair", UnicodeEncodeError),
        ("select rag.put_many(%s)", Jsonb([{"content": "half \ud83d pair"}]), psycopg.DataError),
        ("select rag.put(convert_from(%s, 'UTF8'))", b"\xff\xfe", psycopg.DataError),
    ],
    ids=["text", "uri", "metadata", "jsonb", "surrogate", "surrogate in jsonb", "no utf-8"],
)
def test_what_is_no_text_is_refused_and_nothing_stored(
    session: Session, query: LiteralString, parameter: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        session.execute(query, [parameter])
    assert ids(session) == []


# Size


def prose(bytes_wanted: int) -> str:
    """Text with paragraphs, headings, accents and a vocabulary of 60,000 words, as books have."""
    chance = random.Random(7)
    syllables = list(zip("bcdfghklmnpqrstvwxyzñß", "aeioueéiöuaeioüaeiouáa", strict=True))
    words = [
        "".join(map("".join, chance.choices(syllables, k=chance.randint(1, 4))))
        for _ in range(60_000)
    ]
    # Zipf: the word of rank n comes 1/n as often as the first.
    weights = [1 / (n + 1) for n in range(len(words))]
    parts: list[str] = []
    size = 0
    while size < bytes_wanted:
        if chance.random() < 0.03:
            part = "## " + " ".join(chance.choices(words, weights, k=4)).title()
        else:
            stream = chance.choices(words, weights, k=chance.randint(40, 200))
            sentences = [
                " ".join(stream[i : i + 14]).capitalize() + "." for i in range(0, len(stream), 14)
            ]
            part = " ".join(sentences)
        parts.append(part)
        size += len(part.encode()) + 2
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def book() -> str:
    """1 MB of prose 5 times, with other words at the start of each paragraph.

    `make test-large` takes it 50 times: indexing 67,000 chunks is a minute of work.
    """
    once = prose(1_000_000)
    volumes = int(os.environ.get("RAGDB_TEST_MB", "5"))
    return "\n\n".join(once.replace("\n\n", f"\n\nVolume {i} ") for i in range(volumes))


def peak_memory(pid: int) -> int:
    """The most memory that a process of this machine had, in MB, shared buffers included."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert match
    return int(match[1]) // 1024


def test_a_large_document_goes_in_and_comes_back(session: Session, book: str) -> None:
    connection = session.connection
    connection.execute("set statement_timeout = '600s'")
    started = time.monotonic()
    connection.execute("select rag.put(%s, 'book')", [book])
    seconds = time.monotonic() - started
    row = connection.execute(
        "select count(*), min(start_offset), max(end_offset) from rag.chunks"
    ).fetchone()
    assert row is not None
    chunks, first, last = row
    megabytes = peak_memory(connection.info.backend_pid)
    print(f"{len(book.encode()) / 1e6:.0f} MB: {seconds:.1f} s, {chunks} chunks, {megabytes} MB")
    assert megabytes < 1500
    assert chunks > len(book) / 1000
    assert first == 0
    assert last == len(book.rstrip())
    # By offsets, counted in characters on this side as well.
    wrong = 0
    with connection.transaction(), connection.cursor("chunks") as cursor:
        cursor.execute("select start_offset, end_offset, content from rag.chunks")
        for start, end, content in cursor:
            wrong += book[start:end] != content
    assert wrong == 0
    assert connection.execute("select content = %s from rag.documents", [book]).fetchone() == (
        True,
    )
    started = time.monotonic()
    connection.execute("select rag.put(%s, 'book')", [book])
    assert time.monotonic() - started < 60, "the same again is a no-op"
    assert connection.execute("select rag.delete('book')").fetchone() == (True,)


# Dump and restore


def program(server: Server, name: str) -> str:
    """The path of a program of the embedded server's version."""
    return str(server.binaries / name)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def answers(url: str) -> Rows:
    """What a user of the database gets."""
    vector = "[" + ",".join(["0.1"] * 384) + "]"
    with psycopg.connect(url, autocommit=True) as connection:
        # Of a few hundred vectors the HNSW index is asked only where sorting all looks dearer.
        connection.execute("set enable_sort = off")
        connection.execute("select rag.set_tenant('acme')")
        rows = connection.execute(
            "select rank, score, uri, content, similarity "
            "from rag.search('anvil', embedding => %s)",
            [vector],
        ).fetchall()
        rows += connection.execute("select * from rag.documents order by uri").fetchall()
        rows += connection.execute(
            "select tenant, embedded, waiting from rag.progress()"
        ).fetchall()
        return rows


INDEXES = """
select pg_get_indexdef(x.indexrelid), a.amname, x.indisvalid and x.indisready
from pg_index as x
join pg_class as i on i.oid = x.indexrelid
join pg_am as a on a.oid = i.relam
where i.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace)
order by 1
"""


def test_a_restored_dump_is_as_good_as_the_original(
    server: Server,
    database: str,
    empty_database: str,
    connection: Connection,
    role: RoleFactory,
    tmp_path: Path,
) -> None:
    # One in a partition of his own, with an HNSW index, and one in a shared partition.
    fill(connection, "acme", 300)
    connection.execute("call rag.isolate_tenant('acme')")
    connection.execute("select rag.create_tenant('globex')")
    user = role("acme")
    with psycopg.connect(user.url, autocommit=True) as app:
        app.execute("select rag.set_tenant('acme')")
        app.execute("select rag.put(%s, 'a', 'Title', '{\"n\": 1}')", ["An anvil. É 🦊\n\nTwo."])
        app.execute("select rag.put('Später ein anvil', 'b', language => 'german')")
    connection.execute(
        "select rag.complete_jobs(c.lease_token, array_agg(c.job_id), "
        "array_agg(array_fill(0.1::real, array[384])::vector)) "
        "from rag.claim_jobs('w', 1) as c group by c.lease_token"
    )
    connection.execute("select rag.set_tenant('globex')")
    connection.execute("select rag.put('secret anvil', 'secret')")
    connection.execute("create role test_dropped")
    connection.execute("select rag.grant_tenant('test_dropped', 'globex')")
    connection.execute("drop role test_dropped")
    before = answers(user.url)

    dump = str(tmp_path / "dump.sql")
    run(program(server, "pg_dump"), "--dbname", database, "--file", dump)
    run(
        program(server, "psql"),
        *("--dbname", empty_database, "--file", dump),
        *("--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--output", "/dev/null"),
    )

    with psycopg.connect(empty_database, autocommit=True) as restored:
        assert granted(restored) == granted(connection)
        assert policies(restored) == policies(connection)
        assert (
            restored.execute(
                "select a.name, a.detail from rag.audit() as a where not a.passed "
                "and a.name not in ('PostgreSQL', 'pgvector')"
            ).fetchall()
            == []
        )
        # The queue goes on where it was, and ids do not begin anew.
        waiting = "select chunk_id, model_id, content_hash from rag.jobs order by 1"
        jobs = restored.execute(waiting).fetchall()
        assert jobs == connection.execute(waiting).fetchall() != []
        restored.execute("select rag.set_tenant('acme')")
        restored.execute("select rag.put('Another', 'c')")
        restored.execute("select rag.delete('c')")
        # Not any number: after a crash of the server sequences go on a little further.
        third = "select rag.create_tenant('third')"
        assert restored.execute(third).fetchone() == connection.execute(third).fetchone()
    # RLS is asked as the application.
    url = empty_database.replace("postgres@", f"{user.name}@")
    assert answers(url) == before
    # Nor do indexes hang on what was set in the session that restored them.
    with psycopg.connect(empty_database, autocommit=True) as restored:
        made = restored.execute(INDEXES).fetchall()
        assert made == connection.execute(INDEXES).fetchall()
        assert "hnsw" in {method for _, method, _ in made}
        restored.execute("set search_path = ''")
        restored.execute("reindex schema rag")
        restored.execute("reindex schema rag_data")
        restored.execute("analyze")
        restored.execute("reset search_path")
        assert restored.execute(INDEXES).fetchall() == made
    assert answers(url) == before
    with (
        psycopg.connect(url, autocommit=True) as app,
        pytest.raises(errors.InsufficientPrivilege),
    ):
        app.execute("select rag.set_tenant('globex')")
    assert migrate(empty_database).migrations == ()
    assert answers(url) == before
    # A grant of nobody does not stay until its number is somebody's.
    with psycopg.connect(empty_database) as restored:
        assert restored.execute(
            "select count(*) from rag.tenant_grants where role not in (select oid from pg_roles)"
        ).fetchone() == (0,)


def test_a_dump_by_an_application_fails_instead_of_being_a_part(
    connection: psycopg.Connection[tuple[Any, ...]],
    database: str,
    server: Server,
    role: RoleFactory,
) -> None:
    for tenant in ("acme", "globex"):
        connection.execute("select rag.create_tenant(%s)", [tenant])
        connection.execute("select rag.set_tenant(%s)", [tenant])
        connection.execute("select rag.put(%s, 'a')", [f"Text of {tenant}."])

    def dumped(url: str, *options: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [program(server, "pg_dump"), "--dbname", url, *options],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, text, error = dumped(database, "--role", "rag_owner")
    assert (code, error) == (0, "")
    assert "Text of acme." in text
    assert "Text of globex." in text
    # A role that may read the tenant, of a login that need not name him.
    user = role("acme")
    settings = sql.SQL("alter role {} set rag.tenant = 'acme'").format(sql.Identifier(user.name))
    connection.execute(settings)
    code, text, error = dumped(user.url)
    assert (code, "Text of" in text) == (1, False)
    assert "permission denied" in error
    # And where he has the right to read the table.
    code, text, error = dumped(user.url, "--table", "rag.documents")
    assert (code, "Text of" in text) == (1, False)
    assert "row-level security" in error
