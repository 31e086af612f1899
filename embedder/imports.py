"""`python -m embedder import`: a tenant from the lines of an export."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO, cast

import psycopg

from embedder import terminal
from embedder.database import translated
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


def import_lines(tenant: str, lines: Iterable[str], source: str) -> Imported:
    """Store the lines of an export in a tenant, which is created if the role may and it is new.

    Each batch is committed, the first one with the new tenant, and what is there already is
    skipped: after an error call it again. `source` is the name that errors call the lines by.
    Raises RagdbError if there are none, if one is none of an export, or if their end is missing.
    """
    done = Imported()
    last = ""
    count = 0
    with terminal.connect("import") as connection, translated():
        for batch in batches(lines):
            try:
                rows = _store(connection, tenant, batch, is_first=count == 0)
            except psycopg.DataError as error:
                for number, line in enumerate(batch, count + 1):
                    if _kind(line) is None:
                        raise RagdbError(
                            f"line {number} of {source} is not a line of an export"
                        ) from error
                raise
            for kind, imported, skipped in rows:
                done.imported[kind] += imported
                done.skipped[kind] += skipped
            last = batch[-1]
            count += len(batch)
    if count == 0:
        raise RagdbError(f"{source} is empty")
    if _kind(last) != "end":
        raise RagdbError(
            f"{source} is cut off",
            hint="what was read before is imported, call again with the whole file",
        )
    return done


def _store(
    connection: terminal.Connection, tenant: str, batch: list[str], *, is_first: bool
) -> list[tuple[str, int, int]]:
    # What a tenant may put in a minute may be less than a batch, and is soon used up.
    try:
        with connection.transaction():
            if is_first:
                _create_tenant(connection, tenant)
            return connection.execute(
                QUERIES["import_lines"], {"tenant": tenant, "lines": batch}
            ).fetchall()
    except psycopg.Error as error:
        if error.sqlstate != "RG021":
            raise
        is_too_large = "fewer" in (error.diag.message_hint or "")
        if is_too_large and len(batch) == 1:
            raise
    if is_too_large:
        half = len(batch) // 2
        return [
            *_store(connection, tenant, batch[:half], is_first=is_first),
            *_store(connection, tenant, batch[half:], is_first=False),
        ]
    print("the puts of this minute are used up; going on in the next one", file=sys.stderr)
    time.sleep(61 - time.time() % 60)
    return _store(connection, tenant, batch, is_first=is_first)


def _create_tenant(connection: terminal.Connection, tenant: str) -> None:
    # Who may act as it already needs no right to create it.
    with (
        contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.InsufficientPrivilege),
        connection.transaction(),
    ):
        connection.execute(QUERIES["create_tenant"], {"name": tenant})


def _kind(line: str) -> str | None:
    """What a line of an export is of; None: it is no such line."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    kind = cast("dict[str, object]", told).get("kind") if isinstance(told, dict) else None
    return kind if isinstance(kind, str) else None


def lines_of(path: Path | None, source: str) -> Iterator[str]:
    """The whole lines of a file, or of standard input.

    One that is cut off ends with the last whole line. Raises RagdbError if it cannot be read.
    """
    count = 0
    try:
        with _opened(path) as file:
            for line in file:
                if count and not line.endswith("\n") and _kind(line) is None:
                    return
                yield line
                count += 1
    except EOFError as error:
        if count == 0:
            raise RagdbError(f"{source} is cut off", hint="nothing of it can be read") from error
    except UnicodeDecodeError as error:
        raise RagdbError(f"cannot read {source}: it is no text in UTF-8") from error
    except (OSError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise RagdbError(f"cannot read {source}: {why or error}") from error


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
    source = str(options.file or "standard input")
    done = import_lines(options.tenant, lines_of(options.file, source), source)
    for kind in ("collection", "document", "chunks", "eval_set", "grant"):
        if done.imported[kind] or done.skipped[kind]:
            print(f"{kind}: {done.imported[kind]} imported, {done.skipped[kind]} skipped")
    return 0
