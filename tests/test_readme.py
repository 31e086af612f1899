"""What README and documentation show is what psql prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from db import server as embedded

if TYPE_CHECKING:
    from tests.conftest import RoleFactory

README = Path(__file__).parents[1] / "README.md"
PROMPT = re.compile(r"^ragdb[=\-'(]# ")


SESSIONS = (
    README,
    README.parent / "docs" / "search.md",
    README.parent / "docs" / "files.md",
    README.parent / "docs" / "documents.md",
    README.parent / "docs" / "partitions.md",
    README.parent / "docs" / "maintenance.md",
    README.parent / "docs" / "tenants.md",
)


def session(path: Path) -> tuple[str, str]:
    """The statements of a page's session, and what it says that they print."""
    text = path.read_text(encoding="utf-8")
    block = text.split("```text\n", 1)[1].split("```", 1)[0]
    lines = block.splitlines()
    statements = "\n".join(PROMPT.sub("", line) for line in lines if PROMPT.match(line))
    output = "\n".join(line for line in lines if not PROMPT.match(line))
    return statements, output


def psql(server: embedded.Server, database: str, statements: str) -> str:
    """What psql prints; nothing may go wrong."""
    result = subprocess.run(
        [
            str(server.binaries / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1",
            database,
        ],
        input=statements, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.stderr == ""
    assert result.returncode == 0
    return result.stdout


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.name)
def test_the_session_prints_what_it_shows(
    server: embedded.Server, database: str, page: Path
) -> None:
    statements, expected = session(page)
    assert psql(server, database, statements).split("\n") == [*expected.split("\n"), ""]


def test_the_session_of_search_holds_beside_other_documents(
    server: embedded.Server, database: str
) -> None:
    statements, expected = session(README.parent / "docs" / "search.md")
    first, _ = session(README)
    demo = """
        select rag.create_collection('demo');
        select rag.put(
            'Refunds for gifts, a card, parcels.', 'guide/refunds_2024.md', collection => 'demo'
        );
    """
    psql(server, database, first + demo)
    assert psql(server, database, statements).split("\n") == [*expected.split("\n"), ""]


def test_the_session_of_evaluation_works(server: embedded.Server, database: str) -> None:
    text = (README.parent / "docs" / "evaluation.md").read_text("utf-8")
    statements = text.split("```sql\n", 1)[1].split("```", 1)[0]
    output = psql(server, database, statements)
    assert output.count("(1 row)") == 5
    assert output.count("(2 rows)") == 1


def test_the_examples_of_filters_work_in_a_tenant_that_has_more(
    server: embedded.Server, database: str
) -> None:
    text = (README.parent / "docs" / "filters.md").read_text("utf-8")
    statements, expected = text.split("```sql\n", 1)[1].split("```", 1)[0], text.split("```\n")[2]
    put = "select rag.put('Refunds are none.', 'none', metadata => '{\"lang\": \"en\"}');\n"
    assert "refunds | en   | 3" in expected
    assert "refunds | en   | 3\n(1 row)" in psql(server, database, put + statements)


def test_the_import_of_the_documentation_works(server: embedded.Server, database: str) -> None:
    text = (README.parent / "docs" / "documents.md").read_text("utf-8")
    statements = text.split("```sql\n", 1)[1].split("```", 1)[0]
    output = psql(server, database, statements)
    assert " b   | content is empty: Document 1 of the array has no text.\n(1 row)" in output


def test_the_examples_of_chunking_print_what_they_show(
    server: embedded.Server, database: str
) -> None:
    text = (README.parent / "docs" / "chunking.md").read_text("utf-8")
    for example in text.split("```sql\n")[1:]:
        statement, rest = example.split("```", 1)
        expected = rest.split("```text\n", 1)[1].split("```", 1)[0]
        assert psql(server, database, statement) == expected + "\n"


def test_the_tenant_of_the_readme_works(server: embedded.Server, database: str) -> None:
    statements = README.read_text("utf-8").split("```sql\n", 1)[1].split("```", 1)[0]
    try:
        psql(server, database, statements.replace("acme", "readme"))
    finally:
        psql(server, database, "drop role if exists readme_app;")


def test_a_token_made_as_the_documentation_shows_is_taken(database: str, role: RoleFactory) -> None:
    text = (README.parent / "docs" / "tenants.md").read_text("utf-8")
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    with psycopg.connect(database, autocommit=True) as connection:
        [(key,)] = connection.execute(
            "select encode(rag.add_token_key('2026-11'), 'base64') from rag.create_tenant('acme')"
        ).fetchall()
    web = role()
    with psycopg.connect(web.url, autocommit=True) as session:
        token = names["token"](key, "2026-11", "acme", web.name)
        with session.transaction():
            session.execute("select rag.authenticate(%s)", [token])
            assert session.execute("select rag.current_tenant()").fetchall() == [("acme",)]
        # In autocommit it holds for its own statement only.
        session.execute("select rag.authenticate(%s)", [token])
        with pytest.raises(psycopg.Error):
            session.execute("select rag.put('x', 'x')")


def test_a_file_is_sent_from_psql_as_the_documentation_shows(
    server: embedded.Server, database: str, tmp_path: Path
) -> None:
    text = (README.parent / "docs" / "files.md").read_text("utf-8")
    statements = text.split("A file from psql:\n\n```text\n", 1)[1].split("```", 1)[0]
    (tmp_path / "manual.pdf").write_bytes(bytes(range(256)))
    psql(server, database, statements.replace("manual.pdf", f"{tmp_path}/manual.pdf", 1))
    with psycopg.connect(database) as connection:
        [(filename, size)] = connection.execute(
            "select u.filename, u.bytes from rag.uploads as u"
        ).fetchall()
    assert (filename, size) == ("manual.pdf", 256)


@pytest.mark.parametrize("name", sorted(re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))))
def test_every_link_leads_somewhere(name: str) -> None:
    assert (README.parent / name).exists()
