"""The server fails over to its standby while an embedder works: it goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from db.migrate import migrate
from db.server import Server
from tests import processes
from tests.processes import until
from tests.working import TEXTS, put, value, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

connect = partial(psycopg.connect, autocommit=True)


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Server, Server]]:
    """A server, and a standby that has whatever the first one says is committed."""
    primary = Server(server.root / "primary", server.version)
    standby = Server(server.root / "standby", server.version)
    primary.start()
    try:
        migrate(primary.url())
        copy(primary, standby)
        standby.start()
        with connect(primary.url()) as connection:
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
            until(
                lambda: value(
                    connection,
                    "select count(*) from pg_stat_replication where sync_state = 'sync'",
                )
            )
        yield primary, standby
    finally:
        primary.stop(immediate=True)
        standby.stop(immediate=True)


def copy(primary: Server, standby: Server) -> None:
    """Make a standby that follows, as the user that runs the server."""
    owner = primary.data.stat()
    standby.folder.mkdir(parents=True)
    standby.data.mkdir(mode=0o700)
    os.chown(standby.data, owner.st_uid, owner.st_gid)
    as_owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    subprocess.run(
        [
            str(primary.binaries / "pg_basebackup"), "--pgdata", str(standby.data),
            "--write-recovery-conf", "--checkpoint", "fast", "--dbname", primary.url("postgres"),
        ],
        check=True, capture_output=True, cwd="/", **as_owner,
    )  # fmt: skip


def of_both(primary: Server, standby: Server) -> str:
    """The URL of whichever of the two may be written to."""
    hosts = [parse_qs(urlsplit(one.url()).query)["host"][0] for one in (primary, standby)]
    return (
        f"postgresql://postgres@/ragdb?host={','.join(hosts)}&port=5432,5432"
        "&target_session_attrs=read-write"
    )


def test_a_worker_goes_on_at_the_standby(
    pair: tuple[Server, Server], model: SentenceTransformer, tmp_path: Path
) -> None:
    primary, standby = pair
    url = of_both(primary, standby)
    with connect(primary.url()) as connection:
        put(connection, [f"{part} {text}" for part in range(4) for text in TEXTS])
    process = processes.start(
        {
            "DATABASE_URL": url,
            "RAGDB_BATCH": "8",
            "RAGDB_LEASE_SECONDS": "2",
            "RAGDB_POLL_SECONDS": "0.2",
            "RAGDB_LOG": "json",
        },
        tmp_path / "log",
    )
    try:
        with connect(primary.url()) as connection:
            until(lambda: value(connection, "select count(*) from rag.embeddings") >= 16)
            assert waiting(connection)
        pid = int((primary.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        with connect(standby.url()) as connection:
            before = value(connection, "select count(*) from rag.embeddings")
            assert before >= 16
            until(lambda: "the database does not answer" in (tmp_path / "log").read_text())
            assert value(connection, "select pg_promote()")
        with connect(url) as connection:
            assert value(connection, "select inet_server_port() is null")
            put(connection, ["After the failover."], "later")
            until(lambda: waiting(connection) == 0)
            rows = connection.execute(
                "select c.content, array(select e.embedding::text from rag.embeddings as e "
                "where e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id) from rag.chunks as c"
            ).fetchall()
        assert process.is_alive()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.join(20)
    assert process.exitcode == 0
    # Every passage that was acknowledged is there, with one embedding, of its text.
    assert len(rows) == 4 * len(TEXTS) + 1
    assert {len(embeddings) for _, embeddings in rows} == {1}
    wanted = cast("Any", model).encode([row[0] for row in rows], normalize_embeddings=True)
    for (content, embeddings), vector in zip(rows, wanted, strict=True):
        assert float(vector @ json.loads(embeddings[0])) > 0.999, content
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert "the database answers again" in events
