"""Questions that nobody should ask, at any size: each has to end, and soon.

    python -m loadtests.hard_questions --size 1000000

Each is asked three times in both modes; the table has the median of the last two and how many
passages were found. Words are the corpus' own, by the tenant's statistics.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, LiteralString

import psycopg
from rich.console import Console
from rich.table import Table

from loadtests import bench_data, search_latency

TURNS = 3

WORDS: LiteralString = """
select s.lexeme
from rag.lexeme_statistics as s
join rag.tenants as t on t.tenant_id = s.tenant_id
where t.name = %s and s.chunks > 0 and s.lexeme ~ '^[a-z]{3,}$'
order by s.chunks desc, s.lexeme
"""


def questions(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """What is asked, by what is hard about it."""
    words = [word for (word,) in connection.execute(WORDS, [bench_data.TENANT])]
    texts = connection.execute("select c.content from rag.chunks as c limit 30").fetchall()
    return {
        "the commonest word": words[0],
        "the five commonest together": " ".join(words[:5]),
        "the 20 commonest together": " ".join(words[:20]),
        "the 200 commonest": " ".join(words[:200]),
        "200 words of all kinds": " ".join(words[:: max(1, len(words) // 200)][:200]),
        "10,000 characters": " ".join(text for (text,) in texts)[:10_000],
        "a phrase of common words": f'"{words[0]} {words[1]}"',
        "common words without a common one": f"{words[1]} {words[2]} -{words[0]}",
        "nothing but an exclusion": f"-{words[0]}",
        "stop words": "the of and to in what is how",
        "punctuation": "?!. ,;:-()[]{}<>&|*'\\",
        "quotes": '"" " \' """',
    }


def measure(
    connection: psycopg.Connection[Any], query: str, mode: str, k: int
) -> tuple[float, int]:
    """Milliseconds, and how many passages are found."""
    times: list[float] = []
    found = 0
    for _ in range(TURNS):
        started = time.perf_counter()
        rows = connection.execute(
            search_latency.SEARCH, {"query": query, "k": k, "mode": mode, "filter": None}
        ).fetchall()
        times.append((time.perf_counter() - started) * 1000)
        found = len(rows)
    return statistics.median(times[1:]), found


def table(connection: psycopg.Connection[Any], title: str) -> Table:
    """Each question in a row."""
    shown = Table(title=title)
    for column in ("question", "characters", "lexical, k = 50: ms", "found", "hybrid: ms", "found"):
        shown.add_column(column, justify="left" if column == "question" else "right")
    for name, query in questions(connection).items():
        row = [name, f"{len(query):,}"]
        for mode, k in (("lexical", 50), ("hybrid", 10)):
            milliseconds, found = measure(connection, query, mode, k)
            row += [f"{milliseconds:,.1f}", str(found)]
        shown.add_row(*row)
    return shown


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    size = parser.parse_args().size
    with search_latency.connect(bench_data.load(size)) as connection:
        Console(width=110).print(table(connection, f"{size:,} chunks"))


if __name__ == "__main__":
    main()
