"""Lexical searches by GIN alone, by posting lists alone, and by what is estimated to be faster.

    python -m loadtests.posting_lists --size 1000000 [--questions 250]

Without a filter, and with one that keeps a tenth.
The choice is replaced in a transaction that is rolled back, 50 questions at a time, so that each
way meets the same load. All three have to find the same scores, or the program fails.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any, Final, LiteralString

import numpy as np
import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from loadtests import bench_data
from loadtests.corpus import shared

PART: Final = 50
K: Final = 50
RELATIVE: Final = 1e-5

CHOICE: Final[LiteralString] = """
create or replace function rag._is_for_posting_lists(
    counts double precision[], bounds double precision[], threshold double precision, blocks int,
    changes bigint, wanted double precision
)
    returns boolean
    language sql
    immutable
return {}
"""

SEARCH: Final = """
select s.score from rag.search(%s, %s, mode => 'lexical', filter => %s) as s
"""

CONDITIONS: Final[dict[str, dict[str, Any] | None]] = {
    "no filter": None,
    "a filter of 10 %": {"tenth": 3},
}

WAYS: Final[dict[str, LiteralString | None]] = {
    "GIN alone": "false",
    "posting lists alone, for lexemes that have some": "true",
    "by the estimate": None,
}


def ask(
    connection: psycopg.Connection[Any],
    choice: LiteralString | None,
    texts: list[str],
    condition: dict[str, Any] | None,
) -> tuple[list[float], list[list[float]]]:
    """Milliseconds and scores of each question, with the choice replaced or as it is."""
    times: list[float] = []
    scores: list[list[float]] = []
    wanted = None if condition is None else Jsonb(condition)
    with connection.transaction(force_rollback=True):
        if choice is not None:
            connection.execute(CHOICE.format(choice))
        # Statements are planned anew after it.
        for text in texts[:5]:
            connection.execute(SEARCH, [text, K, wanted]).fetchall()
        for text in texts:
            started = time.perf_counter()
            rows = connection.execute(SEARCH, [text, K, wanted]).fetchall()
            times.append((time.perf_counter() - started) * 1000)
            scores.append([score for (score,) in rows])
    return times, scores


def run(
    connection: psycopg.Connection[Any], texts: list[str], condition: dict[str, Any] | None = None
) -> dict[str, list[float]]:
    """Milliseconds of each way, one for each question; ends if the ways find different scores."""
    times: dict[str, list[float]] = defaultdict(list)
    for first in range(0, len(texts), PART):
        found: list[list[list[float]]] = []
        for way, choice in WAYS.items():
            taken, scores = ask(connection, choice, texts[first : first + PART], condition)
            times[way] += taken
            found.append(scores)
        for one, *others in zip(*found, strict=True):
            if not all(np.allclose(one, other, rtol=RELATIVE, atol=0) for other in others):
                raise SystemExit("the ways find different scores")
    gin, lists, *_ = (times[way] for way in WAYS)
    times["the faster one each time"] = [*map(min, gin, lists)]
    return times


def main() -> None:
    """Ask, compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=250)
    options = parser.parse_args()
    texts = [question.text for question in shared().questions(options.questions)]
    table = Table(title=f"{options.size:,} chunks, {len(texts)} questions, k = {K}, ms")
    for column in ("", "", "mean", "p50", "p95", "p99", "most"):
        table.add_column(column, justify="right" if column else "left")
    with bench_data.connect(bench_data.load(options.size)) as connection:
        for name, condition in CONDITIONS.items():
            for way, taken in run(connection, texts, condition).items():
                values = (np.mean(taken), *np.percentile(taken, [50, 95, 99, 100]))
                table.add_row(name, way, *(f"{value:,.1f}" for value in values))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
