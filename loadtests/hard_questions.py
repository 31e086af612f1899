"""Questions that nobody should ask, at any size: each has to end, and soon.

    python -m loadtests.hard_questions --size 1000000 [--bar 100]

Each is asked three times in both modes; the table has the median of the last two and how many
passages were found. Words are the corpus' own, by the tenant's statistics. The exit code is 1 when
a median is above the bar, in milliseconds, but for the EXCEPTIONS, which are told all the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from rich.console import Console
from rich.table import Table

from loadtests import bench_data, search_latency

TURNS = 3
BAR = 100.0
PHRASE = "a phrase of common words"
# What may take longer, and why.
EXCEPTIONS = {
    PHRASE: "phrases are checked by lexemes' positions, some 300 ms of two common ones at a million"
}

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
        PHRASE: f'"{words[0]} {words[1]}"',
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


@dataclass(frozen=True)
class Answer:
    """A question with the milliseconds of its answer, and how many passages were found."""

    name: str
    characters: int
    lexical: tuple[float, int]
    hybrid: tuple[float, int]

    @property
    def slowest(self) -> float:
        """Milliseconds of the mode that takes longer."""
        return max(self.lexical[0], self.hybrid[0])


def ask(connection: psycopg.Connection[Any]) -> list[Answer]:
    """Each question in both modes."""
    return [
        Answer(
            name,
            len(query),
            measure(connection, query, "lexical", 50),
            measure(connection, query, "hybrid", 10),
        )
        for name, query in questions(connection).items()
    ]


def table(answers: list[Answer], title: str) -> Table:
    """Each question in a row."""
    shown = Table(title=title)
    for column in ("question", "characters", "lexical, k = 50: ms", "found", "hybrid: ms", "found"):
        shown.add_column(column, justify="left" if column == "question" else "right")
    for answer in answers:
        row = [answer.name, f"{answer.characters:,}"]
        for milliseconds, found in (answer.lexical, answer.hybrid):
            row += [f"{milliseconds:,.1f}", str(found)]
        shown.add_row(*row)
    return shown


def verdict(answers: list[Answer], bar: float) -> tuple[bool, list[str]]:
    """Whether all but EXCEPTIONS keep within the bar (ms), and a line on each that does not."""
    slow = [answer for answer in answers if answer.slowest > bar]
    lines: list[str] = []
    for answer in slow:
        reason = f": {EXCEPTIONS[answer.name]}" if answer.name in EXCEPTIONS else ""
        lines.append(
            f"{'known' if reason else 'MISS '} {answer.name}, {answer.slowest:,.1f} ms, "
            f"the bar is {bar:g} ms{reason}"
        )
    return {answer.name for answer in slow} <= EXCEPTIONS.keys(), lines


def main() -> None:
    """Ask and print; exit with 1 when something takes longer than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--bar", type=float, default=BAR, help="milliseconds that none may take")
    options = parser.parse_args()
    with search_latency.connect(bench_data.load(options.size)) as connection:
        answers = ask(connection)
    Console(width=110).print(table(answers, f"{options.size:,} chunks"))
    holds, lines = verdict(answers, options.bar)
    print("\n".join(lines))
    sys.exit(not holds)


if __name__ == "__main__":
    main()
