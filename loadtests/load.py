"""Locust against a tenant of any size: first searches only, then with a share of writes.

    python -m loadtests.load --size 1000000 [--seconds 120] [--users 4] [--writes 0.1]
        [--tenants 20] [--pgbouncer | --dsn URL]

With --pgbouncer applications go through one in transaction mode, which is started for it; --dsn
names another pooler. Prints requests a second, latencies and failures of both runs side by side,
and then what has to hold at a million chunks on two cores: searches a second, no failures, p95 of
searches beside writes and without, and the memory that the server's sessions have of their own in
the second run, whose first quarter fills their caches; the exit code is 1 if something does not.
Locust's CSV files and its report in HTML are left in .ragdb/load.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from db.server import ROOT
from loadtests import bench_data, bench_server
from loadtests.corpus import PER_FOLDER
from tests.attacks.pooler import transaction_pool

RESULTS: Final = ROOT / "load"
LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
SEARCHES: Final = "all searches"

# What has to hold at a million chunks, on two cores that Locust shares.
LEAST_SEARCHES: Final = 100
"""A second, without writes."""
MOST_RATIO: Final = 1.5
"""Of p95 of searches beside writes to p95 without."""
MOST_GROWTH: Final = 1.1
"""Of the memory of the server's sessions, from the second quarter of a run to the last."""


@dataclass(frozen=True)
class Kind:
    """A line of Locust's statistics, times in milliseconds."""

    name: str
    requests: int
    failures: int
    per_second: float
    p50: float
    p95: float
    p99: float


@dataclass
class Memory:
    """Bytes that Locust's sessions have of their own, by sample, one every five seconds."""

    url: str
    samples: list[int] = field(default_factory=list)

    def watch(self, done: threading.Event) -> None:
        """Sample until done."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not done.wait(5):
                rows = connection.execute(
                    "select a.pid from pg_stat_activity as a "
                    "where a.datname = current_database() and a.application_name = %s",
                    [bench_server.APPLICATION_NAME],
                )
                if bytes_ := sum(_own_bytes(pid) for (pid,) in rows):
                    self.samples.append(bytes_)

    def quarters(self) -> tuple[float, float] | None:
        """Means of the second and the last quarter in MB; None if the server is elsewhere."""
        quarter = len(self.samples) // 4
        if not quarter:
            return None
        second, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return sum(second) / len(second) / 2**20, sum(last) / len(last) / 2**20


def _own_bytes(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return process.memory_full_info().uss if "postgres" in process.name() else 0
    except psutil.Error:
        return 0


def run(name: str, options: argparse.Namespace, writes: float) -> list[Kind]:
    """One run of Locust; its statistics, the sum of all searches first."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    prefix = RESULTS / name
    command = [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--users", str(options.users + 1), "--spawn-rate", "100"),
        *("--run-time", f"{options.seconds}s", "--stop-timeout", "10", "--loglevel", "WARNING"),
        *("--csv", str(prefix), "--html", f"{prefix}.html", "--reset-stats"),
        *("--size", str(options.size), "--sentences", str(options.sentences)),
        *("--tenants", str(options.tenants)),
        *("--writes", str(writes), "--dsn", options.dsn),
        *("--connections", str(options.users + 1)),
    ]
    with (RESULTS / f"{name}.log").open("wb") as log:
        finished = subprocess.run(command, stdout=log, stderr=log, check=False)
    path = Path(f"{prefix}_stats.csv")
    if not path.exists():
        raise SystemExit(f"locust ended with {finished.returncode}, see {prefix}.log")
    together = json.loads(Path(f"{prefix}_searches.json").read_text("utf-8"))
    with path.open(encoding="utf-8") as file:
        return [Kind(SEARCHES, **together)] + [
            Kind(
                row["Name"],
                int(row["Request Count"]),
                int(row["Failure Count"]),
                float(row["Requests/s"]),
                *(float(row[column]) for column in ("50%", "95%", "99%")),
            )
            for row in csv.DictReader(file)
            if int(row["Request Count"])
        ]


def report(runs: dict[str, list[Kind]]) -> None:
    """Print a table for all runs."""
    table = Table(title="Locust")
    for column in ("run", "request", "count", "failed", "per second", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("run", "request") else "right")
    for name, kinds in runs.items():
        for kind in kinds:
            times = (f"{value:,.0f}" for value in (kind.p50, kind.p95, kind.p99))
            table.add_row(
                name, kind.name, f"{kind.requests:,}", f"{kind.failures:,}",
                f"{kind.per_second:,.1f}", *times,
            )  # fmt: skip
        table.add_section()
    Console(width=100).print(table)


def bars(runs: list[list[Kind]], memory: Memory) -> Iterator[tuple[bool, str]]:
    """What has to hold: whether it does, and a sentence with the numbers."""
    alone, beside = (next(kind for kind in kinds if kind.name == SEARCHES) for kinds in runs)
    yield (
        alone.per_second >= LEAST_SEARCHES,
        f"at least {LEAST_SEARCHES} searches a second: {alone.per_second:,.1f}",
    )
    # Locust's line of all requests has them, too.
    failures = sum(kind.failures for kinds in runs for kind in kinds if kind.name == "Aggregated")
    yield failures == 0, f"no failures: {failures:,}"
    ratio = beside.p95 / alone.p95
    yield (
        ratio <= MOST_RATIO,
        f"p95 of searches beside writes at most {MOST_RATIO} times without: {ratio:.2f}"
        f" ({beside.p95:,.0f} and {alone.p95:,.0f} ms)",
    )
    if quarters := memory.quarters():
        second, last = quarters
        yield (
            last <= second * MOST_GROWTH,
            f"memory of the server's sessions grows by {MOST_GROWTH - 1:.0%} at most: "
            f"{second:,.0f} MB in the second quarter, {last:,.0f} MB in the last",
        )


@contextmanager
def application(url: str, options: argparse.Namespace) -> Generator[str]:
    """What applications connect to."""
    if options.dsn:
        yield options.dsn
        return
    own = bench_server.application(url)
    if not options.pgbouncer:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="ragdb-pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        user = urlsplit(own).username or bench_server.APPLICATION
        with transaction_pool(url, [user], Path(folder)) as pool:
            yield pool


def main() -> None:
    """Both runs, their table and the bars."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--sentences", type=int, default=PER_FOLDER, help="of each folder")
    parser.add_argument("--seconds", type=int, default=120, help="of each run")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--tenants", type=int, default=20, help="besides the big one")
    parser.add_argument("--writes", type=float, default=0.1, help="share of the second run")
    poolers = parser.add_mutually_exclusive_group()
    poolers.add_argument("--pgbouncer", action="store_true", help="in front of the server")
    poolers.add_argument("--dsn", default="", help="of a pooler in front of the server")
    options = parser.parse_args()
    url = bench_data.load(options.size, options.sentences)
    memory = Memory(url)
    done = threading.Event()
    watcher = threading.Thread(target=memory.watch, args=[done])
    with application(url, options) as options.dsn:
        runs = {"searches only": run("searches", options, 0.0)}
        watcher.start()
        try:
            runs[f"{options.writes:.0%} writes"] = run("writes", options, options.writes)
        finally:
            done.set()
            watcher.join()
    report(runs)
    checked = [*bars([*runs.values()], memory)]
    for holds, sentence in checked:
        print(f"{'ok  ' if holds else 'MISS'} {sentence}")
    raise SystemExit(not all(holds for holds, _ in checked))


if __name__ == "__main__":
    main()
