"""How an embedder is: what it has done, whether it can work, and both of it by HTTP.

`/metrics` is for Prometheus; `/healthz` answers 200, or 503 with the reasons, one a line.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import psycopg
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg.rows import class_row

from embedder import __version__
from embedder.database import connect
from embedder.errors import RagdbError, SettingsError
from embedder.logs import fields
from embedder.queries import QUERIES

LOG = logging.getLogger(__name__)

# The worker passes its own loop a few times a second, whatever it waits for. The longest that
# may hold it is a database that vanished without a word: TCP notices after 60 s. One that still
# acknowledges and says nothing is worth a word before the worker leaves it.
STILL_SECONDS: Final = 90.0
# A batch is a minute's work of a slow machine; an answer by HTTP may take as long.
STUCK_SECONDS: Final = 300.0
COUNT_SECONDS: Final = 10.0
COUNT_TIMEOUT: Final = "5s"
BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)


@dataclass(slots=True)
class Totals:
    """What a worker has done since it started."""

    batches: int = 0
    embedded: int = 0
    stale: int = 0
    failed: int = 0
    truncated: int = 0
    queries: int = 0
    provider_failures: int = 0


@dataclass(slots=True)
class Vitals:
    """What the worker tells of itself; written by its thread, read by any."""

    totals: Totals = field(default_factory=Totals)
    # Before it is ready: at what.
    doing: str = "starting"
    still_seconds: float = STILL_SECONDS
    stuck_seconds: float = STUCK_SECONDS
    # Of the models in memory, by name.
    backends: Mapping[str, str] = field(default_factory=dict[str, str])
    passages_per_second: float = 0.0
    # Why models that have jobs are set aside, by name; but for those whose provider works and only
    # asks for less: since when.
    model_troubles: Mapping[str, str] = field(default_factory=dict[str, str])
    limited_since: float | None = None
    database_trouble: Callable[[], str | None] = lambda: None
    reconnects: Callable[[], int] = lambda: 0
    # Moments by time.monotonic.
    beat_at: float | None = None
    computing_since: float | None = None

    def beat(self) -> None:
        """The worker's loop has come round."""
        self.beat_at = time.monotonic()

    def problems(self) -> list[str]:
        """Why it cannot work now, a sentence each; empty when all is well."""
        now = time.monotonic()
        if self.beat_at is None:
            return [f"not ready yet: {self.doing}"]
        found: list[str] = []
        if trouble := self.database_trouble():
            found.append(f"the database does not answer: {trouble}")
        for name, trouble in self.model_troubles.items():
            found.append(f"the model {name} does not work: {trouble}")
        if now - self.beat_at > self.still_seconds:
            found.append(f"the worker has not moved for {now - self.beat_at:.0f} s")
        since = min(self.computing_since or now, self.limited_since or now)
        if now - since > self.stuck_seconds:
            found.append(f"jobs wait and none was finished for {now - since:.0f} s")
        return found


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue over all tenants and models, and the files to be read.

    Ages are those of the oldest that waits, in seconds.
    """

    waiting: int
    leased: int
    failed: int
    age: float
    files_waiting: int
    files_leased: int
    files_failed: int
    files_age: float


class _Counts:
    """Counts the queue now and then, over a connection of its own."""

    def __init__(self, url: str, every: float) -> None:
        self._url = url
        self._every = every
        self._lock = threading.Lock()
        self._counted: Queue | None = None
        self._next_at = 0.0

    def get(self) -> Queue | None:
        """The queue some seconds ago; None if the database does not say."""
        with self._lock:
            if time.monotonic() >= self._next_at:
                self._counted = self._count()
                self._next_at = time.monotonic() + self._every
            return self._counted

    def _count(self) -> Queue | None:
        with suppress(psycopg.Error, RagdbError), connect(self._url, name="ragdb metrics") as link:
            link.execute("select set_config('statement_timeout', %s, false)", [COUNT_TIMEOUT])
            with link.cursor(row_factory=class_row(Queue)) as cursor:
                return cursor.execute(QUERIES["queue"]).fetchone()
        return None


class _WorkerCollector(Collector):
    """Metrics of a worker and of the queue."""

    def __init__(self, vitals: Vitals, counts: _Counts) -> None:
        self._vitals = vitals
        self._counts = counts

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering asks no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of them, as they are now."""
        vitals = self._vitals
        totals = vitals.totals
        info = GaugeMetricFamily(
            "ragdb_info", "What embeds.", labels=["version", "model", "backend"]
        )
        for model, backend in vitals.backends.items():
            info.add_metric([__version__, model, backend], 1)
        yield info
        yield GaugeMetricFamily(
            "ragdb_healthy", "1 if /healthz is green.", 0 if vitals.problems() else 1
        )
        counters = {
            "ragdb_batches": ("Claims worked off.", totals.batches),
            "ragdb_passages_embedded": ("Passages whose embedding was stored.", totals.embedded),
            "ragdb_passages_stale": (
                "Passages embedded in vain: changed, deleted or claimed by another meanwhile.",
                totals.stale,
            ),
            "ragdb_passages_truncated": (
                "Passages longer than the model takes: their end is not in the embedding.",
                totals.truncated,
            ),
            "ragdb_job_failures": ("Attempts of jobs that failed.", totals.failed),
            "ragdb_queries_embedded": ("Queries embedded for the cache.", totals.queries),
            "ragdb_provider_failures": (
                "Times that a model could not be used, or its provider was away or asked for less.",
                totals.provider_failures,
            ),
            "ragdb_database_reconnects": ("Connections made anew.", vitals.reconnects()),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value)
        yield GaugeMetricFamily(
            "ragdb_passages_per_second", "Of the last batch.", vitals.passages_per_second
        )
        queue = self._counts.get()
        if queue is None:
            return
        jobs = GaugeMetricFamily("ragdb_jobs", "The queue of the database.", labels=["state"])
        jobs.add_metric(["waiting"], queue.waiting)
        jobs.add_metric(["leased"], queue.leased)
        jobs.add_metric(["failed"], queue.failed)
        yield jobs
        yield GaugeMetricFamily(
            "ragdb_queue_age_seconds", "Age of the oldest job that waits.", queue.age
        )
        files = GaugeMetricFamily("ragdb_files", "Uploads to be read.", labels=["state"])
        files.add_metric(["waiting"], queue.files_waiting)
        files.add_metric(["leased"], queue.files_leased)
        files.add_metric(["failed"], queue.files_failed)
        yield files
        yield GaugeMetricFamily(
            "ragdb_files_age_seconds", "Age of the oldest upload that waits.", queue.files_age
        )


class Monitor:
    """The metrics of a worker; `serve` offers them by HTTP.

    The queue is counted at most each `count_seconds`, however many ask.
    """

    def __init__(
        self, vitals: Vitals, database_url: str, *, count_seconds: float = COUNT_SECONDS
    ) -> None:
        self.vitals = vitals
        self._registry = CollectorRegistry()
        self._batch_seconds = Histogram(
            "ragdb_batch_seconds",
            "Time for the jobs of a claim, from the claim to the last write.",
            buckets=BUCKETS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_WorkerCollector(vitals, _Counts(database_url, count_seconds)))

    def batch(self, seconds: float, passages: int) -> None:
        """Note a batch of so many passages."""
        self._batch_seconds.observe(seconds)
        self.vitals.passages_per_second = passages / seconds

    def metrics(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    @contextmanager
    def serve(self, address: str, port: int) -> Generator[int]:
        """Answer at an address; the port, which for port 0 the system chooses.

        Raises SettingsError if it cannot be had.
        """
        try:
            server = ThreadingHTTPServer((address, port), _handler(self))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on port {port} of {address}: {error.strerror}",
                hint="set RAGDB_HTTP_PORT and RAGDB_HTTP_ADDRESS",
            ) from error
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="monitor", daemon=True)
        thread.start()
        chosen = server.server_address[1]
        LOG.info("serving /metrics and /healthz", extra=fields(address=address, port=chosen))
        try:
            yield chosen
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(monitor: Monitor) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # Who connects and says nothing must not hold a thread for ever.
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, monitor.metrics(), "text/plain; version=0.0.4; charset=utf-8")
            elif path == "/healthz":
                problems = monitor.vitals.problems()
                text = "\n".join(problems) or "ok"
                self._answer(503 if problems else 200, f"{text}\n".encode(), "text/plain")
            else:
                self._answer(404, b"here are /metrics and /healthz\n", "text/plain")

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
            """Nothing: a probe every few seconds is no event."""

    return Handler
