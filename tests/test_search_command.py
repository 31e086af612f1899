"""The commands search and demo: what they ask, and how they show it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from psycopg.types.json import Jsonb
from rich.console import Console

from embedder.__main__ import main
from embedder.config import Settings
from embedder.demo import question
from embedder.models import EmbeddingModel, SentenceTransformerModel
from embedder.search import Asker, Passage, show
from embedder.terminal import printable
from embedder.worker import Worker
from tests.conftest import RoleFactory

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Connection = psycopg.Connection[tuple[Any, ...]]
Run = Callable[..., tuple[int, str, str]]

DOCUMENTS = (
    {
        "uri": "shop/refunds.md",
        "title": "Refunds",
        "content": "# Refunds\n\nA customer gets the money back within fourteen days.\n",
        "metadata": {"lang": "en"},
    },
    {
        "uri": "shop/delivery.md",
        "title": "Delivery",
        "content": "# Delivery\n\nParcels are shipped on the next working day.\n",
        "metadata": {"lang": "en"},
    },
    {
        "uri": "zoo/elephants.md",
        "title": "Elephants",
        "content": "# Elephants\n\nThe largest land animal eats grass and leaves.\n",
        "metadata": {"lang": "en"},
    },
)
SPANISH = (
    {
        "uri": "hotel/habitaciones.md",
        "title": "Habitaciones",
        "content": "# Habitaciones\n\nCada habitación tiene baño, y el niño duerme gratis.\n",
        "metadata": {"lang": "es"},
    },
)


@pytest.fixture
def search(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `python -m embedder search` in this process; exit code, stdout and stderr."""

    def run(*arguments: object, url: str = database) -> tuple[int, str, str]:
        monkeypatch.setenv("DATABASE_URL", url)
        code = main(["search", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def filled(connection: Connection) -> Connection:
    """A database with documents in two languages, none embedded."""
    put_many = "select rag.put_many(%s, language => %s)"
    connection.execute(put_many, [Jsonb(DOCUMENTS), "english"])
    connection.execute(put_many, [Jsonb(SPANISH), "spanish"])
    return connection


@pytest.fixture
def minilm(model: SentenceTransformer) -> EmbeddingModel:
    """The session's model as the embedder sees it."""
    return SentenceTransformerModel("all-MiniLM-L6-v2", cast("Any", model))


def test_passages_are_shown_with_source_and_ranks(filled: Connection, search: Run) -> None:
    del filled
    code, out, err = search("When do I get my money?", "--mode", "lexical", "-k", 1)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "1  shop/refunds.md > Refunds"
    assert lines[1].startswith("   score ")
    assert "words #1 (" in lines[1]
    assert lines[1].endswith("meaning: no")
    assert "   A customer gets the money back within fourteen days." in lines
    assert lines[-1] == "By words alone, as asked."


def test_rows_come_as_json(filled: Connection, search: Run) -> None:
    code, out, _ = search("habitaciones", "--mode", "lexical", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["uri"] for row in rows] == ["hotel/habitaciones.md"]
    assert rows[0]["heading_path"] == ["Habitaciones"]
    assert "habitación" in out
    row = filled.execute(
        "select substr(d.content, %s + 1, %s - %s) from rag.documents as d "
        "where d.document_id = %s",
        [rows[0][key] for key in ("start_offset", "end_offset", "start_offset", "document_id")],
    ).fetchone()
    assert row == (rows[0]["content"],)


def test_a_filter_and_a_collection_narrow_the_search(filled: Connection, search: Run) -> None:
    filled.execute("select rag.create_collection('other')")
    question = ("money", "--mode", "lexical")
    assert "shop/refunds.md" in search(*question, "--filter", '{"lang": "en"}')[1]
    assert search(*question, "--filter", '{"lang": "es"}')[1] == (
        "Nothing found with this filter that has a word of the question.\n"
    )
    assert search(*question, "--collection", "other")[1] == (
        "Nothing found in collection other that has a word of the question.\n"
    )


@pytest.mark.parametrize("text", ["{", "[1]", '"en"'])
def test_a_filter_that_is_no_object_is_wrong_usage(
    text: str, search: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        search("question", "--filter", text)
    assert "argument --filter: not" in capsys.readouterr().err


def test_an_empty_question_is_wrong_usage(search: Run) -> None:
    assert search("  ") == (2, "", "error: the question is empty\n")


def test_an_empty_database_says_what_to_do(connection: Connection, search: Run) -> None:
    del connection
    assert search("anything", "--mode", "lexical") == (
        0,
        "There are no documents yet: make ingest DOCS=path\n",
        "",
    )


def test_errors_come_with_their_hints(
    filled: Connection, search: Run, role: RoleFactory, empty_database: str
) -> None:
    del filled
    code, out, err = search("x", "--mode", "lexical", "--collection", "nowhere")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        'error: collection "nowhere" does not exist',
        "  Tenant 'default' has no collection of that name.",
        "  Create it: select rag.create_collection('nowhere').",
    ]
    stranger = role()
    code, _, err = search("x", "--mode", "lexical", "--tenant", "default", url=stranger.url)
    assert code == 1
    assert f'error: role {stranger.name} may not act as tenant "default"' in err
    code, _, err = search("x", "--mode", "lexical", url=stranger.url)
    assert code == 1
    assert "error: no tenant is set" in err
    assert "Name one: --tenant NAME" in err
    code, _, err = search("x", "--filter", '{"a": {"$like": 1}}', "--mode", "lexical")
    assert code == 1
    assert "$like" in err
    code, _, err = search("x", url=empty_database)
    assert code == 1
    assert "`make migrate` makes it" in err


# ----------------------------------------------------------------------------------- highlighting


def passage(content: str, document_id: int = 1) -> Passage:
    """A passage with this text, of both legs."""
    return Passage(
        rank=1,
        score=0.5,
        uri="a.md",
        title="A",
        content=content,
        metadata={},
        lexical_rank=1,
        lexical_score=2.0,
        semantic_rank=3,
        similarity=0.25,
        query_embedding="given",
        collection_name="default",
        heading_path=["A", "B"],
        document_id=document_id,
        chunk_id=1,
        start_offset=0,
        end_offset=len(content),
    )


def test_words_of_the_question_are_found_by_their_stems(filled: Connection) -> None:
    asker = Asker(filled)
    english = asker.ask("shipping a parcel", mode="lexical", k=1)
    assert asker.matched_words("shipping a parcel", english) == {"parcels", "shipped"}
    spanish = asker.ask("¿Hay baños en las HABITACIONES para niños?", mode="lexical", k=1)
    matched = asker.matched_words("¿Hay banos en las HABITACIONES para niños?", spanish)
    assert matched == {"habitación", "habitaciones", "baño", "niño"}
    assert asker.matched_words("the", english) == frozenset()
    assert asker.matched_words("anything", []) == frozenset()


def drawn(one: Passage, *, width: int, lines: int | None = None, matched: str = "") -> str:
    """What a terminal of that width gets."""
    console = Console(width=width, force_terminal=True, highlight=False, color_system="standard")
    with console.capture() as captured:
        show(console, [one], frozenset(matched.split()), lines)
    return captured.get()


def test_matched_words_are_marked(filled: Connection) -> None:
    del filled
    out = drawn(passage("Una Habitación, no 2"), width=60, matched="habitación")
    assert "Una \x1b[1;33mHabitación\x1b[0m, no 2" in out
    assert "score 0.500 · words #1 (2.000) · meaning #3 (0.250)" in out
    assert "a.md > A > B" in out


def test_passages_are_wrapped_and_cut() -> None:
    out = drawn(passage("word " * 100), width=40, lines=2)
    rows = [row for row in out.splitlines() if "word" in row and "words" not in row]
    assert len(rows) == 2
    assert all(len(row) <= 42 for row in rows)
    assert rows[-1].endswith("…")


def test_a_document_cannot_write_to_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\r\x9bc\td\n") == "a[31mbc\td\n"
    out = drawn(passage("before\x1b]0;title\x07after"), width=60)
    assert "before]0;titleafter" in out


# ----------------------------------------------------------------------------------- with the model


def embed_all(database: str, minilm: EmbeddingModel) -> None:
    """Work the queue off."""
    settings = Settings.from_environment({"DATABASE_URL": database, "RAGDB_WORD_VECTOR_TEXTS": "0"})
    assert Worker(settings, minilm).run(once=True) == 0


def test_meaning_finds_what_words_do_not(
    filled: Connection, database: str, minilm: EmbeddingModel
) -> None:
    asker = Asker(filled, minilm)
    query = "Which creature is huge?"
    assert asker.ask(query, mode="lexical") == []
    assert asker.ask(query, mode="semantic") == []
    embed_all(database, minilm)
    best = asker.ask(query, mode="semantic", k=1)[0]
    assert (best.uri, best.semantic_rank, best.lexical_rank) == ("zoo/elephants.md", 1, None)
    assert best.query_embedding == "given"
    best = asker.ask("When do I get my money?", k=1)[0]
    assert (best.uri, best.semantic_rank, best.lexical_rank) == ("shop/refunds.md", 1, 1)


def test_the_verdict_tells_which_legs_served(
    filled: Connection, database: str, minilm: EmbeddingModel, search: Run
) -> None:
    query = "When do I get my money?"
    waiting = "By words alone: nothing is embedded yet, 4 chunks wait (make embedder)."
    assert search(query)[1].splitlines()[-1] == waiting
    assert search(query, "--mode", "semantic")[1] == "Nothing is embedded yet: make embedder\n"
    embed_all(database, minilm)
    filled.execute("select rag.put('Something new.')")
    assert search(query)[1].splitlines()[-1] == (
        "By words and meaning. 1 chunks still wait for their embeddings."
    )
    assert search(query, "--mode", "semantic")[1].splitlines()[-1] == (
        "By meaning alone, as asked. 1 chunks still wait for their embeddings."
    )


def test_the_demo_shows_it_all(
    tmp_path: Path,
    connection: Connection,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    for name, text in {
        "rooms.md": "# Rooms\n\n## How do I book a room?\n\nBy mail or at the desk.\n",
        "zoo.md": "# The zoo\n\n## Opening hours\n\nFrom nine to five.\n",
        "plain.txt": "A text without any heading, about trains.",
    }.items():
        (tmp_path / name).write_text(text)
    assert main(["demo", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "3 documents in 3 passages are in collection demo" in captured.out
    assert "3 passages embedded in " in captured.out
    assert "Embedding: 3 of 3 passages" in captured.err
    for asked in ("plain", "How do I book a room?", "Opening hours, The zoo"):
        assert f"\nQuestion: {asked}\n" in captured.out
    assert re.search(r"   score \d+\.\d{3} · words #1 \(", captured.out)
    assert "make psql" in captured.out
    row = connection.execute("select count(*) from rag.embeddings").fetchone()
    assert row == (3,)


def test_the_demo_refuses_what_it_cannot_show(
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    assert main(["demo", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: there is no {tmp_path / 'nowhere'}\n"
    assert main(["demo", str(tmp_path)]) == 1
    assert "error: there is nothing that could be read" in capsys.readouterr().err


def test_the_demo_makes_its_tenant_anew(
    tmp_path: Path,
    connection: Connection,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    connection.execute("select * from rag.drop_tenant('default')")
    assert main(["demo", str(tmp_path)]) == 1
    assert "error: there is nothing that could be read" in capsys.readouterr().err
    assert connection.execute("select rag.current_tenant()").fetchone() == ("default",)


@pytest.mark.parametrize(
    ("title", "headings", "expected"),
    [
        ("Zoo", [], "Zoo"),
        ("Zoo", ["Opening hours"], "Opening hours, Zoo"),
        ("Zoo", ["Opening hours", "¿Cuándo abre?", "Where is it?"], "¿Cuándo abre?"),
    ],
)
def test_questions_are_made_of_headings(title: str, headings: list[str], expected: str) -> None:
    assert question(title, headings) == expected
