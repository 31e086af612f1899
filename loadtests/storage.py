"""What it costs to keep a corpus: seconds to load it and to build its indexes, and bytes.

What loading took is kept as the comment on the database, so that it can be told later on.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql
from rich.table import Table

POLL_SECONDS: Final = 0.05


@dataclass
class Loaded:
    """Seconds that the parts of loading took; those of indexes are part of `isolate`."""

    chunks: int
    put: float = 0
    embed: float = 0
    isolate: float = 0
    indexes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A table or an index of the tenant's partition, or of all tenants, and its bytes."""

    name: str
    is_index: bool
    bytes: int


class _Watch(threading.Thread):
    """Notes how long each index is being built: seconds by table and how many it had before.

    Which index it is the server does not tell before it is there.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._done = threading.Event()
        self._seen: dict[tuple[int, int], tuple[float, float]] = {}

    def run(self) -> None:
        """Look again and again."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._done.wait(POLL_SECONDS):
                rows = connection.execute(
                    "select p.relid::bigint, "
                    "(select count(*) from pg_index as i where i.indrelid = p.relid) "
                    "from pg_stat_progress_create_index as p where p.datname = current_database()"
                )
                for key in rows.fetchall():
                    now = time.monotonic()
                    first, _ = self._seen.get(key, (now - POLL_SECONDS, now))
                    self._seen[key] = (first, now)

    def stop(self) -> dict[tuple[int, int], float]:
        """End; what was seen."""
        self._done.set()
        self.join()
        return {key: last - first for key, (first, last) in self._seen.items()}


def watch_memory(connection: psycopg.Connection[Any]) -> None:
    """Say on standard error when an HNSW graph that is being built outgrows the memory for it.

    It goes on, several times slower: the seconds that it takes are not those of the index.
    """

    def tell(notice: psycopg.errors.Diagnostic) -> None:
        message = notice.message_primary or ""
        if message.startswith("hnsw graph no longer fits"):
            print(
                f"warning: {message}: from here on it is several times slower, and the seconds "
                "of the index are not comparable. Set it to 2.5 kB a vector of 384 dimensions.",
                file=sys.stderr,
            )

    connection.add_notice_handler(tell)


def isolate(url: str, tenant: str, loaded: Loaded) -> None:
    """Give the tenant a partition of his own, and note how long it and its indexes took."""
    watch = _Watch(url)
    watch.start()
    started = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        watch_memory(connection)
        connection.execute("call rag.isolate_tenant(%s)", [tenant])
        loaded.isolate = time.monotonic() - started
        seen = watch.stop()
        rows = connection.execute(
            "select i.indrelid::bigint, "
            "row_number() over (partition by i.indrelid order by i.indexrelid) - 1, "
            "c.relname from pg_index as i join pg_class as c on c.oid = i.indexrelid"
        )
        loaded.indexes = {
            name: seen[table, before] for table, before, name in rows if (table, before) in seen
        }


def keep(url: str, loaded: Loaded) -> None:
    """Write down what loading took."""
    with psycopg.connect(url, autocommit=True) as connection:
        statement = sql.SQL("comment on database {} is {}")
        name = sql.Identifier(connection.info.dbname)
        connection.execute(statement.format(name, sql.Literal(json.dumps(asdict(loaded)))))


def kept(url: str) -> Loaded | None:
    """What loading took, if it was written down."""
    with psycopg.connect(url) as connection:
        [(found,)] = connection.execute(
            "select shobj_description(d.oid, 'pg_database') from pg_database as d "
            "where d.datname = current_database()"
        ).fetchall()
    return Loaded(**json.loads(found)) if found else None


def stored(connection: psycopg.Connection[Any], tenant: str) -> list[Stored]:
    """What the partition of a tenant and the tables without partitions hold, the largest first.

    The bytes of a table are those of its rows and of their texts out of line.
    """
    rows = connection.execute(
        "select c.relname, c.relkind = 'i', "
        "case when c.relkind = 'r' then pg_table_size(c.oid) else pg_relation_size(c.oid) end "
        "from pg_class as c left join pg_index as i on i.indexrelid = c.oid "
        "join pg_class as o on o.oid = coalesce(i.indrelid, c.oid) "
        "where o.relnamespace in ('rag'::regnamespace, 'rag_data'::regnamespace) "
        "and c.relkind in ('r', 'i') and (o.relname !~ '_p\\d+$' or o.relname ~ "
        "(select format('_p%%s$', t.partition_id) from rag.tenants as t where t.name = %s)) "
        "order by 3 desc, 1",
        [tenant],
    )
    return [Stored(*row) for row in rows]


def table(url: str, tenant: str, chunks: int) -> Table:
    """What is large, with bytes per chunk and the seconds to build an index."""
    with psycopg.connect(url) as connection:
        found = stored(connection, tenant)
    loaded = kept(url) or Loaded(chunks)
    total = sum(one.bytes for one in found)
    shown = Table(title=f"{total / 2**20:,.0f} MB, {total / chunks:,.0f} bytes per chunk")
    for column in ("", "MB", "bytes per chunk", "built in s"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for one in found:
        if one.bytes >= total / 200:
            seconds = loaded.indexes.get(one.name)
            shown.add_row(
                one.name,
                f"{one.bytes / 2**20:,.1f}",
                f"{one.bytes / chunks:,.0f}",
                "" if seconds is None else f"{seconds:,.1f}",
            )
    return shown
