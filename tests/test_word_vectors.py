"""Text in, no model near: word vectors learned from the real model, and the cache of queries."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg
import pytest

from embedder import word_vectors
from embedder.config import Settings
from embedder.models import SentenceTransformerModel
from embedder.word_vectors import (
    cut,
    default_vocabulary,
    folded,
    normalised,
    prose,
    questions,
    recipe,
    tokens,
)
from embedder.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]

# Words by which the sample's questions are asked, so that a test takes seconds, not minutes.
PASSAGES = 40
QUESTIONS = 40
TEXTS = 400


def rows(connection: Connection, statement: str, *parameters: object) -> Rows:
    return connection.execute(cast("Any", statement), parameters).fetchall()


def value(connection: Connection, statement: str, *parameters: object) -> Any:
    return rows(connection, statement, *parameters)[0][0]


# -------------------------------------------------------------------------- words, as SQL has them

QUERY_RELATIONS = [
    "queries",
    "queries_due_idx",
    "queries_lease_idx",
    "queries_pkey",
    "queries_query_hash_idx",
]
STRANGE = [
    "How do refunds work?",
    "¿Dónde está la CANCIÓN número 3?",
    "don't e-mail node.js C++ v1.2.3 ERR_404_NOT_FOUND a@b.org",
    "日本語のテキスト。 “curly” — dash… ¡hola!",
    "Straße ŁÓDŹ İstanbul ﬁne Ωmega Привет",
    "tab\tnew\nline\r\nnull-ish \x07 bell \u00a0 nbsp \u200b zero",
    "[CLS] `code` {x} ~tilde ^caret \\back |pipe <tag>",
    "",
    "x" * 5000,
    "word " * 600,
]


def test_words_are_those_of_the_database(connection: Connection) -> None:
    for text in STRANGE:
        assert tokens(text) == value(connection, "select rag._query_tokens(%s)", text), text


def test_pieces_are_those_of_the_database(connection: Connection) -> None:
    vocabulary = default_vocabulary()
    set_id = value(connection, "select rag.begin_word_vectors('test', 'all-MiniLM-L6-v2', 'test')")
    connection.execute(
        "insert into rag.word_vectors (set_id, word, embedding) "
        "select %s, w, '[1]' from unnest(%s::text[]) as w",
        [set_id, [*vocabulary]],
    )
    known = {word: number for number, word in enumerate(vocabulary)}
    for word in (
        "refunds",
        "aeroelastic",
        "supercalifragilistic",
        "cancion",
        "жзж",
        "a" * 300,
        "q",
    ):
        found = value(connection, "select rag._word_pieces(%s, %s)", set_id, word)
        assert found == cut(word, known), word


def test_a_vocabulary_of_word_pieces() -> None:
    given = ["[CLS]", "[unused1]", "!", "the", "The", "##ing", "##s", "É", "canción", "##!", "c++"]
    assert normalised(given) == ("the", "##ing", "##s", "e", "cancion")


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_a_vocabulary_that_marks_beginnings(mark: str) -> None:
    given = ["<s>", f"{mark}the", f"{mark}The", "ing", mark, f"{mark}a", "a", "."]
    assert normalised(given) == ("the", "##ing", "a", "##a")


def test_a_vocabulary_has_an_end() -> None:
    assert len(normalised(f"word{n}" for n in range(60_000))) == word_vectors.MAX_WORDS


def test_the_default_vocabulary_is_public_and_large() -> None:
    vocabulary = default_vocabulary()
    assert len(vocabulary) > 25_000
    assert {"the", "money", "##ing"} <= {*vocabulary}
    assert normalised(vocabulary) == vocabulary


def test_texts_to_learn_from_need_no_network_and_are_always_the_same() -> None:
    assert len(prose()) > 10_000
    vocabulary = default_vocabulary()
    texts = questions(vocabulary, 300)
    assert texts == questions(vocabulary, 300)
    assert all(tokens(text) for text in texts)
    assert questions((), 10) == []


def test_a_recipe_changes_with_what_it_is_made_of() -> None:
    assert recipe(("a", "b"), 10) == recipe(("a", "b"), 10)
    assert (
        len({recipe(*given) for given in [(("a", "b"), 10), (("a",), 10), (("a", "b"), 20)]}) == 3
    )


# ---------------------------------------------------------------------------------------- learning


def finish(vocabulary: Sequence[str], encode: word_vectors.Encode, texts: int) -> Any:
    """All steps of learning, and the shares they told."""
    steps = word_vectors.learn(vocabulary, encode, texts)
    told: list[float] = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            return end.value, told


def test_a_model_that_is_a_sum_of_words_is_learned() -> None:
    vocabulary = normalised(default_vocabulary()[:500])
    known = {word: number for number, word in enumerate(vocabulary)}
    truth = np.random.default_rng(1).normal(size=(len(vocabulary), 32)).astype(np.float32)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.ones((len(texts), 32), dtype=np.float32) * 1e-3
        for row, text in enumerate(texts):
            for token in tokens(text):
                vectors[row] += truth[[known[piece] for piece in cut(token, known)]].sum(axis=0)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    learned, told = finish(vocabulary, encode, 3000)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1
    assert learned.words == vocabulary
    assert np.isfinite(learned.vectors).all()
    assert 0.5 < np.linalg.norm(learned.vectors, axis=1).max() <= 1.001
    draw = random.Random(3)
    cosines: list[float] = []
    for _ in range(100):
        numbers = draw.sample(range(len(vocabulary)), 5)
        wanted, found = truth[numbers].sum(axis=0), learned.vectors[numbers].sum(axis=0)
        cosines.append(wanted @ found / np.linalg.norm(wanted) / np.linalg.norm(found))
    assert np.mean(cosines) > 0.8


class Concise(SentenceTransformerModel):
    """The real model with a part of its vocabulary, and some words that it cannot embed."""

    words: tuple[str, ...] = ()
    poison = ""

    def vocabulary(self) -> list[str]:
        return [*self.words] if self.words else super().vocabulary()

    def encode_query(self, text: str) -> NDArray[np.float32]:
        if self.poison and self.poison in text:
            raise ValueError("poison")
        return super().encode_query(text)


@pytest.fixture
def concise(model: SentenceTransformer) -> Concise:
    return Concise("all-MiniLM-L6-v2", cast("Any", model))


def settings(url: str, texts: int) -> Settings:
    return Settings.from_environment(
        {"DATABASE_URL": url, "RAGDB_WORD_VECTOR_TEXTS": str(texts), "RAGDB_POLL_SECONDS": "0.2"}
    )


def sample(folder: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Some passages, and questions with the passage that each was written for."""

    def lines(name: str) -> list[str]:
        return (folder / name).read_text("utf-8").splitlines()

    read = [json.loads(line) for line in lines("corpus.jsonl")]
    passages = read[:: len(read) // PASSAGES][:PASSAGES]
    texts = {row["id"]: row["text"] for row in map(json.loads, lines("queries.jsonl"))}
    wanted = {passage["id"] for passage in passages}
    pairs = (line.split("\t") for line in lines("qrels.tsv"))
    asked = {texts[query]: document for query, document, _ in pairs if document in wanted}
    return passages, dict([*asked.items()][:QUESTIONS])


def ndcg(connection: Connection, asked: dict[str, str], mode: str, model: Concise | None) -> float:
    """NDCG@10 of the questions, with the model's embedding or with none."""
    total = 0.0
    for query, document in asked.items():
        embedding = None if model is None else json.dumps(model.encode_query(query).tolist())
        found = rows(
            connection,
            "select s.uri from rag.search(%s, embedding => %s, mode => %s) as s order by s.rank",
            query,
            embedding,
            mode,
        )
        total += sum(1 / math.log2(n + 2) for n, (uri,) in enumerate(found) if uri == document)
    return total / len(asked)


def test_words_come_near_the_model(
    database: str, connection: Connection, concise: Concise, shared_data: Path
) -> None:
    passages, asked = sample(shared_data / "squad-dev")
    # What the questions are made of, in the order of the vocabulary, as if it were all there is.
    vocabulary = default_vocabulary()
    known = {word: number for number, word in enumerate(vocabulary)}
    needed = {piece for query in asked for word in tokens(query) for piece in cut(word, known)}
    concise.words = tuple(word for word in vocabulary if known[word] < 1300 or word in needed)
    connection.execute(
        "select rag.put_many(%s)",
        [json.dumps([{"uri": p["id"], "content": p["text"]} for p in passages])],
    )
    worker = Worker(settings(database, TEXTS), concise)
    assert worker.run(once=True) == 0
    assert value(connection, "select count(*) from rag.jobs") == 0
    status = dict(rows(connection, "select item, value from rag.status()"))
    assert status["word vectors"] == f"{len(concise.words)} words"
    kinds = rows(
        connection, "select distinct query_embedding from rag.search(%s)", next(iter(asked))
    )
    assert kinds == [("words",)]

    exact, words = (ndcg(connection, asked, "semantic", model) for model in (concise, None))
    assert words > 0.85 * exact
    exact, words = (ndcg(connection, asked, "hybrid", model) for model in (concise, None))
    assert words > 0.96 * exact

    # Nothing to do the next time, until there is another recipe.
    connection.execute("delete from rag.queries")
    assert Worker(settings(database, TEXTS), concise).run(once=True) == 0
    assert value(connection, "select count(*) from rag.word_vector_sets") == 1
    before = value(connection, "select set_id from rag.word_vector_sets where is_current")
    concise.words = concise.words[:300]
    assert Worker(settings(database, 100), concise).run(once=True) == 0
    assert rows(connection, "select words, is_current from rag.word_vector_sets") == [(300, True)]
    assert value(connection, "select min(set_id) from rag.word_vectors") > before


def test_a_model_that_fails_over_it_disturbs_nobody(
    database: str, connection: Connection, concise: Concise
) -> None:
    concise.words = ("apple", "banana")

    class Shy(Concise):
        def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if "apple" in texts:
                raise RuntimeError("no single words")
            return super().encode_documents(texts)

    connection.execute("select rag.put('A document about apples.')")
    shy = Shy("all-MiniLM-L6-v2", concise.library_model)
    shy.words = concise.words
    worker = Worker(settings(database, 10), shy)
    assert worker.run(once=True) == 0
    assert worker.totals.embedded == 1
    assert value(connection, "select count(*) from rag.word_vectors") == 0
    # Another worker need not wait for its lease.
    assert Worker(settings(database, 10), concise).run(once=True) == 0
    assert value(connection, "select words from rag.word_vector_sets where is_current") == 2


# --------------------------------------------------------------------------------------- the cache


def test_the_worker_fills_the_cache(
    connection: Connection, concise: Concise, role: RoleFactory
) -> None:
    concise.poison = "poison"
    connection.execute("select rag.put('Money is returned within 30 days.', 'a')")
    worker = role(member_of=("rag_worker",))
    asking = "select query_embedding, similarity from rag.search(%s)"
    assert rows(connection, asking, "money returned") == [("none", None)]
    assert rows(connection, asking, "money poison") == [("none", None)]
    first = Worker(settings(worker.url, 0), concise)
    assert first.run(once=True) == 0
    assert first.totals.queries == 1
    [(kind, similarity)] = rows(connection, asking, "money returned")
    assert kind == "cached"
    [(kind, exact)] = rows(
        connection,
        "select query_embedding, similarity from rag.search(%s, embedding => %s)",
        "money returned",
        json.dumps(concise.encode_query("money returned").tolist()),
    )
    assert kind == "given"
    assert similarity == pytest.approx(exact, abs=1e-3)
    assert rows(connection, asking, "money poison") == [("none", None)]
    assert value(connection, "select query from rag.queries") == "money poison"


def test_a_search_that_may_not_write_is_served(connection: Connection) -> None:
    connection.execute("select rag.put('apple', 'a')")
    asking = "select query_embedding from rag.search('apple')"
    for mode in ("read only", "isolation level serializable"):
        with connection.transaction():
            connection.execute(cast("Any", f"set transaction {mode}"))
            assert rows(connection, asking) == [("none",)]
    assert value(connection, "select count(*) from rag.queries") == 0
    # From a function that says it only reads, and under a cursor.
    connection.execute(
        "create function pg_temp.asking() returns bigint language sql stable "
        "as $$ select count(*) from rag.search('apple') $$"
    )
    assert value(connection, "select pg_temp.asking()") == 1
    assert value(connection, "select count(*) from rag.queries") == 1


def test_searches_for_the_same_do_not_wait_for_each_other(
    database: str, connection: Connection
) -> None:
    connection.execute("select rag.put('apple', 'a')")
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        for session in (one, two):
            session.execute("set lock_timeout = '1s'")
            assert len(rows(session, "select from rag.search('apple')")) == 1
        # Noted twice, answered once.
        one.commit()
        two.commit()
    assert value(connection, "select count(*) from rag.queries") == 2
    assert (
        value(
            connection,
            "select rag.complete_queries(c.lease_token, array_agg(c.query_id), "
            "array_agg(array_fill(0.1::real, array[384])::vector)) "
            "from rag.claim_queries('test', 'all-MiniLM-L6-v2') as c group by c.lease_token",
        )
        == 1
    )


def test_noting_a_query_is_not_logged(connection: Connection) -> None:
    # So the commit of a search waits for no disk; a foreign key or a sequence would be logged.
    assert rows(
        connection,
        "select c.relname, c.relpersistence::text from pg_class as c "
        "where c.oid = 'rag.queries'::regclass or c.oid in "
        "(select i.indexrelid from pg_index as i where i.indrelid = 'rag.queries'::regclass) "
        "order by 1",
    ) == [(name, "u") for name in QUERY_RELATIONS]
    assert not rows(
        connection,
        "select from pg_constraint where conrelid = 'rag.queries'::regclass and contype = 'f'",
    )


def test_accents_and_case_do_not_matter() -> None:
    assert folded("CANCIÓN Ünïcode") == "cancion unicode"
