"""`python -m embedder export`: a tenant as lines of JSON."""

from __future__ import annotations

import contextlib
import gzip
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from psycopg import sql

from embedder import terminal
from embedder.database import translated
from embedder.errors import RagdbError
from embedder.queries import QUERIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterator

    from embedder.commands import Subparsers


_KIND: Final = re.compile(r'\{"kind" ?: ?"(\w+)"')


def exported(tenant: str, *, embeddings: bool = True, grants: bool = False) -> Iterator[str]:
    """The lines of rag.export_tenant, as the server sends them: none waits for another one."""
    with terminal.connect("export") as connection, connection.cursor() as cursor, translated():
        statement = sql.SQL(QUERIES["export_tenant"]).format(
            tenant=tenant, embeddings=embeddings, grants=grants
        )
        with cursor.copy(statement) as copy:
            for (line,) in copy.rows():
                yield str(line)


@contextlib.contextmanager
def _opened(path: Path | None) -> Generator[TextIO]:
    if path is None:
        yield sys.stdout
    elif path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8", newline="\n") as file:
            yield file
    else:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file


def add_parser(subparsers: Subparsers) -> None:
    """Add `export` to the command line."""
    parser = subparsers.add_parser("export", help="write a tenant as lines of JSON")
    parser.add_argument("tenant", help="whom the role may act as")
    parser.add_argument("file", nargs="?", type=Path, help="standard output if left out; or a .gz")
    parser.add_argument("--no-embeddings", action="store_true", help="a fifth of the size")
    parser.add_argument("--grants", action="store_true", help="the roles it is granted to, too")
    parser.set_defaults(func=_run)


def _write(lines: Iterator[str], path: Path | None) -> Counter[str]:
    """Write the lines; how many there are of each kind. Raises RagdbError if that cannot be."""
    # Nothing is made or overwritten for a tenant that is none.
    line: str | None = next(lines)
    kinds: Counter[str] = Counter()
    try:
        with _opened(path) as file:
            while line is not None:
                file.write(f"{line}\n")
                if kind := _KIND.match(line):
                    kinds[kind[1]] += 1
                line = next(lines, None)
    except OSError as error:
        if path is None:
            raise
        raise RagdbError(f"cannot write {path}: {error.strerror or error}") from error
    return kinds


def _run(options: argparse.Namespace) -> int:
    lines = exported(options.tenant, embeddings=not options.no_embeddings, grants=options.grants)
    kinds = _write(lines, options.file)
    print(
        f"{options.file or 'standard output'}: {terminal.count(kinds['document'], 'document')} in "
        f"{terminal.count(kinds['collection'], 'collection')} of tenant {options.tenant}",
        file=sys.stderr,
    )
    return 0
