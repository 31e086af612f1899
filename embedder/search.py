"""python -m embedder search: a question to rag.search, and its passages in a readable form."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.text import Text

from embedder import models, terminal
from embedder.config import Settings
from embedder.errors import RagdbError

if TYPE_CHECKING:
    from embedder.commands import Subparsers

Mode = Literal["hybrid", "lexical", "semantic"]

# The columns by name: rag.search may get more of them.
_SEARCH: Final = """
    select
        s.rank, s.score, s.uri, s.title, s.content, s.metadata, s.lexical_rank, s.lexical_score,
        s.semantic_rank, s.similarity, s.query_embedding, s.collection_name,
        s.heading_path, s.document_id, s.chunk_id, s.start_offset, s.end_offset
    from rag.search(
        query => %(query)s,
        k => %(k)s,
        collection => %(collection)s,
        filter => %(filter)s,
        embedding => %(embedding)s,
        mode => %(mode)s
    ) as s
    order by s.rank
"""
_MODEL: Final = """
    select
        m.name, m.dimensions, m.provider, m.revision, m.settings, m.query_prefix,
        m.document_prefix
    from rag.active_model() as m
"""
# Which of these words mean the same as a word of the question, in a language of the documents?
# Also without accents, for who leaves them out; not only so, since stemmers need them.
_MATCHED: Final = """
    select w.word
    from unnest(%(words)s::text[], %(plain_words)s::text[]) as w (word, plain_word)
    where exists (
        select
        from (
            select distinct d.language::regconfig as config
            from rag.documents as d
            where d.document_id = any(%(documents)s)
        ) as l
        where
            tsvector_to_array(to_tsvector(l.config, w.word))
            && tsvector_to_array(to_tsvector(l.config, %(query)s))
            or tsvector_to_array(to_tsvector(l.config, w.plain_word))
            && tsvector_to_array(to_tsvector(l.config, %(plain_query)s))
    )
"""
_HAS_DOCUMENTS: Final = "select exists (select from rag.documents)"
_PROGRESS: Final = """
    select coalesce(sum(p.embedded), 0)::bigint, coalesce(sum(p.waiting + p.leased), 0)::bigint
    from rag.progress() as p
    where p.tenant = rag.current_tenant()
"""


@dataclass(frozen=True)
class Passage:
    """One row of rag.search.

    Offsets are characters into the document's content; similarity is the cosine; ranks count
    from 1, and None means: not in that leg.
    """

    rank: int
    score: float
    uri: str
    title: str | None
    content: str
    metadata: Mapping[str, Any]
    lexical_rank: int | None
    lexical_score: float | None
    semantic_rank: int | None
    similarity: float | None
    query_embedding: str
    collection_name: str
    heading_path: Sequence[str]
    document_id: int
    chunk_id: int
    start_offset: int
    end_offset: int


class Asker:
    """Asks questions over one connection; the model is loaded once, when first needed."""

    def __init__(
        self, connection: terminal.Connection, model: models.EmbeddingModel | None = None
    ) -> None:
        self.connection = connection
        self._model = model

    def ask(
        self,
        query: str,
        *,
        k: int = 5,
        mode: Mode = "hybrid",
        collection: str | None = None,
        criteria: Mapping[str, Any] | None = None,
    ) -> list[Passage]:
        """The best passages for a question, best first.

        criteria is rag.search's filter. Raises psycopg.Error, and ModelError if the model that
        is active in the database cannot be loaded.
        """
        parameters = {
            "query": query,
            "k": k,
            "collection": collection,
            "filter": None if criteria is None else Jsonb(dict(criteria)),
            "embedding": None if mode == "lexical" else self._embed(query),
            "mode": mode,
        }
        with self.connection.cursor(row_factory=class_row(Passage)) as cursor:
            return cursor.execute(_SEARCH, parameters).fetchall()

    def matched_words(self, query: str, passages: Sequence[Passage]) -> frozenset[str]:
        """The words of the passages, in lower case, that share a lexeme with the question."""
        words = sorted({word.lower() for one in passages for word in _WORD.findall(one.content)})
        rows = self.connection.execute(
            _MATCHED,
            {
                "words": words,
                "plain_words": [plain(word) for word in words],
                "documents": [one.document_id for one in passages],
                "query": query,
                "plain_query": plain(query),
            },
        ).fetchall()
        return frozenset(row[0] for row in rows)

    def _embed(self, query: str) -> str | None:
        """The question's embedding as pgvector's text; None when no model is active."""
        with self.connection.cursor(row_factory=class_row(models.ModelRow)) as cursor:
            row = cursor.execute(_MODEL).fetchone()
        if row is None:
            return None
        if self._model is None or self._model.name != row.name:
            self._model = models.load(Settings.from_environment(), row)
        vector = self._model.encode_query(row.query_prefix + query)
        return "[" + ",".join(repr(float(value)) for value in vector) + "]"


_WORD: Final = re.compile(r"\w+")


def plain(text: str) -> str:
    """The text without accents."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(part for part in parts if not unicodedata.combining(part))


# -------------------------------------------------------------------------------------- the command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command search."""
    parser = subparsers.add_parser(
        "search",
        help="ask a question",
        description="Ask a question and read the passages that answer it.",
    )
    parser.add_argument("question", help="in quotes")
    parser.add_argument("-k", type=int, default=5, help="how many passages (default: 5)")
    parser.add_argument(
        "--mode",
        choices=("hybrid", "lexical", "semantic"),
        default="hybrid",
        help="by words and meaning (hybrid, the default), words (lexical) or meaning (semantic)",
    )
    parser.add_argument("--collection", help="only this one; default: all of the tenant")
    parser.add_argument(
        "--filter", type=_json_object, help='on metadata, such as \'{"lang": "es"}\''
    )
    parser.add_argument("--tenant", help="whose documents")
    parser.add_argument("--json", action="store_true", help="the rows of rag.search as JSON")
    parser.set_defaults(func=run)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object such as {"lang": "es"}')
    return cast("dict[str, Any]", value)


def run(arguments: argparse.Namespace) -> int:
    """Search: 0 also when nothing is found, 1 when it fails, 2 for wrong usage."""
    question: str = arguments.question
    if not question.strip():
        terminal.show_error(RagdbError("the question is empty"))
        return 2
    console = terminal.answers()
    try:
        with terminal.connect("search", arguments.tenant) as connection:
            asker = Asker(connection)
            with terminal.news().status("Searching …"):
                passages = asker.ask(
                    question,
                    k=arguments.k,
                    mode=arguments.mode,
                    collection=arguments.collection,
                    criteria=arguments.filter,
                )
            if arguments.json:
                rows = [dataclasses.asdict(one) for one in passages]
                print(json.dumps(rows, ensure_ascii=False, indent=2))
                return 0
            show(console, passages, asker.matched_words(question, passages))
            console.print(Text(_verdict(connection, arguments, passages), style="dim"))
    except (psycopg.Error, RagdbError) as error:
        terminal.show_error(error)
        return 1
    return 0


def show(
    console: Console,
    passages: Sequence[Passage],
    matched: frozenset[str],
    lines: int | None = None,
) -> None:
    """Print passages with their source, ranks and scores; lines cuts off long ones."""
    for one in passages:
        path = terminal.printable(" > ".join((one.uri, *one.heading_path)))
        text = _highlighted(one.content, matched)
        # A terminal's lines are broken here, to be indented; a file gets them as they are.
        body = (
            text.wrap(console, max(20, console.width - 3))
            if console.is_terminal
            else (text.split("\n"))
        )
        if lines is not None and len(body) > lines:
            body = body[:lines]
            body[-1].append(" …")
        head = Text.assemble((f"{one.rank:<3}", "bold cyan"), (path, "bold"))
        figures = Text(f"   {_figures(one)}", style="dim")
        console.print(Text("\n").join([head, figures, *map(_indented, body)]))
        console.print()


def _indented(line: Text) -> Text:
    return Text("   ") + line if line.plain.strip() else Text()


def _figures(one: Passage) -> str:
    """Score, and rank with score in each leg."""
    words = f"words #{one.lexical_rank}" if one.lexical_rank else "words: no"
    if one.lexical_rank and one.lexical_score is not None:
        words += f" ({one.lexical_score:.3f})"
    meaning = f"meaning #{one.semantic_rank}" if one.semantic_rank else "meaning: no"
    if one.semantic_rank and one.similarity is not None:
        meaning += f" ({one.similarity:.3f})"
    return f"score {one.score:.3f} · {words} · {meaning}"


def _highlighted(content: str, matched: frozenset[str]) -> Text:
    shown = re.sub(r"\n{3,}", "\n\n", terminal.printable(content)).strip("\n").expandtabs(4)
    text = Text(shown)
    for found in _WORD.finditer(shown):
        if found[0].lower() in matched:
            text.stylize("bold yellow", found.start(), found.end())
    return text


def _verdict(
    connection: terminal.Connection, arguments: argparse.Namespace, passages: Sequence[Passage]
) -> str:
    """Which legs served, or why there is nothing."""
    embedded, waiting = connection.execute(_PROGRESS).fetchone() or (0, 0)
    if not passages:
        return _nothing(connection, arguments, embedded)
    if arguments.mode == "lexical":
        return "By words alone, as asked."
    if passages[0].query_embedding == "none":
        return "By words alone: no model is active, so the question has no embedding."
    if embedded == 0:
        return f"By words alone: nothing is embedded yet, {waiting:,} chunks wait (make embedder)."
    served = (
        "By meaning alone, as asked." if arguments.mode == "semantic" else ("By words and meaning.")
    )
    if waiting:
        served += f" {waiting:,} chunks still wait for their embeddings."
    return served


def _nothing(connection: terminal.Connection, arguments: argparse.Namespace, embedded: int) -> str:
    row = connection.execute(_HAS_DOCUMENTS).fetchone()
    if row is None or not row[0]:
        return "There are no documents yet: make ingest DOCS=path"
    if arguments.mode == "semantic" and embedded == 0:
        return "Nothing is embedded yet: make embedder"
    parts = ["Nothing found"]
    if arguments.filter is not None:
        parts.append("with this filter")
    if arguments.collection:
        parts.append(f"in collection {arguments.collection}")
    if arguments.mode == "lexical" or embedded == 0:
        parts.append("that has a word of the question")
    return " ".join(parts) + "."
