"""`make eval`: its numbers on a collection small enough to judge by eye, its bars, its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import numpy as np
import psycopg
import pytest

from embedder.models import SentenceTransformerModel
from embedder.word_vectors import default_vocabulary
from loadtests import evaluate
from loadtests.chart import Chart, svg
from loadtests.evaluate import BM25, DENSE, HYBRID, HYBRID_WORDS, RUNS, TS_RANK_CD, Measured
from loadtests.remembering import RememberingModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

PASSAGES = {
    "bread": "A loaf is baked in a hot oven until the crust is brown.",
    "rain": "Clouds carry water, which falls when the air cools down.",
    "piano": "Each key lets a hammer fall on its strings.",
}
QUESTIONS = {
    "How is a loaf baked?": "bread",
    "What makes the weather wet?": "rain",
    "musical instrument": "piano",
}


class Counting(SentenceTransformerModel):
    """The real model with a small vocabulary, which counts the texts that it embeds."""

    texts = 0

    def vocabulary(self) -> list[str]:
        return [*default_vocabulary()[:1500]]

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        return super().encode_documents(texts)


@pytest.fixture
def counting(model: SentenceTransformer) -> Counting:
    return Counting("all-MiniLM-L6-v2", cast("Any", model))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "kitchen"
    folder.mkdir()
    passages = [{"id": name, "title": "", "text": text} for name, text in PASSAGES.items()]
    questions = [{"id": str(n), "text": text} for n, text in enumerate(QUESTIONS)]
    for name, rows in (("corpus", passages), ("queries", questions)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    qrels = "".join(f"{n}\t{uri}\t1\n" for n, uri in enumerate(QUESTIONS.values()))
    (folder / "qrels.tsv").write_text(qrels, "utf-8")
    return folder


def test_every_line_is_measured(
    database: str,
    counting: Counting,
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAGDB_WORD_VECTOR_TEXTS", "200")
    model = RememberingModel(counting, tmp_path / "memory")
    results = evaluate.run(database, [collection], model, queries=500, keep=False)
    lines = results["kitchen"]
    assert [*lines] == [TS_RANK_CD, *RUNS]
    # One of three questions has words of its passage, and the model knows the other two as well.
    assert lines[BM25].ndcg == pytest.approx(1 / 3)
    assert lines[TS_RANK_CD].ndcg == pytest.approx(1 / 3)
    for label in (DENSE, "rrf", "linear", HYBRID):
        assert (lines[label].ndcg, lines[label].recall, lines[label].mrr) == (1, 1, 1)
    assert lines[HYBRID_WORDS].recall == 1
    assert counting.texts > len(PASSAGES) + len(QUESTIONS)
    with psycopg.connect(database) as connection:
        left = connection.execute(
            "select from pg_database where datname = %s", [evaluate.DATABASE]
        ).fetchall()
    assert left == []

    before = counting.texts
    again = RememberingModel(counting, tmp_path / "memory")
    repeated = evaluate.run(database, [collection], again, queries=500, keep=False)
    assert counting.texts == before
    assert {label: line.ndcg for label, line in repeated["kitchen"].items()} == {
        label: line.ndcg for label, line in lines.items()
    }


def test_vectors_are_remembered_as_they_were(counting: Counting, tmp_path: Path) -> None:
    model = RememberingModel(counting, tmp_path)
    first = model.encode_documents(["one", "two"])
    both = RememberingModel(counting, tmp_path).encode_documents(["two", "three", "one"])
    assert counting.texts == 3
    assert np.array_equal(both[[2, 0]], first)
    assert np.allclose(both[1], counting.encode_query("three"), atol=1e-6)
    assert model.encode_documents([]).shape == (0, 384)


def measured(**ndcg: float) -> dict[str, Measured]:
    """All lines of a collection, at 0.5 unless given: `hybrid=0.6` and so on."""
    names = {"bm25": BM25, "dense": DENSE, "hybrid": HYBRID, "words": HYBRID_WORDS}
    given = {names[name]: value for name, value in ndcg.items()}
    return {
        label: Measured(given.get(label, 0.5), 0.5, 0.5, None if label == TS_RANK_CD else 2.0)
        for label in (TS_RANK_CD, *RUNS)
    }


@pytest.mark.parametrize(
    ("one", "other", "held"),
    [
        ({"hybrid": 0.53, "words": 0.53}, {"hybrid": 0.52, "words": 0.52}, [True] * 4),
        # Six thousandths below the better leg of one collection.
        ({"hybrid": 0.6, "words": 0.6}, {"dense": 0.506}, [False, True, True, True]),
        (
            {"hybrid": 0.52, "words": 0.52},
            {"hybrid": 0.52, "words": 0.52},
            [True, False] + 2 * [True],
        ),
        ({"hybrid": 0.6, "words": 0.57}, {"hybrid": 0.6, "words": 0.6}, [True, True, False, True]),
        ({"hybrid": 0.6, "words": 0.58}, {"hybrid": 0.6, "words": 0.58}, [True, True, True, False]),
    ],
)
def test_bars_tell_what_does_not_hold(
    one: dict[str, float], other: dict[str, float], held: list[bool]
) -> None:
    results = {"one": measured(**one), "other": measured(**other)}
    assert [holds for holds, _ in evaluate.bars(results, with_baselines=True)] == held


def test_baselines_are_those_of_their_collection() -> None:
    results = {"squad-dev": measured(bm25=0.8)}
    found = {sentence: holds for holds, sentence in evaluate.bars(results, with_baselines=True)}
    assert found["squad-dev, BM25: 0.8000, before 0.809"] is False
    assert len([*evaluate.bars(results, with_baselines=False)]) == 4


def test_the_table_has_means() -> None:
    results = {"one": measured(bm25=0.4), "other": measured(bm25=0.6)}
    lines = [*evaluate.table(results)]
    assert lines[0].count("|") == lines[1].count("|") == 8
    assert "| BM25 | 0.400 | 0.600 | 0.500 | 0.500 | 0.500 | 2.0 |" in lines
    assert "| ts_rank_cd | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |  |" in lines


def test_the_picture_has_a_bar_for_each_value() -> None:
    chart = Chart("<nDCG>", ["a & b", "c"], {"x": {"a & b": 0.5, "c": 1.0}, "y": {"c": 0.25}})
    # What this module made itself.
    picture = ElementTree.fromstring(svg(chart))  # noqa: S314
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in picture.iter(f"{space}rect") if bar.find(f"{space}title") is not None]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights == [150.0, 300.0, 75.0]
    feet = {float(bar.get("y", "")) + float(bar.get("height", "")) for bar in bars}
    assert len(feet) == 1
    assert {"a & b", "c", "x", "y", "<nDCG>"} <= {
        text.text for text in picture.iter(f"{space}text")
    }
