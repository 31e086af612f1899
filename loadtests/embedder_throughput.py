"""Passages per second and quality of each backend, against plain SentenceTransformer.encode.

    python -m loadtests.embedder_throughput [PATH] [--passages 500] [--backends torch,torch-bf16]
    python -m loadtests.embedder_throughput --quality xquad-es,cranfield [--documents 1500]

The first embeds passages of the text files below PATH: by plain `encode` as anybody would call it
(float32, its batches of 32), by the model of each backend, and by the worker with the first one,
which claims and stores them in a database of its own on the server of DATABASE_URL or the local
one. All take turns in short rounds, so that what else the machine does meets all; the ratios are
medians over the rounds. Cosines are those of the worst and of the mean passage to plain `encode`.

The second measures nDCG@10 of the semantic leg on judged collections of ../shared/data: documents
and questions by the same backend, exact search. Of a collection with more than `--documents` those
that are judged are taken and the first of the others.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg

from db.server import database_url
from embedder import models
from embedder.backends import BACKENDS, candidates, instructions
from embedder.config import Settings
from embedder.models import EmbeddingModel, SentenceTransformerModel
from embedder.worker import Worker
from loadtests.evaluate import DATA, rows
from loadtests.scratch import scratch_database

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_PATH = DATA / "docs-peps"
ROUNDS = 5


@dataclass
class Side:
    """One way to embed: its passages a second and its ratio to the plain way, by round."""

    label: str
    work: Callable[[list[str]], NDArray[np.float32] | None]
    seconds: list[float] = field(default_factory=list[float])
    cosines: list[NDArray[np.float32]] = field(default_factory=list["NDArray[np.float32]"])


def read_texts(path: Path) -> list[str]:
    """The texts of all files below a path, shuffled the same way each time."""
    files = sorted(file for file in path.rglob("*") if file.suffix in {".rst", ".md", ".txt"})
    texts = [file.read_text("utf-8", errors="replace") for file in files]
    random.Random(1).shuffle(texts)
    return texts


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


def plain(model: SentenceTransformerModel, texts: list[str]) -> NDArray[np.float32]:
    """What anybody would call."""
    return cast("Any", model.library_model).encode(texts, normalize_embeddings=True)


def measure(
    settings: Settings,
    loaded: dict[str, SentenceTransformerModel],
    url: str,
    texts: Sequence[str],
    passages: int,
) -> tuple[list[Side], int]:
    """The sides after their rounds, the plain one first; and how many passages there were."""
    worker_model = next(iter(loaded.values()))
    own = replace(settings, database_url=url, listen_url=url, word_vector_texts=0)

    def by_worker(contents: list[str]) -> None:
        worker = Worker(own, worker_model)
        worker.run(once=True)
        assert worker.totals.embedded == len(contents)

    reference = SentenceTransformerModel.load(
        settings.model, device="cpu", threads=settings.threads, offline=True
    )
    sides = [Side("encode", lambda contents: plain(reference, contents))]
    sides += [Side(name, model.encode_documents) for name, model in loaded.items()]
    sides.append(Side(f"worker, {worker_model.backend}", by_worker))
    count = 0
    with psycopg.connect(url, autocommit=True) as connection:
        for turn, contents in enumerate(rounds_of_texts(connection, texts, passages // ROUNDS)):
            vectors: dict[str, NDArray[np.float32]] = {}
            # Who goes first takes turns, too.
            for place in range(len(sides)):
                side = sides[(place + turn) % len(sides)]
                started = time.perf_counter()
                found = side.work(contents)
                side.seconds.append(time.perf_counter() - started)
                if found is not None:
                    vectors[side.label] = found
            for side in sides:
                if side.label in vectors:
                    cosines = np.sum(vectors[side.label] * vectors["encode"], axis=1)
                    side.cosines.append(cosines)
            count += len(contents)
            if count >= passages:
                break
    return sides, count


def show_speed(sides: Sequence[Side], count: int) -> None:
    """Print a table."""
    print(
        f"{count} passages in {len(sides[0].seconds)} rounds\n\n"
        "| | passages/s | to encode | mean cosine | least |\n|---|---:|---:|---:|---:|"
    )
    for side in sides:
        ratio = statistics.median(
            plain / own for plain, own in zip(sides[0].seconds, side.seconds, strict=True)
        )
        told = [f"{count / sum(side.seconds):.1f}", f"{ratio:.2f}"]
        if side.cosines:
            cosines = np.concatenate(side.cosines)
            told += [f"{cosines.mean():.5f}", f"{cosines.min():.5f}"]
        print(f"| {side.label} | {' | '.join(told + [''] * (4 - len(told)))} |", flush=True)


def quality(
    folder: Path, loaded: dict[str, SentenceTransformerModel], documents: int, queries: int
) -> None:
    """Print nDCG@10 of a collection by backend, and the difference to the first."""
    grades: dict[str, dict[str, float]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, uri, grade = line.split("\t")
        grades[query][uri] = float(grade)
    asked = [row for row in rows(folder / "queries.jsonl") if row["id"] in grades][:queries]
    judged = {uri for row in asked for uri in grades[row["id"]]}
    corpus = sorted(rows(folder / "corpus.jsonl"), key=lambda row: row["id"] not in judged)
    corpus = corpus[: max(documents, sum(row["id"] in judged for row in corpus))]
    texts = [f"{row.get('title') or ''} {row['text']}".strip() or "-" for row in corpus]
    first: float | None = None
    for name, model in loaded.items():
        passages = model.encode_documents(texts)
        questions = model.encode_documents([row["text"] for row in asked])
        best = np.argsort(-(questions @ passages.T), axis=1, kind="stable")[:, :10]
        ndcg = statistics.fmean(
            gain([grades[row["id"]].get(corpus[place]["id"], 0) for place in places])
            / gain(sorted(grades[row["id"]].values(), reverse=True)[:10])
            for row, places in zip(asked, best, strict=True)
            if any(grades[row["id"]].values())
        )
        first = ndcg if first is None else first
        print(
            f"| {folder.name} | {len(texts)} | {len(asked)} | {name} | {ndcg:.4f} "
            f"| {ndcg - first:+.4f} |",
            flush=True,
        )


def gain(found: Sequence[float]) -> float:
    """Discounted cumulated gain of grades, best first."""
    return sum((2**grade - 1) / np.log2(place + 2) for place, grade in enumerate(found))


def main() -> int:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", nargs="?", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument("--backends", help=f"of {', '.join(BACKENDS)}; default: all of this CPU")
    parser.add_argument("--quality", help="collections, with commas; measures no speed")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    names = (options.backends or ",".join(candidates(instructions()))).split(",")
    server = database_url(start=True) if not options.quality else "postgresql://"
    settings = Settings.from_environment({"DATABASE_URL": server})
    loaded: dict[str, SentenceTransformerModel] = {}
    for name in names:
        model: EmbeddingModel = models.load(replace(settings, backend=name))
        assert isinstance(model, SentenceTransformerModel)
        model.encode_documents(["warm"])
        loaded[name] = model
    if options.quality:
        print(
            "| collection | documents | questions | backend | nDCG@10 | difference |\n"
            "|---|---:|---:|---|---:|---:|",
            flush=True,
        )
        for collection in options.quality.split(","):
            quality(DATA / collection, loaded, options.documents, options.queries)
        return 0
    texts = read_texts(options.path)
    if not texts:
        print(f"no text files below {options.path}", file=sys.stderr)
        return 1
    with scratch_database(server, "ragdb_embedder_throughput") as url:
        show_speed(*measure(settings, loaded, url, texts, options.passages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
