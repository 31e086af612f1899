"""The real model, loaded once: the forkserver of tests/processes.py imports this module."""

from __future__ import annotations

from embedder.config import DEFAULT_MODEL
from embedder.models import SentenceTransformerModel

# One thread: torch's threads would not survive a fork.
MODEL = SentenceTransformerModel.load(DEFAULT_MODEL, device="cpu", threads=1, offline=True)
