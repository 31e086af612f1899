"""python -m embedder ingest: files and folders into a collection, by rag.put_many."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from embedder import terminal
from embedder.config import cores, file_limits
from embedder.errors import RagdbError
from embedder.readers import FORMATS, Document, Limits, UnreadableError
from embedder.readers.languages import CONFIGURATIONS
from embedder.readers.process import ReaderProcess
from embedder.terminal import count

if TYPE_CHECKING:
    from embedder.commands import Subparsers

BATCH_DOCUMENTS: Final = 100
BATCH_BYTES: Final = 4_000_000

_SKIPPED_FOLDERS: Final = frozenset(("node_modules", "__pycache__", "venv"))
# Below this the start of reading processes (0.2 s each) takes as long as what they save.
_PARALLEL_FILES: Final = 20
# An idle embedder begins with what was put well within that time.
PATIENCE_SECONDS: float = 2.0
# Without a terminal a line that often.
_LINE_SECONDS: Final = 5.0

_PUT_MANY: Final = """
    select p.uri, p.chunks, p.status
    from rag.put_many(%(documents)s, %(collection)s, language => %(language)s) as p
"""
_NOTE_RUN: Final = "select rag.note_run(%s, %s, %s)"
_COLLECTION: Final = "select c.language from rag.collections as c where c.name = %s"
_CREATE_COLLECTION: Final = "select rag.create_collection(%s, language => coalesce(%s, 'english'))"
_IS_LANGUAGE: Final = "select %s::regconfig"
_TENANT: Final = "select rag.current_tenant()"
_OTHERS: Final = """
    select count(*)
    from rag.documents as d
    join rag.collections as c
        on c.tenant_id = d.tenant_id and c.collection_id = d.collection_id
    where c.name = %s and starts_with(d.uri, %s) and d.metadata ->> 'root' <> %s
"""
_PROGRESS: Final = """
    select
        coalesce(sum(p.waiting), 0)::bigint,
        coalesce(sum(p.leased), 0)::bigint,
        coalesce(sum(p.failed), 0)::bigint
    from rag.progress() as p
    where p.tenant = rag.current_tenant()
"""

# What goes wrong with the server or with us, not with a document: connection, login, rights,
# unknown schema or collection, disk, shutdown, input and output.
_FATAL_CLASSES: Final = ("08", "25", "28", "3D", "3F", "42", "53", "57P", "58", "RG001", "RG002",
                         "RG003")  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file that is to be read: its path, its uri, and the folder it was found by."""

    path: Path
    uri: str
    root: str


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not ingested, and why."""

    uri: str
    reason: str


@dataclass
class Tally:
    """What an ingest has done so far."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    chunks: int = 0
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    read: int = 0
    started: float = field(default_factory=time.monotonic)
    interrupted: bool = False

    @property
    def put(self) -> int:
        """Documents that are in the database now, changed or not."""
        return self.statuses.total()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started


class SameNameError(RagdbError):
    """Two files would have the same uri."""


# ------------------------------------------------------------------------------------------ finding


def root_mark(path: Path) -> str:
    """What tells the folders of one name apart, in the metadata as "root"."""
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:12]  # noqa: PTH100


def find(
    paths: Sequence[Path], name: str | None = None, endings: Collection[str] = FORMATS
) -> tuple[list[Found], list[Skipped]]:
    """The files under paths in sorted order, and what is left out.

    A file's uri is its path from the parent of the path that was given: "docs/a/b.md" for docs,
    from wherever it is called; name replaces the first part. Hidden files and folders,
    node_modules, __pycache__ and venv are passed over without a word. Raises SameNameError when
    two files would have the same uri, since one would replace the other.
    """
    found: list[Found] = []
    skipped: list[Skipped] = []
    for path in paths:
        root = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would rename links)
        top = name or root.name or "root"
        mark = root_mark(path)
        if root.is_dir():
            for file in _walk(root, top, skipped):
                relative = file.relative_to(root).as_posix()
                _add(Found(file, f"{top}/{relative}", mark), endings, found, skipped)
        else:
            # Named by itself, so it is read whatever its ending says.
            found.append(Found(root, name or root.name, mark))
    by_uri: dict[str, Found] = {}
    for one in found:
        other = by_uri.setdefault(one.uri, one)
        if other is not one and other.path != one.path:
            raise SameNameError(
                "two files would have the same uri",
                detail=f"{other.path} and {one.path} would both be {one.uri}.",
                hint="Ingest them one after the other, one of them with --name.",
            )
    return list(by_uri.values()), skipped


def _walk(root: Path, top: str, skipped: list[Skipped]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        uri = f"{top}/{Path(error.filename).relative_to(root).as_posix()}"
        skipped.append(Skipped(uri, "no permission to list the folder"))

    for folder, folders, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        linked = [one for one in folders if (here / one).is_symlink() and _is_shown(one)]
        for one in sorted(linked):
            uri = f"{top}/{(here / one).relative_to(root).as_posix()}"
            skipped.append(Skipped(uri, "a link to a folder; name that folder itself"))
        folders[:] = sorted(one for one in folders if _is_shown(one) and one not in linked)
        for one in sorted(files):
            if _is_shown(one):
                yield here / one


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in _SKIPPED_FOLDERS


def _add(one: Found, endings: Collection[str], found: list[Found], skipped: list[Skipped]) -> None:
    ending = one.path.suffix.lower()
    if ending in endings:
        found.append(one)
    else:
        kind = f"{ending} files are" if ending else "files without an ending are"
        skipped.append(Skipped(one.uri, f"{kind} not read"))


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Read:
    """A file after reading: its document, or why there is none."""

    found: Found
    document: Document | None
    reason: str = ""


def readers(files: int, wanted: int | None = None) -> int:
    """How many processes read so many files, unless somebody wants another number."""
    return wanted or (min(4, cores()) if files >= _PARALLEL_FILES else 1)


def read_all(found: Sequence[Found], jobs: int, limits: Limits | None = None) -> Iterator[Read]:
    """Read files in their order, in so many processes, a few files ahead of the caller."""
    processes = [ReaderProcess(limits) for _ in range(jobs)]
    idle: SimpleQueue[ReaderProcess] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def read(one: Found) -> Read:
        process = idle.get()
        try:
            return _read(process, one)
        finally:
            idle.put(process)

    # Threads, that only wait for the processes.
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[Future[Read]] = deque()
    try:
        for one in found:
            waiting.append(pool.submit(read, one))
            if len(waiting) >= 16 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.close()


def _read(process: ReaderProcess, found: Found) -> Read:
    try:
        found.uri.encode()
    except UnicodeEncodeError:
        return Read(found, None, "its name is not valid UTF-8")
    try:
        return Read(found, process.read_path(found.path, found.uri))
    except UnreadableError as error:
        return Read(found, None, str(error))


# ------------------------------------------------------------------------------------------ putting


def is_fatal(connection: terminal.Connection, error: psycopg.Error) -> bool:
    """Does the fault lie with the server or with us, so that other documents fail as well?"""
    return connection.closed or (error.sqlstate or "08").startswith(_FATAL_CLASSES)


@dataclass
class _Batch:
    language: str | None
    documents: list[tuple[Found, Document]] = field(default_factory=list[tuple[Found, Document]])
    size: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.documents) >= BATCH_DOCUMENTS or self.size >= BATCH_BYTES


class Ingest:
    """Puts documents into one collection, whole batches at a time.

    language is the text search configuration for all documents; None takes the language that a
    file states (HTML's lang, front matter's) or that is detected, otherwise the collection's.
    With a run_id what is done is noted in that run. Each batch is a transaction of its own. A
    batch that the server refuses is put again one by one, so that only the document at fault is
    left out.
    """

    def __init__(
        self,
        connection: terminal.Connection,
        collection: str,
        language: str | None = None,
        *,
        limits: Limits | None = None,
        run_id: int | None = None,
    ) -> None:
        self.connection = connection
        self.collection = collection
        self.language = language
        self.limits = limits
        self.run_id = run_id
        self.tally = Tally()
        self._batches: dict[str | None, _Batch] = {}

    def prepare(self) -> bool:
        """Create the collection if it is not there; True if this call created it.

        Raises psycopg.Error for an unknown language, too, which no document could be put in.
        """
        if self.language is not None:
            self.connection.execute(_IS_LANGUAGE, [self.language])
        if self.connection.execute(_COLLECTION, [self.collection]).fetchone():
            return False
        self.connection.execute(_CREATE_COLLECTION, [self.collection, self.language])
        return True

    def from_elsewhere(self, found: Iterable[Found]) -> dict[str, int]:
        """Names (first parts of uris) whose documents came from another folder, with counts."""
        roots = {one.uri.split("/")[0]: one.root for one in found if "/" in one.uri}
        counts: dict[str, int] = {}
        for name, root in roots.items():
            row = self.connection.execute(_OTHERS, [self.collection, f"{name}/", root]).fetchone()
            if row and row[0]:
                counts[name] = row[0]
        return counts

    def run(self, found: Sequence[Found], jobs: int, step: Callable[[Tally], None]) -> None:
        """Read and put all; step is called after each file and each batch."""
        for one in read_all(found, jobs, self.limits):
            self.tally.read += 1
            if one.document is None:
                self.tally.skipped.append(Skipped(one.found.uri, one.reason))
            else:
                self._add(one.found, one.document)
            step(self.tally)
        for batch in self._batches.values():
            self._put(batch)
            step(self.tally)
        self._batches.clear()

    def _add(self, found: Found, document: Document) -> None:
        language = self.language or CONFIGURATIONS.get(str(document.metadata.get("lang", ""))[:2])
        batch = self._batches.setdefault(language, _Batch(language))
        batch.documents.append((found, document))
        batch.size += len(document.content)
        if batch.is_full:
            del self._batches[language]
            self._put(batch)

    def _put(self, batch: _Batch) -> None:
        try:
            self._put_documents(batch.documents, batch.language)
        except psycopg.Error as error:
            self._give_up_if_fatal(error)
        else:
            return
        for one in batch.documents:
            try:
                self._put_documents([one], batch.language)
            except psycopg.Error as error:
                self._give_up_if_fatal(error)
                reason = error.diag.message_primary or str(error)
                self.tally.skipped.append(Skipped(one[0].uri, f"refused: {reason}"))

    def _give_up_if_fatal(self, error: psycopg.Error) -> None:
        if is_fatal(self.connection, error):
            raise error

    def _put_documents(
        self, documents: Sequence[tuple[Found, Document]], language: str | None
    ) -> None:
        values = [
            {
                "uri": found.uri,
                "title": document.title,
                "content": document.content,
                "metadata": {**document.metadata, "root": found.root},
            }
            for found, document in documents
        ]
        with self.connection.transaction():
            rows = self.connection.execute(
                _PUT_MANY,
                {"documents": Jsonb(values), "collection": self.collection, "language": language},
            ).fetchall()
            done = [{"uri": uri, "action": how} for uri, _, how in rows if how != "unchanged"]
            if self.run_id is not None and done:
                self.connection.execute(_NOTE_RUN, [self.run_id, Jsonb(done), self.collection])
        # Counted only once it is committed.
        for _, chunks, status in rows:
            self.tally.statuses[status] += 1
            self.tally.chunks += chunks


# -------------------------------------------------------------------------------------- the command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command ingest."""
    parser = subparsers.add_parser(
        "ingest",
        help="put files and folders into a collection",
        description="Put files (text, Markdown, reStructuredText, HTML, PDF, office documents, "
        "e-mail, tables) into a collection. Unchanged files cost little, so the same command "
        "continues after an interruption.",
    )
    add_options(parser)
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ingest and sync have in common."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or folder")
    parser.add_argument("--collection", default="default", help="made if it is not there")
    parser.add_argument("--tenant", help="whose documents these are")
    parser.add_argument(
        "--language",
        help="text search configuration, such as english or spanish; default: what a file "
        "states or is found to be, otherwise the collection's (a new one is english)",
    )
    parser.add_argument("--name", help="first part of the uris; default: the name of each PATH")
    parser.add_argument(
        "--jobs", type=_jobs, help="processes that read files; default: the cores, at most 4"
    )


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("a number from 1 to 64")
    return int(text)


def look(arguments: argparse.Namespace, limits: Limits) -> tuple[list[Found], list[Skipped]] | None:
    """The files that the arguments of a command name; None, and an error is shown, if none can."""
    paths: list[Path] = arguments.paths
    for path in paths:
        if not os.path.lexists(path):
            terminal.show_error(RagdbError(f"there is no {path}"))
            return None
    try:
        return find(paths, arguments.name, limits.endings)
    except SameNameError as error:
        terminal.show_error(error)
        return None


def run(arguments: argparse.Namespace) -> int:
    """Ingest: 0 when a document is in, 1 when none is or the server fails, 2 for wrong usage."""
    limits = file_limits()
    seen = look(arguments, limits)
    if seen is None:
        return 2
    found, skipped = seen
    console = terminal.news()
    try:
        with terminal.connect("ingest", arguments.tenant) as connection:
            ingest = Ingest(connection, arguments.collection, arguments.language, limits=limits)
            ingest.tally.skipped += skipped
            prepare(ingest, found, console)
            try:
                with show_progress(console, len(found)) as step:
                    ingest.run(found, readers(len(found), arguments.jobs), step)
            except KeyboardInterrupt:
                ingest.tally.interrupted = True
            report(ingest)
    except (psycopg.Error, RagdbError) as error:
        terminal.show_error(error)
        return 1
    if ingest.tally.interrupted:
        return 130
    return 0 if ingest.tally.put else 1


def prepare(ingest: Ingest, found: Iterable[Found], console: Console) -> None:
    """Make the collection, and say which documents are from another folder of the same name."""
    if ingest.prepare():
        console.print(f"Made the collection {ingest.collection}.")
    for name, number in ingest.from_elsewhere(found).items():
        console.print(
            f"Note: {count(number, 'document')} named {name}/… came from another folder; those "
            "with the same path are replaced. --name keeps the two apart.",
            style="yellow",
        )


@contextmanager
def show_progress(console: Console, files: int) -> Generator[Callable[[Tally], None]]:
    """A bar with files, chunks, rate and time left; without a terminal a line now and then."""
    if not console.is_terminal:
        told = time.monotonic()

        def tell(tally: Tally) -> None:
            nonlocal told
            if time.monotonic() - told >= _LINE_SECONDS:
                told = time.monotonic()
                rate = tally.read / max(tally.seconds, 0.001)
                left = (files - tally.read) / max(rate, 0.001)
                console.print(
                    f"{tally.read:,} of {count(files, 'file')}, {count(tally.chunks, 'chunk')}, "
                    f"{rate:.0f} files/s, {left:.0f} s left"
                )

        yield tell
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[chunks]:,} chunks, {task.fields[rate]:.0f} files/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=files, chunks=0, rate=0.0)

        def advance(tally: Tally) -> None:
            rate = tally.read / max(tally.seconds, 0.001)
            progress.update(task, completed=tally.read, chunks=tally.chunks, rate=rate)

        yield advance


def report(ingest: Ingest, more: str = "") -> None:
    """What was done, what was left out, and what comes next; more is said behind the counts."""
    console = terminal.answers()
    tally = ingest.tally
    seconds = tally.seconds
    if tally.skipped:
        console.print(skipped_table(tally.skipped), soft_wrap=False)
    row = ingest.connection.execute(_TENANT).fetchone()
    tenant = row[0] if row else ""
    counts = ", ".join(
        f"{tally.statuses[status]:,} {status}" for status in ("inserted", "updated", "unchanged")
    )
    console.print(
        f"{counts}, {len(tally.skipped):,} skipped{more}; {count(tally.chunks, 'chunk')}; "
        f"{seconds:.1f} s ({tally.put / max(seconds, 0.001):.0f} files/s); collection "
        f"{ingest.collection} of tenant {tenant}."
    )
    if tally.interrupted:
        console.print("Interrupted. What is counted is in; the same command does the rest.")
    changed = tally.statuses["inserted"] + tally.statuses["updated"]
    console.print(_next_step(ingest.connection, PATIENCE_SECONDS if changed else 0))


def skipped_table(skipped: Sequence[Skipped]) -> Table:
    """One line a reason, with its files as far as they fit."""
    by_reason: dict[str, list[str]] = {}
    for one in skipped:
        by_reason.setdefault(one.reason, []).append(one.uri)
    table = Table("Skipped because", "Files", box=None, pad_edge=False)
    table.add_column("Which", overflow="fold")
    for reason, uris in sorted(by_reason.items()):
        names = ", ".join(uris[:3]) + (f" and {len(uris) - 3:,} more" if len(uris) > 3 else "")
        readable = names.encode(errors="replace").decode()
        table.add_row(Text(reason), f"{len(uris):,}", Text(terminal.printable(readable)))
    return table


def _next_step(connection: terminal.Connection, patience: float) -> str:
    """What is left to do, and who does it; so many seconds to see whether anybody is at it."""
    ask = "Ask: make search Q='…'"
    deadline = time.monotonic() + patience
    first = 0
    while True:
        waiting, leased, failed = connection.execute(_PROGRESS).fetchone() or (0, 0, 0)
        if waiting + leased == 0:
            if failed:
                return f"{count(failed, 'chunk')} could not be embedded; rag.failures() says why."
            return f"All is embedded. {ask}"
        first = first or waiting
        if leased or waiting < first:
            return f"The embedder is at work: {count(waiting + leased, 'chunk')} to go. {ask}"
        if time.monotonic() >= deadline:
            wait = "waits for its embedding" if waiting == 1 else "wait for their embeddings"
            return (
                f"{count(waiting, 'chunk')} {wait} and no embedder is at work: "
                "make embedder. Words are searchable already."
            )
        time.sleep(0.1)
