"""Passages per second of the worker against the bare model.encode of the same texts.

    python -m loadtests.embedder_throughput [PATH] [--passages 2000] [--batches 64,128,256]

Text files below PATH are put into a database of its own, on the server of DATABASE_URL or the
local one, and dropped afterwards. The sides take turns in short rounds, so that what else the
machine does meets all; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from db.migrate import migrate
from db.server import database_url
from embedder import models
from embedder.config import Settings
from embedder.models import EmbeddingModel, SentenceTransformerModel
from embedder.worker import Worker

DEFAULT_PATH = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "docs-peps"
# The default batch_size of sentence-transformers, which is what plain code gets.
PLAIN_BATCH = 32


@dataclass(frozen=True)
class Round:
    """Passages, and the seconds that each side took for them."""

    passages: int
    plain: float
    same_batch: float
    worker: float


@contextmanager
def scratch_database(url: str) -> Generator[str]:
    """URL of a migrated database on the server of `url`, dropped at the end."""
    name = sql.Identifier("ragdb_embedder_throughput")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        connection.execute(sql.SQL("create database {}").format(name))
        try:
            scratch = urlsplit(url)._replace(path="/ragdb_embedder_throughput").geturl()
            migrate(scratch)
            yield scratch
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


def read_texts(path: Path) -> list[str]:
    """The texts of all files below a path, shuffled the same way each time."""
    files = sorted(file for file in path.rglob("*") if file.suffix in {".rst", ".md", ".txt"})
    texts = [file.read_text("utf-8", errors="replace") for file in files]
    random.Random(1).shuffle(texts)
    return texts


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rounds_of_texts(
    connection: psycopg.Connection[tuple[str]], texts: Sequence[str], size: int
) -> Generator[list[str]]:
    """Put documents until about `size` passages wait for each round; the passages."""
    for number, text in enumerate(texts):
        connection.execute("select rag.put(%s, %s)", [text, f"document-{number}"])
        # A text that the tenant has already got its embedding at once, and waits for nothing.
        rows = connection.execute(
            "select c.content from rag.jobs as j join rag.chunks as c using (tenant_id, chunk_id)"
        ).fetchall()
        if len(rows) >= size or number == len(texts) - 1:
            yield [row[0] for row in rows]


def measure(
    url: str, settings: Settings, model: EmbeddingModel, texts: Sequence[str], passages: int
) -> list[Round]:
    """The rounds, until so many passages are done or the texts are used up."""
    assert isinstance(model, SentenceTransformerModel)
    rounds: list[Round] = []

    def bare(contents: list[str], batch_size: int) -> None:
        model.library_model.encode(
            contents, batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True
        )

    with psycopg.connect(url, autocommit=True) as connection:
        for contents in rounds_of_texts(connection, texts, passages // 5):
            own = replace(settings, database_url=url, listen_url=url, word_vector_texts=0)
            worker = Worker(own, model)
            sides: list[Callable[[], object]] = [
                lambda contents=contents: bare(contents, PLAIN_BATCH),
                lambda contents=contents: bare(contents, model.batch_size),
                lambda worker=worker: worker.run(once=True),
            ]
            # Who goes first takes turns, too.
            first = len(rounds) % 3
            seconds = {
                side: timed(sides[side]) for side in [first, (first + 1) % 3, (first + 2) % 3]
            }
            assert worker.totals.embedded == len(contents)
            rounds.append(Round(len(contents), seconds[0], seconds[1], seconds[2]))
            if sum(done.passages for done in rounds) >= passages:
                break
    return rounds


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", nargs="?", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--batches", default="64,128,256", help="values of RAGDB_BATCH")
    options = parser.parse_args()
    texts = read_texts(options.path)
    if not texts:
        print(f"no text files below {options.path}", file=sys.stderr)
        return 1
    server = database_url(start=True)
    settings = Settings.from_environment({"DATABASE_URL": server})
    model = models.load(settings)
    model.encode_documents(texts[0].split("\n\n")[:32])
    same = model.batch_size
    print(
        f"| RAGDB_BATCH | passages | encode, batch {PLAIN_BATCH} | encode, batch {same} | worker "
        f"| worker to batch {PLAIN_BATCH} | worker to batch {same} |\n"
        "|---:|---:|---:|---:|---:|---:|---:|"
    )
    for batch in map(int, options.batches.split(",")):
        with scratch_database(server) as url:
            rounds = measure(url, replace(settings, batch=batch), model, texts, options.passages)
        count = sum(done.passages for done in rounds)
        rates = (
            count / sum(done.plain for done in rounds),
            count / sum(done.same_batch for done in rounds),
            count / sum(done.worker for done in rounds),
        )
        ratios = (
            statistics.median(done.plain / done.worker for done in rounds),
            statistics.median(done.same_batch / done.worker for done in rounds),
        )
        told = [f"{rate:.1f}/s" for rate in rates] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {batch} | {count} | {' | '.join(told)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
