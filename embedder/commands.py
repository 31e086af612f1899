"""The commands of `python -m embedder`; each is a module with a function add_parser."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    # The type that argparse hands out has no public name.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

MODULES: Final = {
    "run": "embedder.worker",
    "wait": "embedder.progress",
    "config": "embedder.config",
    "ingest": "embedder.ingest",
    "sync": "embedder.sync",
    "export": "embedder.exports",
    "import": "embedder.imports",
    "maintain": "embedder.maintenance",
    "search": "embedder.search",
    "demo": "embedder.demo",
}
