"""python -m embedder sync: a collection as its folders are, what changed, came and vanished."""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console

from embedder import ingest, terminal
from embedder.config import cores, file_limits
from embedder.errors import RagdbError
from embedder.ingest import Found, Ingest, Skipped
from embedder.readers import Limits
from embedder.terminal import count

if TYPE_CHECKING:
    from embedder.commands import Subparsers

_KNOWN: Final = """
    select d.uri, coalesce(d.metadata ->> 'sha256', '')
    from rag.documents as d
    join rag.collections as c
        on c.tenant_id = d.tenant_id and c.collection_id = d.collection_id
    where c.name = %s and d.metadata ->> 'root' = any(%s)
"""
_DELETE: Final = "select rag.delete(%s, %s)"
_BEGIN: Final = "select rag.begin_run('sync', %s, %s)"
_NOTE: Final = "select rag.note_run(%s, %s, %s)"
_END: Final = "select rag.end_run(%s, %s, %s)"

_DELETED_AT_ONCE: Final = 100
# A record of a run names so many of what it left out; the rest is counted.
_NAMED: Final = 1000


@dataclass
class Plan:
    """What a sync is to do: the files to read, and the documents whose files have vanished."""

    changed: list[Found] = field(default_factory=list[Found])
    unchanged: int = 0
    vanished: list[str] = field(default_factory=list[str])


def plan(
    found: Sequence[Found], skipped: Iterable[Skipped], known: Mapping[str, str], limits: Limits
) -> Plan:
    """Compare files with documents, known by uri with the SHA-256 of the file that they are from.

    A file that is there and cannot be read now has not vanished, and neither has what lies in a
    folder that cannot be listed.
    """
    made = Plan()
    with ThreadPoolExecutor(min(4, cores())) as pool:
        digests = pool.map(partial(_digest, limits=limits), found)
        for one, digest in zip(found, digests, strict=True):
            if digest and known.get(one.uri) == digest:
                made.unchanged += 1
            else:
                made.changed.append(one)
    there = {one.uri for one in found}
    unseen = tuple(one.uri for one in skipped)
    prefixes = tuple(f"{uri}/" for uri in unseen)
    made.vanished = sorted(
        uri for uri in known.keys() - there if uri not in unseen and not uri.startswith(prefixes)
    )
    return made


def _digest(found: Found, limits: Limits) -> str:
    """The SHA-256 of a file, '' of one that the reader will refuse."""
    try:
        status = found.path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limits.file_bytes:
            return ""
        with found.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command sync."""
    parser = subparsers.add_parser(
        "sync",
        help="bring a collection up to date with folders: changed, new and vanished files",
        description="Put the files that changed or are new, and delete the documents whose files "
        "have vanished. The rest is not touched. The same command continues after an interruption.",
    )
    ingest.add_options(parser)
    parser.add_argument(
        "--delete",
        action="store_true",
        help="delete the documents of vanished files without asking; without it a terminal is "
        "asked, and without a terminal they stay",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Sync: 0 when the collection is as its folders are, 1 when the server fails, 2 wrong usage."""
    limits = file_limits()
    seen = ingest.look(arguments, limits)
    if seen is None:
        return 2
    found, skipped = seen
    try:
        with terminal.connect("sync", arguments.tenant) as connection:
            task = Ingest(connection, arguments.collection, arguments.language, limits=limits)
            task.tally.skipped += skipped
            marks = [ingest.root_mark(path) for path in arguments.paths]
            rows = connection.execute(_KNOWN, [arguments.collection, marks]).fetchall()
            made = plan(found, skipped, dict(rows), limits)
            if arguments.dry_run:
                _tell(made, dict(rows))
                return 0
            return _carry_out(arguments, task, made)
    except (psycopg.Error, RagdbError) as error:
        terminal.show_error(error)
        return 1


def _tell(made: Plan, known: Mapping[str, str]) -> None:
    console = terminal.answers()
    for one in made.changed:
        word = "update" if one.uri in known else "insert"
        console.print(f"{word}  {one.uri}", markup=False)
    for uri in made.vanished:
        console.print(f"delete  {uri}", markup=False)
    console.print(
        f"{len(made.changed):,} to be put, {len(made.vanished):,} to be deleted, "
        f"{made.unchanged:,} unchanged."
    )


def _carry_out(arguments: argparse.Namespace, task: Ingest, made: Plan) -> int:
    console = terminal.news()
    ingest.prepare(task, made.changed, console)
    sources = [os.path.abspath(path) for path in arguments.paths]  # noqa: PTH100
    details = {"collection": task.collection, "name": arguments.name, "paths": sources}
    row = task.connection.execute(_BEGIN, ["\n".join(sources), Jsonb(details)]).fetchone()
    assert row is not None
    task.run_id = row[0]
    task.tally.statuses["unchanged"] = made.unchanged
    deleted = 0
    state = "failed"
    try:
        with ingest.show_progress(console, len(made.changed)) as step:
            task.run(made.changed, ingest.readers(len(made.changed), arguments.jobs), step)
        if made.vanished and _may_delete(arguments, made.vanished, console):
            for number in _delete(task, made.vanished):
                deleted += number
        state = "completed"
    except KeyboardInterrupt:
        task.tally.interrupted = True
        state = "interrupted"
    finally:
        if not task.connection.closed:
            task.connection.execute(
                _END, [task.run_id, state, Jsonb(_numbers(task, made, deleted))]
            )
    ingest.report(task, f", {deleted:,} deleted")
    if left := len(made.vanished) - deleted:
        console.print(f"{count(left, 'document')} of vanished files left; --delete deletes them.")
    return 130 if task.tally.interrupted else 0


def _may_delete(arguments: argparse.Namespace, vanished: Sequence[str], console: Console) -> bool:
    if arguments.delete:
        return True
    if not sys.stdin.isatty():
        return False
    names = ", ".join(vanished[:5]) + (f" and {len(vanished) - 5:,} more" if vanished[5:] else "")
    console.print(
        f"The files of {count(len(vanished), 'document')} have vanished: "
        f"{terminal.printable(names)}",
        markup=False,
    )
    try:
        return input("Delete them from the collection? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _delete(task: Ingest, uris: Sequence[str]) -> Iterable[int]:
    """Delete documents in transactions of some; how many each time."""
    for start in range(0, len(uris), _DELETED_AT_ONCE):
        batch = uris[start : start + _DELETED_AT_ONCE]
        with task.connection.transaction():
            gone: list[str] = []
            for uri in batch:
                row = task.connection.execute(_DELETE, [uri, task.collection]).fetchone()
                if row and row[0]:
                    gone.append(uri)
            noted = [{"uri": uri, "action": "deleted"} for uri in gone]
            task.connection.execute(_NOTE, [task.run_id, Jsonb(noted), task.collection])
        yield len(gone)


def _numbers(task: Ingest, made: Plan, deleted: int) -> dict[str, object]:
    tally = task.tally
    return {
        "inserted": tally.statuses["inserted"],
        "updated": tally.statuses["updated"],
        "unchanged": tally.statuses["unchanged"],
        "deleted": deleted,
        "vanished": len(made.vanished),
        "skipped": len(tally.skipped),
        "chunks": tally.chunks,
        "seconds": round(tally.seconds, 3),
        "reasons": [
            {"uri": one.uri.encode(errors="replace").decode(), "reason": one.reason}
            for one in tally.skipped[:_NAMED]
        ],
    }
