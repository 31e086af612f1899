"""nDCG@10, recall@10 and MRR of each leg and each fusion on judged collections.

    python -m loadtests.evaluate [FOLDER …] [--queries 500] [--keep]

Each folder holds corpus.jsonl (or .jsonl.gz), queries.jsonl and qrels.tsv; default: all such below
../shared/data. Documents are put and embedded by the product's own worker into a database of its
own on the server of DATABASE_URL or the local one; every number comes from rag.evaluate. The last
line of the table is what ts_rank_cd over an OR of the same words would have found.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from db.migrate import migrate
from db.server import database_url
from embedder import models
from embedder.config import Settings
from embedder.models import EmbeddingModel
from embedder.worker import Worker

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
DATABASE = "ragdb_evaluation"
# Label, mode, fusion, with the vectors of the questions.
RUNS = (
    ("BM25", "lexical", None, False),
    ("cosine", "semantic", None, True),
    ("rrf", "hybrid", "rrf", True),
    ("linear", "hybrid", "linear", True),
    ("standard (default)", "hybrid", None, True),
    ("text only", "hybrid", None, False),
)
# Over the same lexemes, so that the difference is the ranking's alone.
TS_RANK = """
with
queries as (
    select
        q.query_id,
        (
            select string_agg(rag._quote_lexeme(u.lexeme), ' | ')
            from unnest(rag._lexemes(n.language, q.query)) as u
        )::tsquery as query
    from rag.eval_queries as q
    join rag.eval_sets as s using (tenant_id, eval_set_id)
    join rag.collections as n using (tenant_id, collection_id)
    where q.tenant_id = rag._policy_tenant()
),
found as (
    select q.query_id, array_agg(l.uri order by l.score desc, l.uri) as uris
    from queries as q
    cross join lateral (
        select d.uri, ts_rank_cd(x.lexemes, q.query) as score
        from rag.lexemes as x
        join rag.chunks as c using (partition_id, tenant_id, chunk_id)
        join rag.documents as d using (tenant_id, document_id)
        where x.tenant_id = rag._policy_tenant() and x.lexemes @@ q.query
        order by score desc
        limit 50
    ) as l
    group by q.query_id
),
judged as (
    select
        j.query_id,
        array_agg(j.uri order by j.uri) as uris,
        array_agg(j.grade order by j.uri) as grades
    from rag.judgements as j
    where j.tenant_id = rag._policy_tenant()
    group by j.query_id
    having max(j.grade) > 0
)
select avg(m.ndcg), avg(m.recall), avg(m.mrr)
from judged as j
left join found as f using (query_id)
cross join lateral rag._measures(f.uris, j.uris, j.grades, 10) as m
"""


@contextmanager
def scratch_database(url: str, *, keep: bool) -> Generator[str]:
    """URL of a migrated database on the server of `url`, dropped at the end unless kept."""
    name = sql.Identifier(DATABASE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        connection.execute(sql.SQL("create database {}").format(name))
        try:
            scratch = urlsplit(url)._replace(path=f"/{DATABASE}").geturl()
            migrate(scratch)
            yield scratch
        finally:
            if not keep:
                connection.execute(sql.SQL("drop database {} with (force)").format(name))


def rows(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines, gzipped or not."""
    if not path.exists():
        text = gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()
    else:
        text = path.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load(connection: psycopg.Connection[Any], folder: Path, model: EmbeddingModel, n: int) -> None:
    """Put a collection and its judged queries into a tenant of its own."""
    language = "spanish" if "es" in folder.name.split("-") else "english"
    connection.execute("select rag.create_tenant(%s)", [folder.name])
    connection.execute("select rag.set_tenant(%s)", [folder.name])
    connection.execute("select rag.create_collection('c', 'none', language => %s)", [language])
    documents = [
        {"uri": row["id"], "content": f"{row.get('title') or ''} {row['text']}".strip() or "-"}
        for row in rows(folder / "corpus.jsonl")
    ]
    for start in range(0, len(documents), 500):
        connection.execute(
            "select from rag.put_many(%s, 'c')", [Jsonb(documents[start : start + 500])]
        )
    grades: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, uri, grade = line.split("\t")
        grades[query].append((uri, float(grade)))
    queries = [
        row
        for row in rows(folder / "queries.jsonl")
        if any(grade > 0 for _, grade in grades[row["id"]])
    ][:n]
    judgements = [
        {
            "query_id": row["id"],
            "query": row["text"],
            "uri": uri,
            "grade": grade,
            "embedding": None if place else model.encode_query(row["text"]).tolist(),
        }
        for row in queries
        for place, (uri, grade) in enumerate(grades[row["id"]])
    ]
    connection.execute("select rag.add_judgements('set', %s, 'c')", [Jsonb(judgements)])


def measure(connection: psycopg.Connection[Any], folder: Path, console: Console) -> None:
    """Run everything on one collection and print its table."""
    connection.execute("select rag.set_tenant(%s)", [folder.name])
    connection.execute("analyze")
    table = Table("", "nDCG@10", "recall@10", "MRR", "ms", title=folder.name)
    for label, mode, fusion, with_vectors in RUNS:
        found = connection.execute(
            "select ndcg, recall, mrr, milliseconds from rag.evaluate("
            "'set', mode => %s, fusion => %s, use_embeddings => %s, label => %s)",
            [mode, fusion, with_vectors, label],
        ).fetchone()
        assert found
        table.add_row(label, *(f"{value:.3f}" for value in found[:3]), f"{found[3]:.1f}")
    found = connection.execute(TS_RANK).fetchone()
    assert found
    table.add_row("ts_rank_cd", *(f"{value:.3f}" for value in found), "")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m loadtests.evaluate")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--queries", type=int, default=500, help="at most so many of each")
    parser.add_argument("--keep", action="store_true", help=f"keep the database {DATABASE}")
    options = parser.parse_args(arguments)
    folders: list[Path] = options.folders or sorted(
        path.parent for path in DATA.glob("*/qrels.tsv")
    )
    if not folders:
        print(f"There is no judged collection below {DATA}; name one.", file=sys.stderr)
        return 1
    console = Console(width=100)
    model = models.load(Settings.from_environment())
    with (
        scratch_database(database_url(start=True), keep=options.keep) as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        for folder in folders:
            load(connection, folder, model, options.queries)
        settings = Settings.from_environment({"DATABASE_URL": url, "RAGDB_BATCH": "256"})
        Worker(settings, model).run(once=True)
        for folder in folders:
            measure(connection, folder, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
