"""python -m embedder demo: documents in, embeddings filled, three questions answered."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from rich.text import Text

from embedder import ingest, models, search, terminal
from embedder.config import Settings
from embedder.errors import RagdbError, TenantNotSetError
from embedder.progress import Line
from embedder.stop import Stop
from embedder.worker import Worker

if TYPE_CHECKING:
    from embedder.commands import Subparsers

COLLECTION: Final = "demo"
QUESTIONS: Final = (
    "What is embedded again when one paragraph changes?",
    "How do I filter by metadata?",
    "How does a tenant stay invisible to others?",
)
"""For the project's own documentation."""

_PROJECT: Final = Path(__file__).resolve().parent.parent
_LOOK_SECONDS: Final = 0.5
_PASSAGES: Final = 3
_LINES: Final = 6

_PROGRESS: Final = """
    select
        coalesce(sum(p.embedded), 0)::bigint,
        coalesce(sum(p.waiting + p.leased), 0)::bigint,
        coalesce(sum(p.failed), 0)::bigint,
        max(p.chunks_per_second),
        date_trunc('second', max(p.time_left))::text
    from rag.progress() as p
    where p.tenant = rag.current_tenant()
"""
# Of every document its title, and the headings below it that say something by themselves.
_HEADINGS: Final = """
    select d.title, array_agg(distinct h.heading) filter (where h.heading is not null)
    from rag.documents as d
    join rag.collections as n
        on n.tenant_id = d.tenant_id and n.collection_id = d.collection_id
    left join rag.chunks as c on c.tenant_id = d.tenant_id and c.document_id = d.document_id
    left join lateral (
        select c.heading_path[cardinality(c.heading_path)] as heading
    ) as h
        on h.heading <> d.title
        and cardinality(regexp_split_to_array(h.heading, '\\s+')) between 2 and 12
    where n.name = %s and d.metadata ->> 'root' = any(%s)
    group by d.document_id, d.title, d.uri
    order by d.uri
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command demo."""
    parser = subparsers.add_parser(
        "demo",
        help="see all of it work",
        description="Ingest documents into the collection demo, embed them, and ask three "
        "questions.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="DOCS",
        help="files and folders; default: the project's own documentation",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """The demo; 0 when passages were found for every question, otherwise 1 or 2 (usage)."""
    own = not arguments.paths
    paths: list[Path] = arguments.paths or [_PROJECT / "README.md", _PROJECT / "docs"]
    paths = [path for path in paths if not own or path.exists()]
    for path in paths:
        if not os.path.lexists(path):
            terminal.show_error(RagdbError(f"there is no {path}"))
            return 2
    try:
        with terminal.connect("demo") as connection:
            return _Demo(connection, own=own).run(paths)
    except (psycopg.Error, RagdbError) as error:
        terminal.show_error(error)
        return 1


class _Demo:
    def __init__(self, connection: terminal.Connection, *, own: bool) -> None:
        self.connection = connection
        self.own = own
        self.console = terminal.answers()
        self.news = terminal.news()

    def run(self, paths: Sequence[Path]) -> int:
        self._become_somebody()
        roots = self._ingest(paths)
        if not roots:
            return 1
        self.news.print("Loading the embedding model …")
        settings = Settings.from_environment()
        model = models.load(settings)
        self._embed(settings, model)
        asker = search.Asker(self.connection, model)
        questions = QUESTIONS if self.own else self._questions(roots)
        # Documents of an earlier demo are in the collection too: ask these ones only.
        criteria = {"root": {"$in": sorted(roots)}}
        answered = [self._ask(asker, question, criteria) for question in questions]
        self._tell_what_is_next(questions[0])
        return 0 if answered and all(answered) else 1

    def _become_somebody(self) -> None:
        """Make the tenant default anew where it was dropped; somebody else's is not taken."""
        try:
            self.connection.execute("select rag.current_tenant()")
        except psycopg.Error as error:
            if error.sqlstate != TenantNotSetError.sqlstate:
                raise
            self.connection.execute("select rag.create_tenant('default')")
            self.connection.execute("select rag.grant_tenant(session_user::text, 'default')")

    def _ingest(self, paths: Sequence[Path]) -> set[str]:
        """Put the documents; the marks of their folders, none if nothing could be read."""
        found, skipped = ingest.find(paths)
        task = ingest.Ingest(self.connection, COLLECTION)
        task.tally.skipped += skipped
        task.prepare()
        with ingest.show_progress(self.news, len(found)) as step:
            task.run(found, ingest.readers(len(found)), step)
        tally = task.tally
        if tally.skipped:
            self.console.print(ingest.skipped_table(tally.skipped), soft_wrap=False)
        if not tally.put:
            terminal.show_error(RagdbError("there is nothing that could be read"))
            return set()
        self.console.print(
            f"{tally.put:,} documents in {tally.chunks:,} passages are in collection "
            f"{COLLECTION} after {tally.seconds:.1f} s and searchable by their words."
        )
        return {one.root for one in found}

    def _embed(self, settings: Settings, model: models.EmbeddingModel) -> None:
        """Work the queue off in a thread, with one line of progress."""
        stop = Stop()
        # Word vectors take minutes and are of no use here: the demo has the model itself.
        worker = Worker(replace(settings, word_vector_texts=0), model, stop)
        started = time.monotonic()
        before = self._progress()[0]
        line = Line(sys.stderr)
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(worker.run, once=True)
            try:
                while not _is_done(work):
                    line.show(self._sentence())
                line.show(self._sentence())
            except KeyboardInterrupt:
                stop.requested = True
                raise
            finally:
                line.end()
        work.result()
        embedded, left, failed, *_ = self._progress()
        seconds = time.monotonic() - started
        done = embedded - before
        rate = f", {done / seconds:.0f} a second" if done else ""
        self.console.print(f"{done:,} passages embedded in {seconds:.1f} s{rate}.")
        if left or failed:
            self.console.print(f"{left + failed:,} are not: rag.failures() says why.")

    def _progress(self) -> tuple[int, int, int, float | None, str | None]:
        row = self.connection.execute(_PROGRESS).fetchone()
        return row or (0, 0, 0, None, None)

    def _sentence(self) -> str:
        embedded, left, failed, rate, time_left = self._progress()
        words = [f"Embedding: {embedded:,} of {embedded + left:,} passages"]
        if left and rate:
            words.append(f"{rate:.0f} a second")
        if left and time_left:
            words.append(f"{time_left} to go")
        if failed:
            words.append(f"{failed:,} failed")
        return ", ".join(words)

    def _questions(self, roots: set[str]) -> list[str]:
        """Three questions out of titles and headings, from the start, middle and end."""
        rows = self.connection.execute(_HEADINGS, [COLLECTION, sorted(roots)]).fetchall()
        chosen = {0: None, len(rows) // 2: None, len(rows) - 1: None}
        return [question(title, headings or []) for title, headings in (rows[n] for n in chosen)]

    def _ask(self, asker: search.Asker, question: str, criteria: Mapping[str, Any]) -> bool:
        started = time.monotonic()
        passages = asker.ask(question, k=_PASSAGES, collection=COLLECTION, criteria=criteria)
        milliseconds = (time.monotonic() - started) * 1000
        matched = asker.matched_words(question, passages)
        self.console.print()
        self.console.print(Text(f"Question: {terminal.printable(question)}", style="bold magenta"))
        self.console.print()
        search.show(self.console, passages, matched, lines=_LINES)
        if not passages:
            self.console.print("Nothing found.")
        else:
            self.console.print(
                f"{milliseconds:.0f} ms with the embedding of the question.", style="dim"
            )
        return bool(passages)

    def _tell_what_is_next(self, question: str) -> None:
        quoted = terminal.printable(question).replace("'", "''")
        lines = (
            ("make search Q='…'", "another question"),
            ("make ingest DOCS=path", "your own documents"),
            ("make embedder", "fills embeddings as documents come; leave it running"),
            ("make psql", "the same in SQL; the words alone need no vector:"),
        )
        self.console.print()
        self.console.print(Text("What to type next", style="bold magenta"))
        for command, meaning in lines:
            self.console.print(Text(f"{command:<22}  {meaning}"))
        call = ("select rank, score, uri, content from rag.search('", quoted, "', 3);")
        self.console.print(Text.assemble(" " * 24, *call))


def question(title: str, headings: Sequence[str]) -> str:
    """A question that a document answers: a heading that is one, else a heading and the title."""
    asking = [heading for heading in headings if heading.rstrip().endswith("?")]
    if asking:
        return asking[0]
    return f"{headings[len(headings) // 2]}, {title}" if headings else title


def _is_done(work: Future[int]) -> bool:
    try:
        work.exception(timeout=_LOOK_SECONDS)
    except NotYet:
        return False
    return True
