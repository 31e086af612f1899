"""Quotas, usage, suspending and resuming: what is counted, refused, and not lost."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb

from embedder.errors import QuotaReachedError, TenantSuspendedError, from_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def owner(connection: Connection) -> Connection:
    connection.execute("select rag.create_tenant('acme')")
    connection.execute("select rag.create_tenant('globex')")
    return connection


@pytest.fixture
def acme(owner: Connection, role: RoleFactory) -> Iterator[Connection]:
    del owner
    with psycopg.connect(role("acme").url, autocommit=True) as app:
        app.execute("select rag.set_tenant('acme')")
        yield app


def put(connection: Connection, uri: str, content: str = "common words") -> None:
    connection.execute("select rag.put(%s, %s)", [content, uri])


def usage(connection: Connection) -> tuple[Any, ...]:
    """documents, chunks and bytes of acme."""
    [row] = connection.execute(
        "select u.documents, u.chunks, u.bytes from rag.usage() as u where u.tenant = 'acme'"
    ).fetchall()
    return row


def counted(connection: Connection) -> tuple[Any, ...]:
    """The same, counted in the tables."""
    [row] = connection.execute(
        "select (select count(*) from rag.documents), (select count(*) from rag.chunks), "
        "(select coalesce(sum(octet_length(content)), 0) from rag.documents) "
        "+ (select coalesce(sum(octet_length(content)), 0) from rag.past_documents)"
    ).fetchall()
    return row


def refused(connection: Connection, call: LiteralString, state: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as refusal:
        connection.execute(call)
    assert refusal.value.sqlstate == state, refusal.value
    return refusal.value


def early_in_a_minute() -> None:
    """Counts begin anew with each minute of the clock: wait for the next where it is near."""
    if (left := 60 - time.time() % 60) < 8:
        time.sleep(left + 0.1)


def test_no_more_documents_than_the_quota(owner: Connection, acme: Connection) -> None:
    owner.execute("select rag.set_quota('acme', documents => 2)")
    put(acme, "one")
    put(acme, "two")
    error = refused(acme, "select rag.put('x', 'three')", "RG020")
    assert error.diag.message_primary == "the quota of documents is reached"
    assert "would have 3 documents" in str(error.diag.message_detail)
    assert "the limit is 2" in str(error.diag.message_detail)
    assert "rag.set_quota" in str(error.diag.message_hint)
    assert isinstance(from_database(error), QuotaReachedError)
    refused(
        acme,
        'select * from rag.put_many(\'[{"content": "x"}, {"content": "y"}]\')',
        "RG020",
    )
    assert usage(acme) == counted(acme)
    assert usage(acme)[0] == 2
    # What is there may be replaced, and what is deleted makes room.
    put(acme, "two", "other words")
    acme.execute("select rag.delete('one')")
    put(acme, "three")
    # The other tenant has no limit.
    owner.execute("select rag.set_tenant('globex')")
    for uri in "abc":
        put(owner, uri)


def test_no_more_chunks_and_bytes_than_the_quota(owner: Connection, acme: Connection) -> None:
    text = "\n\n".join(f"# Part {n}\n\n{'word ' * 60}" for n in range(4))
    put(acme, "long", text)
    [_, chunks, size] = usage(acme)
    owner.execute("select rag.set_quota('acme', chunks => %s)", [chunks])
    refused(acme, "select rag.put('x', 'more')", "RG020")
    # The same text cut into smaller pieces would be more of them.
    error = refused(
        acme,
        "select rag.put(d.content, d.uri, chunk_size => 100, chunk_overlap => 0) "
        "from rag.documents as d",
        "RG020",
    )
    assert "chunks" in str(error.diag.message_primary)
    owner.execute("select rag.set_quota('acme', bytes => %s)", [size + 5])
    put(acme, "five", "ñññ"[:2])
    error = refused(acme, "select rag.put('ñ', 'two')", "RG020")
    assert f"would have {size + 6} bytes" in str(error.diag.message_detail)
    # Who has too much may have less.
    owner.execute("select rag.set_quota('acme', documents => 0, chunks => 0, bytes => 1)")
    put(acme, "long", text[: len(text) // 2])
    refused(acme, "select rag.put('x', 'more')", "RG020")
    owner.execute("select rag.set_quota('acme')")
    put(acme, "more")
    assert usage(acme) == counted(acme)


def test_puts_in_a_minute(owner: Connection, acme: Connection) -> None:
    owner.execute("select rag.set_quota('acme', puts_per_minute => 5)")
    early_in_a_minute()
    put(acme, "one")
    acme.execute('select * from rag.put_many(\'[{"content": "x"}, {"content": "y"}]\')')
    # What is rolled back was work all the same.
    with acme.transaction(force_rollback=True):
        put(acme, "two")
    put(acme, "one")
    error = refused(acme, "select rag.put('x', 'three')", "RG021")
    assert error.diag.message_primary == "too many puts in a minute"
    assert "number 6 of the minute; the limit is 5" in str(error.diag.message_detail)
    assert "next minute begins in" in str(error.diag.message_hint)
    # More than the limit at once could never be: no minute is used up for it.
    documents = Jsonb([{"content": str(n)} for n in range(6)])
    with pytest.raises(psycopg.Error) as refusal:
        acme.execute("select * from rag.put_many(%s)", [documents])
    assert refusal.value.sqlstate == "RG021"
    [row] = owner.execute(
        "select u.puts_this_minute, u.puts_per_minute, u.searches_this_minute "
        "from rag.usage() as u where u.tenant = 'acme'"
    ).fetchall()
    assert row == (6, 5, None)
    acme.execute("select uri from rag.search('common')")


def test_imports_are_puts_in_a_minute(owner: Connection, acme: Connection) -> None:
    for n in range(4):
        put(acme, f"u{n}")
    said = [line for (line,) in acme.execute("select line from rag.export_tenant('acme')")]
    acme.execute("select rag.delete(d.uri) from rag.documents as d")
    owner.execute("select rag.set_quota('acme', puts_per_minute => 5)")
    early_in_a_minute()
    acme.execute("select * from rag.import_lines('acme', %s)", [said])
    # What is there already costs no more than the call.
    acme.execute("select * from rag.import_lines('acme', %s)", [said])
    with pytest.raises(psycopg.Error) as refusal:
        acme.execute("select * from rag.import_lines('acme', %s)", [said])
    assert refusal.value.sqlstate == "RG021"
    owner.execute("select * from rag.import_lines('acme', %s)", [said])


def test_quotas_of_a_clone_hold(owner: Connection) -> None:
    owner.execute("select rag.set_quota('acme', puts_per_minute => 1, searches_per_minute => 1)")
    [(first, *_)] = owner.execute("select line from rag.export_tenant('acme') limit 1").fetchall()
    owner.execute("select * from rag.clone_tenant('acme', 'cloned')")
    owner.execute("select rag.create_tenant('imported')")
    owner.execute("select * from rag.import_lines('imported', %s)", [[first]])
    for name in ("cloned", "imported"):
        owner.execute("select rag.set_tenant(%s)", [name])
        early_in_a_minute()
        put(owner, "one")
        refused(owner, "select rag.put('x', 'two')", "RG021")
        owner.execute("select * from rag.search('x')")
        refused(owner, "select * from rag.search('x')", "RG021")


def test_searches_in_a_minute(owner: Connection, acme: Connection) -> None:
    put(acme, "one")
    with acme.transaction():
        acme.execute("set transaction read only")
        acme.execute("select uri from rag.search('common')")
    owner.execute("select rag.set_quota('acme', searches_per_minute => 4)")
    early_in_a_minute()
    for call in (
        "select uri from rag.search('common')",
        "select item from rag.explain('common', mode => 'lexical')",
        # Called apart from rag.search, which any application may do.
        "select rag._passages('common', 1, null, null, null, 'lexical', null, null, null, null, 0,"
        " null, null)",
    ):
        acme.execute(call.encode())
    with acme.transaction(force_rollback=True):
        acme.execute("select uri from rag.search('common')")
    refused(acme, "select uri from rag.search('common')", "RG021")
    # A transaction that cannot count is no way around.
    acme.execute("set default_transaction_read_only = on")
    refused(acme, "select uri from rag.search('common')", "25006")
    acme.execute("set default_transaction_read_only = off")
    put(acme, "two")
    owner.execute("select rag.set_quota('acme')")
    with acme.transaction():
        acme.execute("set transaction read only")
        acme.execute("select uri from rag.search('common')")


def test_a_new_minute_counts_anew(owner: Connection, acme: Connection) -> None:
    owner.execute("select rag.set_quota('acme', searches_per_minute => 1)")
    early_in_a_minute()
    acme.execute("select uri from rag.search('common')")
    refused(acme, "select uri from rag.search('common')", "RG021")
    [tenant] = owner.execute("select tenant_id from rag.tenants where name = 'acme'").fetchall()
    # As it was a minute ago, and as it would be after the clock was put back by an hour.
    for minutes in (-1, 60):
        owner.execute(
            "select setval(rag._counter(%s, 'searches'), rag._minute() + %s * 1000000000::bigint)",
            [tenant[0], minutes],
        )
        acme.execute("select uri from rag.search('common')")
        refused(acme, "select uri from rag.search('common')", "RG021")


@pytest.mark.parametrize(
    "call",
    [
        "rag.set_quota('acme', documents => -1)",
        "rag.set_quota('acme', searches_per_minute => 2000000000)",
        "rag.set_quota('acme', puts_per_minute => -1)",
    ],
)
def test_quotas_that_cannot_be(owner: Connection, call: LiteralString) -> None:
    refused(owner, f"select {call}", "22023")


def test_puts_of_one_tenant_do_not_wait_for_each_other(
    owner: Connection, acme: Connection, role: RoleFactory
) -> None:
    owner.execute("select rag.set_quota('acme', 1000000, 1000000, 1000000000, 1000, 1000)")
    # The very first put of a tenant keeps others out: it says how long chunks are.
    put(acme, "first")
    with psycopg.connect(role("acme").url) as other:
        other.execute("select rag.set_tenant('acme')")
        # 32 of them: so that one takes in what the others noted.
        for n in range(40):
            other.execute("select rag.put('held open', %s)", [f"held {n}"])
        acme.execute("set statement_timeout = '5s'")
        for n in range(40):
            put(acme, f"free {n}")
            acme.execute("select rag.delete(%s)", [f"free {n}"])
        acme.execute("select uri from rag.search('held')")
        other.rollback()
    assert usage(acme) == counted(acme) == (1, 1, len("common words"))


def test_several_at_once_do_not_pass_a_quota(
    owner: Connection, acme: Connection, role: RoleFactory
) -> None:
    owner.execute("select rag.set_quota('acme', documents => 20, bytes => 2000)")
    url = role("acme").url

    def work(call: LiteralString, seed: int) -> list[str | None]:
        refusals: list[str | None] = []
        with psycopg.connect(url, autocommit=True) as app:
            app.execute("select rag.set_tenant('acme')")
            for n in range(12):
                try:
                    app.execute(call, {"name": f"{seed}-{n}", "text": "x" * 150})
                except psycopg.Error as error:
                    refusals.append(error.sqlstate)
        return refusals

    for call in (
        "select rag.put(%(text)s, %(name)s)",
        "select rag.upload(%(name)s, convert_to(%(text)s, 'UTF8'), uri => %(name)s || '.txt')",
    ):
        with ThreadPoolExecutor(4) as threads:
            refusals = list(chain.from_iterable(threads.map(partial(work, call), range(4))))
        assert refusals == ["RG020"] * (4 * 12 - 13)
        acme.execute("select rag.delete(d.uri) from rag.documents as d")
    assert usage(acme) == (0, 0, 0)


@pytest.mark.parametrize("is_one_put", [True, False])
def test_writers_do_not_bring_most_of_a_quota_at_the_same_time(
    owner: Connection, acme: Connection, role: RoleFactory, *, is_one_put: bool
) -> None:
    put(acme, "first")
    owner.execute("select rag.set_quota('acme', bytes => 2000000)")
    other = role("acme").url
    with psycopg.connect(other) as one, psycopg.connect(other) as two:
        for app in (one, two):
            app.execute("select rag.set_tenant('acme')")
            app.commit()
            app.execute("set lock_timeout = '100ms'")
        # Each could have it, did the other one not: that is seen when it is there, not at 90 %.
        for n in range(1 if is_one_put else 30):
            put(one, f"one {n}", "some words " * (100000 if is_one_put else 3500))
            one.execute("savepoint s")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            two.execute(
                "select rag.put(repeat('some words ', 3500), 'two ' || n) "
                "from generate_series(1, 30) as n"
            )
        two.rollback()
        one.commit()
        refused(two, "select rag.put(repeat('some words ', 100000), 'two')", "RG020")


def test_nobody_puts_under_a_quota_who_sees_not_what_others_put(
    owner: Connection, acme: Connection, role: RoleFactory
) -> None:
    put(acme, "first")
    owner.execute("select rag.set_quota('acme', bytes => 300)")
    with psycopg.connect(role("acme").url) as app:
        app.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        app.execute("select rag.set_tenant('acme')")
        put(acme, "second", "some words " * 20)
        refused(app, "select rag.put(repeat('some words ', 20), 'third')", "55000")
        app.rollback()
        owner.execute("select rag.set_quota('acme')")
        app.execute("select rag.set_tenant('acme')")
        put(app, "third", "some words " * 20)


def test_past_versions_are_bytes_and_changes_of_metadata_are_puts(
    owner: Connection, acme: Connection
) -> None:
    acme.execute("select rag.set_retention(versions => 3)")
    text = "word " * 200
    put(acme, "one", text)
    owner.execute("select rag.set_quota('acme', bytes => 2500)")
    # Each version keeps the text.
    acme.execute("select rag.patch_metadata('one', '{\"n\": 1}')")
    assert usage(acme) == counted(acme) == (1, 2, 2000)
    for change in (
        "select rag.patch_metadata('one', '{\"n\": 2}')",
        "select rag.set_metadata('one', '{\"n\": 2}')",
        "select rag.patch_metadata_where('{\"n\": 1}', '{\"n\": 2}')",
        "select rag.put(repeat('word ', 150), 'one')",
    ):
        refused(acme, change, "RG020")
    assert usage(acme) == counted(acme) == (1, 2, 2000)
    owner.execute("select rag.set_quota('acme', bytes => 3500)")
    # Of as many as are kept the oldest goes, so that nothing is added.
    for n in range(3):
        acme.execute("select rag.patch_metadata('one', jsonb_build_object('n', %s::int))", [n])
    assert usage(acme) == counted(acme) == (1, 2, 3000)
    # What is kept to be restored is still there; what is purged is not.
    acme.execute("select rag.set_retention(keep_deleted => '1 day')")
    acme.execute("select rag.delete('one')")
    assert usage(acme) == counted(acme) == (0, 0, 3000)
    # Restored, it is one more for a moment.
    owner.execute("select rag.set_quota('acme', bytes => 4000)")
    acme.execute("select rag.restore('one')")
    assert usage(acme) == counted(acme)
    acme.execute("select rag.set_retention(versions => 1)")
    assert usage(acme) == counted(acme)
    acme.execute("select rag.delete('one', purge => true)")
    assert usage(acme) == counted(acme) == (0, 0, 0)
    put(acme, "two", "words")
    owner.execute("select rag.set_quota('acme', puts_per_minute => 2)")
    early_in_a_minute()
    for n in range(2):
        acme.execute("select rag.patch_metadata('two', jsonb_build_object('n', %s::int))", [n])
    refused(acme, "select rag.set_metadata('two', '{}')", "RG021")


def test_usage_is_right_after_anything(
    owner: Connection, acme: Connection, role: RoleFactory
) -> None:
    acme.execute("select rag.set_retention(versions => 3, keep_deleted => '1 day')")
    url = role("acme").url

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(url, autocommit=True) as app:
            app.execute("select rag.set_tenant('acme')")
            for _ in range(25):
                uri = f"{seed}-{chance.randrange(8)}"
                keep = chance.random() < 0.8
                with app.transaction(force_rollback=not keep):
                    act = chance.random()
                    if act < 0.2:
                        app.execute("select rag.delete(%s, purge => %s)", [uri, act < 0.05])
                    elif act < 0.3:
                        app.execute(
                            "select rag.patch_metadata(%s, jsonb_build_object('n', %s::float))",
                            [uri, act],
                        )
                    elif act < 0.35:
                        app.execute(
                            "select rag.restore(h.uri) from (select p.uri from rag.past_documents "
                            "as p where p.uri = %s limit 1) as h",
                            [uri],
                        )
                    elif act < 0.4:
                        app.execute("select rag.purge()")
                    else:
                        put(app, uri, "word " * chance.randrange(1, 600))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert usage(acme) == counted(acme)
    assert usage(acme)[0] > 0
    acme.execute("select rag.create_collection('other')")
    acme.execute("select rag.set_retention('other', 5)")
    for n in range(3):
        acme.execute("select rag.put(%s, 'x', collection => 'other')", [f"text {n}"])
    assert usage(acme) == counted(acme)
    acme.execute("select rag.drop_collection('other')")
    acme.execute("select rag.set_retention(keep_deleted => null)")
    acme.execute("select rag.purge()")
    acme.execute("select rag.set_retention(versions => 2)")
    assert usage(acme) == counted(acme)
    # Somebody has taken in what was noted.
    assert owner.execute("select sum(documents) > 0 from rag.tenant_usage").fetchone() == (True,)
    # All of it, and nothing but it, is told to an application.
    assert [row[0] for row in acme.execute("select * from rag.usage()")] == ["acme"]
    assert {row[0] for row in owner.execute("select * from rag.usage()")} >= {"acme", "globex"}
    owner.execute("select rag.set_quota('acme', puts_per_minute => 9, searches_per_minute => 9)")
    counters = "select count(*) from pg_class where relkind = 'S' and relname ~ '_t[0-9]+$'"
    assert owner.execute(counters).fetchone() == (2,)
    owner.execute("select rag.drop_tenant('acme')")
    assert owner.execute(counters).fetchone() == (0,)
    assert owner.execute(
        "select count(*) from rag.tenant_usage natural full join rag.usage_deltas "
        "where tenant_id not in (select t.tenant_id from rag.tenants as t)"
    ).fetchone() == (0,)


def test_a_suspended_tenant_does_nothing_and_loses_nothing(
    owner: Connection, acme: Connection
) -> None:
    put(acme, "one", "words to be embedded")
    acme.execute("select rag.prepare_query('a question')")
    before = counted(acme)
    assert owner.execute("select rag.suspend_tenant('acme', 'unpaid')").fetchone() == (True,)
    assert owner.execute("select rag.suspend_tenant('acme')").fetchone() == (False,)
    calls: list[LiteralString] = [
        "select * from rag.search('words')",
        "select rag.put('x')",
        'select * from rag.put_many(\'[{"content": "x"}]\')',
        "select rag.delete('one')",
        "select rag.create_collection('x')",
        "select rag.current_tenant()",
        "select * from rag.usage()",
        "select * from rag.export_tenant('acme')",
        "select * from rag.import_lines('acme', '{}')",
    ]
    for call in calls:
        error = refused(acme, call, "RG022")
        assert error.diag.message_primary == 'tenant "acme" is suspended'
        assert error.diag.message_detail == "unpaid"
        assert isinstance(from_database(error), TenantSuspendedError)
    assert counted(acme) == (0, 0, 0)
    # To be told so, one may still say who one is.
    acme.execute("select rag.set_tenant('acme')")
    # No worker gets anything of it, nor sees that anything is due.
    assert owner.execute("select * from rag.claim_jobs('w', 10)").fetchall() == []
    assert owner.execute("select rag.next_due()").fetchone() == (None,)
    assert (
        owner.execute("select * from rag.claim_queries('w', 'all-MiniLM-L6-v2', 10)").fetchall()
        == []
    )
    [row] = owner.execute(
        "select u.is_suspended, u.documents from rag.usage() as u where u.tenant = 'acme'"
    ).fetchall()
    assert row == (True, 1)
    # An administrator may carry it elsewhere.
    assert owner.execute(
        "select count(*) from rag.export_tenant('acme') as x where x.line like '%\"document\"%'"
    ).fetchone() == (1,)
    # The other one is as ever.
    owner.execute("select rag.set_tenant('globex')")
    put(owner, "other")
    assert len(owner.execute("select * from rag.claim_jobs('w', 10)").fetchall()) == 1

    assert owner.execute("select rag.resume_tenant('acme')").fetchone() == (True,)
    assert owner.execute("select rag.resume_tenant('acme')").fetchone() == (False,)
    assert counted(acme) == before
    assert acme.execute("select uri from rag.search('words')").fetchall() == [("one",)]
    jobs = owner.execute("select content from rag.claim_jobs('w', 10)").fetchall()
    assert jobs == [("words to be embedded",)]


def test_what_is_claimed_when_a_tenant_is_suspended_is_finished(
    owner: Connection, acme: Connection
) -> None:
    put(acme, "one")
    [(token, job)] = owner.execute(
        "select c.lease_token, c.job_id from rag.claim_jobs('w', 10) as c"
    ).fetchall()
    owner.execute("select rag.suspend_tenant('acme')")
    vector = "[" + ",".join(["0.1"] * 384) + "]"
    owner.execute(
        "select rag.complete_jobs(%s, %s, %s::text[]::vector[])", [token, [job], [vector]]
    )
    owner.execute("select rag.resume_tenant('acme')")
    [row] = acme.execute("select count(*) from rag.embeddings").fetchall()
    assert row == (1,)


def test_a_search_waits_for_no_suspension(owner: Connection, acme: Connection) -> None:
    """Nor the other way round: neither holds a lock that the other wants for long."""
    put(acme, "one")
    with acme.transaction():
        acme.execute("select uri from rag.search('common')")
        done = threading.Event()

        def suspend() -> None:
            owner.execute("select rag.suspend_tenant('acme')")
            done.set()

        thread = threading.Thread(target=suspend)
        thread.start()
        assert done.wait(10)
        thread.join()
        refused(acme, "select uri from rag.search('common')", "RG022")
