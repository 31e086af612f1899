"""Embedders in processes of their own that have the model already.

Importing torch and loading the model takes five seconds, too long for a test that kills ten
workers. A forkserver does it once, and every embedder is a fork of it: from `main` on it is the
real program with the real model.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedder import models
from embedder.__main__ import main
from embedder.models import EmbeddingModel, SentenceTransformerModel

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from numpy.typing import NDArray

# A claimed batch that nobody will wait for.
SLEEP_SECONDS = 120.0


class SleepyModel(SentenceTransformerModel):
    """The real model, but it falls asleep over its texts."""

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Takes much longer than any test waits."""
        time.sleep(SLEEP_SECONDS)
        return super().encode_documents(texts)


def start(
    environment: Mapping[str, str],
    log: Path,
    *,
    sleepy: bool = False,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start `python -m embedder run` with these variables; its output goes to `log`.

    `prepare` is called in the new process first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.worker_process"])
    process = context.Process(
        target=_run, args=({**environment}, log, sleepy, prepare), name="embedder", daemon=True
    )
    process.start()
    return process


def until(condition: Callable[[], object], *, seconds: float = 60, why: str = "") -> None:
    """Wait until a condition holds; fail the test when it does not after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why or "it did not happen in time"
        time.sleep(0.02)


def _run(
    environment: dict[str, str], log: Path, sleepy: bool, prepare: Callable[[], None] | None
) -> None:
    # Loaded in the forkserver already.
    from tests.worker_process import MODEL

    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    model: EmbeddingModel = MODEL
    if sleepy:
        model = SleepyModel(MODEL.name, MODEL.library_model)
        os.environ.setdefault("RAGDB_GRACE_SECONDS", "0.5")
    load = models.load
    models.load = lambda settings, row=None, *, measure=False: (
        model if row is None or row.name == model.name else load(settings, row, measure=measure)
    )
    if prepare is not None:
        prepare()
    sys.exit(main(["run"]))
