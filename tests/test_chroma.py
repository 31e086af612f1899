"""The move from a real Chroma: backup, migrate, killed and resumed, verify, rollback.

`make test-chroma` installs chromadb and runs this with 10,000 records.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import RoleFactory
from tests.processes import until

if importlib.util.find_spec("chromadb") is None:
    pytest.skip(
        "chromadb is not installed: make test-chroma runs these tests", allow_module_level=True
    )

from embedder.chroma.__main__ import main
from tests import chroma_data

PROJECT = Path(__file__).resolve().parent.parent
RECORDS = int(os.environ.get("RAGDB_TEST_RECORDS", "300"))
NOTES = max(20, RECORDS // 10)

Connection = psycopg.Connection[tuple[Any, ...]]
Run = Callable[..., tuple[int, str, str]]

# chromadb's own: a deprecated protocol of asyncio, a file that it leaves open.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Chroma with four collections; filled by another process, as in life."""
    folder = tmp_path_factory.mktemp("chroma") / "source"
    statement = (
        "import sys; from pathlib import Path; from tests import chroma_data; "
        "chroma_data.fill(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", statement, str(folder), str(RECORDS)], cwd=PROJECT, check=True
    )
    return folder


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `python -m embedder.chroma` in this process; exit code, stdout and stderr."""

    def run(*arguments: object, url: str = database) -> tuple[int, str, str]:
        monkeypatch.setenv("DATABASE_URL", url)
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def state_of(folder: Path) -> dict[str, str]:
    """Each file of a folder with its checksum."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def one(connection: Connection, statement: str, *parameters: object) -> Any:
    row = connection.execute(statement.encode(), parameters).fetchone()
    return row and row[0]


def test_a_backup_has_everything_with_checksums(chroma: Path, run: Run, tmp_path: Path) -> None:
    before = state_of(chroma)
    code, out, _ = run("backup", chroma, tmp_path / "backup")
    assert code == 0
    assert out.startswith(f"{RECORDS + NOTES + 50:,} records of 4 collections in")
    assert state_of(chroma) == before
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_text())
    entries = {entry["name"]: entry for entry in manifest["collections"]}
    assert [entries[name]["records"] for name in ("manual", "notes", "small", "empty-one")] == [
        RECORDS,
        NOTES,
        50,
        0,
    ]
    assert (entries["manual"]["dimensions"], entries["small"]["dimensions"]) == ([384], [8])
    assert entries["notes"]["without_document"] == sum(n % 40 == 2 for n in range(NOTES))
    path = tmp_path / "backup" / entries["notes"]["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entries["notes"]["sha256"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[3]["id"] == "note 3/ä\0"
    assert lines[3]["document"] == "with\0NUL"
    assert lines[2]["document"] is None
    assert lines[0]["metadata"] == {}
    expected = chroma_data.vectors(NOTES, 384, seed=2)
    assert [line["embedding"] for line in lines] == expected.tolist()
    code, _, err = run("backup", chroma, tmp_path / "backup")
    assert code == 1
    assert "there is a backup already" in err


def test_a_migration_is_killed_resumed_verified_and_rolled_back(
    chroma: Path, run: Run, database: str, connection: Connection, tmp_path: Path
) -> None:
    before = state_of(chroma)
    connection.execute("select rag.put('mine', uri => 'mine', collection => 'default')")
    process = subprocess.Popen(
        [sys.executable, "-m", "embedder.chroma", "migrate", str(chroma), "--batch", "20"],
        cwd=PROJECT,
        env={**os.environ, "DATABASE_URL": database},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: one(connection, "select count(*) from rag.documents") > 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What it had sent is still carried out.
    until(
        lambda: (
            not one(
                connection,
                "select exists (select from pg_stat_activity as a "
                "where a.application_name = 'ragdb chroma' and a.datname = current_database())",
            )
        )
    )
    brought = one(connection, "select count(*) - 1 from rag.documents")
    assert 60 <= brought < RECORDS
    assert one(connection, "select r.state from rag.runs as r") == "running"
    assert "the migration is not complete" in run("verify", chroma)[2]

    code, out, _ = run("migrate", chroma)
    assert code == 0
    assert f"manual: {RECORDS - brought:,} of {RECORDS:,} records brought, {brought:,} there" in out
    assert "(vectors of all-MiniLM-L6-v2 kept)" in out
    assert "small: 50 of 50 records brought, 0 there already; 0 vectors kept, 50 queued" in out
    assert "resumed" in out
    whole = RECORDS + NOTES + 50
    assert one(connection, "select count(*) from rag.documents") == whole + 1
    assert one(connection, "select count(*) from rag.chunks") == whole + 1
    assert one(connection, "select count(*) from rag.embeddings") == RECORDS + NOTES
    # What has no vector waits for one: those of another model, and the document of before.
    assert one(connection, "select count(*) from rag.jobs") == 51

    code, out, _ = run("verify", chroma, "--report", tmp_path, "--queries", 20)
    assert code == 0, out
    assert state_of(chroma) == before
    report = json.loads((tmp_path / "verify.json").read_text())
    assert (tmp_path / "verify.md").read_text() == out
    assert report["passed"]
    checks = {
        entry["name"]: {check["name"]: check["passed"] for check in entry["checks"]}
        for entry in report["collections"]
    }
    same = dict.fromkeys(("count", "ids", "text", "metadata", "one passage a record"), True)
    kept = {**same, "vectors": True, "top 10": True, "search times": None}
    anew = {**same, "vectors": None, "top 10": None, "search times": None}
    assert checks == {"empty-one": anew, "manual": kept, "notes": kept, "small": anew}

    # Again is a new run that finds everything taken, and says so.
    code, out, _ = run("migrate", chroma, "--collection", "small")
    assert code == 1
    assert "left out: small 0: the collection has another document of that uri" in out

    connection.execute("select rag.put('put anew', uri => 'm-1', collection => 'manual')")
    first = one(connection, "select min(r.run_id) from rag.runs as r")
    _, out, _ = run("rollback", first)
    assert f"{whole - 1:,} documents removed; 1 document put anew since then kept" in out
    rows = connection.execute("select d.uri from rag.documents as d order by 1").fetchall()
    assert rows == [("m-1",), ("mine",)]
    rows = connection.execute("select c.name from rag.collections as c order by 1").fetchall()
    assert rows == [("default",), ("manual",)]
    assert one(connection, "select count(*) from rag.chunks") == 2
    assert one(connection, "select count(*) from rag.lexemes") == 2
    assert one(connection, "select count(*) from rag.embeddings") == 0
    assert state_of(chroma) == before


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("select rag.delete('note 5', 'notes')", "ids"),
        ("select rag.put('other', uri => 'note 5', collection => 'notes')", "text"),
        (
            "update rag.documents set metadata = metadata || '{\"x\": 1}' where uri = 'note 5'",
            "metadata",
        ),
        (
            "update rag.embeddings as e set embedding = (e.embedding::vector "
            "* (array_fill(1::real, array[383]) || array[-1::real])::vector)::halfvec "
            "from rag.chunks as c join rag.documents as d using (tenant_id, document_id) "
            "where d.uri = 'note 5' and c.chunk_id = e.chunk_id",
            "vectors",
        ),
    ],
)
def test_a_verification_finds_what_is_not_the_same(
    damage: str, check: str, chroma: Path, run: Run, connection: Connection, tmp_path: Path
) -> None:
    run("migrate", chroma, "--collection", "notes", "--prefix", "")
    connection.execute(damage.encode())
    code, _, _ = run("verify", chroma, "--report", tmp_path, "--queries", 5)
    assert code == 1
    report = json.loads((tmp_path / "verify.json").read_text())
    found = {entry["name"]: entry["passed"] for entry in report["collections"][0]["checks"]}
    assert not report["passed"]
    assert found[check] is False


def test_the_model_of_vectors_can_be_named(chroma: Path, run: Run, connection: Connection) -> None:
    connection.execute("select rag.add_model('tiny', 8)")
    code, out, _ = run("migrate", chroma, "--collection", "small", "--model", "tiny")
    assert code == 0
    assert "50 vectors kept, 0 queued" in out
    row = connection.execute(
        "select count(*), count(*) filter (where m.name = 'tiny') "
        "from rag.embeddings as e join rag.models as m using (model_id)"
    ).fetchone()
    assert row == (50, 50)
    code, out, _ = run("verify", chroma, "--queries", 5)
    assert code == 0
    assert "| vectors | pass | 50 compared, 0 differ" in out
    assert "searches use all-MiniLM-L6-v2, not tiny" in out
    code, _, err = run("migrate", chroma, "--model", "none such")
    assert code == 1
    assert "there is no such model" in err


def test_a_migration_is_of_a_tenant(
    chroma: Path, run: Run, connection: Connection, role: RoleFactory
) -> None:
    connection.execute("select rag.create_tenant('acme')")
    connection.execute("select rag.create_tenant('globex')")
    acme, globex = role("acme"), role("globex")
    arguments = ("migrate", chroma, "--collection", "small", "--prefix", "old-")
    code, out, _ = run(*arguments, "--tenant", "acme", url=acme.url)
    assert code == 0, out
    row = connection.execute(
        "select t.name, c.name, count(*) from rag.documents as d "
        "join rag.collections as c using (tenant_id, collection_id) "
        "join rag.tenants as t using (tenant_id) group by 1, 2"
    ).fetchall()
    assert row == [("acme", "old-small", 50)]
    number = one(connection, "select r.run_id from rag.runs as r")
    for command in (("rollback", number), ("verify", chroma, "--run", number)):
        code, _, err = run(*command, "--tenant", "globex", url=globex.url)
        assert code == 1
        assert "error:" in err
    assert one(connection, "select count(*) from rag.documents") == 50


def test_what_is_no_chroma_is_said_to_be_none(run: Run, tmp_path: Path, chroma: Path) -> None:
    code, _, err = run("migrate", tmp_path)
    assert code == 1
    assert "there is no Chroma in this folder" in err
    assert not [*tmp_path.iterdir()]
    code, _, err = run("migrate", chroma, "--collection", "none-such")
    assert code == 1
    assert "none-such not found; there are empty-one, manual, notes, small." in err
    code, _, err = run("migrate", "http://127.0.0.1:1")
    assert code == 1
    assert "Chroma cannot be opened" in err
