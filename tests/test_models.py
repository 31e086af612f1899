"""The embedding model, the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from embedder import models
from embedder.config import Settings
from embedder.errors import ModelError
from embedder.models import (
    EmbeddingModel,
    ModelRow,
    SentenceTransformerModel,
    token_batches,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SETTINGS = Settings.from_environment(
    {"DATABASE_URL": "postgresql://nobody@nowhere/nothing", "RAGDB_BACKEND": "torch"}
)
# By sentence-transformers 5.7.0 and torch 2.13.0, in float32.
GOLDEN = Path(__file__).parent / "golden" / "minilm.json"
TEXTS = [
    "Refunds are paid within 14 days.",
    "",
    "El dinero se devuelve en 14 días. 😀",
    "word " * 2000,
    "\x01\ufffd\u202e مرحبا",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def embedding_model() -> EmbeddingModel:
    return models.load(SETTINGS)


def test_what_it_says_of_itself(embedding_model: EmbeddingModel) -> None:
    assert embedding_model.name == "all-MiniLM-L6-v2"
    assert embedding_model.dimensions == 384
    assert embedding_model.max_tokens == 256
    assert embedding_model.batch_size > 1


def test_documents_are_embedded_as_the_library_does(
    embedding_model: EmbeddingModel, model: SentenceTransformer
) -> None:
    vectors = embedding_model.encode_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    bare = cast("Any", model).encode(TEXTS, normalize_embeddings=True)
    assert np.sum(vectors * bare, axis=1).min() > 0.9999


def test_vectors_are_those_of_the_version_that_embedded_before(
    embedding_model: EmbeddingModel,
) -> None:
    """Whoever upgrades has the old vectors in his database, and compares new ones with them."""
    golden: dict[str, list[float]] = json.loads(GOLDEN.read_text())
    assert len(golden) == 5
    vectors = embedding_model.encode_documents([*golden])
    before = np.array([*golden.values()], dtype=np.float32)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    # Rounded to four places they differ by 0.0000002; bfloat16 does by 0.00005.
    assert np.sum(vectors * before, axis=1).min() > 0.999


def test_a_query_is_embedded_like_a_document(embedding_model: EmbeddingModel) -> None:
    vector = embedding_model.encode_query(TEXTS[0])
    assert vector.shape == (384,)
    assert float(vector @ embedding_model.encode_documents(TEXTS[:1])[0]) > 0.9999


def test_no_documents(embedding_model: EmbeddingModel) -> None:
    assert embedding_model.encode_documents([]).shape == (0, 384)
    assert embedding_model.count_tokens([]) == []


def test_tokens_are_counted_before_the_cut(embedding_model: EmbeddingModel) -> None:
    # [CLS] and [SEP] count, too.
    assert embedding_model.count_tokens(["", "money", "word " * 2000]) == [2, 3, 2002]


def test_texts_of_one_length_go_together(embedding_model: EmbeddingModel) -> None:
    # The last two are cut to the same length: they stay in their order.
    assert token_batches([4, 2, 10, 1000, 300], embedding_model) == [[3, 4, 2, 0, 1]]
    assert token_batches([], embedding_model) == []
    # 2,048 tokens of 256 are eight texts; of short ones 64 go together.
    assert [len(b) for b in token_batches([300] * 17, embedding_model)] == [8, 8, 1]
    assert [len(b) for b in token_batches([10] * 130, embedding_model)] == [64, 64, 2]


def test_long_lists_are_embedded_in_batches(embedding_model: EmbeddingModel) -> None:
    texts = [f"{'word ' * (n % 7 * 40)} number {n}" for n in range(40)]
    vectors = embedding_model.encode_documents(texts)
    for place in (0, 6, 39):
        assert float(vectors[place] @ embedding_model.encode_query(texts[place])) > 0.9999


def test_a_model_may_take_less_than_it_could() -> None:
    row = ModelRow("short", 384, settings={"model": "all-MiniLM-L6-v2", "max_tokens": 16})
    model = models.load(SETTINGS, row)
    assert (model.name, model.max_tokens) == ("short", 16)
    long = "The end of this text is beyond what the model has been told to take, so nobody sees it"
    vectors = model.encode_documents([long, f"{long}: bananas."])
    assert float(vectors[0] @ vectors[1]) > 0.9999


def test_threads_follow_the_settings() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        SentenceTransformerModel.load(SETTINGS.model, device="cpu", threads=1, offline=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "device"), [("no-such/model", "cpu"), ("all-MiniLM-L6-v2", "cuda:7")]
)
def test_what_cannot_be_loaded_is_told_in_one_line(name: str, device: str) -> None:
    with pytest.raises(ModelError, match=f"^cannot load the model {name} on {device}: ") as error:
        SentenceTransformerModel.load(name, device=device, threads=1, offline=True)
    assert "\n" not in str(error.value)


def test_the_pinned_revision_is_a_commit() -> None:
    assert len(models.DEFAULT_REVISION) == 40
    int(models.DEFAULT_REVISION, 16)
