"""Word vectors for the benchmarks' databases, so that searches by text alone have both legs.

What an embedder learns in minutes is made here in seconds, from what is known anyway: a word's
vector is the mean of those of the corpus' sentences that hold it, weighted by how rare it is. As
many words are looked up and summed in a search as in life; they are not as good.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import psycopg
from pgvector import Vector

from embedder.database import register_vector
from embedder.word_vectors import MAX_LETTERS, MAX_WORDS, tokens
from loadtests.corpus import shared

RECIPE: Final = "benchmark"
BATCH: Final = 500


def give(connection: psycopg.Connection[Any], per_folder: int) -> None:
    """Put the words of a corpus into use with the active model, if it has none."""
    if connection.execute("select from rag.word_vector_sets as s where s.is_current").rowcount:
        return
    corpus = shared(per_folder)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, sentence in enumerate(corpus.sentences):
        for word in {*tokens(sentence)}:
            if len(word) <= MAX_LETTERS:
                holders[word].append(number)
    words = sorted(holders, key=lambda word: (-len(holders[word]), word))[:MAX_WORDS]
    middle = corpus.sentence_vectors.mean(axis=0)
    [(set_id,)] = connection.execute(
        "select rag.begin_word_vectors('benchmark', m.name, %s) from rag.models as m "
        "where m.is_active",
        [RECIPE],
    ).fetchall()
    register_vector(connection)
    for start in range(0, len(words), BATCH):
        part = words[start : start + BATCH]
        vectors: list[Vector] = []
        for word in part:
            rarity = np.log(len(corpus.sentences) / len(holders[word])) / 10
            mean = corpus.sentence_vectors[holders[word]].mean(axis=0) - middle
            vectors.append(Vector(mean * rarity + 1e-4))
        connection.execute(
            "select rag.put_word_vectors(%s::int, %s::text[], %b)", [set_id, part, vectors]
        )
    connection.execute("select rag.activate_word_vectors(%s::int)", [set_id])
