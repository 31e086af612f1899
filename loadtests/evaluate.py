"""nDCG@10, recall@10 and MRR of each leg and each fusion on judged collections.

    python -m loadtests.evaluate [FOLDER …] [--queries 500] [--picture FILE] [--keep]

Each folder holds corpus.jsonl (or .jsonl.gz), queries.jsonl and qrels.tsv, and may hold a file
`language` with a text search configuration; default: all such below ../shared/data. Documents are
put and embedded by the product's own worker, which learns its word vectors as well, into a database
of its own on the server of DATABASE_URL or the local one; every number comes from rag.evaluate, but
for ts_rank_cd over an OR of the same words, which is there for contrast. Vectors are kept in
.ragdb/evaluation, so only the first run takes as long as the model does.

Prints a table in Markdown and then what has to hold; the exit code is 1 if something does not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from db.server import database_url
from embedder import logs, models
from embedder.config import Settings
from embedder.models import EmbeddingModel
from embedder.worker import Worker
from loadtests.chart import Chart, svg
from loadtests.remembering import RememberingModel
from loadtests.scratch import scratch_database

ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = ROOT.parent / "shared" / "data"
MEMORY: Final = ROOT / ".ragdb" / "evaluation"
DATABASE: Final = "ragdb_evaluation"
# Questions of a collection, the first ones: as many as the baselines were measured with.
QUERIES: Final = 500

BM25: Final = "BM25"
DENSE: Final = "dense"
HYBRID: Final = "standard (default)"
DENSE_WORDS: Final = "dense, word vectors"
HYBRID_WORDS: Final = "standard, word vectors"
TS_RANK_CD: Final = "ts_rank_cd"
# Mode, fusion, and whether the questions come with the model's vectors or as text alone.
RUNS: Final = {
    BM25: ("lexical", None, False),
    DENSE: ("semantic", None, True),
    "rrf": ("hybrid", "rrf", True),
    "linear": ("hybrid", "linear", True),
    HYBRID: ("hybrid", None, True),
    DENSE_WORDS: ("semantic", None, False),
    "rrf, word vectors": ("hybrid", "rrf", False),
    "linear, word vectors": ("hybrid", "linear", False),
    HYBRID_WORDS: ("hybrid", None, False),
}
PICTURED: Final = (TS_RANK_CD, BM25, DENSE, "rrf", HYBRID, HYBRID_WORDS)

# The default against the better of its legs, in nDCG@10.
LEAST_LEAD: Final = -0.005
MEAN_LEAD: Final = 0.025
# The default by word vectors, as a share of the default by the model's vectors.
LEAST_SHARE: Final = 0.955
MEAN_SHARE: Final = 0.975
# A prototype's nDCG@10 with all-MiniLM-L6-v2.
BASELINES: Final = {
    "cranfield": {BM25: 0.353, DENSE: 0.368, "rrf": 0.401, "linear": 0.399},
    "scifact": {BM25: 0.691, DENSE: 0.645, "rrf": 0.713, "linear": 0.730},
    "squad-dev": {BM25: 0.809, DENSE: 0.745, "rrf": 0.827, "linear": 0.860},
    "xquad-es": {BM25: 0.967, DENSE: 0.638, "rrf": 0.837, "linear": 0.940},
}
# They have three digits.
ROUNDING: Final = 0.0005

# Over the same lexemes, so that the difference is the ranking's alone.
TS_RANK: Final = """
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


@dataclass(frozen=True)
class Measured:
    """One line of one collection; times are medians in milliseconds."""

    ndcg: float
    recall: float
    mrr: float
    milliseconds: float | None = None


# By collection, by line.
Results = Mapping[str, Mapping[str, Measured]]


def rows(path: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines, gzipped or not."""
    if not path.exists():
        text = gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()
    else:
        text = path.read_text("utf-8")
    # Not splitlines, which also splits at what JSON allows inside a string.
    return [json.loads(line) for line in text.split("\n") if line]


def language(folder: Path) -> str:
    """The text search configuration of a collection."""
    if (folder / "language").exists():
        return (folder / "language").read_text("utf-8").strip()
    return "spanish" if "es" in folder.name.split("-") else "english"


def load(connection: psycopg.Connection[Any], folder: Path, model: EmbeddingModel, n: int) -> None:
    """Put a collection and its first `n` judged queries into a tenant of its own."""
    connection.execute("select rag.create_tenant(%s)", [folder.name])
    # Else the searches by text alone would find the model's own vectors after a while.
    connection.execute("select rag.set_query_cache(%s, 0)", [folder.name])
    connection.execute("select rag.set_tenant(%s)", [folder.name])
    connection.execute(
        "select rag.create_collection('c', 'none', language => %s)", [language(folder)]
    )
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
    vectors = model.encode_documents([row["text"] for row in queries])
    judgements = [
        {
            "query_id": row["id"],
            "query": row["text"],
            "uri": uri,
            "grade": grade,
            "embedding": None if place else vector.tolist(),
        }
        for row, vector in zip(queries, vectors, strict=True)
        for place, (uri, grade) in enumerate(grades[row["id"]])
    ]
    connection.execute("select rag.add_judgements('set', %s, 'c')", [Jsonb(judgements)])


def measure(connection: psycopg.Connection[Any], name: str) -> dict[str, Measured]:
    """All lines of one collection."""
    connection.execute("select rag.set_tenant(%s)", [name])
    found = {
        TS_RANK_CD: Measured(*next(iter(connection.execute(TS_RANK)))),
    }
    for label, (mode, fusion, with_vectors) in RUNS.items():
        print(f"{name}: {label}", file=sys.stderr)
        cursor = connection.execute(
            "select ndcg, recall, mrr, milliseconds from rag.evaluate("
            "'set', mode => %s, fusion => %s, use_embeddings => %s, label => %s)",
            [mode, fusion, with_vectors, label],
        )
        found[label] = Measured(*next(iter(cursor)))
    return found


def run(
    url: str, folders: Sequence[Path], model: EmbeddingModel, *, queries: int, keep: bool
) -> Results:
    """Put, embed, learn and measure, in a database of its own on the server of `url`."""
    with (
        scratch_database(url, DATABASE, keep=keep) as scratch,
        psycopg.connect(scratch, autocommit=True) as connection,
    ):
        for folder in folders:
            load(connection, folder, model, queries)
        settings = Settings.from_environment({**os.environ, "DATABASE_URL": scratch})
        Worker(settings, model).run(once=True)
        connection.execute("vacuum analyze")
        return {folder.name: measure(connection, folder.name) for folder in folders}


def table(results: Results) -> Iterator[str]:
    """nDCG@10 by collection, and the means of all measures, in Markdown."""
    yield "| nDCG@10 | " + " | ".join([*results, "mean", "recall@10", "MRR", "ms"]) + " |"
    yield "| --- |" + " ---: |" * (len(results) + 4)
    for label in (TS_RANK_CD, *RUNS):
        found = [lines[label] for lines in results.values()]
        numbers = [
            *(line.ndcg for line in found),
            statistics.mean(line.ndcg for line in found),
            statistics.mean(line.recall for line in found),
            statistics.mean(line.mrr for line in found),
        ]
        times = [line.milliseconds for line in found if line.milliseconds is not None]
        time = f"{statistics.mean(times):.1f}" if times else ""
        yield f"| {label} | " + " | ".join(f"{number:.3f}" for number in numbers) + f" | {time} |"


def bars(results: Results, *, with_baselines: bool) -> Iterator[tuple[bool, str]]:
    """What has to hold: whether it does, and a sentence with the numbers."""
    leads = {
        name: lines[HYBRID].ndcg - max(lines[BM25].ndcg, lines[DENSE].ndcg)
        for name, lines in results.items()
    }
    shares = {
        name: lines[HYBRID_WORDS].ndcg / lines[HYBRID].ndcg for name, lines in results.items()
    }
    lead, share = statistics.mean(leads.values()), statistics.mean(shares.values())
    yield (
        min(leads.values()) >= LEAST_LEAD,
        f"the default is at least {LEAST_LEAD:+.3f} above its better leg everywhere: "
        + ", ".join(f"{name} {value:+.3f}" for name, value in leads.items()),
    )
    yield lead >= MEAN_LEAD, f"on average at least {MEAN_LEAD:+.3f}: {lead:+.4f}"
    yield (
        min(shares.values()) >= LEAST_SHARE,
        f"word vectors give at least {LEAST_SHARE:.1%} of the default everywhere: "
        + ", ".join(f"{name} {value:.1%}" for name, value in shares.items()),
    )
    yield share >= MEAN_SHARE, f"on average at least {MEAN_SHARE:.1%}: {share:.2%}"
    if not with_baselines:
        return
    for name, lines in results.items():
        for label, baseline in BASELINES.get(name, {}).items():
            value = lines[label].ndcg
            yield value >= baseline - ROUNDING, f"{name}, {label}: {value:.4f}, before {baseline}"


def picture(results: Results) -> str:
    """The main lines as a bar chart."""
    values = {
        label: {name: lines[label].ndcg for name, lines in results.items()} for label in PICTURED
    }
    return svg(Chart("nDCG@10", [*results], values))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m loadtests.evaluate")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--queries", type=int, default=QUERIES, help="at most so many of each")
    parser.add_argument("--picture", type=Path, default=MEMORY / "evaluation.svg", metavar="FILE")
    parser.add_argument("--keep", action="store_true", help=f"keep the database {DATABASE}")
    options = parser.parse_args(arguments)
    folders: list[Path] = options.folders or sorted(
        path.parent for path in DATA.glob("*/qrels.tsv")
    )
    if not folders:
        print(f"There is no judged collection below {DATA}; name one.", file=sys.stderr)
        return 1
    model = RememberingModel(models.load(Settings.from_environment()), MEMORY)
    logs.configure(Settings.from_environment().log)
    results = run(
        database_url(start=True), folders, model, queries=options.queries, keep=options.keep
    )
    print(*table(results), sep="\n")
    print()
    checked = [*bars(results, with_baselines=options.queries == QUERIES)]
    for holds, sentence in checked:
        print(f"{'ok  ' if holds else 'MISS'} {sentence}")
    options.picture.write_text(picture(results), "utf-8")
    print(f"\nThe picture is in {options.picture}.", file=sys.stderr)
    return 0 if all(holds for holds, _ in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
