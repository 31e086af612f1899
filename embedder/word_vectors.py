"""Word vectors: what a word adds to the embedding of a query, learned from the model itself.

The database sums the vectors of a query's words, which takes a fraction of a millisecond and no
model. They are learned by regression, so that the sum lands where the model puts the text.

Everything they are made of is public: the vocabulary is the model's own, and the texts are drawn
from that vocabulary and from the documentation of Python's standard library, which every machine
with an embedder has. So they belong to a model and to no tenant, and need no network.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import itertools
import random
import re
import sysconfig
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embedder.models import DEFAULT_PACKAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], "NDArray[np.float32]"]

# Raised with every change of what is learned: sets by an older recipe are learned anew.
RECIPE: Final = 1
# Multilingual vocabularies have 250,000 pieces, the frequent ones first; 50,000 of 384
# dimensions take 40 MB in the database.
MAX_WORDS: Final = 50_000
# As rag._query_tokens: what separates words, and how many of them count.
SEPARATORS: Final = re.compile("[\u0001-/:-@[-`{-\u00bf\u2000-\u206f\u3000-\u303f]+")
MARKS: Final = re.compile("[\u0300-\u036f]")
MAX_CHARACTERS: Final = 4000
MAX_TOKENS: Final = 256
MAX_LETTERS: Final = 60
MAX_PIECE: Final = 20
# What marks the beginning of a word in vocabularies of byte pairs and of SentencePiece.
BEGINNINGS: Final = ("\u0120", "\u2581")

# A slice of work takes about so long: what a put can wait for while an idle worker learns.
SLICE_SECONDS: Final = 0.3
# Conjugate gradients: 60 steps are off the closed form by 1e-6, 40 serve searches as well.
STEPS: Final = 40
STRENGTH: Final = 0.5
# Columns solved at a time, so that models of 4,000 dimensions take no more memory than small ones.
COLUMNS: Final = 384


@dataclass(frozen=True, slots=True)
class WordVectors:
    """Words and pieces (`##ing`), and a vector for each: float32, shape (words, dimensions)."""

    words: tuple[str, ...]
    vectors: NDArray[np.float32]


def folded(text: str) -> str:
    """Without case and accents, as the database compares words."""
    return MARKS.sub("", unicodedata.normalize("NFD", text)).lower()


def tokens(text: str) -> list[str]:
    """The words of a text, as rag._query_tokens finds them."""
    found = SEPARATORS.split(folded(text[:MAX_CHARACTERS]))
    return [token for token in found if token][:MAX_TOKENS]


def normalised(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """The words and pieces of a tokenizer's vocabulary as the database knows them.

    Words as `tokens` gives them, pieces with `##` before them, in the order of the vocabulary; no
    punctuation, nothing twice, at most `MAX_WORDS`.
    """
    given = [*vocabulary]
    has_beginnings = any(token.startswith(BEGINNINGS) for token in given)
    found: dict[str, None] = {}
    for token in given:
        if has_beginnings:
            is_piece = not token.startswith(BEGINNINGS)
            text = token if is_piece else token[1:]
        else:
            is_piece = token.startswith("##")
            text = token[2:] if is_piece else token
        # "[CLS]" and the like have separators in them and are no words.
        word = folded(text)
        if tokens(word) == [word] and len(word) <= MAX_PIECE:
            found[f"##{word}" if is_piece else word] = None
    return tuple(itertools.islice(found, MAX_WORDS))


@cache
def default_vocabulary() -> tuple[str, ...]:
    """For models without a tokenizer of their own here: the default model's vocabulary.

    Where that is not installed either: the words of the texts, the frequent ones first.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "model" / "vocab.txt"
        if path.exists():
            return normalised(path.read_text("utf-8").splitlines())
    counts = Counter(itertools.chain.from_iterable(map(tokens, prose())))
    letters = sorted({letter for word in counts for letter in word})
    words = [word for word, _ in counts.most_common()]
    return normalised([*words, *letters, *(f"##{letter}" for letter in letters)])


def recipe(vocabulary: Sequence[str], texts: int) -> str:
    """What a set is made by; a set of another recipe is stale."""
    digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
    return f"{RECIPE}-{texts}-{len(vocabulary)}-{digest[:16]}"


# Texts to learn from

_READ: list[tuple[str, ...]] = []


def prose() -> tuple[str, ...]:
    """Sentences of the documentation of Python's standard library, each once, shuffled."""
    steps = _gathered()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _gathered() -> Generator[float, None, tuple[str, ...]]:
    # Seconds of reading, so it is done once a process.
    if _READ:
        return _READ[0]
    found: set[str] = set()
    started = time.monotonic()
    for text in _documentation():
        if time.monotonic() - started > SLICE_SECONDS:
            yield 0.0
            started = time.monotonic()
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.?!:])\s+(?=[A-Z])", " ".join(paragraph.split())):
                letters = sum(letter.isalpha() or letter == " " for letter in sentence)
                # No code, no tables, no headings.
                if 25 < len(sentence) < 300 and letters > 0.85 * len(sentence):
                    found.add(sentence)
    shuffled = sorted(found)
    random.Random(1).shuffle(shuffled)
    _READ.append(tuple(shuffled))
    return _READ[0]


def _documentation() -> Iterator[str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    yield from topics.values()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "test", "tests"}.isdisjoint(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def questions(vocabulary: Sequence[str], count: int) -> list[str]:
    """Texts of 2 to 14 words drawn from a vocabulary: half common ones, half in their turn.

    A model embeds them as it does real ones, as far as a sum of words can tell; and they bring
    every word and every piece, which no prose of this length does.
    """
    draw = random.Random(7)
    words = [word for word in vocabulary if len(word) > 1 and word.isalpha()]
    pieces = [word[2:] for word in vocabulary if word.startswith("##") and word[2:].isalpha()]
    if not words:
        return []
    frequencies = [*itertools.accumulate(1 / (rank + 30) for rank in range(len(words)))]
    next_word = _in_turn(words, draw)
    next_piece = _in_turn(pieces or words, draw)

    def rare() -> str:
        # Most words are known; of the others two pieces are more frequent than three.
        kind = draw.random()
        if kind < 0.72:
            return next(next_word)
        if kind < 0.9:
            return draw.choice(words) + next(next_piece)
        return draw.choice(words) + next(next_piece) + next(next_piece)

    def common() -> str:
        return draw.choices(words, cum_weights=frequencies)[0]

    texts: list[str] = []
    for _ in range(count):
        length = draw.choice((2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14))
        text = " ".join(rare() if draw.random() < 0.55 else common() for _ in range(length))
        texts.append(text + "?" if draw.random() < 0.3 else text)
    return texts


def _in_turn(words: Sequence[str], draw: random.Random) -> Iterator[str]:
    while True:
        shuffled = [*words]
        draw.shuffle(shuffled)
        yield from shuffled


# Learning


def learn(
    vocabulary: Sequence[str], encode: Encode, texts: int
) -> Generator[float, None, WordVectors]:
    """Learn the vectors of a normalised vocabulary from `texts` texts.

    A generator, so that it can be done in slices: each step works for about `SLICE_SECONDS` and
    yields the share that is done, 0 to 1. `encode` gives unit vectors of texts as queries,
    float32, shape (texts, dimensions); what it raises goes through. Takes some 30 bytes of memory
    for each word and dimension, 0.3 GB for 30,000 words of 384 dimensions.
    """
    sentences = yield from _gathered()
    lessons = questions(vocabulary, texts // 2)
    lessons += sentences[: texts - len(lessons)]
    spoken = [word.removeprefix("##") for word in vocabulary]
    # Encoding is nine tenths of the work, and a word is a fifth of a text.
    total = len(spoken) / 5 + len(lessons)
    words = yield from _encoded(spoken, encode, 0.0, 0.9 * len(spoken) / 5 / total)
    targets = yield from _encoded(lessons, encode, 0.9 * len(spoken) / 5 / total, 0.9)
    weights = np.log(np.arange(len(vocabulary), dtype=np.float32) + 10)
    bags = _bags(lessons, vocabulary, weights)
    yield 0.9
    # First one linear map for all words, which also carries to words that no text has, then each
    # word's own difference from it.
    start = words @ _ridge(bags @ words, targets)
    yield 0.91
    vectors = np.empty_like(start)
    blocks = [*range(0, start.shape[1], COLUMNS)]
    for done, first in enumerate(blocks):
        block = slice(first, first + COLUMNS)
        rest = targets[:, block] - bags @ start[:, block]
        for difference, share in _conjugate_gradients(bags, rest):
            vectors[:, block] = start[:, block] + difference
            yield 0.91 + 0.09 * (done + share) / len(blocks)
    # The largest is about 1, so that none is too small or too large for half precision.
    vectors *= weights[:, None]
    vectors /= max(float(np.linalg.norm(vectors, axis=1).max()), 1e-6)
    return WordVectors(tuple(vocabulary), vectors)


def _encoded(
    texts: Sequence[str], encode: Encode, begin: float, end: float
) -> Generator[float, None, NDArray[np.float32]]:
    """Embeddings of texts in their order; texts of one length are encoded together."""
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    parts: list[NDArray[np.float32]] = []
    done, size = 0, 64
    while done < len(order):
        started = time.monotonic()
        parts.append(encode([texts[n] for n in order[done : done + size]]))
        done += len(parts[-1])
        seconds = max(time.monotonic() - started, 1e-3)
        size = max(32, min(1024, 2 * size, int(size * SLICE_SECONDS / seconds)))
        yield begin + (end - begin) * done / len(order)
    vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


def _bags(texts: Sequence[str], vocabulary: Sequence[str], weights: NDArray[np.float32]) -> Any:  # noqa: ANN401 (scipy's matrices have no types)
    """The texts as sums of words: sparse, shape (texts, words), rows of length 1."""
    sparse: Any = importlib.import_module("scipy.sparse")
    known = {word: number for number, word in enumerate(vocabulary)}
    pieces: dict[str, list[int]] = {}
    rows: list[int] = []
    columns: list[int] = []
    for row, text in enumerate(texts):
        for token in tokens(text):
            if token not in pieces:
                pieces[token] = [known[piece] for piece in cut(token, known)]
            columns += pieces[token]
            rows += [row] * len(pieces[token])
    shape = (len(texts), len(vocabulary))
    bags = sparse.csr_matrix((weights[columns], (rows, columns)), shape=shape, dtype=np.float32)
    lengths = np.sqrt(np.asarray(bags.multiply(bags).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.maximum(lengths, 1e-6)) @ bags).tocsr().astype(np.float32)


def cut(word: str, known: dict[str, int]) -> list[str]:
    """The known pieces of a word, as the database finds them (rag._word_pieces)."""
    if word in known:
        return [word]
    found: list[str] = []
    start = 0
    word = word[:MAX_LETTERS]
    while start < len(word):
        mark = "##" if start else ""
        longest = min(MAX_PIECE, len(word) - start)
        for length in range(longest, 0, -1):
            piece = mark + word[start : start + length]
            if piece in known:
                found.append(piece)
                start += length
                break
        else:
            start += 1
    return found


def _ridge(inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """The linear map from inputs to targets, shape (dimensions, dimensions)."""
    square = inputs.T @ inputs
    square[np.diag_indices_from(square)] += 1e-2 * np.trace(square) / len(square)
    return np.linalg.solve(square, inputs.T @ targets).astype(np.float32)


def _conjugate_gradients(
    bags: Any,  # noqa: ANN401 (as above)
    targets: NDArray[np.float32],
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """What to add to the vectors of words: min |bags x - targets|² + STRENGTH |x|², by steps.

    Columns do not depend on each other. Yields x so far and the share of steps that are done.
    """
    backwards = bags.T.tocsr()
    residual = backwards @ targets
    solution = np.zeros_like(residual)
    direction = residual.copy()
    size = np.einsum("ij,ij->j", residual, residual)
    for step in range(STEPS):
        image = backwards @ (bags @ direction) + STRENGTH * direction
        along = np.einsum("ij,ij->j", direction, image)
        length = size / np.maximum(along, 1e-20)
        solution += length * direction
        residual -= length * image
        new_size = np.einsum("ij,ij->j", residual, residual)
        direction = residual + (new_size / np.maximum(size, 1e-20)) * direction
        size = new_size
        yield solution, (step + 1) / STEPS
