"""A worker whose model is a provider's: what it does when the provider does not do as it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import numpy as np
import pytest

from embedder import model_set, worker
from embedder.errors import ModelError
from tests.processes import until
from tests.provider import KEY, Asked, Provider, always, is_probe, right, send, serve, unit
from tests.working import (
    MARK,
    TEXTS,
    Connection,
    embedded,
    new_worker,
    provider,
    put,
    running,
    use,
    value,
    vitals_of,
)

__all__ = ["provider"]


@pytest.fixture
def far(connection: Connection, provider: Provider) -> Iterator[Provider]:
    """Another provider, that a second model is at."""
    del provider
    with serve() as far:
        settings = json.dumps({"url": far.url, "timeout": 0.5})
        connection.execute("select rag.add_model('far', 384, 'openai', %s)", [settings])
        yield far


def untouched(connection: Connection) -> int:
    """Jobs that nobody holds and that have lost no attempt."""
    return value(
        connection,
        "select count(*) from rag.jobs where lease_token is null and attempts = 0 "
        "and failed_at is null and error is null",
    )


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a hundredth: by the clock each of these tests would take half a minute or more."""
    monkeypatch.setattr(model_set, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(model_set, "SETTINGS_SECONDS", 0.2)


def for_marked(behave: Callable[[Asked, BaseHTTPRequestHandler], bool]) -> Callable[..., bool]:
    """Badly for requests with a marked text."""
    return lambda asked, handler: (
        any(MARK in text for text in asked.body["input"]) and behave(asked, handler)
    )


def test_the_whole_path_with_prefixes(
    database: str, connection: Connection, provider: Provider
) -> None:
    connection.execute(
        "update rag.models set document_prefix = 'passage: ', query_prefix = 'query: '"
    )
    put(connection, TEXTS)
    connection.execute("select rag.search('When is the parcel delivered?')")
    assert new_worker(database).run(once=True) == 0
    assert value(connection, "select count(*) from rag.jobs") == 0
    rows = connection.execute(
        "select c.content, e.embedding::text from rag.embeddings as e "
        "join rag.chunks as c using (tenant_id, chunk_id)"
    ).fetchall()
    assert len(rows) == len(TEXTS)
    for content, stored in rows:
        assert float(np.array(json.loads(stored)) @ unit(f"passage: {content}")) > 0.999
    # The probe, then the query, ahead of the passages.
    assert provider.texts[:2] == [["ready"], ["query: When is the parcel delivered?"]]
    assert value(connection, "select count(*) from rag.query_embeddings") == 1


def test_a_limit_is_respected_and_costs_no_attempt(
    database: str, connection: Connection, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    moments: list[float] = []

    def limits(_asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
        moments.append(time.monotonic())
        # The probe at the start is answered, then two requests are not.
        return len(moments) in {2, 3} and send(handler, 429, {}, Retry_After="1.5")

    provider.behave = limits
    caplog.set_level("INFO", logger="embedder")
    put(connection, TEXTS)
    one = new_worker(database)
    assert one.run(once=True) == 0
    assert embedded(connection) == len(TEXTS)
    assert one.totals.failed == 0
    assert one.totals.provider_failures == 2
    assert moments[2] - moments[1] >= 1.5
    assert moments[3] - moments[2] >= 1.5
    events = [record.getMessage() for record in caplog.records]
    assert events.count("the provider asks for less, waiting") == 1
    assert events.count("the provider works again") == 1


@pytest.mark.parametrize("status", [500, 503])
def test_a_provider_that_is_away_costs_no_attempt_and_is_asked_seldom(
    database: str, connection: Connection, provider: Provider, status: int
) -> None:
    put(connection, TEXTS)
    one = new_worker(database)
    with running(one):
        until(lambda: embedded(connection) == len(TEXTS))
        assert vitals_of(one).problems() == []
        provider.behave = always(status)
        before = len(provider.asked)
        put(connection, [f"Later: {text}" for text in TEXTS], "later")
        until(lambda: vitals_of(one).problems())
        assert f"{provider.host} answers {status}" in vitals_of(one).problems()[0]
        until(lambda: untouched(connection) == len(TEXTS))
        # Probes follow after 1 and 2 seconds.
        failures = one.totals.provider_failures
        until(lambda: one.totals.provider_failures == failures + 2)
        assert len(provider.asked) - before <= 5
        assert untouched(connection) == len(TEXTS)
        provider.behave = lambda _asked, _handler: False
        until(lambda: embedded(connection) == 2 * len(TEXTS))
        until(lambda: not vitals_of(one).problems())
    assert one.totals.failed == 0


@pytest.mark.usefixtures("hasty")
def test_once_gives_up_a_provider_that_is_away(
    database: str, connection: Connection, provider: Provider
) -> None:
    put(connection, TEXTS)
    provider.behave = always(500)
    with pytest.raises(ModelError, match="answers 500"):
        new_worker(database).run(once=True)
    assert len(provider.asked) == worker.ONCE_FAILURES
    assert untouched(connection) == len(TEXTS)


def test_a_provider_that_is_away_keeps_no_other_model_from_its_work(
    database: str, connection: Connection, far: Provider
) -> None:
    far.behave = always(500)
    put(connection, TEXTS)
    one = new_worker(database)
    with running(one):
        until(lambda: embedded(connection, "all-MiniLM-L6-v2") == len(TEXTS))
        until(lambda: vitals_of(one).problems())
        problem = f"the model far does not work: {far.host} answers 500 Internal Server Error"
        assert vitals_of(one).problems() == [problem]
        assert len(far.asked) <= 4
        put(connection, [f"Later: {text}" for text in TEXTS], "later")
        until(lambda: embedded(connection, "all-MiniLM-L6-v2") == 2 * len(TEXTS))
        until(lambda: untouched(connection) == 2 * len(TEXTS))
        assert embedded(connection, "far") == 0
        far.behave = lambda _asked, _handler: False
        until(lambda: embedded(connection, "far") == 2 * len(TEXTS))
        until(lambda: not vitals_of(one).problems())
    assert one.totals.failed == 0


def test_who_has_no_jobs_is_not_missed(
    database: str, connection: Connection, provider: Provider
) -> None:
    put(connection, TEXTS)
    provider.behave = always(500)
    one = new_worker(database)
    with running(one):
        until(lambda: vitals_of(one).problems())
        connection.execute("select rag.delete(d.uri) from rag.documents as d")
        until(lambda: not vitals_of(one).problems())
        assert one.totals.batches == 0


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("status", "probes"), [(500, worker.ONCE_FAILURES), (401, 1)])
def test_once_does_what_can_be_done_before_it_gives_up(
    database: str, connection: Connection, far: Provider, status: int, probes: int
) -> None:
    far.behave = always(status)
    put(connection, TEXTS)
    with pytest.raises(ModelError, match=f"answers {status}"):
        new_worker(database).run(once=True)
    assert embedded(connection, "all-MiniLM-L6-v2") == len(TEXTS)
    assert untouched(connection) == len(TEXTS)
    assert len(far.asked) == probes


def statements(connection: Connection) -> int:
    """So many statements, each a transaction of its own, the server has counted."""
    return value(
        connection,
        "select xact_commit from pg_stat_database where datname = current_database()",
    )


def test_who_waits_for_all_of_its_models_does_not_spin(
    database: str, connection: Connection, provider: Provider, far: Provider
) -> None:
    put(connection, TEXTS)
    one = new_worker(database, RAGDB_POLL_SECONDS="0.5")
    with running(one):
        until(lambda: embedded(connection) == 2 * len(TEXTS))
        provider.behave = far.behave = always(401)
        put(connection, TEXTS[:3], "again")
        connection.execute("select rag.put('Something new.', 'new')")
        until(lambda: len(vitals_of(one).problems()) == 2)
        asked = len(provider.asked) + len(far.asked)
        # A worker tells the server of its statements each second at most.
        time.sleep(2)
        before = statements(connection)
        time.sleep(4)
        # Eight rounds, and in each: the models, jobs of each of the two, a claim, what is due next,
        # and the doorbell. A loop without a pause says thousands.
        assert statements(connection) - before <= 120
        assert len(provider.asked) + len(far.asked) == asked
        beat_at = vitals_of(one).beat_at
        until(lambda: vitals_of(one).beat_at != beat_at)


def test_a_model_whose_row_is_put_right_works_at_once(
    database: str, connection: Connection, provider: Provider
) -> None:
    one = new_worker(database)
    with running(one), serve() as other:
        until(lambda: provider.asked)
        provider.behave = always(401)
        put(connection, TEXTS)
        until(lambda: vitals_of(one).problems())
        asked = len(provider.asked)
        use(connection, other)
        until(lambda: embedded(connection) == len(TEXTS), seconds=30)
        until(lambda: not vitals_of(one).problems())
        assert len(provider.asked) == asked
        # Nothing of another size is stored, nor parked.
        connection.execute("update rag.models set dimensions = 100")
        put(connection, ["Something new."], "new")
        until(lambda: "gives vectors of 384 dimensions" in "".join(vitals_of(one).problems()))
        until(lambda: untouched(connection) == 1)


@pytest.mark.usefixtures("hasty")
def test_settings_that_are_wrong_are_told_once(
    database: str, connection: Connection, far: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    put(connection, TEXTS)
    one = new_worker(database)
    with running(one):
        until(lambda: embedded(connection) == 2 * len(TEXTS))
        asked = len(far.asked)
        # Past rag.alter_model, which refuses it.
        connection.execute("update rag.models set settings = '{\"url\": \"x\"}' where name = 'far'")
        until(lambda: "far" not in vitals_of(one).backends)
        put(connection, ["Something new."], "new")
        until(lambda: embedded(connection) == 2 * len(TEXTS) + 1)
        until(lambda: one.totals.provider_failures >= 4)
        problem = "the setting url of the model far is not a URL of a provider"
        assert problem in "".join(vitals_of(one).problems())
        assert len(far.asked) == asked
        until(lambda: untouched(connection) == 1)
        settings = json.dumps({"url": far.url})
        connection.execute("select rag.alter_model('far', settings => %s)", [settings])
        until(lambda: embedded(connection) == 2 * len(TEXTS) + 2)
        until(lambda: not vitals_of(one).problems())
    events = [record.getMessage() for record in caplog.records]
    assert events.count("the model cannot be used, trying again") == 1


@pytest.mark.usefixtures("hasty")
def test_a_wrong_key_stops_the_work_until_it_is_right(
    database: str, connection: Connection, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="embedder")
    one = new_worker(database)
    put(connection, ["While the key was right."], "before")
    with running(one):
        until(lambda: embedded(connection) == 1)
        provider.behave = always(401, {"error": {"message": f"bad key {KEY}"}})
        put(connection, TEXTS)
        until(lambda: vitals_of(one).problems())
        assert "check RAGDB_API_KEY" in vitals_of(one).problems()[0]
        until(lambda: untouched(connection) == len(TEXTS))
        until(lambda: one.totals.provider_failures >= 3)
        provider.behave = lambda _asked, _handler: False
        until(lambda: embedded(connection) == len(TEXTS) + 1)
    events = [record.getMessage() for record in caplog.records]
    assert events.count("the model cannot be used, trying again") == 1
    assert one.totals.failed == 0
    assert KEY not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        (always(401), "answers 401 Unauthorized; check RAGDB_API_KEY"),
        (always(404), "answers 404 Not Found; check the settings url and model"),
        (always(400, {"error": "no such model"}), "refuses even the text"),
        (
            always(200, {"data": [{"index": 0, "embedding": [1.0] * 512}]}),
            "gives vectors of 512 dimensions and the model all-MiniLM-L6-v2 has 384",
        ),
    ],
)
def test_what_is_badly_set_up_ends_the_command_with_one_line(
    database: str,
    connection: Connection,
    provider: Provider,
    behave: Callable[..., bool],
    problem: str,
) -> None:
    put(connection, TEXTS)
    provider.behave = behave
    answer = subprocess.run(
        [sys.executable, "-m", "embedder", "run"],
        env=os.environ | {"DATABASE_URL": database, "RAGDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith("error: ")
    assert problem in answer.stderr.splitlines()[-1]
    assert KEY not in answer.stderr + answer.stdout
    assert untouched(connection) == len(TEXTS)


def nan(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    answer = right(asked.body["input"])
    for place, text in enumerate(asked.body["input"]):
        if MARK in text:
            answer["data"][place]["embedding"][3] = float("nan")
    return send(handler, 200, answer)


def one_too_few(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    answer = right(asked.body["input"])
    answer["data"].pop()
    return send(handler, 200, answer)


def one_too_many(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    return send(handler, 200, right([*asked.body["input"], "another"]))


def sleeps(_asked: Asked, _handler: BaseHTTPRequestHandler) -> bool:
    time.sleep(1)
    return False


@pytest.mark.parametrize(
    ("behave", "is_parked", "error"),
    [
        (always(400, {"error": {"message": "bad text"}}), True, "answers 400 Bad Request: bad"),
        (always(413, b"too long"), True, "answers 413 Request Entity Too Large: too long"),
        (always(500), False, "answers 500 Internal Server Error"),
        (sleeps, False, "did not answer in 0.5 s"),
        (nan, True, "not finite"),
        (one_too_few, False, "gave 0 vectors for 1 texts"),
        (one_too_many, False, "gave 2 vectors for 1 texts"),
        (always(200, b"<html>"), False, "gives an answer that is none"),
        (
            always(200, {"data": [{"index": 0, "embedding": [1.0] * 9}]}),
            False,
            "gave vectors of 9 dimensions",
        ),
    ],
)
def test_only_the_text_that_the_provider_cannot_do_fails(
    database: str,
    connection: Connection,
    provider: Provider,
    behave: Callable[..., bool],
    is_parked: bool,
    error: str,
) -> None:
    provider.behave = for_marked(behave)
    put(connection, [*TEXTS[:9], f"A {MARK} text.", *TEXTS[9:19]])
    one = new_worker(database)
    assert one.run(once=True) == 1
    assert embedded(connection) == one.totals.embedded == 19
    rows = connection.execute(
        "select c.content, j.failed_at is not null, j.attempts, j.error "
        "from rag.jobs as j join rag.chunks as c using (tenant_id, chunk_id)"
    ).fetchall()
    assert [row[:3] for row in rows] == [(f"A {MARK} text.", is_parked, 1)]
    assert error in rows[0][3]
    # Halving 20 texts takes 2 log 20 requests and some probes: no storm.
    assert len([asked for asked in provider.asked if not is_probe(asked)]) <= 12


def test_texts_that_are_cut_are_told(
    database: str, connection: Connection, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    use(connection, provider, max_tokens=30)
    caplog.set_level("INFO", logger="embedder")
    put(connection, [*TEXTS[:4], "word " * 100])
    one = new_worker(database)
    assert one.run(once=True) == 0
    assert one.totals.truncated == 1
    batch = next(r for r in caplog.records if r.getMessage() == "embedded a batch")
    assert cast("Any", batch).fields["truncated"] == 1
    # 499 characters are 125 tokens by estimate.
    cut = "select uri, truncated_tokens from rag.truncations()"
    assert connection.execute(cast("Any", cut)).fetchall() == [("document-4", 95)]
    assert value(connection, "select count(truncated_tokens) from rag.embeddings") == 5


@pytest.mark.usefixtures("provider")
def test_what_a_provider_cuts_by_itself_is_unknown(database: str, connection: Connection) -> None:
    put(connection, TEXTS[:3])
    assert new_worker(database).run(once=True) == 0
    assert value(connection, "select count(*) from rag.embeddings") == 3
    assert value(connection, "select count(truncated_tokens) from rag.embeddings") == 0


def test_the_key_is_in_no_log(database: str, connection: Connection, provider: Provider) -> None:
    put(connection, TEXTS)
    answer = subprocess.run(
        [sys.executable, "-m", "embedder", "run", "--once"],
        env=os.environ | {"DATABASE_URL": database, "RAGDB_API_KEY": KEY, "RAGDB_LOG": "json"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    assert provider.asked[0].headers["authorization"] == f"Bearer {KEY}"
    events = [json.loads(line) for line in answer.stderr.splitlines()]
    assert [event["event"] for event in events] == ["ready", "embedded a batch", "stopped"]
    assert events[0]["backend"] == provider.host
    assert KEY not in answer.stderr + answer.stdout
