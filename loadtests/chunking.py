"""Chunking measured beside two splitters that people use: how fast, and what is found.

    python -m loadtests.chunking [--mb 5] [--no-retrieval]

The others are measured where they are installed, at the versions of requirements/splitters.txt:
`.venv/bin/python -m pip install -r requirements/splitters.txt`. Speed is processor time, of the
server's process or of this one: other work on the machine does not count. What is found: the
paragraphs of squad-dev are put together into whole articles, which each splitter cuts into chunks
of the same size; a question has an answer where its paragraph is among the first passages.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from db.server import ROOT, Server
from embedder import models
from embedder.config import Settings
from loadtests.corpus import DATA
from loadtests.remembering import RememberingModel
from loadtests.scratch import scratch_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Connection = psycopg.Connection[tuple[Any, ...]]

SIZE: Final = 800
DEPTH: Final = 5
"""Passages that a question has."""


@dataclass(frozen=True)
class Passage:
    """A chunk of an article, by characters."""

    article: int
    start: int
    end: int
    text: str


def ours(connection: Connection, strategy: str) -> Callable[[str], list[tuple[int, str]]]:
    """rag.chunk as a function from a text to places and chunks."""

    def split(text: str) -> list[tuple[int, str]]:
        return connection.execute(
            "select start_offset, content from rag.chunk(%s, %s, %s, 0)", [text, strategy, SIZE]
        ).fetchall()  # pyright: ignore[reportReturnType]

    return split


def others() -> dict[str, Callable[[str], list[tuple[int, str]]]]:
    """The other splitters, those that are installed."""
    found: dict[str, Callable[[str], list[tuple[int, str]]]] = {}
    if importlib.util.find_spec("langchain_text_splitters"):
        langchain: Any = importlib.import_module("langchain_text_splitters")
        recursive = langchain.RecursiveCharacterTextSplitter(
            chunk_size=SIZE, chunk_overlap=0, add_start_index=True
        )
        markdown = langchain.RecursiveCharacterTextSplitter.from_language(
            langchain.Language.MARKDOWN, chunk_size=SIZE, chunk_overlap=0, add_start_index=True
        )

        def split_by(splitter: Any) -> Callable[[str], list[tuple[int, str]]]:  # noqa: ANN401
            return lambda text: [
                (d.metadata["start_index"], d.page_content)
                for d in splitter.create_documents([text])
            ]

        found["langchain recursive"] = split_by(recursive)
        found["langchain Markdown"] = split_by(markdown)
    if importlib.util.find_spec("semantic_text_splitter"):
        semantic: Any = importlib.import_module("semantic_text_splitter")
        found["semantic-text-splitter text"] = semantic.TextSplitter(SIZE).chunk_indices
        found["semantic-text-splitter Markdown"] = semantic.MarkdownSplitter(SIZE).chunk_indices
    return found


def texts(megabytes: float) -> Iterator[tuple[str, str]]:
    """Names and texts for the speed: many files, and one of that many megabytes."""
    yield (
        "docs-react-es",
        "\n".join(
            path.read_text("utf-8") for path in sorted((DATA / "docs-react-es").rglob("*.md"))
        ),
    )
    lines = gzip.decompress((DATA / "load-powershell-docs" / "corpus.jsonl.gz").read_bytes())
    whole = "\n\n".join(json.loads(line)["text"] for line in lines.splitlines())
    yield "powershell", whole[: int(megabytes * 1e6)]


def server_seconds(connection: Connection) -> float:
    """Processor time of the session's process, on Linux and this machine; elsewhere, the time."""
    path = Path(f"/proc/{connection.info.backend_pid}/stat")
    if not path.exists():
        return time.perf_counter()
    fields = path.read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure_speed(connection: Connection, megabytes: float) -> None:
    """Print a table of megabytes per second and core."""
    print(f"| splitter, chunks of {SIZE} | text | MB | chunks | longest | MB/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, text in texts(megabytes):
        size = len(text.encode()) / 1e6
        for strategy in ("markdown", "recursive", "sentence", "code", "token"):
            before = server_seconds(connection)
            row = connection.execute(
                "select count(*), max(length(content)) from rag.chunk(%s, %s, %s, 0)",
                [text, strategy, SIZE if strategy != "token" else 200],
            ).fetchone()
            assert row
            seconds = server_seconds(connection) - before
            print(f"| ragdb {strategy} | {name} | {size:.1f} | {row[0]:,} | {row[1]:,} "
                  f"| {size / seconds:.2f} |", flush=True)  # fmt: skip
        for splitter, split in others().items():
            start = time.process_time()
            chunks = split(text)
            seconds = time.process_time() - start
            longest = max(len(chunk) for _, chunk in chunks)
            print(f"| {splitter} | {name} | {size:.1f} | {len(chunks):,} | {longest:,} "
                  f"| {size / seconds:.2f} |", flush=True)  # fmt: skip


def articles() -> tuple[list[str], dict[str, tuple[int, int, int]]]:
    """Whole articles of squad-dev, and where in them each paragraph lies: article, start, end."""
    paragraphs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in (DATA / "squad-dev" / "corpus.jsonl").read_text("utf-8").splitlines():
        document = json.loads(line)
        paragraphs[document["title"]].append((document["id"], document["text"].strip()))
    whole: list[str] = []
    places: dict[str, tuple[int, int, int]] = {}
    for number, members in enumerate(paragraphs.values()):
        text = ""
        for name, paragraph in members:
            # Not by empty lines alone: a splitter that knows paragraphs would only find the gold.
            text += "\n" if text else ""
            places[name] = (number, len(text), len(text) + len(paragraph))
            text += paragraph
        whole.append(text)
    return whole, places


def judgements() -> list[tuple[str, str, str]]:
    """Id and text of each question, and its paragraph."""
    folder = DATA / "squad-dev"
    questions = {
        found["id"]: found["text"]
        for found in map(json.loads, (folder / "queries.jsonl").read_text("utf-8").splitlines())
    }
    lines = (folder / "qrels.tsv").read_text("utf-8").splitlines()
    return [(q, questions[q], d) for q, d, _ in (line.split("\t") for line in lines)]


def gains(found: list[Passage], place: tuple[int, int, int]) -> list[float]:
    """Which part of a paragraph each passage has, without what one before it had."""
    article, start, end = place
    seen = np.zeros(end - start, dtype=bool)
    shares: list[float] = []
    for passage in found:
        part = np.zeros(end - start, dtype=bool)
        if passage.article == article:
            part[max(0, passage.start - start) : max(0, passage.end - start)] = True
        shares.append(float((part & ~seen).mean()))
        seen |= part
    return shares


def scores(
    rankings: list[list[Passage]], places: list[tuple[int, int, int]], passages: list[Passage]
) -> tuple[float, float]:
    """Mean share of the paragraph in the first passages, and nDCG with that share as the gain."""
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    by_article: dict[int, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_article[passage.article].append(passage)
    recalls: list[float] = []
    ndcgs: list[float] = []
    for found, place in zip(rankings, places, strict=True):
        shares = gains(found[:DEPTH], place)
        best = sorted(gains(by_article[place[0]], place), reverse=True)[:DEPTH]
        recalls.append(sum(shares))
        ndcgs.append(
            float(np.dot(shares, discounts[: len(shares)]) / np.dot(best, discounts[: len(best)]))
        )
    return float(np.mean(recalls)), float(np.mean(ndcgs))


def measure_retrieval(connection: Connection) -> None:
    """Print a table of what BM25 and the model find in the chunks of each splitter."""
    whole, places = articles()
    asked = judgements()
    targets = [places[d] for _, _, d in asked]
    model = RememberingModel(models.load(Settings.from_environment()), ROOT / "evaluation")
    queries = np.stack([model.encode_query(text) for _, text, _ in asked])
    splitters = {
        **{f"ragdb {name}": ours(connection, name) for name in ("recursive", "sentence")},
        **{name: split for name, split in others().items() if "Markdown" not in name},
    }
    print(f"\n{len(whole)} articles, {len(asked)} questions, chunks of {SIZE}, {DEPTH} passages")
    print("| splitter | chunks | mean size | BM25 recall | BM25 nDCG | model recall | model nDCG |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, split in splitters.items():
        passages = [
            Passage(number, start, start + len(text), text)
            for number, article in enumerate(whole)
            for start, text in split(article)
        ]
        lexical = scores(by_words(connection, passages, asked), targets, passages)
        vectors = model.encode_documents([p.text for p in passages])
        nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :DEPTH]
        semantic = scores([[passages[n] for n in row] for row in nearest], targets, passages)
        mean = sum(len(p.text) for p in passages) / len(passages)
        print(f"| {name} | {len(passages):,} | {mean:.0f} | {lexical[0]:.4f} | {lexical[1]:.4f} "
              f"| {semantic[0]:.4f} | {semantic[1]:.4f} |", flush=True)  # fmt: skip


def by_words(
    connection: Connection, passages: list[Passage], asked: list[tuple[str, str, str]]
) -> list[list[Passage]]:
    """The first passages of each question by rag.search in mode lexical."""
    connection.execute("select rag.create_tenant('splitter')")
    connection.execute("select rag.set_tenant('splitter')")
    documents = [{"content": p.text, "uri": str(n)} for n, p in enumerate(passages)]
    connection.execute("select rag.put_many(%s, strategy => 'none')", [Jsonb(documents)])
    rankings = [
        [
            passages[int(uri)]
            for (uri,) in connection.execute(
                "select uri from rag.search(%s, %s, mode => 'lexical')", [text, DEPTH]
            )
        ]
        for _, text, _ in asked
    ]
    connection.execute("select rag.drop_tenant('splitter')")
    return rankings


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--mb", type=float, default=5, help="megabytes of the long document")
    parser.add_argument("--no-retrieval", action="store_true")
    arguments = parser.parse_args()
    server = Server()
    server.start()
    with (
        scratch_database(server.url(), "ragdb_chunking") as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        measure_speed(connection, arguments.mb)
        if not arguments.no_retrieval:
            measure_retrieval(connection)


if __name__ == "__main__":
    main()
