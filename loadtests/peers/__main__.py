"""One table of ragdb and its peers.

    python -m loadtests.peers [--size 100000] [--questions 200] [--peers ragdb,recipe] [--quality]

Each peer is measured in a process of its own, one after the other, with the corpus' chunks and
vectors: seconds to build, memory of the process, bytes on disk, latency of one client, searches a
second of one and of two clients (threads). With `--quality` also nDCG@10 on the judged
collections, with the model's vectors for all.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from rich.console import Console
from rich.table import Table

from db.migrate import migrate
from embedder import models
from embedder.config import Settings
from loadtests import bench_server
from loadtests.corpus import BLOCK, Corpus, Question
from loadtests.evaluate import DATA, MEMORY, QUERIES, language, rows
from loadtests.peers.peer import Passages, Peer
from loadtests.remembering import RememberingModel

DATABASE: Final = "bench_peer"
K: Final = 10


@dataclass(frozen=True)
class Measured:
    """What one peer did; seconds, milliseconds, bytes, nDCG@10 by collection."""

    passages: int
    build: float
    p50: float
    p95: float
    one_client: float
    two_clients: float
    memory: int
    disk: int
    ndcg: dict[str, float] = field(default_factory=dict)


def peers() -> Mapping[str, Callable[[str], Peer]]:
    """All peers by name. Those whose packages are not there fail when they are made."""

    def langchain(url: str) -> Peer:
        from loadtests.peers.langchain import Langchain

        return cast("Peer", Langchain(url))

    from loadtests.peers.embedded import Bm25s, Chroma, Hnswlib, Lance
    from loadtests.peers.ours import Ragdb
    from loadtests.peers.recipe import BarePgvector, Recipe

    return {
        "ragdb": Ragdb,
        "Postgres recipe": Recipe,
        "langchain-postgres": langchain,
        "LanceDB": Lance,
        "Chroma (dense)": Chroma,
        "bare pgvector (dense)": BarePgvector,
        "hnswlib (dense)": Hnswlib,
        "bm25s (words)": Bm25s,
    }


def database(*, migrated: bool) -> str:
    """The URL of an empty database."""
    url = bench_server.start()
    with psycopg.connect(url, autocommit=True) as connection:
        name = sql.Identifier(DATABASE)
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        connection.execute(sql.SQL("create database {}").format(name))
    target = urlsplit(url)._replace(path=f"/{DATABASE}").geturl()
    if migrated:
        migrate(target)
    return target


def corpus_passages(corpus: Corpus, size: int) -> Passages:
    """The first chunks of the corpus."""
    ids: list[str] = []
    texts: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for number in range(size // BLOCK):
        chunks = corpus.block(number)
        ids += [chunk.uri for chunk in chunks]
        texts += [chunk.content for chunk in chunks]
        vectors.append(corpus.vectors(chunks, number))
    return Passages(ids, texts, np.concatenate(vectors).astype(np.float32))


def per_second(peer: Peer, questions: list[Question], clients: int, seconds: float) -> float:
    """Searches a second of so many threads."""
    counts = [0] * clients
    until = time.monotonic() + seconds

    def work(client: int) -> None:
        place = client * len(questions) // clients
        while time.monotonic() < until:
            question = questions[place % len(questions)]
            peer.search(question.text, question.vector, K)
            counts[client] += 1
            place += 1

    threads = [threading.Thread(target=work, args=[client]) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def measure(name: str, size: int, count: int, *, quality: bool) -> Measured:
    """Everything of one peer."""
    make = peers()[name]
    corpus = Corpus()
    passages = corpus_passages(corpus, size)
    questions = corpus.questions(count)
    before = psutil.Process().memory_info().rss
    peer = make(database(migrated=name == "ragdb"))
    started = time.monotonic()
    peer.build(passages)
    build = time.monotonic() - started
    times: list[float] = []
    # A first turn, so that no peer pays for what is loaded once.
    for question in questions:
        peer.search(question.text, question.vector, K)
    for question in questions:
        started = time.perf_counter()
        peer.search(question.text, question.vector, K)
        times.append((time.perf_counter() - started) * 1000)
    p50, p95 = np.percentile(times, [50, 95])
    measured = Measured(
        size,
        build,
        float(p50),
        float(p95),
        per_second(peer, questions, 1, 5),
        per_second(peer, questions, 2, 5),
        psutil.Process().memory_info().rss - before,
        peer.disk(),
    )
    peer.close()
    if quality:
        for folder in sorted(path.parent for path in DATA.glob("*/qrels.tsv")):
            measured.ndcg[folder.name] = ndcg(name, folder)
    return measured


def ndcg(name: str, folder: Path) -> float:
    """Mean nDCG@10 of a peer on a judged collection."""
    model = RememberingModel(models.load(Settings.from_environment()), MEMORY)
    documents = [
        (row["id"], f"{row.get('title') or ''} {row['text']}".strip() or "-")
        for row in rows(folder / "corpus.jsonl")
    ]
    texts = [text for _, text in documents]
    vectors = np.asarray(model.encode_documents(texts), dtype=np.float32)
    passages = Passages([key for key, _ in documents], texts, vectors, language(folder))
    grades: dict[str, dict[str, float]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, uri, grade = line.split("\t")
        grades[query][uri] = float(grade)
    queries = [
        row
        for row in rows(folder / "queries.jsonl")
        if any(grade > 0 for grade in grades[row["id"]].values())
    ][:QUERIES]
    asked = np.asarray(model.encode_documents([row["text"] for row in queries]), np.float32)
    peer = peers()[name](database(migrated=name == "ragdb"))
    peer.build(passages)
    found = [
        _ndcg(peer.search(row["text"], vector, K), grades[row["id"]])
        for row, vector in zip(queries, asked, strict=True)
    ]
    peer.close()
    return float(np.mean(found))


def _ndcg(found: list[str], grades: Mapping[str, float]) -> float:
    """As rag.evaluate has it: the grade is the gain, discounted by log2 of the place + 1."""
    gains = [grades.get(uri, 0.0) for uri in found[:K]]
    best = sorted(grades.values(), reverse=True)[:K]

    def discounted(values: list[float]) -> float:
        return sum(value / math.log2(place + 2) for place, value in enumerate(values))

    return discounted(gains) / discounted(best)


def report(results: Mapping[str, Measured]) -> None:
    """Print the table."""
    collections = sorted({name for found in results.values() for name in found.ndcg})
    table = Table(title=f"{next(iter(results.values())).passages:,} passages, k = {K}")
    table.add_column("", no_wrap=True)
    for column in (
        "p50 ms", "p95 ms", "1 client/s", "2 clients/s", "built in s", "passages/s", "memory MB",
        "disk MB", *collections,
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, found in results.items():
        table.add_row(
            name,
            f"{found.p50:.1f}",
            f"{found.p95:.1f}",
            f"{found.one_client:,.0f}",
            f"{found.two_clients:,.0f}",
            f"{found.build:,.0f}",
            f"{found.passages / found.build:,.0f}",
            f"{found.memory / 2**20:,.0f}",
            f"{found.disk / 2**20:,.0f}",
            *(f"{found.ndcg[c]:.3f}" if c in found.ndcg else "" for c in collections),
        )
    Console(width=160).print(table)


def main() -> None:
    """Measure each peer in a process of its own, and print."""
    names = [*peers()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--peers", default=",".join(names), help="names, separated by commas")
    parser.add_argument("--quality", action="store_true", help="nDCG@10, too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        found = measure(options.only, options.size, options.questions, quality=options.quality)
        print(json.dumps(asdict(found)))
        return
    results: dict[str, Measured] = {}
    for name in options.peers.split(","):
        command = [sys.executable, "-m", "loadtests.peers", "--only", name]
        command += ["--size", str(options.size), "--questions", str(options.questions)]
        command += ["--quality"] * options.quality
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if finished.returncode:
            print(f"{name}: not measured (exit code {finished.returncode})", file=sys.stderr)
            continue
        results[name] = Measured(**json.loads(finished.stdout.splitlines()[-1]))
        print(f"{name}: done", file=sys.stderr)
    if results:
        report(results)


if __name__ == "__main__":
    main()
