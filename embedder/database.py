"""Connections: how they are made, and one that comes back after the server was away."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from pgvector.psycopg.vector import register_vector_info
from psycopg.abc import Params, PQGen
from psycopg.rows import RowFactory, class_row, scalar_row
from psycopg.types import TypeInfo

from embedder.errors import (
    NotMigratedError,
    StoppedError,
    UnreachableError,
    from_database,
)
from embedder.logs import fields
from embedder.queries import QUERIES
from embedder.stop import Stop

LOG = logging.getLogger(__name__)

Row = TypeVar("Row")
Result = TypeVar("Result")

# Without these a server that vanished (power, firewall) is noticed by TCP after two hours or
# fifteen minutes; with them after at most about a minute.
KEEPALIVE: Final[Mapping[str, int]] = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# Far more than any statement of a worker takes; the longest puts a file of 50 MB. The settings
# above do not notice a server that is stopped, or gone behind a proxy: what is sent to it is still
# acknowledged.
ANSWER_SECONDS = 600.0

FIRST_BACKOFF: Final = 0.2
LAST_BACKOFF: Final = 5.0

# Connection trouble, serialisation and deadlock, no resources, lock timeout, operator intervention,
# and a standby that has not been promoted yet. Everything the worker says may be said twice: a
# lease token fences what was done already.
TRANSIENT: Final = ("08", "40", "53", "55P03", "57", "25006")


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when a statement is not answered in time."""

    answer_seconds = math.inf

    def wait(self, gen: PQGen[Result], *args: Any, **kwargs: Any) -> Result:  # noqa: ANN401
        try:
            return super().wait(_until(gen, self.answer_seconds), *args, **kwargs)
        except _SilenceError:
            self.close()
            raise


class _SilenceError(psycopg.OperationalError):
    """The server said nothing for too long."""


def _until(waits: PQGen[Result], seconds: float) -> PQGen[Result]:
    """The same waits, until time is up; psycopg looks in several times a second."""
    deadline = time.monotonic() + seconds
    try:
        wait = next(waits)
        while True:
            ready = yield wait
            if not ready and time.monotonic() > deadline:
                raise _SilenceError(f"no answer within {seconds:.0f} s")
            wait = waits.send(ready)
    except StopIteration as end:
        return end.value


def connect(
    url: str, *, name: str = "ragdb", answer_seconds: float = math.inf
) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection with `name` as its application_name.

    Fit for a transaction pooler: nothing is prepared on the server. A statement that is not
    answered within `answer_seconds` ends it with an OperationalError. Raises UnreachableError.
    """
    try:
        connection = _Connection.connect(
            url,
            autocommit=True,
            prepare_threshold=None,
            application_name=name,
            **KEEPALIVE,  # pyright: ignore[reportArgumentType]
        )
    except psycopg.OperationalError as error:
        raise UnreachableError(
            f"cannot connect to the database: {reason(error)}",
            hint="is the server running, and is DATABASE_URL right? python -m embedder config "
            "shows it",
        ) from error
    connection.answer_seconds = answer_seconds
    return connection


def reason(error: BaseException) -> str:
    """The first line of an error, which names the cause; the rest explains and advises."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("connection failed: ") if lines else type(error).__name__


@contextmanager
def translated() -> Generator[None]:
    """Turn database errors with an SQLSTATE of ours into the exceptions of `embedder.errors`."""
    try:
        yield
    except psycopg.Error as error:
        ours = from_database(error)
        if ours is None:
            raise
        raise ours from error


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database must have for a worker: ragdb, and the type vector wherever it lives."""

    is_migrated: bool
    vector_oid: int | None
    vector_array_oid: int | None


def register_vector(connection: psycopg.Connection[Any]) -> None:
    """Let `connection` send and receive pgvector's `vector` and `vector[]`, in binary.

    The type is looked up by its extension, not by the search path, which need not contain it.
    Raises NotMigratedError if ragdb or pgvector is not in the database.
    """
    with connection.cursor(row_factory=class_row(Schema)) as cursor:
        schema = cursor.execute(QUERIES["schema"]).fetchone()
    if schema is None or not schema.is_migrated:
        raise NotMigratedError(
            f"the database {connection.info.dbname} has no ragdb in it",
            hint="run: make migrate, or python -m db.migrate",
        )
    if schema.vector_oid is None or schema.vector_array_oid is None:
        raise NotMigratedError(f"the database {connection.info.dbname} has no pgvector in it")
    register_vector_info(connection, TypeInfo("vector", schema.vector_oid, schema.vector_array_oid))


def is_transient(error: psycopg.Error) -> bool:
    """May the same statement succeed later, perhaps on a new connection?"""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(TRANSIENT)


def backoff(first: float = FIRST_BACKOFF, last: float = LAST_BACKOFF) -> Generator[float]:
    """Seconds to wait before each further attempt: `first` doubling to `last`.

    A jitter of a quarter keeps workers from coming back all at once.
    """
    seconds = first
    while True:
        yield seconds * random.uniform(0.75, 1.25)
        seconds = min(last, seconds * 2)


class Session:
    """A connection for work that reconnects by itself and repeats what was not answered.

    Not for concurrent use. A statement must be fit to be said twice. A quiet one leaves it to
    another session of the process to tell that the database is away.
    """

    def __init__(self, url: str, stop: Stop, *, name: str, quiet: bool = False) -> None:
        self._url = url
        self._stop = stop
        self._name = name
        self._level = logging.DEBUG if quiet else logging.WARNING
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self.reconnects = 0
        # Why the statement under way is not answered, for whoever asks from another thread.
        self.trouble: str | None = None

    def open(self) -> None:
        """Connect for the first time; unlike later, what fails now is raised at once."""
        connection = connect(self._url, name=self._name, answer_seconds=ANSWER_SECONDS)
        try:
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def rows(self, query: str, parameters: Params, kind: type[Row]) -> list[Row]:
        """All rows of a statement of queries.sql, as objects of `kind`."""
        return self._fetch(QUERIES[query], parameters, class_row(kind))

    def value(self, query: str, parameters: Params | None = None) -> Any:  # noqa: ANN401
        """The single value of a statement of queries.sql."""
        return self._fetch(QUERIES[query], parameters, scalar_row)[0]

    def _fetch(
        self, statement: LiteralString, parameters: Params | None, kind: RowFactory[Row]
    ) -> list[Row]:
        return self._persistently(
            lambda connection: (
                connection.cursor(row_factory=kind).execute(statement, parameters).fetchall()
            )
        )

    def _persistently(
        self, operation: Callable[[psycopg.Connection[tuple[Any, ...]]], Result]
    ) -> Result:
        """Run `operation` until the database answers, reconnecting as need be.

        Raises StoppedError when a stop is requested meanwhile, and at once what waiting does not
        cure.
        """
        waits = backoff()
        since: float | None = None
        while True:
            try:
                if self._connection is None:
                    self.open()
                    self.reconnects += 1
                assert self._connection is not None
                with translated():
                    result = operation(self._connection)
            except UnreachableError as error:
                why = error.message
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                if self._connection is None or self._connection.broken or self._connection.closed:
                    self.close()
                why = reason(error)
            else:
                if since is not None:
                    LOG.log(
                        min(self._level, logging.INFO),
                        "the database answers again",
                        extra=fields(seconds=time.monotonic() - since),
                    )
                self.trouble = None
                return result
            self.trouble = why
            if since is None:
                since = time.monotonic()
                LOG.log(
                    self._level,
                    "the database does not answer, trying again",
                    extra=fields(reason=why),
                )
            self._stop.pause(next(waits))
            if self._stop.requested:
                raise StoppedError
