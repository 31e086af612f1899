"""The model is changed with the lights on: searches and ingest go on while it happens.

From all-MiniLM-L6-v2 to a model made of it that shares nothing with its vectors. It has as many
dimensions, so that nothing but the product keeps the two apart: a vector of the one can be compared
with those of the other, and that is nonsense.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg
import pytest
from psycopg.rows import class_row

from embedder.config import Settings
from embedder.models import EmbeddingModel, SentenceTransformerModel, load
from embedder.worker import Worker
from tests.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedder.models import ModelRow

Connection = psycopg.Connection[tuple[Any, ...]]

OLD = "all-MiniLM-L6-v2"
NEW = "projected"
DIMENSIONS = 384
TOPICS = ("refunds", "parcels", "trees", "boats", "trains", "bread", "violins", "whales")
TEXTS = [f"Rule {n} about {TOPICS[n % 8]}: after {n % 31} days ask for {n}." for n in range(64)]


@pytest.fixture(scope="session")
def new_model_folder(model: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model of sentence-transformers: MiniLM, then a random projection."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(11)
    parts = [*cast("Any", model).children()][:2]
    dense = Dense(384, DIMENSIONS, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.normal_(dense.linear.weight)
    folder = tmp_path_factory.mktemp("models") / "projected"
    SentenceTransformer(modules=[*parts, dense], device="cpu").save(str(folder))
    return folder


@dataclass
class Truth:
    """What each model itself says of a text."""

    models: dict[str, EmbeddingModel]

    def __post_init__(self) -> None:
        self.vector: Callable[[str, str], NDArray[np.float32]] = cache(self._vector)

    def similarity(self, name: str, query: str, content: str, *, by: str = "") -> float:
        """The cosine that a search by a model must find; `by` another it embeds the query."""
        return float(self.vector(by or name, query) @ self.vector(name, content))

    def _vector(self, name: str, content: str) -> NDArray[np.float32]:
        return self.models[name].encode_documents([content])[0]


@dataclass(frozen=True)
class Hit:
    """A row of rag.search."""

    content: str
    similarity: float | None
    query_embedding: str


@dataclass
class Load:
    """Sessions that search and put without a pause, and what they met."""

    url: str
    answers: list[tuple[str, list[Hit]]] = field(default_factory=list[Any])
    failures: list[BaseException] = field(default_factory=list[BaseException])
    counts: Counter[str] = field(default_factory=Counter[str])
    enough: threading.Event = field(default_factory=threading.Event)

    def search(self, query: str) -> None:
        """Ask the same question again and again, by text alone."""
        with (
            psycopg.connect(self.url, autocommit=True) as connection,
            connection.cursor(row_factory=class_row(Hit)) as cursor,
        ):
            while not self.enough.is_set():
                found = cursor.execute(
                    "select content, similarity, query_embedding from rag.search(%s, k => 5)",
                    [query],
                ).fetchall()
                assert found, "a search found nothing"
                self.counts["searches"] += 1
                self.counts[found[0].query_embedding] += 1
                if found[0].query_embedding == "cached":
                    self.answers.append((query, found))
                time.sleep(0.02)

    def put(self, name: str) -> None:
        """Put, replace and delete documents."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            n = 0
            while not self.enough.is_set():
                n += 1
                connection.execute(
                    "select rag.put(%s, %s)", [f"Note {n} of {name} on trees.", f"{name} {n % 20}"]
                )
                if n % 7 == 0:
                    connection.execute("select rag.delete(%s)", [f"{name} {(n - 3) % 20}"])
                self.counts["puts"] += 1
                time.sleep(0.15)

    def start(self, stack: ExitStack) -> None:
        """Four that search, two that put."""
        runs = [(self.search, f"What is the rule about {topic}?") for topic in TOPICS[:4]]
        runs += [(self.put, name) for name in ("first", "second")]
        threads = [threading.Thread(target=self._guarded, args=run) for run in runs]
        for thread in threads:
            thread.start()

        def end() -> None:
            self.enough.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()

        stack.callback(end)

    def _guarded(self, run: Callable[[str], None], argument: str) -> None:
        try:
            run(argument)
        except BaseException as failure:  # noqa: BLE001 (told by the test)
            self.failures.append(failure)
            self.enough.set()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def value(connection: Connection, statement: str, *parameters: object) -> Any:
    row = connection.execute(cast("Any", statement), parameters).fetchone()
    assert row is not None
    return row[0]


def start_worker(url: str, model: EmbeddingModel, truth: Truth, stack: ExitStack) -> Worker:
    """An embedder in a thread of this process; it loads the second model by itself."""
    settings = Settings.from_environment(
        {"DATABASE_URL": url, "RAGDB_POLL_SECONDS": "0.1", "RAGDB_WORD_VECTOR_TEXTS": "0"}
    )

    def load_and_tell(row: ModelRow) -> EmbeddingModel:
        truth.models[row.name] = load(settings, row)
        return truth.models[row.name]

    worker = Worker(settings, model, load=load_and_tell)
    thread = threading.Thread(target=worker.run)
    thread.start()

    def end() -> None:
        worker.stop.requested = True
        thread.join(60)
        assert not thread.is_alive()

    stack.callback(end)
    return worker


def activated(connection: Connection, name: str) -> bool:
    """Try to change over; false while the model is not ready."""
    try:
        return value(connection, "select rag.activate_model(%s)", name)
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False


def test_the_model_is_changed_under_load(
    database: str,
    connection: Connection,
    model: SentenceTransformer,
    new_model_folder: Path,
    stack: ExitStack,
) -> None:
    minilm = SentenceTransformerModel(OLD, cast("Any", model))
    truth = Truth({OLD: minilm})
    documents = [{"content": content, "uri": content} for content in TEXTS]
    connection.execute("select rag.put_many(%s)", [json.dumps(documents)])
    start_worker(database, minilm, truth, stack)
    until(lambda: value(connection, "select count(*) from rag.jobs") == 0)
    load = Load(database)
    load.start(stack)
    cached = "select count(*) from rag.query_embeddings as e join rag.models as m using (model_id) "

    def goes_on(seconds: float = 1) -> None:
        before = load.counts["searches"]
        until(lambda: load.counts["searches"] >= before + 20 or load.failures)
        assert not load.failures, load.failures
        time.sleep(seconds)

    until(lambda: value(connection, cached + "where m.is_active") >= 4)
    goes_on()

    # Beside the old one.
    connection.execute(
        "select rag.add_model(%s, %s, settings => %s)",
        [NEW, DIMENSIONS, json.dumps({"model": str(new_model_folder)})],
    )
    assert not activated(connection, NEW)
    until(lambda: activated(connection, NEW) or load.failures, seconds=180)
    until(lambda: value(connection, cached + "where m.is_active") >= 4 or load.failures)
    goes_on()
    # Back, and forth again.
    assert value(connection, "select rag.rollback_model()") == OLD
    goes_on()
    assert value(connection, "select rag.rollback_model()") == NEW
    goes_on()
    # The old one's space comes back while searches go on.
    before = value(connection, "select pg_database_size(current_database())")
    freed = value(connection, "select (rag.drop_model(%s)).bytes", OLD)
    assert freed > 0
    goes_on()
    assert value(connection, "select pg_database_size(current_database())") < before
    load.enough.set()
    until(lambda: value(connection, "select count(*) from rag.jobs") == 0)
    stack.close()
    assert not load.failures, load.failures
    assert load.counts["puts"] > 20

    # Nothing is left of the old one, and the new one has all there is.
    assert value(connection, "select count(*) from pg_class where relname ~ 'embeddings_m1'") == 0
    assert value(connection, "select count(distinct model_id) from rag.embeddings") == 1
    assert value(connection, "select count(*) from rag.embeddings") == value(
        connection, "select count(*) from rag.chunks"
    )
    # Each answer is by one of the models, as that one itself says: none is mixed.
    by = Counter(answered_by(truth, query, hits) for query, hits in load.answers)
    assert set(by) == {OLD, NEW}, by
    print(f"\n{dict(load.counts)}, answers by model: {dict(by)}")
    assert mixed_and_noticed(truth, load.answers) >= 8


def mixed_and_noticed(truth: Truth, answers: list[tuple[str, list[Hit]]]) -> int:
    """Spoil answers in all ways that two models can be mixed; how many, each of them noticed."""
    noticed = 0
    seen: set[tuple[str, str]] = set()
    for query, hits in answers:
        name = answered_by(truth, query, hits)
        place = next((n for n, hit in enumerate(hits) if hit.similarity is not None), None)
        if place is None or (query, name) in seen:
            continue
        seen.add((query, name))
        other = NEW if name == OLD else OLD
        hit = hits[place]
        for wrong in (
            truth.similarity(other, query, hit.content),
            truth.similarity(other, query, hit.content, by=name),
            truth.similarity(name, query, hit.content, by=other),
        ):
            # By chance the two may say the same.
            if abs(wrong - truth.similarity(name, query, hit.content)) > 0.01:
                mixed = [*hits[:place], replace(hit, similarity=wrong), *hits[place + 1 :]]
                assert answered_by(truth, query, mixed) == "", (query, hit, wrong)
                noticed += 1
    return noticed


def answered_by(truth: Truth, query: str, hits: list[Hit]) -> str:
    """The model that all similarities of an answer are by; empty if there is none."""
    for name in truth.models:
        if all(
            abs(truth.similarity(name, query, hit.content) - hit.similarity) < 0.004
            for hit in hits
            if hit.similarity is not None
        ):
            return name
    return ""
