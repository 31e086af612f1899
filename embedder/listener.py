"""The ear of the worker: a connection of its own that hears the doorbell `rag_jobs`.

It only ever saves waiting time. Whatever happens to it, the worker polls.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import psycopg

from embedder.database import backoff, connect, reason
from embedder.errors import UnreachableError
from embedder.logs import fields
from embedder.queries import QUERIES
from embedder.stop import SLICE_SECONDS, Stop

LOG = logging.getLogger(__name__)

# What it says takes milliseconds. A server that does not answer so long is given up: while the
# worker waits for it, nobody embeds.
ANSWER_SECONDS: Final = 5.0


class Listener:
    """Listens while the worker is idle, and tells the database so.

    `url` must reach the server directly: LISTEN does nothing behind a transaction pooler.
    """

    def __init__(self, url: str, stop: Stop, *, name: str) -> None:
        self._url = url
        self._stop = stop
        self._name = name
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._is_idle = False
        self._lost_at: float | None = None
        self._waits = backoff()
        self._next_attempt = 0.0

    def idle(self) -> None:
        """Ask to be woken. Look for jobs afterwards: what was put before rang for nobody."""
        self._is_idle = True
        if not self._connect():
            return
        self._say("worker_idle")

    def awake(self) -> None:
        """Ask not to be woken any more."""
        self._is_idle = False
        self._say("worker_awake")

    def wait(self, seconds: float) -> None:
        """Wait until the bell rings, `seconds` are over or a stop is requested.

        Look for jobs afterwards. Returns early, too, when a lost connection is there again.
        """
        deadline = time.monotonic() + seconds
        while not self._stop.requested and (left := deadline - time.monotonic()) > 0:
            self._stop.on_slice()
            if self._connection is None:
                if self._connect():
                    self._say("worker_idle")
                    return
                self._stop.pause(min(left, SLICE_SECONDS))
                continue
            try:
                for _ in self._connection.notifies(timeout=min(left, SLICE_SECONDS), stop_after=1):
                    return
            except psycopg.Error as error:
                self._lose(error)

    def close(self) -> None:
        """Close the connection, which also ends being idle."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> bool:
        """Connected and listening? Tries at most once, and not before the backoff is over."""
        if self._connection is not None:
            return True
        if time.monotonic() < self._next_attempt:
            return False
        try:
            self._connection = connect(self._url, name=self._name, answer_seconds=ANSWER_SECONDS)
            self._connection.execute(QUERIES["listen"])
        except (UnreachableError, psycopg.Error) as error:
            self._lose(error)
            return False
        if self._lost_at is not None:
            LOG.info("listening again", extra=fields(seconds=time.monotonic() - self._lost_at))
            self._lost_at = None
        self._waits = backoff()
        return True

    def _say(self, query: str) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute(QUERIES[query])
        except psycopg.Error as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.close()
        self._next_attempt = time.monotonic() + next(self._waits)
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            LOG.warning("not listening, polling instead", extra=fields(reason=reason(error)))
