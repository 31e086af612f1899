"""The server of the benchmarks: DATABASE_URL, or an embedded one with memory for much."""

from __future__ import annotations

import os
import secrets
from typing import Final
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from db.migrate import migrate
from db.server import ROOT, Server, default_version

# What a machine of 24 GB gives to Postgres: a million chunks take 9 GB, their indexes 3.
SETTINGS: Final = {
    "shared_buffers": "5GB",
    "effective_cache_size": "14GB",
    "maintenance_work_mem": "2GB",
    "max_wal_size": "16GB",
    "work_mem": "16MB",
    "random_page_cost": "1.1",
}

APPLICATION: Final = "ragdb_bench_app"
"""The login role of applications: row-level security binds it, as it does in life."""
APPLICATION_NAME: Final = "ragdb load"
"""By which the server knows the sessions of a load test."""


def start() -> str:
    """The URL of the server, which runs with these settings if it is the embedded one."""
    if url := os.environ.get("DATABASE_URL", "").strip():
        return url
    server = Server(ROOT / "bench", default_version())
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        known = connection.execute("select name, setting from pg_file_settings").fetchall()
        if dict(known).items() >= SETTINGS.items():
            return server.url()
        for name, value in SETTINGS.items():
            statement = sql.SQL("alter system set {} = {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Literal(value)))
    server.stop()
    server.start()
    return server.url()


def database(name: str, *, fresh: bool = False) -> str:
    """The URL of a migrated database of that name."""
    url = start()
    with psycopg.connect(url, autocommit=True) as connection:
        if fresh:
            statement = sql.SQL("drop database if exists {} with (force)")
            connection.execute(statement.format(sql.Identifier(name)))
        known = connection.execute("select from pg_database where datname = %s", [name])
        if not known.rowcount:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    target = urlsplit(url)._replace(path=f"/{name}").geturl()
    migrate(target)
    return target


def application(url: str) -> str:
    """The URL of a database for an application, whose role is made anew or gets a new password."""
    password = secrets.token_hex(16)
    role = sql.Identifier(APPLICATION)
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("select from pg_roles where rolname = %s", [APPLICATION])
        verb = sql.SQL("alter" if known.rowcount else "create")
        connection.execute(
            sql.SQL("{} role {} login password {}").format(verb, role, sql.Literal(password))
        )
        connection.execute(sql.SQL("grant rag_app to {}").format(role))
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{APPLICATION}:{password}@{host}").geturl()
