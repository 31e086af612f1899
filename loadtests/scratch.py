"""A migrated database for one run of a benchmark."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from db.migrate import migrate


@contextmanager
def scratch_database(url: str, name: str, *, keep: bool = False) -> Generator[str]:
    """URL of a fresh database of that name on the server of `url`; dropped at the end, or kept."""
    identifier = sql.Identifier(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))
        connection.execute(sql.SQL("create database {}").format(identifier))
        try:
            scratch = urlsplit(url)._replace(path=f"/{name}").geturl()
            migrate(scratch)
            yield scratch
        finally:
            if not keep:
                connection.execute(sql.SQL("drop database {} with (force)").format(identifier))
