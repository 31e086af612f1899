"""The protocol of docs/queue.md: its worker in psql does what it says; what is no vector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from tests.processes import until
from tests.test_readme import psql

if TYPE_CHECKING:
    from db.server import Server

QUEUE = Path(__file__).parents[1] / "docs" / "queue.md"


def test_the_worker_by_hand(
    server: Server, database: str, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    text = QUEUE.read_text(encoding="utf-8")
    put, script, output = re.findall(
        r"```sql\n([^`]*?rag\.put[^`]*?)```\s+```psql\n(.*?)```\n\n```\n(.*?)```", text, re.DOTALL
    )[0]
    psql(server, database, put)
    found = psql(server, database, script)
    assert words(found) == words(output)
    assert connection.execute("select count(*) from rag.jobs").fetchone() == (0,)
    assert connection.execute("select embedded from rag.progress()").fetchone() == (1,)


def words(output: str) -> list[str]:
    """What is printed, whatever the width of the columns."""
    return [word for word in output.replace("(1 row)", "").split() if not set(word) <= {"-", "+"}]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused_and_nothing_is_lost(
    connection: psycopg.Connection[tuple[Any, ...]], number: str
) -> None:
    connection.execute("select rag.put('first', 'first')")
    connection.execute("select rag.put('second', 'second')")
    claim = connection.execute(
        "select lease_token, array_agg(job_id) from rag.claim_jobs('w') group by lease_token"
    ).fetchone()
    assert claim is not None
    good = "[" + ",".join(["1"] * 384) + "]"
    bad = "[" + ",".join(["1"] * 383 + [number]) + "]"
    with pytest.raises(psycopg.errors.DataException):
        connection.execute(
            "select rag.complete_jobs(%s, %s, %s::text[]::vector[])", [*claim, [good, bad]]
        )
    # The same claim goes on as if nothing had been said.
    assert connection.execute("select count(*) from rag.embeddings").fetchone() == (0,)
    stored = connection.execute(
        "select rag.complete_jobs(%s, %s, %s::text[]::vector[])", [*claim, [good, good]]
    ).fetchone()
    assert stored == (2,)


def test_too_few_vectors_leave_the_rest_to_the_lease(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    connection.execute("select rag.put('first', 'first')")
    connection.execute("select rag.put('second', 'second')")
    claim = connection.execute(
        "select lease_token, array_agg(job_id) from rag.claim_jobs('w', lease => '200 ms') "
        "group by lease_token"
    ).fetchone()
    assert claim is not None
    good = "[" + ",".join(["1"] * 384) + "]"
    complete = cast("Any", "select rag.complete_jobs(%s, %s, %s::text[]::vector[])")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        connection.execute(complete, [*claim, [good]])
    assert connection.execute(complete, [claim[0], claim[1][:1], [good]]).fetchone() == (1,)
    due = "select rag.next_due() <= clock_timestamp()"
    until(lambda: connection.execute(due).fetchone() == (True,))
    again = connection.execute("select job_id, attempts from rag.claim_jobs('w')").fetchall()
    assert again == [(claim[1][1], 2)]


def test_a_provider_that_gives_nothing_but_errors_is_asked_five_times(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    connection.execute("select rag.put('text', 'uri')")
    asked = 0
    for _ in range(50):
        for token, job in connection.execute(
            "select lease_token, job_id from rag.claim_jobs('w')"
        ).fetchall():
            asked += 1
            connection.execute("select rag.fail_jobs(%s, %s, 'HTTP 429')", [token, [job]])
            # Not at once: that would be a hot loop.
            assert connection.execute("select rag.claim_jobs('w')").fetchall() == []
        connection.execute("update rag.jobs set due_at = clock_timestamp()")
    assert asked == 5
    assert connection.execute("select uri, error from rag.failures()").fetchall() == [
        ("uri", "HTTP 429")
    ]
