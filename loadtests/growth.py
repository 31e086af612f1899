"""How each cost grows: with the number of chunks, and with the number of tenants.

    python -m loadtests.growth [--sizes 10000,100000,300000] [--tenants 10,100,1000,10000]

Loads each size (or finds it loaded), measures searches as search_latency does, and tells what
loading took and what is stored, with the exponent of each cost: n^0 stays the same, n^1 doubles
when the corpus does. What was measured is kept in .ragdb/bench, so that the plot shows all sizes
ever measured here: `--sizes 1000000` adds the largest, `--sizes ''` measures none. Tenants share
100,000 chunks (--chunks) by Zipf's law, in the shared partitions; they are searched as often as
they have chunks.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg

from loadtests import bench_data, bench_server, search_latency, storage, tenants
from loadtests.chart import Curves, curves
from loadtests.chunking import server_seconds
from loadtests.corpus import CACHE, Question, shared
from loadtests.scratch import scratch_database

PICTURE: Final = CACHE / "growth.svg"
PICTURED: Final = {
    "hybrid p95, ms": f"{search_latency.HYBRID}: p95, ms",
    "hybrid CPU, ms": f"{search_latency.HYBRID}: CPU, ms",
    "bare HNSW CPU, ms": f"{search_latency.BARE_HNSW}: CPU, ms",
    "ts_rank_cd CPU, ms": f"{search_latency.TS_RANK_CD}: CPU, ms",
    "put, chunks/s": "put, chunks/s",
    "all tables and indexes, MB": "all tables and indexes, MB",
    "HNSW built, s": "built embeddings_embedding_idx, s",
}
"""Costs in the plot, by the names they have there."""


@dataclass(frozen=True)
class Measured:
    """What a size costs: p50, p95 and processor time in ms by kind, loading, bytes by relation."""

    chunks: int
    times: dict[str, tuple[float, float]]
    processor: dict[str, float]
    loaded: dict[str, Any] | None
    bytes: dict[str, int]


def measure(size: int, count: int) -> Measured:
    """Load a size if it is not there, and measure it."""
    url = bench_data.load(size)
    questions = shared().questions(count)
    times, _ = search_latency.run(url, questions, 0)
    loaded = storage.kept(url)
    with psycopg.connect(url) as connection:
        found = storage.stored(connection, bench_data.TENANT)
    return Measured(
        size,
        {name: _percentiles(values) for name, values in times.items()},
        processor(url, questions),
        asdict(loaded) if loaded else None,
        {_unnumbered(one.name): one.bytes for one in found},
    )


def processor(url: str, questions: Sequence[Question]) -> dict[str, float]:
    """Mean milliseconds of processor of the server's session by kind: other work hardly matters."""
    found: dict[str, float] = {}
    with search_latency.connect(url) as connection:
        lexemes = [search_latency.or_query(connection, question.text) for question in questions]
        for kind in search_latency.kinds(search_latency.place(connection)):
            worked = server_seconds(connection)
            for question, words in zip(questions, lexemes, strict=True):
                parameters = search_latency.asked(kind, question, words)
                connection.execute(kind.statement, parameters).fetchall()
            worked = server_seconds(connection) - worked
            found[kind.name] = 1000 * worked / len(questions)
    return found


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return float(p50), float(p95)


def _unnumbered(name: str) -> str:
    """Without the number of the partition, so that sizes can be compared."""
    return "_".join(part for part in name.split("_") if not part[1:].isdigit())


def costs(found: Measured) -> dict[str, float]:
    """Everything that may grow, by name with its unit."""
    known = {
        f"{name}: {percentile}, ms": value
        for name, values in found.times.items()
        for percentile, value in zip(("p50", "p95"), values, strict=True)
    }
    known |= {f"{name}: CPU, ms": value for name, value in found.processor.items()}
    if found.loaded:
        loaded = storage.Loaded(**found.loaded)
        known["put, chunks/s"] = found.chunks / loaded.put
        known["embeddings stored, chunks/s"] = found.chunks / loaded.embed
        known["partition of its own, s"] = loaded.isolate
        known |= {
            f"built {_unnumbered(name)}, s": seconds
            for name, seconds in loaded.indexes.items()
            if seconds > 10 * storage.POLL_SECONDS
        }
    total = sum(found.bytes.values())
    known["all tables and indexes, MB"] = total / 2**20
    known["bytes per chunk"] = total / found.chunks
    known |= {
        f"{name}, MB": size / 2**20 for name, size in found.bytes.items() if size > total / 100
    }
    return known


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of a line through the logarithms: how a cost grows with n."""
    if len(points) < 2 or min(value for _, value in points) <= 0:
        return None
    x, y = np.log(np.asarray(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def table(found: Mapping[int, Mapping[str, float]], what: str) -> list[str]:
    """Costs by n, and how each grows, in Markdown."""
    names = list(dict.fromkeys(name for known in found.values() for name in known))
    lines = [
        f"| {what} | {' | '.join(f'{n:,}' for n in found)} | grows as |",
        f"| --- |{' ---: |' * (len(found) + 1)}",
    ]
    for name in names:
        points = [(n, known[name]) for n, known in found.items() if name in known]
        grows = exponent(points)
        cells = [_number(known.get(name)) for known in found.values()]
        cells.append("" if grows is None else f"n^{grows:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(found: Mapping[int, Mapping[str, float]]) -> str:
    """The main costs over the number of chunks."""
    series = {
        name: [(float(n), known[cost]) for n, known in found.items() if cost in known]
        for name, cost in PICTURED.items()
    }
    shown = {
        f"{name} (n^{grows:.2f})": points
        for name, points in series.items()
        if (grows := exponent(points)) is not None
    }
    return curves(Curves("How costs grow with the corpus", "chunks", shown))


def of_tenants(count: int, chunks: int, searches: int) -> dict[str, float]:
    """What so many tenants cost that have so many chunks together."""
    generator = random.Random(1)
    with (
        scratch_database(bench_server.start(), "ragdb_growth") as url,
        psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection,
    ):
        started = time.perf_counter()
        options = argparse.Namespace(tenants=count, chunks=chunks, dedicated=0)
        tenants.fill(connection, options)
        filled = time.perf_counter() - started
        sizes = dict(
            connection.execute(
                "select t.name, c.chunks from rag._tenant_chunks() as c "
                "join rag.tenants as t using (tenant_id) where t.name like 'tenant %'"
            ).fetchall()
        )
        connection.execute("load 'vector'")
        drawn = generator.choices([*sizes], [*map(float, sizes.values())], k=searches + 20)
        found = [tenants.searched(connection, generator, name) for name in drawn][20:]
        taken, planning, locks = zip(*found, strict=True)
        [(stored,)] = connection.execute("select pg_database_size(current_database())").fetchall()
        started = time.perf_counter()
        connection.execute("select * from rag.maintenance_plan()").fetchall()
        planned = time.perf_counter() - started
    p50, p95 = _percentiles(taken)
    return {
        "search p50, ms": p50,
        "search p95, ms": p95,
        "planning, ms": float(np.median(planning)),
        "locks of a search": float(max(locks)),
        "filled in s": filled,
        "database, MB": stored / 2**20,
        "rag.maintenance_plan(), ms": planned * 1000,
    }


def keep(kind: str, n: int, found: Mapping[str, Any]) -> None:
    """Write down what was measured."""
    CACHE.mkdir(parents=True, exist_ok=True)
    _path(kind, n).write_text(json.dumps(found, indent=1), "utf-8")


def kept(kind: str) -> dict[int, dict[str, Any]]:
    """What was measured, by size."""
    paths = {int(path.stem.rpartition("-")[2]): path for path in CACHE.glob(f"growth-{kind}-*")}
    return {n: json.loads(paths[n].read_text("utf-8")) for n in sorted(paths)}


def _path(kind: str, n: int) -> Path:
    return CACHE / f"growth-{kind}-{n}.json"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    """Measure what is asked for; print and draw all that is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=_numbers, default=[10_000, 100_000, 300_000])
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--tenants", type=_numbers, default=[10, 100, 1_000, 10_000])
    parser.add_argument("--chunks", type=int, default=100_000, help="of all tenants together")
    parser.add_argument("--searches", type=int, default=200, help="of tenants")
    options = parser.parse_args()
    for size in options.sizes:
        keep("chunks", size, asdict(measure(size, options.questions)))
    for count in options.tenants:
        keep("tenants", count, of_tenants(count, options.chunks, options.searches))
    found = {n: costs(Measured(**known)) for n, known in kept("chunks").items()}
    if found:
        print(*table(found, "chunks"), sep="\n")
        if len(found) > 1:
            PICTURE.write_text(picture(found), "utf-8")
            print(f"\nThe plot is in {PICTURE}.")
        print()
    if by_tenants := kept("tenants"):
        print(*table(by_tenants, "tenants"), sep="\n")


if __name__ == "__main__":
    main()
