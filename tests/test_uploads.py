"""Files handed over by rag.upload: read by a worker, put as their tenant, lost by no crash."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from embedder.config import Settings
from embedder.stop import Stop
from embedder.uploads import UploadLane
from tests import processes
from tests.conftest import RoleFactory
from tests.processes import until
from tests.test_formats import ENGLISH, pdf

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Connection = psycopg.Connection[tuple[Any, ...]]
Start = Callable[..., "BaseProcess"]

# Some seconds of reading: a file that a crash can hit in the middle.
SLOW = b"name,price,colour,weight\n" + b",,,\n" * 2_500_000 + b"bolt,2,grey,10\n"


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """Starts embedders on `database`; they are killed after the test."""
    started: list[BaseProcess] = []

    def start(url: str = database, **variables: str) -> BaseProcess:
        environment = {"DATABASE_URL": url, "RAGDB_LOG": "json", "RAGDB_POLL_SECONDS": "0.2"}
        started.append(processes.start(environment | variables, tmp_path / "log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def drain(url: str, **variables: str) -> None:
    """Read all uploads that are due, here and now."""
    settings = Settings.from_environment({"DATABASE_URL": url, **variables})
    lane = UploadLane(settings, "test")
    try:
        lane.drain(Stop())
    finally:
        lane.close()


def upload(connection: Connection, name: str, body: bytes, **more: object) -> int:
    """rag.upload with some more parameters; the id."""
    named = "".join(f", {key} => %s" for key in more)
    row = connection.execute(
        cast("Any", f"select rag.upload(%s, %s{named})"), [name, body, *more.values()]
    ).fetchone()
    assert row is not None
    return row[0]


def state(connection: Connection, number: int) -> tuple[str, str | None]:
    """State and error of an upload."""
    row = connection.execute(
        "select u.state, u.error from rag.uploads as u where u.upload_id = %s", [number]
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_a_pdf_is_handed_over_by_one_select(connection: Connection, role: RoleFactory) -> None:
    connection.execute("select rag.create_tenant('acme')")
    member, worker = role("acme"), role(member_of=("rag_worker",))
    with psycopg.connect(member.url, autocommit=True) as acme:
        acme.execute("select rag.set_tenant('acme')")
        number = upload(
            acme,
            "manual.pdf",
            pdf("First part\n" + ENGLISH, "Second part\nAnvils are not taken back."),
            metadata='{"shelf": 7, "author": "The Uploader"}',
            uri="manuals/refunds",
        )
        assert state(acme, number) == ("pending", None)
        drain(worker.url)
        assert state(acme, number) == ("completed", None)
        found = acme.execute(
            "select s.uri, s.title, s.heading_path, s.metadata -> 'page', s.metadata -> 'shelf', "
            "s.metadata ->> 'author', s.metadata ? 'page_starts' "
            """from rag.search('anvils', filter => '{"page": {"$gte": 2}}') as s"""
        ).fetchall()
        assert found == [
            ("manuals/refunds", "The Manual", ["Second part"], 2, 7, "The Uploader", False)
        ]
        row = acme.execute(
            "select d.language, u.body, d.metadata ->> 'source' "
            "from rag.uploads as u join rag.documents as d using (tenant_id, document_id)"
        ).fetchone()
        assert row == ("english", None, "manuals/refunds")
    rows = connection.execute(
        "select t.name from rag.documents as d join rag.tenants as t using (tenant_id)"
    ).fetchall()
    assert rows == [("acme",)]


def test_what_cannot_be_read_says_why_and_can_be_tried_again(
    database: str, connection: Connection
) -> None:
    broken = upload(connection, "a.pdf", b"no PDF at all")
    scan = upload(connection, "b.png", b"\x89PNG\r\n\0")
    good = upload(connection, "c.md", b"# Good\n\nText.\n")
    drain(database)
    assert state(connection, broken) == ("failed", "broken: no valid PDF")
    unread = "files are not read here; an embedder with RAGDB_EXTRACTOR reads them"
    assert state(connection, scan) == ("failed", f".png {unread}")
    assert state(connection, good) == ("completed", None)
    row = connection.execute(
        "select p.completed, p.failed from rag.upload_progress() as p"
    ).fetchone()
    assert row == (1, 2)
    row = connection.execute("select rag.retry_upload(%s), rag.retry_upload(%s)", [broken, good])
    assert row.fetchone() == (True, False)
    assert state(connection, broken) == ("pending", None)
    drain(database)
    assert state(connection, broken) == ("failed", "broken: no valid PDF")


def test_an_extractor_that_is_away_costs_an_attempt_and_no_file(
    database: str, connection: Connection
) -> None:
    number = upload(connection, "scan.png", b"\x89PNG\r\n")
    drain(database, RAGDB_EXTRACTOR="tika+http://127.0.0.1:1")
    assert state(connection, number) == ("pending", "tika does not answer: ConnectError")
    row = connection.execute("select u.due_at > now(), u.attempts from rag.uploads as u").fetchone()
    assert row == (True, 1)


def test_the_later_upload_of_a_uri_wins(database: str, connection: Connection) -> None:
    first = upload(connection, "a.md", b"the old text")
    claimed = connection.execute("select c.lease_token from rag.claim_uploads('w') as c").fetchone()
    assert claimed is not None
    second = upload(connection, "a.md", b"the new text")
    drain(database)
    row = connection.execute(
        "select rag.complete_upload(%s, 'the old text', 'a', '{}')", [claimed[0]]
    ).fetchone()
    assert row == (None,)
    told = f"upload {second} of the same uri came after it"
    assert state(connection, first) == ("replaced", told)
    rows = connection.execute("select d.content from rag.documents as d").fetchall()
    assert rows == [("the new text",)]


def reading(connection: Connection) -> int | None:
    """The upload that a worker has claimed."""
    row = connection.execute(
        "select u.upload_id from rag.uploads as u where u.state = 'processing'"
    ).fetchone()
    return row[0] if row else None


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_worker_killed_in_the_middle_of_a_file_loses_nothing(
    connection: Connection, start: Start
) -> None:
    number = upload(connection, "slow.csv", SLOW)
    process = start(RAGDB_LEASE_SECONDS="2")
    until(lambda: reading(connection) == number)
    assert process.pid is not None
    pid = process.pid
    until(lambda: children(pid))
    readers = children(pid)
    os.kill(pid, signal.SIGKILL)
    process.join()
    assert state(connection, number) == ("processing", None)
    # The reader ends with whom it reads for, or when its time is up.
    start(RAGDB_LEASE_SECONDS="2")
    until(lambda: state(connection, number)[0] == "completed", seconds=120)
    until(lambda: not any(Path(f"/proc/{reader}").exists() for reader in readers), seconds=120)
    row = connection.execute(
        "select u.attempts >= 2, count(d.document_id), min(d.content) "
        "from rag.uploads as u left join rag.documents as d using (tenant_id, document_id) "
        "group by u.attempts"
    ).fetchone()
    assert row == (True, 1, "name: bolt\nprice: 2\ncolour: grey\nweight: 10\n")


def test_a_long_file_outlives_its_lease_and_a_stopped_worker_gives_it_back(
    connection: Connection, start: Start
) -> None:
    number = upload(connection, "slow.csv", SLOW)
    process = start(RAGDB_LEASE_SECONDS="120")
    until(lambda: reading(connection) == number)
    pid = process.pid
    assert pid is not None
    until(lambda: children(pid))
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    row = connection.execute("select u.state, u.attempts from rag.uploads as u").fetchone()
    assert row == ("pending", 0)


def test_an_upload_rings_for_an_idle_worker(connection: Connection, start: Start) -> None:
    start(RAGDB_POLL_SECONDS="3600")
    idle = (
        "select exists (select from pg_locks as l join pg_stat_activity as a using (pid) where "
        "a.application_name = 'ragdb listener' and l.locktype = 'advisory' and l.granted "
        "and a.datname = current_database())"
    )
    until(lambda: connection.execute(cast("Any", idle)).fetchone() == (True,))
    number = upload(connection, "a.md", b"# Heard\n\nWithout a poll.\n")
    until(lambda: state(connection, number)[0] == "completed")


def test_tenants_take_turns_and_see_their_own(connection: Connection, role: RoleFactory) -> None:
    for name in ("acme", "globex"):
        connection.execute("select rag.create_tenant(%s)", [name])
        connection.execute("select rag.set_tenant(%s)", [name])
        for number in range(3 if name == "acme" else 1):
            upload(connection, f"{name}{number}.md", b"text")
    claimed = connection.execute(
        "select c.filename from rag.claim_uploads('w', 2) as c order by 1"
    ).fetchall()
    assert [name for (name,) in claimed] == ["acme0.md", "globex0.md"]
    with psycopg.connect(role("globex").url, autocommit=True) as globex:
        globex.execute("select rag.set_tenant('globex')")
        rows = globex.execute("select u.filename from rag.uploads as u").fetchall()
        assert rows == [("globex0.md",)]
        others = [
            row[0]
            for row in connection.execute(
                "select u.upload_id from rag.uploads as u where u.filename like 'acme%'"
            )
        ]
        for number in others:
            row = globex.execute(
                "select rag.delete_upload(%s), rag.retry_upload(%s)", [number, number]
            ).fetchone()
            assert row == (False, False)
        rows = globex.execute("select p.tenant from rag.upload_progress() as p").fetchall()
        assert rows == [("globex",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            globex.execute("select * from rag.claim_uploads('w')")
    with psycopg.connect(role(member_of=("rag_worker",)).url, autocommit=True) as worker:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("select u.body from rag.uploads as u")
        rows = worker.execute(
            "select p.tenant, p.pending, p.processing from rag.upload_progress() as p"
        ).fetchall()
        assert rows == [("acme", 2, 1), ("globex", 0, 1)]
