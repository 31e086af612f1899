"""A corpus of any size, made of real sentences, the same one each time.

Sentences come from the documents below ../shared/data. A chunk has 60 to 150 words: sentences of
one document mostly, so that chunks have a topic, and one or two from elsewhere. Its vector is the
normalised sum of the model's own vectors of its sentences plus a little noise: neighbourhoods are
real, and a million vectors cost minutes and not a day.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from db.server import ROOT
from embedder import models
from embedder.config import Settings
from embedder.readers import UnreadableError, read_document

DATA: Final = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CACHE: Final = ROOT / "bench"

SEED: Final = 20261120
BLOCK: Final = 1_000
"""Chunks are drawn by blocks of so many, each with a random generator of its own."""

PER_FOLDER: Final = 7_000
"""Sentences of one folder of the shared data, so that each kind of text has its share."""

FEWEST_WORDS: Final = 60
MOST_WORDS: Final = 150
NOISE: Final = 0.15
"""Length of the noise added to a unit vector: two chunks of the same sentences stay .98 alike."""

# cranfield has no capitals, and a space before each full stop.
_SPLIT: Final = re.compile(r"(?<=[.!?])\s+(?=[A-ZÁÉÍÓÚÑ¿¡\"'(`])|(?<= \.)\s+|\n{2,}|\n(?=[-*#|>])")
_MARKUP: Final = re.compile(r"[*_`#>|\[\]]+|\(https?://[^)]*\)|<[^>]+>")


@dataclass(frozen=True)
class Chunk:
    """A text with its metadata, and the numbers of the sentences that it is made of."""

    number: int
    content: str
    metadata: dict[str, Any]
    sentences: list[int]

    @property
    def uri(self) -> str:
        """What the chunk's document is known by."""
        return f"bench/{self.number:08d}"


@dataclass(frozen=True)
class Question:
    """A real question of one of the judged collections, and its unit vector."""

    text: str
    vector: NDArray[np.float32]


class Corpus:
    """Chunks by number, of at most so many sentences of each folder.

    Reads ../shared/data; vectors of sentences are cached in .ragdb/bench.
    """

    def __init__(self, per_folder: int = PER_FOLDER) -> None:
        self.per_folder = per_folder
        self.sentences, self.sources, self.names = _sentences(per_folder)
        self.words = np.array([len(text.split()) for text in self.sentences])
        # Where the sentences of each source begin; they lie together.
        self.starts = np.searchsorted(self.sources, np.arange(len(self.names) + 1))

    @cached_property
    def sentence_vectors(self) -> NDArray[np.float32]:
        """Unit vectors of the sentences, shape (sentences, dimensions)."""
        return _cached("sentences", self.sentences)

    def block(self, number: int) -> list[Chunk]:
        """The chunks number * BLOCK to (number + 1) * BLOCK - 1."""
        random = np.random.default_rng([SEED, number])
        # A source is drawn by its length, so that no sentence is used much more than another.
        anchors = random.integers(0, len(self.sentences), BLOCK)
        lengths = random.integers(FEWEST_WORDS, MOST_WORDS + 1, BLOCK)
        # The thousandth part of all chunks has thousandth = 0, and so on; team is skewed.
        thousandths = random.integers(0, 1_000, BLOCK)
        teams = random.zipf(1.5, BLOCK) % 1_000
        years = 2026 - np.minimum(random.geometric(0.2, BLOCK), 30)
        chunks: list[Chunk] = []
        for i in range(BLOCK):
            members = self._members(random, int(anchors[i]), int(lengths[i]))
            metadata = {
                "source": self.names[self.sources[anchors[i]]],
                "tenth": int(thousandths[i]) % 10,
                "hundredth": int(thousandths[i]) % 100,
                "thousandth": int(thousandths[i]),
                "team": f"team-{teams[i]}",
                "year": int(years[i]),
            }
            content = " ".join(self.sentences[m] for m in members)
            chunks.append(Chunk(number * BLOCK + i, content, metadata, members))
        return chunks

    def vectors(self, chunks: list[Chunk], number: int) -> NDArray[np.float32]:
        """Unit vectors of the chunks of a block, shape (BLOCK, dimensions)."""
        sums = np.array([self.sentence_vectors[c.sentences].sum(axis=0) for c in chunks])
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        random = np.random.default_rng([SEED, number, 1])
        noise = random.standard_normal(sums.shape, dtype=np.float32)
        sums += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def questions(self, count: int = 500) -> list[Question]:
        """So many questions, in turns from each judged collection."""
        texts = _questions()[:count]
        return [
            Question(text, v) for text, v in zip(texts, _cached("questions", texts), strict=True)
        ]

    def _members(self, random: np.random.Generator, anchor: int, words: int) -> list[int]:
        """Numbers of sentences with so many words or a little less."""
        source = int(self.sources[anchor])
        first, last = int(self.starts[source]), int(self.starts[source + 1])
        near = np.arange(max(first, anchor - 20), min(last, anchor + 20))
        far = random.integers(0, len(self.sentences), 12)
        strangers = 1 + (words > 100)
        order = [anchor, *far[:strangers], *random.permutation(near), *far[strangers:]]
        chosen: list[int] = []
        total = 0
        for i in map(int, order):
            if i not in chosen and total + self.words[i] <= MOST_WORDS:
                chosen.append(i)
                total += int(self.words[i])
            if total >= words:
                break
        return chosen


@cache
def shared(per_folder: int = PER_FOLDER) -> Corpus:
    """The corpus of so many sentences of each folder: reading it takes some seconds."""
    return Corpus(per_folder)


def _sentences(per_folder: int) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """Sentences of 5 to 40 words, the source of each by number, and the sources' names."""
    if not DATA.is_dir():
        raise FileNotFoundError(f"the benchmark's texts are not there: {DATA}")
    seen: set[str] = set()
    chosen: list[tuple[str, list[str]]] = []
    for folder in sorted(path for path in DATA.iterdir() if path.is_dir()):
        left = per_folder
        for text in _texts(folder):
            found: list[str] = []
            for part in _SPLIT.split(text):
                sentence = " ".join(_MARKUP.sub(" ", part).split())
                if 5 <= len(sentence.split()) <= 40 and sentence not in seen:
                    seen.add(sentence)
                    found.append(sentence)
            if len(found) >= 3:
                chosen.append((folder.name, found))
                left -= len(found)
            if left <= 0:
                break
    sentences = [sentence for _, found in chosen for sentence in found]
    sources = np.repeat(np.arange(len(chosen)), [len(found) for _, found in chosen])
    return sentences, sources, [name for name, _ in chosen]


def _texts(folder: Path) -> Iterator[str]:
    """Every document of a folder of the shared data, with its title."""
    corpora = sorted(folder.glob("corpus.jsonl*"))
    for path in corpora:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        for line in text.splitlines():
            row = json.loads(line)
            yield f"{row['title']}\n\n{row['text']}"
    if not corpora:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".html", ".md", ".rst"):
                try:
                    yield read_document(path, path.name).content
                except UnreadableError:
                    continue


def _questions() -> list[str]:
    columns = [
        [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        for path in sorted(DATA.glob("*/queries.jsonl"))
    ]
    shortest = min(map(len, columns))
    return [
        text for row in zip(*(column[:shortest] for column in columns), strict=True) for text in row
    ]


def _cached(name: str, texts: list[str]) -> NDArray[np.float32]:
    """Vectors of texts by the default model, computed once."""
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{key}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        model = models.load(Settings.from_environment())
        # Sorted by length, or the short wait for the long.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), model.dimensions), dtype=np.float32)
        for start in range(0, len(order), 512):
            part = order[start : start + 512]
            vectors[part] = model.encode_documents([texts[i] for i in part])
        unfinished = path.with_suffix(".new.npy")
        np.save(unfinished, vectors)
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")
