"""One table of ragdb and its peers.

    python -m loadtests.peers [--size 100000] [--questions 200] [--peers ragdb,recipe]
    python -m loadtests.peers --quality [--peers ragdb,recipe]
    python -m loadtests.peers --show [--size 100000]

Each peer is measured in a process of its own, one after the other, with the corpus' chunks and
vectors: seconds to build, memory of the process and of a server's session, bytes on disk, latency
and processor time of one client, searches a second of one and of two clients (threads), and of
those that know vectors only recall@10 against comparing all. Of three rounds the best counts: other
work on the machine makes none faster. `--quality` measures nDCG@10 on the judged collections, with
the model's vectors for all. What was measured is kept in .ragdb/bench, and the table shows all.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from db.migrate import migrate
from embedder import models
from embedder.config import Settings
from loadtests import bench_server
from loadtests.corpus import BLOCK, CACHE, Corpus, Question, shared
from loadtests.evaluate import DATA, MEMORY, QUERIES, language, rows
from loadtests.peers.peer import Passages, Peer, memory, processor_seconds
from loadtests.remembering import RememberingModel

DATABASE: Final = "bench_peer"
EMBEDDED: Final = ("LanceDB", "Chroma (dense)", "hnswlib (dense)", "bm25s (words)")
"""They need no server."""
JUDGED: Final = "bench_peer_judged"
"""The databases of both kinds of measurement, which may run at the same time."""
K: Final = 10
ROUNDS: Final = 3
SECONDS: Final = 3.0
"""Of a round that counts searches a second."""
OURS: Final = "ragdb"
DENSE: Final = "(dense)"
QUALITY: Final = CACHE / "peers-quality.json"


@dataclass(frozen=True)
class Measured:
    """What one peer did; seconds, milliseconds, also of processor, bytes; recall of the dense."""

    passages: int
    build: float
    p50: float
    p95: float
    processor: float
    one_client: float
    two_clients: float
    memory: int
    disk: int
    recall: float | None


def peers() -> Mapping[str, Callable[[str], Peer]]:
    """All peers by name. Those whose packages are not there fail when they are made."""

    def langchain(url: str) -> Peer:
        from loadtests.peers.langchain import Langchain

        return cast("Peer", Langchain(url))

    from loadtests.peers.embedded import Bm25s, Chroma, Hnswlib, Lance
    from loadtests.peers.ours import Ragdb
    from loadtests.peers.recipe import BarePgvector, Recipe

    return {
        OURS: Ragdb,
        "Postgres recipe": Recipe,
        "langchain-postgres": langchain,
        "LanceDB": Lance,
        "Chroma (dense)": Chroma,
        "bare pgvector (dense)": BarePgvector,
        "hnswlib (dense)": Hnswlib,
        "bm25s (words)": Bm25s,
    }


def make(name: str, database: str) -> Peer:
    """An empty peer; if it needs a server, in a database of that name, which is made anew."""
    if name in EMBEDDED:
        return peers()[name]("")
    url = bench_server.start()
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in ("drop database if exists {} with (force)", "create database {}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(database)))
    target = urlsplit(url)._replace(path=f"/{database}").geturl()
    if name == OURS:
        migrate(target)
    return peers()[name](target)


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


def measure(name: str, size: int, count: int) -> Measured:
    """Everything of one peer but its quality."""
    corpus = shared()
    passages = corpus_passages(corpus, size)
    questions = corpus.questions(count)
    before = psutil.Process().memory_info().rss
    peer = make(name, DATABASE)
    started = time.monotonic()
    peer.build(passages)
    build = time.monotonic() - started
    # A first turn, so that no peer pays for what is loaded once.
    found = [peer.search(question.text, question.vector, K) for question in questions]
    p50, p95, processor = np.min([latency(peer, questions) for _ in range(ROUNDS)], axis=0).tolist()
    measured = Measured(
        size,
        build,
        p50,
        p95,
        processor,
        max(per_second(peer, questions, 1, SECONDS) for _ in range(ROUNDS)),
        max(per_second(peer, questions, 2, SECONDS) for _ in range(ROUNDS)),
        psutil.Process().memory_info().rss - before + memory(peer.pids()),
        peer.disk(),
        recall(found, questions, passages) if name.endswith(DENSE) else None,
    )
    peer.close()
    return measured


def latency(peer: Peer, questions: list[Question]) -> tuple[float, float, float]:
    """p50, p95 and the mean of processor time, in milliseconds."""
    times: list[float] = []
    pids = peer.pids()
    worked = processor_seconds(pids)
    for question in questions:
        started = time.perf_counter()
        peer.search(question.text, question.vector, K)
        times.append((time.perf_counter() - started) * 1000)
    p50, p95 = np.percentile(times, [50, 95])
    worked = processor_seconds(pids) - worked
    return float(p50), float(p95), worked * 1000 / len(questions)


def recall(found: list[list[str]], questions: list[Question], passages: Passages) -> float:
    """Mean recall@10 against comparing all vectors."""
    hits: list[float] = []
    for got, question in zip(found, questions, strict=True):
        nearest = np.argpartition(passages.vectors @ -question.vector, K)[:K]
        hits.append(len({passages.ids[n] for n in nearest}.intersection(got)) / K)
    return float(np.mean(hits))


def quality(name: str) -> dict[str, float]:
    """nDCG@10 of a peer by collection."""
    folders = sorted(path.parent for path in DATA.glob("*/qrels.tsv"))
    return {folder.name: ndcg(name, folder) for folder in folders}


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
    peer = make(name, JUDGED)
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


def remember(path: Path, name: str, found: Mapping[str, Any]) -> None:
    """Add what was found of a peer to a file of JSON."""
    known = recalled(path)
    known[name] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1), "utf-8")


def recalled(path: Path) -> dict[str, Any]:
    """What is known of the peers by name."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def report(size: int) -> None:
    """Print what is known as a table in Markdown."""
    results = {name: Measured(**found) for name, found in recalled(results_path(size)).items()}
    ndcgs: dict[str, dict[str, float]] = recalled(QUALITY)
    collections = sorted({name for found in ndcgs.values() for name in found})
    columns = [
        f"{size:,} passages", "p50 ms", "p95 ms", "CPU ms", "1 client/s", "2 clients/s",
        "built in s", "passages/s", "memory MB", "disk MB", "recall@10",
        *(f"nDCG {c}" for c in collections),
    ]  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) - 1)}")
    for name in peers():
        found, ndcg = results.get(name), ndcgs.get(name, {})
        if found is None and not ndcg:
            continue
        cells = [""] * 10
        if found is not None:
            cells = [
                f"{found.p50:.1f}", f"{found.p95:.1f}", f"{found.processor:.1f}",
                f"{found.one_client:,.0f}", f"{found.two_clients:,.0f}",
                f"{found.build:,.0f}", f"{found.passages / found.build:,.0f}",
                f"{found.memory / 2**20:,.0f}", f"{found.disk / 2**20:,.0f}",
                "" if found.recall is None else f"{found.recall:.3f}",
            ]  # fmt: skip
        cells += [f"{ndcg[c]:.3f}" if c in ndcg else "" for c in collections]
        print(f"| {name} | {' | '.join(cells)} |")


def results_path(size: int) -> Path:
    """Where results of a size are kept."""
    return CACHE / f"peers-{size}.json"


def main() -> None:
    """Measure each peer in a process of its own, and print."""
    names = [*peers()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--peers", default=",".join(names), help="names, separated by commas")
    parser.add_argument("--quality", action="store_true", help="measure nDCG@10, nothing else")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        if options.quality:
            remember(QUALITY, options.only, quality(options.only))
        else:
            found = measure(options.only, options.size, options.questions)
            remember(results_path(options.size), options.only, asdict(found))
        return
    for name in [] if options.show else options.peers.split(","):
        command = [sys.executable, "-m", "loadtests.peers", "--only", name]
        command += ["--size", str(options.size), "--questions", str(options.questions)]
        command += ["--quality"] * options.quality
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        print(f"{name}: {'done' if not code else f'exit code {code}'}", file=sys.stderr)
    report(options.size)


if __name__ == "__main__":
    main()
