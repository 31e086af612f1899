"""`python -m embedder export`: a tenant as lines of JSON."""

from __future__ import annotations

import contextlib
import gzip
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from psycopg import sql

from embedder.config import Settings
from embedder.database import connect, translated
from embedder.queries import QUERIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterator

    from embedder.commands import Subparsers


def exported(
    database_url: str, tenant: str, *, embeddings: bool = True, grants: bool = False
) -> Iterator[str]:
    """The lines of rag.export_tenant, as the server sends them: none waits for another one."""
    with connect(database_url) as connection, connection.cursor() as cursor, translated():
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


def _run(options: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    lines = exported(
        settings.database_url,
        options.tenant,
        embeddings=not options.no_embeddings,
        grants=options.grants,
    )
    # Nothing is made or overwritten for a tenant that is none.
    first = next(lines)
    with _opened(options.file) as file:
        file.write(f"{first}\n")
        for line in lines:
            file.write(f"{line}\n")
    return 0
