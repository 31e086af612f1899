"""Locust against a tenant of any size: first searches only, then with a share of writes.

    python -m loadtests.load --size 1000000 [--seconds 120] [--users 4] [--writes 0.1] [--dsn URL]

Prints requests a second, latencies and failures of both runs side by side, and what memory the
server's processes have of their own in the first and in the last quarter of the second run.
Locust's CSV files and its report in HTML are left in .ragdb/load.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from db.server import ROOT
from loadtests import bench_data

RESULTS: Final = ROOT / "load"
LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")


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
    """Bytes that the server's processes have of their own, by sample, one every five seconds."""

    postmaster: psutil.Process | None
    samples: list[int] = field(default_factory=list)

    def watch(self, done: threading.Event) -> None:
        """Sample until done."""
        while not done.wait(5):
            if self.postmaster is not None:
                self.samples.append(sum(map(_own_bytes, self.postmaster.children())))

    def describe(self) -> str:
        """Means of the first and the last quarter of the samples."""
        if not self.samples:
            return "not known: the server is not on this machine"
        quarter = max(1, len(self.samples) // 4)
        first, last = self.samples[:quarter], self.samples[-quarter:]
        mega = [sum(part) / len(part) / 2**20 for part in (first, last)]
        return f"{mega[0]:,.0f} MB in the first quarter, {mega[1]:,.0f} MB in the last"


def _own_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:
        return 0


def postmaster(url: str) -> psutil.Process | None:
    """The server's first process, if it is one of this machine."""
    with psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        try:
            process = psutil.Process(backend)
            return process.parent() if "postgres" in process.name() else None
        except psutil.Error:
            return None


def run(name: str, options: argparse.Namespace, writes: float) -> list[Kind]:
    """One run of Locust; its statistics, the sum of all searches first."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    prefix = RESULTS / name
    command = [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--users", str(options.users + 1), "--spawn-rate", "100"),
        *("--run-time", f"{options.seconds}s", "--stop-timeout", "10", "--loglevel", "WARNING"),
        *("--csv", str(prefix), "--html", f"{prefix}.html", "--reset-stats"),
        *("--size", str(options.size), "--tenants", str(options.tenants)),
        *("--writes", str(writes), "--dsn", options.dsn),
        *("--connections", str(options.users + 1)),
    ]
    with (RESULTS / f"{name}.log").open("wb") as log:
        finished = subprocess.run(command, stdout=log, stderr=log, check=False)
    path = Path(f"{prefix}_stats.csv")
    if not path.exists():
        raise SystemExit(f"locust ended with {finished.returncode}, see {prefix}.log")
    with path.open(encoding="utf-8") as file:
        return [
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


def main() -> None:
    """Both runs and the table; the exit code is 1 if any request failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=120, help="of each run")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--tenants", type=int, default=20, help="besides the big one")
    parser.add_argument("--writes", type=float, default=0.1, help="share of the second run")
    parser.add_argument("--dsn", default="", help="of a pooler in front of the server")
    options = parser.parse_args()
    url = bench_data.load(options.size)
    memory = Memory(postmaster(url))
    done = threading.Event()
    watcher = threading.Thread(target=memory.watch, args=[done])
    runs = {"searches only": run("searches", options, 0.0)}
    watcher.start()
    try:
        runs[f"{options.writes:.0%} writes"] = run("writes", options, options.writes)
    finally:
        done.set()
        watcher.join()
    report(runs)
    print(f"Memory of the server's processes while it is written to: {memory.describe()}.")
    if any(kind.failures for kinds in runs.values() for kind in kinds):
        raise SystemExit(f"requests failed, see {RESULTS}")


if __name__ == "__main__":
    main()
