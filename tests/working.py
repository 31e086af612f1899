"""What tests of the embedder at work share: texts, looks at the queue, a worker in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from embedder.config import Settings
from embedder.worker import Worker
from tests.provider import KEY, Provider, serve

if TYPE_CHECKING:
    from embedder.health import Vitals

Connection = psycopg.Connection[tuple[Any, ...]]

MARK = "poison"
TEXTS = [f"Rule {n}: parcel {n * 7} is delivered on day {n % 31} of the month." for n in range(40)]


@pytest.fixture
def provider(connection: Connection) -> Iterator[Provider]:
    """A provider that the database's model is at."""
    with serve() as provider:
        use(connection, provider)
        yield provider


def use(connection: Connection, provider: Provider, **settings: object) -> None:
    """Let the model be at the provider, whatever it was before."""
    connection.execute(
        "update rag.models set provider = 'openai', settings = %s",
        [json.dumps({"url": provider.url, "timeout": 0.5} | settings)],
    )


def settings(url: str, **changes: str) -> Settings:
    """Of a worker whose model is given."""
    return Settings.from_environment(
        {
            "DATABASE_URL": url,
            "RAGDB_POLL_SECONDS": "0.2",
            "RAGDB_THREADS": "1",
            "RAGDB_BACKEND": "torch",
            "RAGDB_WORD_VECTOR_TEXTS": "0",
            **changes,
        }
    )


def new_worker(database: str, **variables: str) -> Worker:
    """A worker that loads the model that the database describes."""
    return Worker(
        Settings.from_environment(
            {
                "DATABASE_URL": database,
                "RAGDB_POLL_SECONDS": "0.1",
                "RAGDB_WORD_VECTOR_TEXTS": "0",
                "RAGDB_API_KEY": KEY,
            }
            | variables
        )
    )


@contextmanager
def running(worker: Worker) -> Generator[None]:
    """The worker in a thread of this process."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop.requested = True
        thread.join(30)
        assert not thread.is_alive()


def vitals_of(worker: Worker) -> Vitals:
    """What a worker tells of itself."""
    return worker._vitals  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def put(connection: Connection, texts: Sequence[str], prefix: str = "document") -> None:
    """One document and one passage for each text."""
    documents = [{"content": text, "uri": f"{prefix}-{n}"} for n, text in enumerate(texts)]
    connection.execute("select rag.put_many(%s)", [json.dumps(documents)])


def value(connection: Connection, statement: str, *parameters: object) -> Any:
    """The single value of a statement."""
    row = connection.execute(cast("Any", statement), parameters).fetchone()
    assert row is not None
    return row[0]


def embedded(connection: Connection, model: str | None = None) -> int:
    """How many embeddings there are, by one model or by all."""
    return value(
        connection,
        "select count(*) from rag.embeddings as e join rag.models as m using (model_id) "
        "where %s::text is null or m.name = %s",
        model,
        model,
    )


def waiting(connection: Connection) -> int:
    """How many jobs there are, in whatever state."""
    return value(connection, "select count(*) from rag.jobs")
