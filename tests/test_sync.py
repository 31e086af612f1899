"""The command sync: what changed is put, what vanished is deleted, the rest is not touched."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from embedder.__main__ import main
from tests.conftest import RoleFactory
from tests.test_formats import ENGLISH, pdf
from tests.test_ingest import uris, wait_until

PROJECT = Path(__file__).resolve().parent.parent

Connection = psycopg.Connection[tuple[Any, ...]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with four documents."""
    root = tmp_path / "docs"
    (root / "a").mkdir(parents=True)
    (root / "one.md").write_text("# One\n\nThe first.\n")
    (root / "two.txt").write_text("The second.")
    (root / "a" / "three.html").write_text("<h1>Three</h1><p>The third.</p>")
    (root / "a" / "four.pdf").write_bytes(pdf("Four\n" + ENGLISH, "Five\nThe end."))
    return root


@pytest.fixture
def sync(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `python -m embedder sync` in this process; exit code, stdout and stderr."""
    # No embedder works on these databases.
    monkeypatch.setattr("embedder.ingest.PATIENCE_SECONDS", 0.1)

    def run(
        *arguments: object, url: str = database, said: str | None = None
    ) -> tuple[int, str, str]:
        monkeypatch.setenv("DATABASE_URL", url)
        answers = io.StringIO(said or "")
        monkeypatch.setattr(answers, "isatty", lambda: said is not None)
        monkeypatch.setattr(sys, "stdin", answers)
        code = main(["sync", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def touched(connection: Connection) -> dict[str, str]:
    """Each uri with the transaction that wrote its row last."""
    rows = connection.execute("select d.uri, d.xmin::text from rag.documents as d").fetchall()
    return dict(rows)


def test_what_changed_is_put_and_the_rest_is_not_touched(
    tree: Path, sync: Run, connection: Connection
) -> None:
    code, out, _ = sync(tree)
    assert code == 0
    assert "4 inserted, 0 updated, 0 unchanged, 0 skipped, 0 deleted" in out
    before = touched(connection)
    code, out, _ = sync(tree)
    assert code == 0
    assert "0 inserted, 0 updated, 4 unchanged, 0 skipped, 0 deleted; 0 chunks" in out
    assert touched(connection) == before

    (tree / "one.md").write_text("# One\n\nEdited.\n")
    (tree / "new.md").write_text("# New\n\nCame.\n")
    # Touched and not changed; and the same size at the same time, but changed.
    os.utime(tree / "two.txt", (1, 1))
    stamp = (tree / "a" / "three.html").stat()
    (tree / "a" / "three.html").write_text("<h1>Three</h1><p>The THIRD.</p>")
    os.utime(tree / "a" / "three.html", (stamp.st_atime, stamp.st_mtime))
    code, out, _ = sync(tree)
    assert code == 0
    assert "1 inserted, 2 updated, 2 unchanged, 0 skipped, 0 deleted" in out
    after = touched(connection)
    assert {uri for uri in before if before[uri] == after[uri]} == {
        "docs/two.txt",
        "docs/a/four.pdf",
    }
    rows = connection.execute(
        "select r.state, r.report -> 'inserted', r.report -> 'updated', "
        "(select string_agg(d.action || ' ' || d.uri, ', ' order by d.uri) "
        "from rag.run_documents as d where d.run_id = r.run_id) "
        "from rag.runs as r order by r.run_id"
    ).fetchall()
    assert [row[:3] for row in rows] == [
        ("completed", 4, 0),
        ("completed", 0, 0),
        ("completed", 1, 2),
    ]
    assert rows[2][3] == "updated docs/a/three.html, inserted docs/new.md, updated docs/one.md"


def test_several_readers_tell_how_far_they_are(
    tree: Path, sync: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedder.ingest._LINE_SECONDS", 0)
    for number in range(40):
        (tree / f"{number}.md").write_text(f"Document number {number}.\n")
    code, out, err = sync(tree, "--jobs", 2)
    assert (code, "44 inserted" in out) == (0, True)
    told = re.findall(r"^(\d+) of 44 files, \d+ chunks?, [\d,]+ files/s, (\d+) s left$", err, re.M)
    assert len(told) > 1
    assert [int(read) for read, _ in told] == sorted(int(read) for read, _ in told)
    assert told[-1] == ("44", "0")


def test_what_vanished_is_deleted_when_that_is_said(
    tree: Path, sync: Run, connection: Connection
) -> None:
    connection.execute("select rag.put('Not of this folder.', uri => 'docs/other.md')")
    sync(tree)
    (tree / "two.txt").unlink()
    (tree / "a" / "three.html").unlink()
    code, out, _ = sync(tree, "--dry-run")
    assert code == 0
    assert out == (
        "delete  docs/a/three.html\ndelete  docs/two.txt\n"
        "0 to be put, 2 to be deleted, 2 unchanged.\n"
    )
    code, out, err = sync(tree)
    assert code == 0
    assert "0 deleted" in out
    assert "2 documents of vanished files left; --delete deletes them." in err
    code, _, err = sync(tree, said="n\n")
    assert "The files of 2 documents have vanished: docs/a/three.html, docs/two.txt" in err
    assert len(uris(connection)) == 5
    code, out, _ = sync(tree, said="y\n")
    assert (code, "2 deleted" in out) == (0, True)
    assert uris(connection) == ["docs/a/four.pdf", "docs/one.md", "docs/other.md"]
    (tree / "one.md").unlink()
    code, out, _ = sync(tree, "--delete")
    assert (code, "1 deleted" in out) == (0, True)
    row = connection.execute(
        "select d.uri, d.action from rag.run_documents as d order by d.run_id desc limit 1"
    ).fetchone()
    assert row == ("docs/one.md", "deleted")


def test_what_cannot_be_read_now_has_not_vanished(
    tree: Path, sync: Run, connection: Connection
) -> None:
    sync(tree)
    (tree / "a" / "four.pdf").write_bytes(b"broken")
    (tree / "one.md").write_text("")
    # A folder that became a link is not followed, and what was in it is not known to be gone.
    (tree / "a").rename(tree.parent / "elsewhere")
    (tree / "a").symlink_to(tree.parent / "elsewhere")
    code, out, _ = sync(tree, "--delete")
    assert code == 0
    assert "empty" in out
    assert "a link to a folder" in out
    assert "2 skipped, 0 deleted" in out
    assert len(uris(connection)) == 4
    row = connection.execute(
        "select r.report -> 'reasons' -> 0 from rag.runs as r order by r.run_id desc limit 1"
    ).fetchone()
    assert row == ({"uri": "docs/a", "reason": "a link to a folder; name that folder itself"},)


def test_an_unmounted_folder_deletes_nothing(tree: Path, sync: Run, connection: Connection) -> None:
    sync(tree)
    tree.rename(tree.parent / "away")
    code, _, err = sync(tree, "--delete")
    assert (code, err) == (2, f"error: there is no {tree}\n")
    assert len(uris(connection)) == 4


def test_pages_are_in_the_results(tree: Path, sync: Run, connection: Connection) -> None:
    sync(tree)
    rows = connection.execute(
        "select s.uri, s.heading_path, s.metadata -> 'page', s.metadata ->> 'lang' "
        """from rag.search('the end', filter => '{"page": 2}') as s"""
    ).fetchall()
    assert rows == [("docs/a/four.pdf", ["Five"], 2, "en")]


def test_a_sync_that_was_killed_goes_on(
    tmp_path: Path, database: str, connection: Connection, sync: Run
) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(250):
        (root / f"{number:03}.md").write_text(f"Document number {number}.\n")
    connection.execute("select rag.put('first', uri => 'first')")
    # An uncommitted document of the second batch holds that batch up.
    with psycopg.connect(database) as blocker:
        blocker.execute("select rag.put('blocked', uri => 'many/150.md')")
        process = subprocess.Popen(
            [sys.executable, "-m", "embedder", "sync", str(root)],
            cwd=PROJECT,
            env={**os.environ, "DATABASE_URL": database},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(
            connection,
            "select exists (select from pg_stat_activity where application_name = 'ragdb sync' "
            "and datname = current_database() and wait_event_type = 'Lock')",
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        blocker.rollback()
    wait_until(
        connection,
        "select not exists (select from pg_stat_activity where application_name = 'ragdb sync' "
        "and datname = current_database())",
    )
    assert len(uris(connection)) == 101
    code, out, _ = sync(root)
    assert code == 0
    assert "150 inserted, 0 updated, 100 unchanged" in out
    rows = connection.execute("select r.state from rag.runs as r order by r.run_id").fetchall()
    assert rows == [("interrupted",), ("completed",)]


def test_runs_are_each_tenants_own(
    tree: Path, sync: Run, connection: Connection, role: RoleFactory
) -> None:
    connection.execute("select rag.create_tenant('acme')")
    acme = role("acme")
    code, _, _ = sync(tree, "--tenant", "acme", url=acme.url)
    assert code == 0
    sync(tree)
    with psycopg.connect(acme.url, autocommit=True) as own:
        own.execute("select rag.set_tenant('acme')")
        rows = own.execute("select count(*) from rag.runs").fetchone()
        assert rows == (1,)
        foreign = connection.execute("select max(r.run_id) from rag.runs as r").fetchone()
        assert foreign is not None
        for call in (
            "rag.end_run(%s, 'failed')",
            "rag.rollback_run(%s)",
            "rag.note_run(%s, '[]', 'default')",
            "rag.begin_run('sync', 'x', run_id => %s)",
        ):
            with pytest.raises(psycopg.errors.NoDataFound):
                own.execute(f"select {call}".encode(), foreign)
