"""The benchmarks at work on a corpus small enough for every day: their shape, never their times."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import psycopg
import pytest

from loadtests import (
    bench_data,
    candidates,
    growth,
    hard_questions,
    load,
    posting_lists,
    search_latency,
    search_profile,
    storage,
)
from loadtests.chart import Curves, curves
from loadtests.corpus import DATA, shared
from loadtests.load import Kind, Memory
from tests.attacks import pooler
from tests.many_chunks import fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from db.server import Server

SIZE = 2_000
SENTENCES = 50

needs_texts = pytest.mark.skipif(not DATA.is_dir(), reason=f"the texts are not there: {DATA}")


class Bench(NamedTuple):
    """A loaded corpus: its database, and the server's own."""

    url: str
    server: str


@pytest.fixture(scope="module")
def bench(server: Server) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", server.url("postgres"))
        # So that no process that is started embeds them once more.
        shared(SENTENCES).questions()
        yield Bench(bench_data.load(SIZE, SENTENCES, fresh=True), server.url("postgres"))


@needs_texts
def test_the_table_of_bench_search_and_its_quality(bench: Bench) -> None:
    questions = shared(SENTENCES).questions(10)
    times, quality = search_latency.run(bench.url, questions, 6)
    with search_latency.connect(bench.url) as connection:
        kinds = [kind.name for kind in search_latency.kinds(search_latency.place(connection))]
        [(embedding,)] = connection.execute(
            "select query_embedding from rag.search(%s, 1)", [questions[0].text]
        )
    assert set(times) == set(kinds)
    assert all(len(values) == len(questions) for values in times.values())
    assert set(quality.recall) == set(quality.overlap) == set(search_latency.FILTERS)
    assert min(quality.recall.values()) >= 0.95
    assert 0.9 <= quality.bare <= 1
    assert min(quality.overlap.values()) >= 0.6
    assert embedding == "words"
    table = search_latency.table(times, quality, "2,000 chunks")
    assert table.row_count == len(kinds)


@needs_texts
def test_the_first_search_of_a_new_connection_stands_below(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[int] = []
    connect = search_latency.connect

    def counted(url: str) -> psycopg.Connection[Any]:
        connection = connect(url)
        sessions.append(connection.info.backend_pid)
        return connection

    monkeypatch.setattr(search_latency, "connect", counted)
    medians = search_latency.reconnected(bench.url, shared(SENTENCES).questions(3))
    assert len(set(sessions)) == 1 + 2 * search_latency.RECONNECTS
    assert re.fullmatch(
        r"first search of a new connection, p50 of 10: "
        r"text only [0-9,]+\.[0-9] ms, with a vector [0-9,]+\.[0-9] ms",
        search_latency.first_searches(medians),
    )
    assert min(medians.values()) > 0


@needs_texts
def test_hard_questions_end_and_all_ways_find_the_same(bench: Bench) -> None:
    texts = [question.text for question in shared(SENTENCES).questions(6)]
    with search_latency.connect(bench.url) as connection:
        asked = hard_questions.questions(connection)
        answers = hard_questions.ask(connection)
        times = posting_lists.run(connection, texts)
    assert hard_questions.table(answers, "2,000 chunks").row_count == len(asked)
    found = {answer.name: answer.lexical[1] for answer in answers}
    assert set(found) == set(asked) > set(hard_questions.EXCEPTIONS)
    # As many as wanted of the commonest word, none of what has no words.
    assert (found["the commonest word"], found["punctuation"]) == (50, 0)
    assert {len(taken) for taken in times.values()} == {len(texts)}
    assert set(posting_lists.WAYS) < set(times)


def test_a_hard_question_that_takes_too_long_is_named() -> None:
    quick = hard_questions.Answer("quick", 5, (99.5, 50), (2.0, 10))
    phrase = replace(quick, name=hard_questions.PHRASE, lexical=(242.0, 50))
    slow = replace(quick, name="slow", hybrid=(100.5, 10))
    holds, [line] = hard_questions.verdict([quick, phrase], 100)
    assert holds
    assert line.startswith(f"known {phrase.name}, 242.0 ms, the bar is 100 ms: phrases are checked")
    assert hard_questions.verdict([quick, phrase, slow], 100) == (
        False,
        [line, "MISS  slow, 100.5 ms, the bar is 100 ms"],
    )
    assert hard_questions.verdict([phrase, slow], 300) == (True, [])


@needs_texts
def test_a_profile_names_the_functions_that_work(bench: Bench) -> None:
    questions = shared(SENTENCES).questions(6)
    with search_latency.connect(bench.url) as connection:
        [hybrid] = [
            kind
            for kind in search_latency.kinds(search_latency.place(connection))
            if kind.name == search_latency.HYBRID
        ]
        processor, found = search_profile.profile(connection, hybrid, questions, 200)
    assert processor > 0
    calls = {name: times for name, times, _, _ in found}
    assert calls["search"] == calls["_lexical_lists"] == calls["_nearest"] == len(questions)
    assert all(total >= own for _, _, total, own in found)


def test_too_little_memory_for_an_index_is_told(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    with psycopg.connect(database, autocommit=True) as connection:
        for tenant, memory in (("first", "1MB"), ("second", "64MB")):
            fill(connection, tenant, 1000)
            connection.execute(
                f"alter database {connection.info.dbname} "
                f"set maintenance_work_mem = '{memory}'".encode()
            )
            loaded = storage.Loaded(1000)
            storage.isolate(database, tenant, loaded)
            told.append(capsys.readouterr().err)
            assert loaded.isolate > 0
    assert told[0].startswith("warning: hnsw graph no longer fits into maintenance_work_mem after ")
    assert told[1] == ""


@needs_texts
def test_more_candidates_find_no_less(bench: Bench) -> None:
    questions = shared(SENTENCES).questions(20)
    with search_latency.connect(bench.url) as connection:
        found = candidates.run(connection, questions)
    assert found[f"{candidates.REFERENCE} candidates"][0] == 1
    recalls = {way: recall for way, (recall, _, _) in found.items()}
    assert 0.9 <= recalls["100 candidates"] <= recalls["600 candidates"]
    assert min(recalls["rag.search, a vector alone"], recalls["with the text"]) >= 0.98


@needs_texts
def test_what_loading_took_is_kept_with_the_data(bench: Bench) -> None:
    loaded = storage.kept(bench.url)
    assert loaded is not None
    assert loaded.chunks == SIZE
    assert min(loaded.put, loaded.embed, loaded.isolate) > 0
    with psycopg.connect(bench.url) as connection:
        found = storage.stored(connection, bench_data.TENANT)
        [(hnsw,)] = connection.execute(
            "select c.relname from pg_class as c join pg_am as a on a.oid = c.relam "
            "join pg_index as i on i.indexrelid = c.oid where a.amname = 'hnsw' "
            "and i.indrelid::regclass::text ~ (select format('_p%%s$', t.partition_id) "
            "from rag.tenants as t where t.name = %s)",
            [bench_data.TENANT],
        )
    sizes = {one.name: one for one in found}
    assert sizes[hnsw].is_index
    # Half precision and links.
    assert sizes[hnsw].bytes > SIZE * 384 * 2
    assert 0 < loaded.indexes[hnsw] <= loaded.isolate
    assert storage.table(bench.url, bench_data.TENANT, SIZE).row_count > 3


@needs_texts
def test_locust_searches_and_writes_without_failures(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "RESULTS", tmp_path)
    options = argparse.Namespace(
        size=SIZE, sentences=SENTENCES, seconds=8, users=2, tenants=2, dsn="",
        pgbouncer=pooler.BINARY is not None,
    )  # fmt: skip
    with load.application(bench.url, options) as options.dsn:
        kinds = {kind.name: kind for kind in load.run("smoke", options, 0.5)}
    log = (tmp_path / "smoke.log").read_text()
    assert {name: kind.failures for name, kind in kinds.items() if kind.failures} == {}, log
    searches = {"search, vector", "search, text only", "search, filtered"}
    assert {load.SEARCHES, *searches, "put", "update", "delete", "embed a batch"} <= set(kinds)
    # Locust writes its table a moment before the last answers.
    assert kinds[load.SEARCHES].requests >= sum(kinds[name].requests for name in searches)
    assert (tmp_path / "smoke.html").exists()
    with psycopg.connect(bench.url) as connection:
        left = connection.execute("select uri from rag.documents where uri like 'load/%'")
        assert left.fetchall() == []


def test_bars_of_a_load_test() -> None:
    alone = Kind(load.SEARCHES, 1000, 0, 120.0, 20.0, 40.0, 60.0)
    runs = [
        [alone, replace(alone, name="Aggregated")],
        [replace(alone, p95=60.0), replace(alone, name="Aggregated", failures=1)],
    ]
    memory = Memory("", [100, 100, 100, 100, 120, 120, 120, 130])
    assert [holds for holds, _ in load.bars(runs, memory)] == [True, False, True, False]
    assert len([*load.bars(runs, Memory(""))]) == 3


def test_growth_is_an_exponent() -> None:
    points = [(n, 0.5 * n**0.7) for n in (1e4, 1e5, 1e6)]
    assert growth.exponent(points) == pytest.approx(0.7)
    assert growth.exponent(points[:1]) is None
    assert growth.exponent([(1.0, 0.0), (2.0, 1.0)]) is None
    lines = growth.table({10: {"MB": 5.0}, 1000: {"MB": 500.0, "new": 2.0}}, "chunks")
    assert lines[2:] == ["| MB | 5 | 500 | n^1.00 |", "| new |  | 2 |  |"]


def test_curves_are_one_picture() -> None:
    series = {"a < b": [(10.0, 3.0), (1000.0, 20.0)], "flat": [(10.0, 5.0), (1000.0, 5.0)]}
    drawn = ElementTree.fromstring(curves(Curves("Costs", "chunks", series)))  # noqa: S314 (ours)
    assert "a < b" in {element.text for element in drawn.iter()}
    assert len([*drawn.iter("{http://www.w3.org/2000/svg}circle")]) == 4
