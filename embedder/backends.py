"""Faster ways to compute a model of sentence-transformers on a CPU, and which is best here.

`torch` is the model as it is, in float32. `torch-bf16` computes in bfloat16, for CPUs with
instructions for it. Both need nothing but torch. docs/embedder.md has what else was tried.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import itertools
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from embedder.database import reason
from embedder.errors import ModelError
from embedder.logs import fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)

# Names of instructions in /proc/cpuinfo, of x86 and of ARM.
INSTRUCTIONS: Final[dict[str, frozenset[str]]] = {
    "torch-bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
}
BACKENDS: Final = ("torch", *INSTRUCTIONS)

# What a faster one must keep of the direction of the samples' vectors, and what it must gain.
LEAST_MEAN_COSINE: Final = 0.999
LEAST_COSINE: Final = 0.99
LEAST_GAIN: Final = 1.1
# About 2,000 tokens, what one pass has: 0.3 s in float32 on two cores.
SAMPLES: Final = 12
SAMPLE_CHARACTERS: Final = 700
ROUNDS: Final = 3
# On a busy machine one round must do.
MOST_SECONDS: Final = 10.0

Encode = Callable[[list[str]], "NDArray[np.float32]"]


def instructions(root: Path = Path("/")) -> frozenset[str]:
    """Names of the instructions that this CPU has; empty where nobody tells."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    return frozenset(found[1].split()) if found else frozenset()


def candidates(flags: frozenset[str]) -> list[str]:
    """The backends that this CPU has instructions for, float32 always."""
    return ["torch", *(name for name, needed in INSTRUCTIONS.items() if needed & flags)]


def converted(model: Any, backend: str) -> Any:  # noqa: ANN401 (a SentenceTransformer)
    """The model for a backend: itself for `torch`, else a copy that shares what is equal.

    Raises ModelError for a model that has no network of transformers in it.
    """
    if backend == "torch":
        return model
    torch: Any = importlib.import_module("torch")
    if getattr(model[0], "auto_model", None) is None:
        raise ModelError(f"this kind of model cannot be computed with {backend}")
    # What is not of the network (tokenizer, pooling) is shared, by telling deepcopy so.
    shared: dict[int, object] = {}
    for part in itertools.islice(model, 1, None):
        shared[id(part)] = part
    for value in cast("dict[str, object]", vars(model[0])).values():
        if not isinstance(value, dict):
            shared[id(value)] = value
    faster = copy.deepcopy(model, shared)
    faster[0].auto_model.to(torch.bfloat16)

    def in_float32(_module: object, _inputs: object, features: dict[str, Any]) -> dict[str, Any]:
        # Pooling adds up hundreds of vectors: not in half precision.
        return features | {"token_embeddings": features["token_embeddings"].float()}

    faster[0].register_forward_hook(in_float32)
    return faster


def choose(
    model: Any,  # noqa: ANN401
    wanted: str,
    *,
    name: str,
    threads: int,
    measure: bool = True,
    flags: frozenset[str] | None = None,
) -> tuple[str, Any]:
    """The backend that is wanted, or for `auto` the fastest that is true to float32 here.

    Returns it with the model for it. `auto` measures for some seconds once for a machine, a model
    and a version of torch, and remembers; without `measure` it only remembers. Whatever goes wrong
    over it leaves float32. `flags` are the CPU's instructions, by default of this one. Raises
    ModelError if the one that is wanted cannot be had.
    """
    flags = instructions() if flags is None else flags
    possible = candidates(flags)
    if wanted != "auto":
        backend = wanted
        if backend not in possible:
            raise ModelError(
                f"this CPU has no instructions for {backend}",
                hint="RAGDB_BACKEND=auto takes the best there is",
            )
        return backend, converted(model, backend)
    if len(possible) == 1:
        return "torch", model
    known = _Memory(name, threads, flags)
    try:
        remembered = known.recall()
        if remembered in possible:
            return remembered, converted(model, remembered)
        if not measure:
            return "torch", model
        backend, faster = _measured(model, possible)
    except Exception as error:  # noqa: BLE001 (speed is no reason not to work)
        why = f"{type(error).__name__}: {reason(error)}"
        LOG.warning("computing in float32", extra=fields(reason=why))
        return "torch", model
    known.remember(backend)
    return backend, faster


def _measured(model: Any, possible: Sequence[str]) -> tuple[str, Any]:  # noqa: ANN401
    """The fastest backend by a few rounds in turns, and the model for it."""
    texts = samples()
    variants = {backend: converted(model, backend) for backend in possible}
    began = time.perf_counter()
    vectors = {backend: _encode(variant, texts) for backend, variant in variants.items()}
    seconds: dict[str, float] = dict.fromkeys(possible, float("inf"))
    for turn in range(ROUNDS):
        if turn and time.perf_counter() - began > MOST_SECONDS:
            break
        for backend, variant in variants.items():
            started = time.perf_counter()
            _encode(variant, texts)
            seconds[backend] = min(seconds[backend], time.perf_counter() - started)
    measured: dict[str, tuple[float, float, float]] = {}
    for backend, found in vectors.items():
        cosines = np.sum(found * vectors["torch"], axis=1)
        measured[backend] = seconds[backend], float(cosines.mean()), float(cosines.min())
    best = pick(measured)
    LOG.info(
        "measured the backends",
        extra=fields(
            chosen=best,
            **{f"{b}_per_second": len(texts) / found[0] for b, found in measured.items()},
            **{f"{b}_cosine": f"{found[1]:.5f}" for b, found in measured.items()},
        ),
    )
    return best, variants[best]


def pick(measured: dict[str, tuple[float, float, float]]) -> str:
    """The best of (seconds, mean cosine, least cosine) by backend; `torch` must be among them."""
    plain = measured["torch"][0]
    good = [
        (seconds, backend)
        for backend, (seconds, mean, least) in measured.items()
        # Not a number fails every comparison, and so is not good.
        if mean >= LEAST_MEAN_COSINE and least >= LEAST_COSINE and seconds * LEAST_GAIN <= plain
    ]
    return min(good)[1] if good else "torch"


def samples() -> list[str]:
    """English prose of Python's own documentation, in passages."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    texts = sorted(text for text in topics.values() if len(text) > SAMPLE_CHARACTERS)
    return [text[:SAMPLE_CHARACTERS] for text in texts[:: max(1, len(texts) // SAMPLES)][:SAMPLES]]


def _encode(model: Any, texts: list[str]) -> NDArray[np.float32]:  # noqa: ANN401
    vectors = model.encode(
        texts, batch_size=len(texts), show_progress_bar=False, normalize_embeddings=True
    )
    return unit(vectors)


def unit(vectors: Any) -> NDArray[np.float32]:  # noqa: ANN401
    """Vectors of length 1 in float32: one that was normalised in bfloat16 is off by 1e-3."""
    exact = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)


class _Memory:
    """What was chosen before on such a machine: a small file in the user's cache."""

    def __init__(self, name: str, threads: int, flags: frozenset[str]) -> None:
        torch: Any = importlib.import_module("torch")
        parts = [name, str(threads), torch.__version__, platform.machine(), *sorted(flags)]
        self._key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(folder) / "ragdb" / "backends.json"

    def recall(self) -> str | None:
        """The choice, or None."""
        found = self._read().get(self._key)
        return next((backend for backend in BACKENDS if backend == found), None)

    def remember(self, backend: str) -> None:
        """Keep the choice, if there is a place for it."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own, so that of two processes one wins and neither reads a half.
            draft = self._path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(self._read() | {self._key: backend}))
            draft.replace(self._path)

    def _read(self) -> dict[str, str]:
        try:
            return cast("dict[str, str]", dict(json.loads(self._path.read_text())))
        except (OSError, ValueError, TypeError):
            return {}
