"""What an embedder tells of itself by HTTP, and whether it is true."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.migrate import migrate
from db.server import Server
from embedder import health
from embedder.config import Settings
from embedder.errors import SettingsError
from embedder.health import Monitor, Vitals
from tests.processes import until
from tests.provider import Provider, always
from tests.working import (
    TEXTS,
    Connection,
    embedded,
    new_worker,
    provider,
    put,
    running,
    use,
    vitals_of,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["provider"]


def metrics(text: str) -> dict[str, float]:
    """Values by name and labels."""
    return {
        sample.name
        + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_metrics_and_health_of_a_worker(
    database: str, connection: Connection, provider: Provider
) -> None:
    put(connection, TEXTS)
    connection.execute("select rag.upload('later.txt', 'a file that nobody reads here')")
    one = new_worker(database)
    monitor = one._monitor  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    with monitor.serve("127.0.0.1", 0) as port, httpx.Client(timeout=30) as client:
        url = f"http://127.0.0.1:{port}"
        answer = client.get(f"{url}/healthz")
        assert (answer.status_code, answer.text) == (503, "not ready yet: starting\n")
        found = metrics(client.get(f"{url}/metrics").text)
        assert found["ragdb_jobs waiting"] == len(TEXTS)
        assert found["ragdb_queue_age_seconds"] > 0
        assert found["ragdb_files waiting"] == 1
        assert found["ragdb_files_age_seconds"] > 0
        assert found["ragdb_healthy"] == 0
        with running(one):
            until(lambda: embedded(connection) == len(TEXTS))
            until(lambda: one.totals.batches)
            answer = client.get(f"{url}/healthz")
            assert (answer.status_code, answer.text) == (200, "ok\n")
            answer = client.get(f"{url}/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = metrics(answer.text)
            assert found["ragdb_passages_embedded_total"] == len(TEXTS)
            assert found["ragdb_batch_seconds_count"] == one.totals.batches
            assert found["ragdb_passages_per_second"] > 0
            assert found["ragdb_job_failures_total"] == 0
            assert found["ragdb_database_reconnects_total"] == 0
            assert found["ragdb_healthy"] == 1
            assert found[f"ragdb_info {provider.host} all-MiniLM-L6-v2 0.1.0"] == 1
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where application_name = 'ragdb embedder' and datname = current_database()"
            )
            until(
                lambda: metrics(client.get(f"{url}/metrics").text)[
                    "ragdb_database_reconnects_total"
                ]
            )
        assert client.get(f"{url}/").status_code == 404


def test_the_queue_is_not_counted_for_every_scrape(database: str, connection: Connection) -> None:
    monitor = Monitor(Vitals(), database)
    assert metrics(monitor.metrics().decode())["ragdb_jobs waiting"] == 0
    put(connection, TEXTS[:3])
    assert metrics(monitor.metrics().decode())["ragdb_jobs waiting"] == 0
    monitor = Monitor(Vitals(), database, count_seconds=0)
    assert metrics(monitor.metrics().decode())["ragdb_jobs waiting"] == 3
    put(connection, TEXTS[3:4], "another")
    assert metrics(monitor.metrics().decode())["ragdb_jobs waiting"] == 4


def test_metrics_without_a_database() -> None:
    monitor = Monitor(Vitals(), "postgresql://nobody@127.0.0.1:1/nothing")
    found = metrics(monitor.metrics().decode())
    assert found["ragdb_passages_embedded_total"] == 0
    assert "ragdb_jobs waiting" not in found


def test_a_worker_that_hangs_is_not_healthy() -> None:
    vitals = Vitals(doing="loading the model m")
    assert vitals.problems() == ["not ready yet: loading the model m"]
    vitals.beat()
    assert vitals.problems() == []
    vitals.computing_since = time.monotonic() - health.STUCK_SECONDS - 1
    assert vitals.problems() == ["jobs wait and none was finished for 301 s"]
    vitals.beat_at = time.monotonic() - health.STILL_SECONDS - 1
    assert vitals.problems()[0] == "the worker has not moved for 91 s"


@pytest.mark.usefixtures("provider")
def test_an_idle_worker_is_healthy(database: str) -> None:
    one = new_worker(database, RAGDB_POLL_SECONDS="3600")
    vitals_of(one).still_seconds = 2
    with running(one):
        until(lambda: not vitals_of(one).problems())
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert vitals_of(one).problems() == []
            time.sleep(0.1)


def test_a_limit_without_end_is_not_healthy(
    database: str, connection: Connection, provider: Provider
) -> None:
    provider.behave = always(429, {}, Retry_After="1")
    put(connection, TEXTS)
    one = new_worker(database)
    vitals_of(one).stuck_seconds = 1
    with running(one):
        until(lambda: "jobs wait and none was finished" in "".join(vitals_of(one).problems()))
        provider.behave = lambda _asked, _handler: False
        until(lambda: embedded(connection) == len(TEXTS))
        until(lambda: not vitals_of(one).problems())


def test_a_server_killed_and_started_again(server: Server, provider: Provider) -> None:
    own = Server(server.root / "killed", server.version)
    own.start()
    try:
        migrate(own.url())
        with psycopg.connect(own.url(), autocommit=True) as connection:
            use(connection, provider)
            put(connection, TEXTS[:5])
            one = new_worker(own.url())
        with running(one):
            with psycopg.connect(own.url(), autocommit=True) as connection:
                until(lambda: embedded(connection) == 5)
                # As after a failover to a server that may not be written to yet.
                connection.execute("alter system set default_transaction_read_only = on")
            pid = int((own.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            until(lambda: vitals_of(one).problems())
            assert vitals_of(one).problems()[0].startswith("the database does not answer: ")
            own.start()
            with psycopg.connect(own.url(), autocommit=True) as connection:
                connection.execute("set default_transaction_read_only = off")
                put(connection, TEXTS[5:10], "later")
                until(lambda: "read-only" in "".join(vitals_of(one).problems()))
                connection.execute("alter system reset default_transaction_read_only")
                connection.execute("select pg_reload_conf()")
                until(lambda: embedded(connection) == 10)
                until(lambda: not vitals_of(one).problems())
    finally:
        own.stop(immediate=True)


@pytest.mark.usefixtures("provider")
def test_the_command_serves_and_ends(database: str, connection: Connection, tmp_path: Path) -> None:
    put(connection, TEXTS)
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedder", "run"],
            env=os.environ | {"DATABASE_URL": database, "RAGDB_HTTP_PORT": str(port)},
            stderr=log,
        )

    def status() -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code
        except httpx.TransportError:
            return 0

    try:
        until(lambda: status() == 200)
        until(lambda: embedded(connection) == len(TEXTS))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert status() == 0
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monitor = Monitor(Vitals(), "postgresql://nobody@nowhere/nothing")
        with (
            pytest.raises(SettingsError, match=f"cannot listen on port {port} of 127.0.0.1"),
            monitor.serve("127.0.0.1", port),
        ):
            pass


def test_nothing_is_served_unless_asked_for() -> None:
    settings = Settings.from_environment({"DATABASE_URL": "postgresql://x@y/z"})
    assert (settings.http_port, settings.http_address) == (0, "127.0.0.1")
