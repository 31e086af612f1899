"""Where the time of a hybrid search goes: each SQL function's own share of it.

    python -m loadtests.search_profile --size 1000000 [--questions 60] [--kind "hybrid, k = 10"]

By pg_stat_user_functions, which adds some time to each call, so the processor time of the server's
session without it is told as well. Read only beside each other, and in a database that nobody else
uses: the statistics are reset.
"""

from __future__ import annotations

import argparse
from typing import Any, LiteralString

import psycopg
from rich.console import Console
from rich.table import Table

from loadtests import bench_data, search_latency
from loadtests.chunking import server_seconds
from loadtests.corpus import Question, shared

FUNCTIONS: LiteralString = """
select f.funcname, f.calls, f.total_time, f.self_time
from pg_stat_user_functions as f
order by f.self_time desc, f.funcname
limit %s
"""


def ask(
    connection: psycopg.Connection[Any], kind: search_latency.Kind, questions: list[Question]
) -> float:
    """Ask all; milliseconds of the session's processor time a question."""
    worked = server_seconds(connection)
    for question in questions:
        connection.execute(kind.statement, search_latency.asked(kind, question, "")).fetchall()
    return (server_seconds(connection) - worked) * 1000 / len(questions)


def profile(
    connection: psycopg.Connection[Any],
    kind: search_latency.Kind,
    questions: list[Question],
    rows: int,
) -> tuple[float, list[tuple[str, int, float, float]]]:
    """Processor time a question, and name, calls, total and own milliseconds by function."""
    ask(connection, kind, questions)
    processor = ask(connection, kind, questions)
    connection.execute("select pg_stat_reset()")
    connection.execute("set track_functions = 'all'")
    ask(connection, kind, questions)
    connection.execute("set track_functions = 'none'")
    connection.execute("select pg_stat_force_next_flush()")
    return processor, connection.execute(FUNCTIONS, [rows]).fetchall()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--kind", default=search_latency.HYBRID, help="as bench-search names them")
    parser.add_argument("--rows", type=int, default=25)
    options = parser.parse_args()
    questions = shared().questions(options.questions)
    with search_latency.connect(bench_data.load(options.size)) as connection:
        kinds = {kind.name: kind for kind in search_latency.kinds(search_latency.place(connection))}
        if options.kind not in kinds:
            parser.error(f"--kind is one of: {'; '.join(kinds)}")
        processor, found = profile(connection, kinds[options.kind], questions, options.rows)
    title = f"{options.kind}: {processor:.1f} ms of processor a search, {options.size:,} chunks"
    shown = Table(title=title)
    for column in ("function", "calls a search", "ms with what it calls", "ms of its own"):
        shown.add_column(column, justify="left" if column == "function" else "right")
    for name, calls, total, own in found:
        mean = [value / len(questions) for value in (calls, total, own)]
        shown.add_row(name, f"{mean[0]:,.1f}", f"{mean[1]:.2f}", f"{mean[2]:.2f}")
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
