"""What the commands for people share: consoles, a connection, and errors in plain words."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.text import Text

from embedder import database
from embedder.config import Settings
from embedder.errors import (
    NotMigratedError,
    RagdbError,
    TenantNotSetError,
    UnreachableError,
    from_database,
)

Connection = psycopg.Connection[tuple[Any, ...]]

_SET_TENANT: Final = "select rag.set_tenant(%s)"
_IS_MIGRATED: Final = "select to_regnamespace('rag') is not null"

# Undefined: schema, function, table, column. Each says that there is no ragdb, or an older one.
_NOT_MIGRATED: Final = frozenset(("3F000", "42883", "42P01", "42703"))
_NAME_TENANT: Final = "Name one: --tenant NAME"
_REACH: Final = "Is the server running, and is DATABASE_URL right?"
# Tabs and line feeds stay; escape sequences in a document must not reach the terminal.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def answers() -> Console:
    """Where results go: stdout. Lines are only broken to fit a terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def news() -> Console:
    """Where progress, hints and errors go: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def connect(program: str, tenant: str | None = None) -> Connection:
    """A connection in autocommit, acting as tenant if one is given.

    program becomes part of the application_name. Without DATABASE_URL the local server is
    started if it does not run. Raises RagdbError: unreachable, not migrated, not allowed.
    """
    try:
        connection = database.connect(_url(), name=f"ragdb {program}")
    except UnreachableError as error:
        error.hint = error.hint or _REACH
        raise
    try:
        row = connection.execute(_IS_MIGRATED).fetchone()
        if row is None or not row[0]:
            raise _not_migrated()
        if tenant is not None:
            connection.execute(_SET_TENANT, [tenant])
    except (psycopg.Error, RagdbError) as error:
        connection.close()
        raise explain(error) from error
    return connection


def _url() -> str:
    """The server: DATABASE_URL, or else the local one, which is started if it does not run."""
    if not os.environ.get("DATABASE_URL", "").strip():
        # Imported here: a container with nothing but the embedder has no embedded server.
        from db.server import ServerError, database_url

        try:
            return database_url(start=True)
        except ServerError as error:
            raise UnreachableError(detail=str(error)) from error
    return Settings.from_environment().database_url


def explain(error: psycopg.Error | RagdbError) -> RagdbError:
    """An error of a command as one with a message, a detail and a hint for people."""
    if isinstance(error, RagdbError):
        if isinstance(error, TenantNotSetError):
            error.hint = _NAME_TENANT
        return error
    if error.sqlstate in _NOT_MIGRATED:
        return _not_migrated(error.diag.message_primary)
    if known := from_database(error):
        return explain(known)
    if error.sqlstate is None:
        return UnreachableError(
            detail=database.reason(error),
            hint=_REACH,
        )
    diagnosis = error.diag
    return RagdbError(
        diagnosis.message_primary,
        detail=diagnosis.message_detail or f"SQLSTATE {error.sqlstate}",
        hint=diagnosis.message_hint,
    )


def show_error(error: psycopg.Error | RagdbError) -> None:
    """Print an error to stderr: what happened, the values, the way out."""
    told = explain(error)
    console = news()
    console.print(Text.assemble(("error: ", "bold red"), told.message))
    for part in (told.detail, told.hint):
        if part:
            console.print(Text(f"  {part}"))


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """The text without control characters other than tab and line feed."""
    return _CONTROLS.sub("", text)


def _not_migrated(detail: str | None = None) -> RagdbError:
    return NotMigratedError(
        detail=detail or "There is no schema rag.",
        hint="`make migrate` makes it, or brings it up to date.",
    )
