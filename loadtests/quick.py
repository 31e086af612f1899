"""The tables of bench-data and bench-search in two minutes: a small corpus, loaded anew each time.

    python -m loadtests.quick [--size 20000] [--questions 60] [--judged 20] [--sentences 1000]

For everyday use: after a change, is anything much slower, larger or less complete? Ratios and
quality tell. What is seen at a million chunks only, `make bench-search` tells. So few sentences are
embedded in half a minute, once: their vectors are kept in .ragdb/bench.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

from rich.console import Console

from loadtests import bench_data, search_latency, storage
from loadtests.corpus import shared

SENTENCES: Final = 1_000
"""Of each folder of the shared data, seven times fewer than for the large corpora."""


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--judged", type=int, default=20, help="questions for quality")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="of each folder")
    options = parser.parse_args()
    started = time.monotonic()
    url = bench_data.load(options.size, options.sentences, fresh=True)
    questions = shared(options.sentences).questions(options.questions)
    times, quality = search_latency.run(url, questions, options.judged)
    console = Console(width=120)
    console.print(storage.table(url, bench_data.TENANT, options.size))
    title = f"{options.size:,} chunks, {options.questions} questions"
    console.print(search_latency.table(times, quality, title))
    print(f"{time.monotonic() - started:,.0f} seconds in all")


if __name__ == "__main__":
    main()
