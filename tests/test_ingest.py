"""The command ingest: which files it finds, what becomes of them, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from embedder.__main__ import main
from embedder.ingest import (
    BATCH_DOCUMENTS,
    Found,
    Ingest,
    Read,
    SameNameError,
    Skipped,
    find,
    read_all,
    readers,
)
from tests.conftest import RoleFactory
from tests.processes import until

PROJECT = Path(__file__).resolve().parent.parent

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with documents and with things that are none."""
    root = tmp_path / "docs"
    for name, content in {
        "b.md": "# Beta\n\nThe second letter.\n",
        "a/one.txt": "Plain words of one.",
        "a/two.html": '<html lang="es"><h1>Dos</h1><p>Las habitaciones</p></html>',
        "Upper.RST": "Upper\n=====\n\nAn upper case ending.\n",
        "picture.png": "\x89PNG",
        "Makefile": "all:\n",
        ".hidden.md": "hidden",
        ".git/config.md": "hidden",
        "node_modules/package/README.md": "hidden",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def ingest(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `python -m embedder ingest` in this process; exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", database)

    def run(*arguments: object, url: str = database) -> tuple[int, str, str]:
        monkeypatch.setenv("DATABASE_URL", url)
        code = main(["ingest", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Run = Callable[..., tuple[int, str, str]]


def uris(connection: Connection) -> list[str]:
    """All uris of the tenant, sorted."""
    rows = connection.execute("select d.uri from rag.documents as d").fetchall()
    return sorted(row[0] for row in rows)


# ---------------------------------------------------------------------------------------- finding


def names(found: list[Found]) -> list[str]:
    """The uris of what was found, in its order."""
    return [one.uri for one in found]


def test_documents_are_found_in_order_and_hidden_ones_are_not(tree: Path) -> None:
    found, skipped = find([tree])
    assert names(found) == ["docs/Upper.RST", "docs/b.md", "docs/a/one.txt", "docs/a/two.html"]
    assert skipped == [
        Skipped("docs/Makefile", "files without an ending are not read"),
        Skipped("docs/picture.png", ".png files are not read"),
    ]


def test_uris_do_not_depend_on_the_working_directory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = find([tree])
    monkeypatch.chdir(tree.parent)
    assert find([Path("docs")]) == expected
    monkeypatch.chdir(tree / "a")
    assert find([Path("..")]) == expected
    monkeypatch.chdir(tree)
    assert find([Path()]) == expected


def test_a_file_named_by_itself_is_read_whatever_its_ending(tree: Path) -> None:
    found, skipped = find([tree / "Makefile", tree / ".hidden.md"])
    assert names(found) == ["Makefile", ".hidden.md"]
    assert skipped == []


def test_a_name_replaces_the_first_part(tree: Path) -> None:
    assert names(find([tree / "a"], "manual")[0]) == ["manual/one.txt", "manual/two.html"]


def test_two_folders_of_one_name_do_not_collide_silently(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "c.md").write_text("no collision yet")
    assert "docs/c.md" in names(find([tree, other])[0])
    (other / "b.md").write_text("the same uri")
    with pytest.raises(SameNameError) as caught:
        find([tree, other])
    assert caught.value.detail == f"{tree / 'b.md'} and {other / 'b.md'} would both be docs/b.md."


def test_the_same_folder_twice_is_once(tree: Path) -> None:
    assert find([tree, tree])[0] == find([tree])[0]


def test_linked_folders_are_named_and_not_followed(tree: Path) -> None:
    (tree / "loop").symlink_to(tree)
    (tree / "a" / "link.md").symlink_to(tree / "b.md")
    found, skipped = find([tree])
    assert "docs/a/link.md" in names(found)
    assert len(found) == 5
    assert Skipped("docs/loop", "a link to a folder; name that folder itself") in skipped


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_forbidden_folder_is_named(tree: Path) -> None:
    (tree / "a").chmod(0)
    try:
        assert Skipped("docs/a", "no permission to list the folder") in find([tree])[1]
    finally:
        (tree / "a").chmod(0o755)


# ---------------------------------------------------------------------------------------- reading


def test_processes_read_the_same_in_the_same_order(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.md").write_text(f"# Title {number}\n" if number % 7 else "")
    found, _ = find([tmp_path])
    alone = list(read_all(found, 1))
    assert [one.reason for one in alone].count("empty") == 6
    assert list(read_all(found, 2)) == alone


def test_few_files_are_read_without_further_processes() -> None:
    assert readers(10) == 1
    assert readers(10, 3) == 3


def test_a_name_that_is_not_utf_8_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("words")
    found, _ = find([tmp_path])
    assert [*read_all(found, 1)] == [Read(found[0], None, "its name is not valid UTF-8")]


# ------------------------------------------------------------------------------------ the command


def test_documents_go_in_once(tree: Path, ingest: Run, connection: Connection) -> None:
    code, out, _ = ingest(tree)
    assert code == 0
    assert out.startswith("Skipped because")
    assert "4 inserted, 0 updated, 0 unchanged, 2 skipped; 4 chunks" in out
    assert "collection default of tenant default." in out
    assert "4 chunks wait for their embeddings and no embedder is at work: make embedder." in out
    rows = connection.execute(
        "select d.uri, d.title, d.language, "
        "d.metadata - '{root,modified,name,mime,sha256}'::text[] "
        "from rag.documents as d order by d.uri"
    ).fetchall()
    assert rows == [
        (uri, title, language, {"source": uri, "format": kind, "bytes": size, **more})
        for uri, title, language, kind, size, more in (
            ("docs/Upper.RST", "Upper", "english", "rst", 35, {}),
            ("docs/a/one.txt", "one", "english", "text", 19, {}),
            ("docs/a/two.html", "Dos", "spanish", "html", 58, {"lang": "es"}),
            ("docs/b.md", "Beta", "english", "markdown", 27, {}),
        )
    ]

    (tree / "b.md").write_text("# Beta\n\nChanged.\n")
    (tree / "c.md").write_text("# Gamma\n\nNew.\n")
    code, out, _ = ingest(tree)
    assert code == 0
    assert "1 inserted, 1 updated, 3 unchanged, 2 skipped; 5 chunks" in out


def test_one_bad_document_leaves_the_batch_in(
    tree: Path, ingest: Run, connection: Connection
) -> None:
    # A uri of more than 2,000 bytes: nothing is wrong with the file, but the server refuses it.
    deep = tree.joinpath(*(["d" * 250] * 9))
    deep.mkdir(parents=True)
    (deep / "long.md").write_text("words")
    (tree / "a" / "empty.md").write_text("")
    (tree / "a" / "binary.md").write_bytes(b"\0\1")
    code, out, _ = ingest(tree)
    assert code == 0
    assert "4 inserted" in out
    assert "refused: invalid uri" in out
    assert "binary: it contains NUL bytes" in out
    assert len(uris(connection)) == 4


def test_nothing_readable_is_a_failure(tree: Path, ingest: Run) -> None:
    code, out, _ = ingest(tree / "picture.png")
    assert code == 0  # Named by itself, and it is text after all.
    (tree / "picture.png").write_bytes(b"\x89PNG\0")
    code, out, _ = ingest(tree / "picture.png")
    assert code == 1
    assert "binary: it contains NUL bytes" in out


def test_wrong_usage_is_told_before_anything_is_done(
    tree: Path, tmp_path: Path, ingest: Run, connection: Connection
) -> None:
    code, _, err = ingest(tree, tmp_path / "nowhere")
    assert (code, err) == (2, f"error: there is no {tmp_path / 'nowhere'}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "one.txt").write_text("another")
    code, _, err = ingest(tree / "a" / "one.txt", tmp_path / "other" / "one.txt")
    assert code == 2
    assert "error: two files would have the same uri" in err
    with pytest.raises(SystemExit, match="2"):
        ingest(tree, "--jobs", "0")
    assert uris(connection) == []


def test_a_collection_is_made_with_its_language(
    tree: Path, ingest: Run, connection: Connection
) -> None:
    code, out, err = ingest(tree, "--collection", "manual", "--language", "german")
    assert code == 0
    assert "Made the collection manual." in err
    assert "collection manual of tenant default" in out
    row = connection.execute(
        "select c.language, count(distinct d.language), min(d.language) "
        "from rag.collections as c join rag.documents as d using (tenant_id, collection_id) "
        "group by c.language"
    ).fetchone()
    assert row == ("german", 1, "german")
    assert "Made" not in ingest(tree, "--collection", "manual")[2]


def test_an_unknown_language_is_explained(tree: Path, ingest: Run) -> None:
    code, _, err = ingest(tree, "--language", "klingon")
    assert code == 1
    assert 'text search configuration "klingon" does not exist' in err


def test_documents_of_another_folder_of_that_name_are_noted(
    tree: Path, tmp_path: Path, ingest: Run, connection: Connection
) -> None:
    ingest(tree)
    tree.rename(tmp_path / "moved")
    elsewhere = tmp_path / "elsewhere" / "docs"
    elsewhere.mkdir(parents=True)
    (elsewhere / "b.md").write_text("another b")
    _, _, err = ingest(elsewhere)
    assert "Note: 4 documents named docs/… came from another folder" in err
    assert len(uris(connection)) == 4
    _, _, err = ingest(elsewhere, "--name", "elsewhere")
    assert "Note" not in err
    assert len(uris(connection)) == 5


def test_tenants_are_kept_apart(
    tree: Path, ingest: Run, connection: Connection, role: RoleFactory
) -> None:
    connection.execute("select rag.create_tenant('acme')")
    member = role("acme")
    code, out, _ = ingest(tree, "--tenant", "acme", url=member.url)
    assert code == 0
    assert "collection default of tenant acme." in out
    rows = connection.execute(
        "select t.name, count(*) from rag.documents as d join rag.tenants as t using (tenant_id) "
        "group by t.name"
    ).fetchall()
    assert rows == [("acme", 4)]

    code, _, err = ingest(tree, "--tenant", "default", url=member.url)
    assert code == 1
    assert f'error: role {member.name} may not act as tenant "default"' in err
    assert "An administrator grants it" in err
    code, _, err = ingest(tree, url=member.url)
    assert code == 1
    assert "error: no tenant is set" in err
    assert "Name one: --tenant NAME" in err


def test_a_database_without_ragdb_is_explained(
    tree: Path, ingest: Run, empty_database: str
) -> None:
    code, _, err = ingest(tree, url=empty_database)
    assert code == 1
    assert "the database has no ragdb in it" in err
    assert "`make migrate` makes it" in err


def test_a_server_that_is_away_is_explained(tree: Path, ingest: Run, tmp_path: Path) -> None:
    code, _, err = ingest(tree, url=f"postgresql://postgres@/none?host={tmp_path}")
    assert code == 1
    assert "cannot connect to the database" in err
    assert "is the server running, and is DATABASE_URL right?" in err


def test_languages_go_in_batches_of_their_own(
    tmp_path: Path, database: str, connection: Connection
) -> None:
    for number in range(12):
        language = ("de", "pt-BR", "xx")[number % 3]
        (tmp_path / f"{number:02}.html").write_text(f'<html lang="{language}"><p>words</p></html>')
    found, _ = find([tmp_path])
    with psycopg.connect(database, autocommit=True) as own:
        task = Ingest(own, "default")
        task.run(found, 1, lambda _tally: None)
    assert task.tally.statuses == {"inserted": 12}
    rows = connection.execute(
        "select d.language, count(*) from rag.documents as d group by d.language order by 1"
    ).fetchall()
    assert rows == [("english", 4), ("german", 4), ("portuguese", 4)]


def test_an_interruption_leaves_whole_batches_and_the_next_run_goes_on(
    tmp_path: Path, database: str, connection: Connection, ingest: Run
) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(3 * BATCH_DOCUMENTS):
        (root / f"{number:03}.md").write_text(f"Document number {number}.\n")
    connection.execute("select rag.put('first', uri => 'first')")
    # An uncommitted document of the second batch holds that batch up.
    with psycopg.connect(database) as blocker:
        blocker.execute("select rag.put('blocked', uri => 'many/150.md')")
        process = subprocess.Popen(
            [sys.executable, "-m", "embedder", "ingest", str(root)],
            cwd=PROJECT,
            env={**os.environ, "DATABASE_URL": database},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A run in the background of a script has inherited that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        wait_until(
            connection,
            "select exists (select from pg_stat_activity where application_name = 'ragdb ingest' "
            "and datname = current_database() and wait_event_type = 'Lock')",
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        blocker.rollback()
    assert process.returncode == 130, err
    assert f"{BATCH_DOCUMENTS} inserted" in out
    assert "Interrupted. What is counted is in; the same command does the rest." in out
    batch = [f"many/{number:03}.md" for number in range(BATCH_DOCUMENTS)]
    assert uris(connection) == ["first", *batch]

    code, out, _ = ingest(root)
    assert code == 0
    assert f"{2 * BATCH_DOCUMENTS} inserted, 0 updated, {BATCH_DOCUMENTS} unchanged" in out
    assert len(uris(connection)) == 1 + 3 * BATCH_DOCUMENTS


def wait_until(connection: Connection, condition: str) -> None:
    """Wait until a query gives true."""
    until(lambda: connection.execute(condition.encode()).fetchone() == (True,))


def test_a_real_collection_goes_in(shared_data: Path, ingest: Run, connection: Connection) -> None:
    """The German pages of Apache's manual: HTML, ISO-8859-1."""
    code, out, _ = ingest(shared_data / "docs-apache-httpd" / "de")
    assert code == 0
    assert "21 inserted, 0 updated, 0 unchanged, 0 skipped" in out
    row = connection.execute(
        "select s.uri, s.heading_path from rag.search('Zusammenspiel mit virtuellen Hosts') as s "
        "order by s.rank limit 1"
    ).fetchone()
    assert row == (
        "de/bind.html",
        ["An Adressen und Ports binden", "Das Zusammenspiel mit virtuellen Hosts"],
    )
