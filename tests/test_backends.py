"""Faster backends: that they say what float32 says, and that the choice among them is safe."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from embedder import backends, models
from embedder.backends import BACKENDS, candidates, choose, instructions, pick, samples
from embedder.config import Settings
from embedder.errors import ModelError
from embedder.models import EmbeddingModel, SentenceTransformerModel

TEXTS = ["Refunds are paid within 14 days.", "", "😀 مرحبا", "word " * 2000, *samples()]
HERE = candidates(instructions())
# Also where the CPU has no instructions for it: then it is only slow.
BF16 = frozenset({"avx512_bf16"})


def load(backend: str) -> EmbeddingModel:
    given = {"DATABASE_URL": "postgresql://x@y/z", "RAGDB_BACKEND": backend}
    return models.load(Settings.from_environment(given))


@pytest.fixture(scope="module")
def plain() -> SentenceTransformerModel:
    return cast("SentenceTransformerModel", load("torch"))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
def test_a_faster_backend_says_what_float32_says(
    backend: str, plain: SentenceTransformerModel
) -> None:
    before = plain.encode_documents(TEXTS)
    # Also where the CPU has no instructions for it: then it is only slow.
    faster = backends.converted(plain.library_model, backend)
    vectors = SentenceTransformerModel(plain.name, faster, backend).encode_documents(TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    cosines = np.sum(vectors * before, axis=1)
    assert cosines[3:].mean() > 0.999
    assert cosines.min() > 0.99
    assert cosines.min() < 1 - 1e-7, "it is not another computation at all"
    # The model that it was made of is as it was.
    assert np.array_equal(plain.encode_documents(TEXTS), before)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in HERE])
def test_a_backend_can_be_named(backend: str) -> None:
    assert load(backend).backend == backend


def test_one_that_the_cpu_cannot_do_is_refused(plain: SentenceTransformerModel) -> None:
    model = plain.library_model
    with pytest.raises(ModelError, match="no instructions for torch-bf16; RAGDB_BACKEND=auto"):
        choose(model, "torch-bf16", name="m", threads=1, flags=frozenset())
    # Nothing to choose from, so nothing is measured.
    assert choose(model, "auto", name="m", threads=1, flags=frozenset()) == ("torch", model)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n", ["torch", "torch-bf16"]),
        ("Features\t: fp asimd i8mm bf16\n", ["torch", "torch-bf16"]),
        ("flags\t\t: fpu avx2\n", ["torch"]),
        (None, ["torch"]),
    ],
)
def test_candidates_follow_the_instructions_of_the_cpu(
    tmp_path: Path, file: str | None, expected: list[str]
) -> None:
    if file is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"processor: 0\n{file}\n")
    assert candidates(instructions(tmp_path)) == expected


@pytest.mark.parametrize(
    ("faster", "expected"),
    [
        ((0.5, 0.9999, 0.999), "torch-bf16"),
        ((0.95, 0.9999, 0.999), "torch"),
        ((0.1, 0.998, 0.99), "torch"),
        ((0.1, 0.9995, 0.9), "torch"),
        ((0.1, float("nan"), float("nan")), "torch"),
    ],
)
def test_a_faster_backend_must_gain_and_be_true(
    faster: tuple[float, float, float], expected: str
) -> None:
    assert pick({"torch": (1.0, 1.0, 1.0), "torch-bf16": faster}) == expected


def test_the_choice_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    plain: SentenceTransformerModel,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO, logger="embedder")
    chosen, _ = choose(plain.library_model, "auto", name="m", threads=1, flags=BF16)
    assert [record.getMessage() for record in caplog.records] == ["measured the backends"]
    told: dict[str, Any] = cast("Any", caplog.records[0]).fields
    assert told["chosen"] == chosen
    assert float(told["torch-bf16_cosine"]) > 0.9999
    file = tmp_path / "ragdb" / "backends.json"
    assert [*json.loads(file.read_text()).values()] == [chosen]
    # What is remembered is believed, and nothing is measured.
    caplog.clear()
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), "torch-bf16")))
    assert choose(plain.library_model, "auto", name="m", threads=1, flags=BF16)[0] == "torch-bf16"
    assert not caplog.records
    # A file that is broken is as none.
    file.write_text("[1")
    model = plain.library_model
    remembered = choose(model, "auto", name="m", threads=1, measure=False, flags=BF16)
    assert remembered == ("torch", model)


def test_whatever_goes_wrong_leaves_float32(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    plain: SentenceTransformerModel,
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # A model of word vectors has no network to compute faster.
    tokenizer = cast("Any", plain.library_model.tokenizer).backend_tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    assert choose(model, "auto", name="m", threads=1, flags=BF16) == ("torch", model)
    told = [(r.getMessage(), cast("Any", r).fields["reason"]) for r in caplog.records]
    why = "this kind of model cannot be computed with torch-bf16"
    assert told == [("computing in float32", f"ModelError: {why}")]
    with pytest.raises(ModelError, match=why):
        choose(model, "torch-bf16", name="m", threads=1, flags=BF16)
