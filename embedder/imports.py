"""`python -m embedder import`: a tenant from the lines of an export."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import psycopg

from embedder.config import Settings
from embedder.database import connect, translated
from embedder.errors import RagdbError
from embedder.queries import QUERIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterable, Iterator

    from embedder.commands import Subparsers

# One transaction: a second or two of work, and of what is done again after it was broken off.
BATCH_LINES: Final = 200
BATCH_CHARACTERS: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, by kind of line; chunks are counted one by one."""

    imported: Counter[str] = field(default_factory=Counter[str])
    skipped: Counter[str] = field(default_factory=Counter[str])


def batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in lists that are neither long nor large."""
    batch: list[str] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if len(batch) == BATCH_LINES or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def import_lines(database_url: str, tenant: str, lines: Iterable[str]) -> Imported:
    """Store the lines of an export in a tenant, which is created if the role may and it is new.

    Each batch is committed, and what is there already is skipped: after an error call it again.
    Raises RagdbError if the lines end before their end.
    """
    done = Imported()
    last = ""
    with connect(database_url) as connection, translated():
        # Who may act as it already needs no right to create it.
        with contextlib.suppress(
            psycopg.errors.DuplicateObject, psycopg.errors.InsufficientPrivilege
        ):
            connection.execute(QUERIES["create_tenant"], {"name": tenant})
        for batch in batches(lines):
            rows = connection.execute(
                QUERIES["import_lines"], {"tenant": tenant, "lines": batch}
            ).fetchall()
            for kind, imported, skipped in rows:
                done.imported[kind] += imported
                done.skipped[kind] += skipped
            last = batch[-1]
    if not last or json.loads(last).get("kind") != "end":
        raise RagdbError("the export has no end: it was cut off", hint="what it has is imported")
    return done


@contextlib.contextmanager
def _opened(path: Path | None) -> Generator[TextIO]:
    if path is None:
        yield sys.stdin
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            yield file
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield file


def add_parser(subparsers: Subparsers) -> None:
    """Add `import` to the command line."""
    parser = subparsers.add_parser("import", help="make a tenant of the lines of an export")
    parser.add_argument("tenant", help="created if it is not there and the role may")
    parser.add_argument("file", nargs="?", type=Path, help="standard input if left out; or a .gz")
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    with _opened(options.file) as file:
        done = import_lines(settings.database_url, options.tenant, file)
    for kind in ("collection", "document", "chunks", "eval_set", "grant"):
        if done.imported[kind] or done.skipped[kind]:
            print(f"{kind}: {done.imported[kind]} imported, {done.skipped[kind]} skipped")
    return 0
