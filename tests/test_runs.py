"""Runs beside other sessions: what a user puts meanwhile is his."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.test_ingest import wait_until

Connection = psycopg.Connection[tuple[Any, ...]]

IMPORT = 'select * from rag.import_documents(%s, \'[{"uri": "k", "content": "imported"}]\')'


def begin(connection: Connection) -> int:
    row = connection.execute("select rag.begin_run('move', 'a source')").fetchone()
    assert row is not None
    return row[0]


def contents(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("select d.content from rag.documents as d").fetchall()


def test_a_rollback_keeps_what_an_older_transaction_put(
    database: str, connection: Connection
) -> None:
    with psycopg.connect(database) as user:
        user.execute("select 1")
        run = begin(connection)
        connection.execute(IMPORT, [run])
        # Its now() is before the import's.
        user.execute("select rag.put('written by a user', 'k')")
    row = connection.execute("select * from rag.rollback_run(%s)", [run]).fetchone()
    assert row == (0, 1)
    assert contents(connection) == [("written by a user",)]


def test_an_import_replaces_nothing_that_is_put_meanwhile(
    database: str, connection: Connection
) -> None:
    connection.execute("select rag.put('another', 'another')")
    run = begin(connection)
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(database) as user:
            user.execute("select rag.put('written by a user', 'k')")
            imported = pool.submit(connection.execute, IMPORT, [run])
            with psycopg.connect(database, autocommit=True) as watch:
                wait_until(
                    watch,
                    "select count(*) > 0 from pg_stat_activity "
                    "where datname = current_database() and wait_event_type = 'Lock'",
                )
        with pytest.raises(errors.SerializationFailure, match="a uri was taken meanwhile"):
            imported.result(30)
    assert ("written by a user",) in contents(connection)
    assert connection.execute(IMPORT, [run]).fetchall() == [("k", "taken")]
