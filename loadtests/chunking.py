"""Chunking measured beside two splitters that people use: how fast, and what is found.

    python -m loadtests.chunking [--mb 5] [--no-speed] [--no-retrieval]

The others are measured where they are installed, at the versions of requirements/splitters.txt:
`.venv/bin/python -m pip install -r requirements/splitters.txt`. Speed is processor time, of the
server's process or of this one: other work on the machine does not count. What is found: the
paragraphs of squad-dev and other judged data are put together into whole articles, which each
splitter cuts into chunks of the same size; a question has an answer where its paragraph is among
the first passages.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import re
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
SENTENCE_END: Final = re.compile("[.!?:;\u2026][\"'\u201d\u2019)\\]\u00bb]*\\Z")


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


@dataclass(frozen=True)
class Judged:
    """Articles put together of judged paragraphs."""

    name: str
    articles: list[str]
    questions: list[tuple[str, str]]
    """Each question's text and the paragraph that answers it."""
    places: dict[str, tuple[int, int, int]]
    """Where a paragraph lies: article, start, end."""


def lines_of(name: str, file: str) -> list[str]:
    """The lines of a file of a collection, packed or not."""
    path = DATA / name / file
    if path.exists():
        return path.read_text("utf-8").splitlines()
    return gzip.decompress(path.with_name(f"{file}.gz").read_bytes()).decode().splitlines()


def judged(name: str, between: str) -> Judged:
    """A collection as articles: squad-dev has titles, others make articles of some paragraphs."""
    documents = [json.loads(line) for line in lines_of(name, "corpus.jsonl")]
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    # The five paragraphs of an article of xquad-es follow each other.
    together = 5 if name == "xquad-es" else 12
    for number, document in enumerate(documents):
        group = document["title"] if name == "squad-dev" else str(number // together)
        groups[group].append((document["id"], document["text"].strip()))
    articles: list[str] = []
    places: dict[str, tuple[int, int, int]] = {}
    for number, members in enumerate(groups.values()):
        text = ""
        for paragraph, content in members:
            text += between if text else ""
            places[paragraph] = (number, len(text), len(text) + len(content))
            text += content
        articles.append(text)
    texts = {
        found["id"]: found["text"] for found in map(json.loads, lines_of(name, "queries.jsonl"))
    }
    questions = [
        (texts[query], paragraph)
        for query, paragraph, grade in (line.split("\t") for line in lines_of(name, "qrels.tsv"))
        if int(grade) > 0 and paragraph in places
    ]
    return Judged(name, articles, questions, places)


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
    rankings: list[list[Passage]], data: Judged, passages: list[Passage]
) -> tuple[float, float]:
    """Mean share of the paragraph in the first passages, and nDCG with that share as the gain."""
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    by_article: dict[int, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_article[passage.article].append(passage)
    recalls: list[float] = []
    ndcgs: list[float] = []
    for found, (_, paragraph) in zip(rankings, data.questions, strict=True):
        place = data.places[paragraph]
        shares = gains(found[:DEPTH], place)
        best = sorted(gains(by_article[place[0]], place), reverse=True)[:DEPTH]
        recalls.append(sum(shares))
        ndcgs.append(
            float(np.dot(shares, discounts[: len(shares)]) / np.dot(best, discounts[: len(best)]))
        )
    return float(np.mean(recalls)), float(np.mean(ndcgs))


def splitters_of_prose(connection: Connection) -> dict[str, Callable[[str], list[tuple[int, str]]]]:
    """Those to be compared by what is found."""
    return {
        **{f"ragdb {name}": ours(connection, name) for name in ("recursive", "sentence")},
        **{name: split for name, split in others().items() if "Markdown" not in name},
    }


def passages_of(
    data: Judged, split: Callable[[str], list[tuple[int, str]]]
) -> tuple[list[Passage], str]:
    """All chunks of the articles, and how many and how large they are, as cells of a table."""
    passages = [
        Passage(number, start, start + len(text), text)
        for number, article in enumerate(data.articles)
        for start, text in split(article)
    ]
    mean = sum(len(p.text) for p in passages) / len(passages)
    torn = sum(not SENTENCE_END.search(p.text) for p in passages) / len(passages)
    return passages, f"{len(passages):,} | {mean:.0f} | {100 * torn:.0f} %"


def measure_words(connection: Connection) -> None:
    """Print a table of what BM25 finds in the chunks of each splitter, of several collections."""
    print(f"\nBM25, chunks of {SIZE}, {DEPTH} passages")
    print("| data | splitter | chunks | mean size | no sentence's end | recall | nDCG |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, between, how in (
        ("squad-dev", "\n", "line ends"),
        ("squad-dev", "\n\n", "empty lines"),
        ("squad-dev", " ", "spaces"),
        ("xquad-es", "\n", "line ends"),
        ("xquad-es", "\n\n", "empty lines"),
        ("scifact", "\n\n", "empty lines"),
        ("cranfield", "\n\n", "empty lines"),
    ):
        data = judged(name, between)
        for splitter, split in splitters_of_prose(connection).items():
            passages, size = passages_of(data, split)
            recall, ndcg = scores(by_words(connection, passages, data), data, passages)
            print(
                f"| {name}, {how} | {splitter} | {size} | {recall:.4f} | {ndcg:.4f} |", flush=True
            )


def measure_model(connection: Connection) -> None:
    """Print a table of what the model finds in squad-dev."""
    data = judged("squad-dev", "\n")
    model = RememberingModel(models.load(Settings.from_environment()), ROOT / "evaluation")
    queries = np.stack([model.encode_query(text) for text, _ in data.questions])
    print(f"\nThe model, {len(data.articles)} articles, {len(data.questions)} questions")
    print("| splitter | chunks | mean size | no sentence's end | recall | nDCG |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for splitter, split in splitters_of_prose(connection).items():
        passages, size = passages_of(data, split)
        vectors = model.encode_documents([p.text for p in passages])
        nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :DEPTH]
        recall, ndcg = scores([[passages[n] for n in row] for row in nearest], data, passages)
        print(f"| {splitter} | {size} | {recall:.4f} | {ndcg:.4f} |", flush=True)


def by_words(connection: Connection, passages: list[Passage], data: Judged) -> list[list[Passage]]:
    """The first passages of each question by rag.search in mode lexical."""
    connection.execute("select rag.create_tenant('splitter')")
    connection.execute("select rag.set_tenant('splitter')")
    documents = [{"content": p.text, "uri": str(n)} for n, p in enumerate(passages)]
    connection.execute("select rag.put_many(%s, strategy => 'none')", [Jsonb(documents)])
    found = {
        text: [
            passages[int(uri)]
            for (uri,) in connection.execute(
                "select uri from rag.search(%s, %s, mode => 'lexical')", [text, DEPTH]
            )
        ]
        for text in dict.fromkeys(text for text, _ in data.questions)
    }
    connection.execute("select rag.drop_tenant('splitter')")
    return [found[text] for text, _ in data.questions]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--mb", type=float, default=5, help="megabytes of the long document")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--no-retrieval", action="store_true")
    arguments = parser.parse_args()
    server = Server()
    server.start()
    with (
        scratch_database(server.url(), "ragdb_chunking") as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        if not arguments.no_speed:
            measure_speed(connection, arguments.mb)
        if not arguments.no_retrieval:
            measure_words(connection)
            measure_model(connection)


if __name__ == "__main__":
    main()
