"""What holds for the chunks of any text: real documents, random texts, very long ones."""
# ruff: noqa: RUF001 -- the signs of Chinese are meant

from __future__ import annotations

import gzip
import json
import os
import re
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

SEED = int(os.environ.get("CHUNKING_SEED", "20"))
TEXTS = 150
STRATEGIES = ("recursive", "markdown", "token", "sentence", "code", "none")
# An overlap of 100 is half of 200, one more than allowed.
SETTINGS = ((200, 0), (200, 99), (800, 0), (800, 100), (2000, 0), (2000, 100))
# The other strategies cut by the same code: here is what is their own.
FEW_SETTINGS = {
    "token": ((200, 99),),
    "sentence": ((200, 99), (800, 0)),
    "code": ((200, 99), (800, 0)),
}

WORDS = [
    *("the", "quick", "brown", "résumé", "Über", "привет", "мир", "مرحبا", "العالم", "שלום"),
    *("你好世界", "今天天气很好", "。", "！", "，", "”", "日本語", "한국어", "नमस्ते", "ไทย"),
    *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\u2764\ufe0f"),
    *("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "e\u0301", "a\u0308\u0323"),
    *("\u1112\u1161\u11ab", "\u0301", "\u200d", "\ufe0f"),
    *("\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\ufeff", "\u200b"),
    *("http://example.com/a/b?c=d", "f(1,2);", "`code`", "**bold**", "[a](b)", '"quote."'),
    *("End.", "Really?", "e.g.", "i.e.,", "Dr.", "3.14", "1.", "-", "*", "|", "#", "##", "```"),
    *("~~~", "---", "===", "> q", "| a | b |", "|---|---|", "<!--", "-->", "<pre>", "</pre>"),
    *("x" * 60, "y" * 300, "a" * 1000, "字" * 500),
]
GAPS = [
    *([" "] * 20 + ["\n"] * 6 + ["\n\n"] * 4 + [""] * 4),
    *("\r\n", "\r\n\r\n", "\r", "\t", "  ", "\n    ", "\n- ", "\n1. ", "\n# ", "\n## ", "\n### "),
    *("\n```\n", "\n~~~\n", "\n\n---\n", "\n===\n", "\f", "\n" * 5, " " * 50, ". ", ".\n"),
    " \n \n",
]
# What is no start of a character, as people see it: marks, joiners, selectors, skin tones.
CLINGING = re.compile(
    "[\u0300-\u036f\u093e-\u094d\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u1160-\u11ff\u200d\ufe00-\ufe0f"
    "\U0001f3fb-\U0001f3ff]"
)
# After these a text without spaces may be cut.
STOPS = "。！？；，、：”’」』）"


class Chunk(NamedTuple):
    """A row of rag.chunk."""

    ordinal: int
    content: str
    start: int
    end: int
    headings: list[str]
    length: int
    """In characters, or, for strategy token, in tokens."""


def chunks_of(
    connection: Connection,
    text: str,
    strategy: str,
    size: int,
    overlap: int,
    min_size: int = 0,
    separators: list[str] | None = None,
) -> list[Chunk]:
    """The chunks of a text; offsets in characters."""
    rows = connection.execute(
        """
        select
            c.ordinal, c.content, c.start_offset, c.end_offset, c.heading_path,
            case %(strategy)s
                when 'token' then rag._count_tokens(c.content, null) else length(c.content)
            end
        from rag.chunk(
            %(text)s, %(strategy)s, %(size)s, %(overlap)s, %(min_size)s, %(separators)s::text[]
        ) as c
        """,
        {
            "text": text,
            "strategy": strategy,
            "size": size,
            "overlap": overlap,
            "min_size": min_size,
            "separators": separators,
        },
    )
    return [Chunk(*row) for row in rows]


def faults(
    text: str, chunks: list[Chunk], strategy: str, size: int, overlap: int, min_size: int = 0
) -> Iterator[tuple[str, int]]:
    """What must not be, with the ordinal where it is."""
    if strategy == "token":
        # More than all-MiniLM-L6-v2 reads at once is in no chunk.
        size = min(size, 254)
    most = size + size // 2 if min_size else size
    covered = 0
    for number, chunk in enumerate(chunks):
        is_so = {
            "number": chunk.ordinal != number,
            "offsets": chunk.content != text[chunk.start : chunk.end],
            "white space": chunk.content != chunk.content.strip() or not chunk.content,
            "size": chunk.length > most and strategy != "none",
            "gap": text[covered : max(covered, chunk.start)].strip() != "",
            # A token has a character at least, and most have some.
            "overlap": covered - chunk.start > overlap * (40 if strategy == "token" else 1),
            "nothing new": chunk.end <= covered,
            "torn word": is_torn(text, chunk.start, size) or is_torn(text, chunk.end, size),
            "torn character": is_inside_character(text, chunk.start)
            or is_inside_character(text, chunk.end),
        }
        yield from ((fault, number) for fault, is_found in is_so.items() if is_found)
        covered = chunk.end
    if text[covered:].strip():
        yield "rest", len(chunks)


def is_torn(text: str, place: int, size: int) -> bool:
    """Whether a cut lies inside a word that would have fitted into a chunk."""
    before = re.search(r"\S*\Z", text[max(0, place - size) : place])
    after = re.match(r"\S*", text[place : place + size])
    assert before
    assert after
    return (
        before[0] != ""
        and after[0] != ""
        and before[0][-1] not in STOPS
        and len(before[0]) + len(after[0]) <= size
    )


def is_inside_character(text: str, place: int) -> bool:
    """Whether a cut parts what people see as one character."""
    if not 0 < place < len(text) or text[place - 1].isspace() or text[place].isspace():
        return False
    if CLINGING.match(text[place]) or text[place - 1] == "\u200d":
        return True
    # Flags are pairs of letters.
    letters = re.search("[\U0001f1e6-\U0001f1ff]*\\Z", text[max(0, place - 200) : place])
    assert letters
    return len(letters[0]) % 2 == 1 and "\U0001f1e6" <= text[place] <= "\U0001f1ff"


def documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a real tree."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".md", ".rst", ".html"}:
            # Only a few of the German pages are not UTF-8, and any text will do here.
            yield path.name, path.read_bytes().decode(errors="replace").replace("\0", "")
    for path in sorted(folder.glob("corpus.jsonl*")):
        packed = path.read_bytes()
        lines = gzip.decompress(packed) if path.suffix == ".gz" else packed
        for line in lines.splitlines():
            document = json.loads(line)
            yield document["id"], document["text"]


@pytest.mark.parametrize(
    ("tree", "step"),
    [
        ("docs-react-es", 3),
        ("docs-peps", 2),
        ("docs-apache-httpd", 10),
        ("load-powershell-docs", 60),
        ("squad-dev", 40),
    ],
)
def test_real_documents_are_cut_without_fault(
    connection: Connection, shared_data: Path, tree: str, step: int
) -> None:
    found: list[tuple[Any, ...]] = []
    count = 0
    for name, text in [*documents(shared_data / tree)][::step]:
        for strategy, (size, overlap) in (
            (each, setting) for each in STRATEGIES for setting in FEW_SETTINGS.get(each, SETTINGS)
        ):
            chunks = chunks_of(connection, text, strategy, size, overlap)
            count += len(chunks)
            found += [
                (name, strategy, size, overlap, *fault)
                for fault in faults(text, chunks, strategy, size, overlap)
            ]
    assert found == []
    assert count > 1000


def test_random_texts_are_cut_without_fault(connection: Connection) -> None:
    print(f"CHUNKING_SEED={SEED}")
    random = Random(SEED)
    for _ in range(TEXTS):
        words = random.sample(WORDS, random.choice([3, 10, len(WORDS)]))
        length = random.choice([1, 5, 30, 200, 1000])
        text = "".join(random.choice(words) + random.choice(GAPS) for _ in range(length))
        for strategy in STRATEGIES:
            size = random.choice([50, 51, 200, 800, 2000])
            overlap = random.choice([0, 10, min(100, (size - 1) // 2), (size - 1) // 2])
            chunks = chunks_of(connection, text, strategy, size, overlap)
            found = [*faults(text, chunks, strategy, size, overlap)]
            assert found == [], (text, strategy, size, overlap)


def blocks_of(connection: Connection, text: str) -> list[tuple[str, int, int, int]]:
    """Kind, level, start and end of what the scanner found."""
    rows = connection.execute(
        "select kind, level, start_offset, end_offset from rag._markdown_blocks(%s)"
        " where kind <> 'end' order by start_offset",
        [text],
    )
    return [(kind, level, start, end) for kind, level, start, end in rows]


def fences_of(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the fenced code that stands in no list, found without the scanner."""
    fence = ""
    start = place = 0
    for line in text.split("\n"):
        if found := re.match(r"(`{3,}|~{3,})([^`]*)\Z", line.rstrip()):
            if not fence:
                fence, start = found[1], place
            elif found[1].startswith(fence) and not found[2]:
                yield start, place + len(line.rstrip())
                fence = ""
        place += len(line) + 1


def test_code_of_real_documents_is_in_one_piece(connection: Connection, shared_data: Path) -> None:
    torn: list[tuple[str, int]] = []
    count = 0
    for name, text in [*documents(shared_data / "docs-react-es")][::2]:
        chunks = chunks_of(connection, text, "markdown", 800, 100)
        headings = [end for kind, _, _, end in blocks_of(connection, text) if kind == "heading"]
        for start, end in fences_of(text):
            count += 1
            above = max((h for h in headings if h <= start), default=-1)
            if (
                end - start <= 800
                # Right under its heading it has to fit with that.
                and (above < 0 or text[above:start].strip())
                and not any(c.start <= start and end <= c.end for c in chunks)
            ):
                torn.append((name, start))
    assert torn == []
    assert count > 1000


def test_headings_of_real_documents_stay_with_their_text(
    connection: Connection, shared_data: Path
) -> None:
    alone: list[tuple[str, int]] = []
    count = 0
    for name, text in [*documents(shared_data / "docs-react-es")][::2]:
        ends = {c.end for c in chunks_of(connection, text, "markdown", 800, 100)}
        headings = [b for b in blocks_of(connection, text) if b[0] == "heading"]
        for (_, level, _, end), (_, below, start, _) in pairwise(headings):
            count += 1
            # Nothing may stand under it: the next heading is none of its own.
            has_text = text[end:start].strip() != "" or below > level
            if has_text and len(text[:end].rstrip()) in ends:
                alone.append((name, end))
    assert alone == []
    assert count > 500


def test_the_headings_of_a_chunk_are_those_above_it(
    connection: Connection, shared_data: Path
) -> None:
    count = 0
    for name, text in [*documents(shared_data / "docs-react-es")][::2]:
        path: list[tuple[int, str]] = []
        sections: list[tuple[int, list[str]]] = [(0, [])]
        rows = connection.execute(
            "select start_offset, level, title from rag._markdown_blocks(%s)"
            " where kind = 'heading'",
            [text],
        )
        for start, level, title in rows:
            path = [*(p for p in path if p[0] < level), (level, title)]
            sections.append((start, [title for _, title in path]))
        for chunk in chunks_of(connection, text, "markdown", 800, 100):
            count += 1
            first = max(start for start, _ in sections if start <= chunk.start)
            mine = [titles for start, titles in sections if first <= start < chunk.end]
            assert any(chunk.headings == titles[: len(chunk.headings)] for titles in mine), name
            # A chunk is about one subject: its sections share a heading, or one has nearly all.
            assert chunk.headings or mine == [[]], name
    assert count > 1000


def long_markdown(size: int) -> str:
    """A document of so many bytes with a little of everything."""
    section = (
        "## Sección número uno\n\nUn párrafo con algunas frases. No son largas. Tampoco cortas, "
        "más bien de las que hay en un manual.\n\n- primero\n- segundo\n  - con algo más\n\n"
        "```python\n# no es un título\ndef f(x):\n    return x\n```\n\n| a | b |\n|---|---|\n"
        "| 1 | 2 |\n\n" + "Otro párrafo, que es un poco más largo que el primero. " * 20 + "\n\n"
    )
    return (section * (size // len(section.encode()) + 1))[:size]


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        pytest.param("markdown", long_markdown(10_000_000), id="Markdown"),
        pytest.param("recursive", long_markdown(10_000_000), id="text"),
        pytest.param("recursive", "x" * 10_000_000, id="one word"),
        pytest.param("recursive", "今天天气很好，我们去公园玩。" * 250_000, id="no spaces"),
        pytest.param("markdown", "- an item\n" * 500_000, id="one list"),
        pytest.param("markdown", "```\ncode\n```\n\n" * 200_000, id="much code"),
        pytest.param("markdown", "# a\n" * 500_000, id="many headings"),
    ],
)
def test_a_long_document_is_cut_in_linear_time(
    connection: Connection, strategy: str, text: str
) -> None:
    # It takes seconds; with a quadratic step anywhere it takes hours.
    connection.execute("set statement_timeout = '2min'")
    row = connection.execute(
        """
        select count(*), max(length(c.content)), max(c.end_offset), min(c.ordinal), max(c.ordinal)
        from rag.chunk(%s, %s) as c
        """,
        [text, strategy],
    ).fetchone()
    assert row
    count, longest, end, first, last = row
    assert len(text) / 800 <= count <= len(text) / 200
    assert longest <= 800
    assert end == len(text.rstrip())
    assert (first, last) == (0, count - 1)


def test_who_may_cut_texts_needs_no_private_function(database: str, role: RoleFactory) -> None:
    del database
    with psycopg.connect(role().url) as connection:
        chunks = chunks_of(connection, "# A\n\n" + "word " * 20, "markdown", 50, 0)
    assert [c.headings for c in chunks] == [["A"]] * 3


def contents(connection: Connection, text: str, strategy: str, size: int, **more: Any) -> list[str]:
    """What the chunks of a text say."""
    return [c.content for c in chunks_of(connection, text, strategy, size, 0, **more)]


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "Dr. Smith met J. R. R. Tolkien at 3.14 p.m. on Jan. 5 in May.",
            "It is no.",
            "He sat.",
            "Did it?",
            "Yes!",
        ],
        [
            'He said "Wait... no."',
            "Then he left (at last).",
            "See Fig. 3 on p. 123.",
            "Well… fine.",
        ],
        ["¿Qué hora es?", "¡Son las tres!", "El Sr. García y la Dra. Ruiz llegan.", "Ud. no."],
        ["今天天气很好。", "我们去公园玩！", "他说：“好。”", "真的吗？"],
        ["これは文です。", "「はい。」", "終わりですか？", "はい！"],
        ["ما هذا؟", "هذا كتاب.", "شكرا!", "نعم."],
        ["Он живёт на ул. Ленина.", "Это А. С. Пушкин.", "Да?", "Нет!"],
        ["यह एक वाक्य है।", "क्या यह सच है?", "हाँ।", "ठीक।"],
    ],
    ids=["abbreviations", "quotes", "Spanish", "Chinese", "Japanese", "Arabic", "Russian", "Hindi"],
)
def test_sentences_end_where_they_end(connection: Connection, sentences: list[str]) -> None:
    gap = "" if "\u3000" < sentences[0][0] < "\uffff" else " "
    text = gap.join(sentences)
    found = connection.execute(
        "select start_offset, end_offset from rag._sentences(%s)", [text]
    ).fetchall()
    assert [text[start:end] for start, end in found] == sentences
    paragraphs = "\n\n".join(text.replace(gap, "\n") if gap else text for _ in range(20))
    for chunk in contents(connection, paragraphs, "sentence", 90):
        assert chunk.endswith(tuple(s[-1] for s in sentences)), chunk


PYTHON = '''import os
import sys

LIMIT = 10


# What it is for.
@decorated
def first(a, b):
    """A docstring.

    With an empty line.
    """
    if a:
        return b

    return a


class Second:
    size = 3

    def one(self):
        return 1

    async def two(self):

        return 2
'''
JAVASCRIPT = """import x from "y";

/** Adds. */
export function add(a, b) {
  const c = a + b;

  return c;
}

const f = async () => {
  await add(1, 2);

  return 3;
};
"""
GO = """package main

// Main.
func main() {
\tx := 1

\tprint(x)
}
func other() {
\tprint(2)
}
"""


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (PYTHON, 200, ["import os", "class Second:"]),
        (PYTHON, 160, ["import os", "# What it is for.", "class Second:"]),
        (JAVASCRIPT, 100, ["import x", "const f ="]),
        (GO, 60, ["package main", "func other"]),
        (GO, 50, ["package main", "// Main.", "func other"]),
    ],
    ids=["two blocks", "comments", "JavaScript", "Go", "small"],
)
def test_code_is_cut_between_definitions(
    connection: Connection, text: str, size: int, expected: list[str]
) -> None:
    chunks = contents(connection, text, "code", size)
    assert [
        c.strip().splitlines()[0][: len(e)] for c, e in zip(chunks, expected, strict=False)
    ] == (expected[: len(chunks)])
    assert len(chunks) == len(expected)


def test_small_chunks_are_merged_with_their_neighbours(
    connection: Connection, shared_data: Path
) -> None:
    small = merged = 0
    for name, text in [*documents(shared_data / "docs-react-es")][::8]:
        for strategy in ("recursive", "markdown", "sentence", "code", "token"):
            before = chunks_of(connection, text, strategy, 400, 0)
            after = chunks_of(connection, text, strategy, 400, 0, 200)
            assert [*faults(text, after, strategy, 400, 0, 200)] == [], (name, strategy)
            small += sum(c.length < 200 for c in before)
            merged += sum(c.length < 200 for c in after)
            # A small one that is left has no room with either neighbour.
            for one, two in pairwise(after):
                if one.length < 200 and strategy not in ("token", "markdown"):
                    assert two.end - one.start > 600, (name, strategy)
    assert small > 100
    assert merged < small / 5


def test_a_text_is_cut_at_the_separators_given(connection: Connection) -> None:
    text = "\n".join(f"{n};alpha beta;gamma delta {n}" for n in range(200))
    for chunk in contents(connection, text, "recursive", 120, separators=["\n"]):
        assert re.fullmatch(r"\d+;alpha.*\d", chunk, re.DOTALL)
    sections = "\n## ".join(["Intro"] + [f"{n}\n\nWords of a text. And more." for n in range(50)])
    for chunk in contents(connection, sections, "recursive", 90, separators=["\n## "])[1:]:
        assert chunk.startswith("## ")


def test_tokens_are_counted_as_the_model_counts_them(
    connection: Connection,
    model: Any,
    shared_data: Path,
) -> None:
    tokenizer = model.tokenizer
    vocabulary = [word for word in tokenizer.get_vocab() if not word.startswith("[")]
    connection.execute(
        """
        with added as (
            insert into rag.word_vector_sets (model_id, recipe, is_current, due_at)
            select m.model_id, 'test', true, now() from rag.models as m where m.is_active
            returning set_id
        )
        insert into rag.word_vectors (set_id, word, embedding)
        select a.set_id, v.word, array_fill(0, array[384])::vector::halfvec
        from added as a, unnest(%s::text[]) as v (word)
        """,
        [vocabulary],
    )
    connection.execute("analyze rag.word_vectors")
    over = 0
    lengths: list[int] = []
    errors: list[float] = []
    for tree, step in (("docs-react-es", 60), ("docs-peps", 80), ("squad-dev", 400)):
        for name, text in [*documents(shared_data / tree)][::step]:
            row = connection.execute(
                "select rag._count_tokens(%s, s.set_id) from rag.word_vector_sets as s", [text]
            ).fetchone()
            assert row
            exact = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            errors.append(row[0] / exact - 1)
            chunks = contents(connection, text, "token", 200)
            counts = [len(tokenizer(c, verbose=False)["input_ids"]) - 2 for c in chunks]
            lengths += counts[:-1]
            over += sum(count > 200 for count in counts)
            assert counts, name
    print(f"{len(lengths)} chunks, {min(errors):+.3f} to {max(errors):+.3f} of the tokens")
    assert over == 0
    assert max(map(abs, errors)) < 0.02
    assert sum(lengths) / len(lengths) > 150


def test_no_chunk_is_longer_than_the_model_reads(connection: Connection) -> None:
    text = "word " * 5000
    tokens = {c.length for c in chunks_of(connection, text, "token", 1000, 100)}
    # all-MiniLM-L6-v2 reads 256, with the two that mark beginning and end.
    assert max(tokens) <= 254
