"""A Locust user that talks to Postgres through a pool and reports to Locust's statistics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from locust import User
from locust.env import Environment
from pgvector.psycopg import register_vector
from psycopg_pool import ConnectionPool

from loadtests.bench_server import APPLICATION_NAME

Row = tuple[Any, ...]
Pool = ConnectionPool[psycopg.Connection[Row]]


def open_pool(dsn: str, connections: int) -> Pool:
    """A pool for all users of this process.

    Nothing is prepared on the server, so that the same users work through a transaction pooler.
    """

    def configure(connection: psycopg.Connection[Row]) -> None:
        connection.prepare_threshold = None
        register_vector(connection)
        connection.commit()

    pool = Pool(
        dsn,
        connection_class=psycopg.Connection[Row],
        kwargs={"application_name": APPLICATION_NAME},
        min_size=connections,
        max_size=connections,
        configure=configure,
        open=True,
    )
    pool.wait()
    return pool


class PostgresUser(User):
    """Runs statements as a tenant, each in a transaction of its own as behind a pooler.

    The tenant is set for the transaction only, sent together with the statement: a connection that
    goes back to the pool belongs to nobody.
    """

    abstract = True
    pool: Pool

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.pool = environment.pool  # type: ignore[attr-defined]

    def run_statement(
        self, name: str, tenant: str, statement: LiteralString, parameters: Mapping[str, Any]
    ) -> list[Row]:
        """The rows; a failure is one for Locust's statistics, and gives no rows."""
        rows: list[Row] = []
        with self.reported(name) as result, self.pool.connection() as connection:
            with connection.pipeline(), connection.transaction():
                connection.execute("select rag.set_tenant(%s, true)", [tenant])
                cursor = connection.execute(statement, parameters)
            rows = cursor.fetchall()
            result["response_length"] = len(rows)
        return rows

    @contextmanager
    def reported(self, name: str) -> Iterator[dict[str, Any]]:
        """Times what is done within, and tells Locust."""
        result: dict[str, Any] = {"response_length": 0, "exception": None}
        started = time.perf_counter()
        try:
            yield result
        except psycopg.Error as error:
            result["exception"] = error
        finally:
            self.environment.events.request.fire(
                request_type="SQL",
                name=name,
                response_time=(time.perf_counter() - started) * 1000,
                context={},
                **result,
            )
