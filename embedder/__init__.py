"""The embedder of ragdb: a sidecar that fills embeddings, and the command line for people."""

from __future__ import annotations

__version__ = "0.1.0"
