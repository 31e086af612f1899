"""A tenant goes out as lines and comes in again, is cloned, and is erased without a trace."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from embedder.__main__ import main
from tests.attacks.arena import KEY, SECRET, claims, sign

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RoleFactory

Connection = psycopg.Connection[tuple[Any, ...]]

CANARY = "zyxcanaryzyx"

EMBED = """
select rag.complete_jobs(
    (array_agg(c.lease_token))[1], array_agg(c.job_id),
    array_agg((
        select array_agg(sin(c.job_id * 0.1 + n))::vector from generate_series(1, 384) as n
    ))
)
from rag.claim_jobs('test', 1000) as c
"""

# All that is a tenant's, without the ids, which differ between databases.
CONTENTS = """
select
    n.name, n.strategy, n.chunk_size, n.k1, n.enrich, n.lexical_weight, d.uri, d.title,
    d.metadata::text, d.content, d.language, d.chunking::text, d.created_at, c.ordinal,
    c.start_offset, c.end_offset, c.heading_path, c.content, c.metadata::text, l.length,
    l.lexemes::text, l.weights::text, e.embedding::text
from rag.tenants as t
join rag.collections as n on n.tenant_id = t.tenant_id
left join rag.documents as d on d.tenant_id = t.tenant_id and d.collection_id = n.collection_id
left join rag.chunks as c on c.tenant_id = t.tenant_id and c.document_id = d.document_id
left join rag.lexemes as l on l.tenant_id = t.tenant_id and l.chunk_id = c.chunk_id
left join rag.embeddings as e on e.tenant_id = t.tenant_id and e.chunk_id = c.chunk_id
where t.name = %s
order by n.name, d.uri, c.ordinal
"""

SEARCH = """
select s.uri, s.ordinal, round(s.lexical_score::numeric, 4), round(s.similarity::numeric, 3)
from rag.search('anvils for coyotes', 20,
    embedding => (select array_agg(cos(n * 0.3))::vector from generate_series(1, 384) as n)) as s
order by s.uri, s.ordinal
"""


def furnish(connection: Connection, tenant: str) -> None:
    """A tenant that has something of everything, and a neighbour who shares its partition."""
    for name in (tenant, *(f"neighbour {n}" for n in range(16))):
        connection.execute("select rag.create_tenant(%s)", [name])
        connection.execute("select rag.set_tenant(%s)", [name])
        connection.execute("select rag.put('Nothing of note.', 'note')")
    connection.execute("select rag.set_quota(%s, documents => 1000)", [tenant])
    connection.execute("select rag.set_tenant(%s)", [tenant])
    connection.execute("select rag.delete('note')")
    connection.execute("select rag.set_record_retention('30 days')")
    connection.execute(
        "select rag.create_collection('guides', chunk_size => 200, chunk_overlap => 0, k1 => 1.5,"
        " enrich => '{lang}', lexical_weight => 0.3)"
    )
    for n in range(30):
        text = f"# Part {n}\n\n" + " ".join(
            f'Anvil {i} of {CANARY}{n} drops on "coyotes" \\ {i}.\n' for i in range(n)
        )
        connection.execute(
            "select rag.put(%s, %s, %s, %s, %s)",
            [
                text, f"{CANARY}/{n}", f"Title {CANARY}", json.dumps({"lang": f"en {CANARY}"}),
                ("default", "guides")[n % 2],
            ],
        )  # fmt: skip
    connection.execute("select rag.put('Perros y gatos', 'es', language => 'spanish')")
    for _ in range(4):
        connection.execute(EMBED)
    connection.execute("select rag.put('Not embedded yet: ' || %s, 'late')", [CANARY])
    connection.execute(
        "select rag.add_judgements(%s, %s)",
        [CANARY, json.dumps([{"query": CANARY, "uri": f"{CANARY}/3", "grade": 2}])],
    )
    connection.execute("select rag.evaluate(%s)", [CANARY])
    connection.execute("select rag.prepare_query(%s)", [CANARY])


def contents(connection: Connection, tenant: str) -> list[tuple[Any, ...]]:
    """Everything of a tenant, and what a search finds."""
    connection.execute("select rag.set_tenant(%s)", [tenant])
    return [
        *connection.execute(CONTENTS, [tenant]).fetchall(),
        *connection.execute(SEARCH).fetchall(),
        *connection.execute(
            "select n.name, s.name, q.query_id, q.query, j.uri, j.grade from rag.eval_sets as s "
            "join rag.collections as n using (tenant_id, collection_id) "
            "join rag.eval_queries as q using (tenant_id, eval_set_id) "
            "join rag.judgements as j using (tenant_id, eval_set_id, query_id) "
            "where s.tenant_id = (select tenant_id from rag._context())"
        ).fetchall(),
        *connection.execute(
            "select u.documents, u.chunks, u.bytes, u.max_documents, u.searches_per_minute, "
            "t.keep_records from rag.usage() as u join rag.tenants as t on t.name = u.tenant "
            "where u.tenant = %s",
            [tenant],
        ).fetchall(),
    ]


def lines(connection: Connection, tenant: str, more: str = "") -> list[str]:
    """What an export says."""
    rows = connection.execute(
        f"select line from rag.export_tenant(%s{more})".encode(),  # noqa: S608
        [tenant],
    )
    return [line for (line,) in rows]


def jobs(connection: Connection, tenant: str) -> Any:
    """How many chunks of the tenant wait."""
    [(count,)] = connection.execute(
        "select count(*) from rag.jobs join rag.tenants using (tenant_id) where name = %s", [tenant]
    ).fetchall()
    return count


def test_an_export_comes_in_again(connection: Connection) -> None:
    furnish(connection, "acme")
    said = lines(connection, "acme")
    kinds = [json.loads(line)["kind"] for line in said]
    assert sorted(set(kinds)) == [
        "chunks", "collection", "document", "end", "eval_set", "tenant",
    ]  # fmt: skip
    connection.execute("select rag.create_tenant('copy')")
    # In parts, broken off in the middle, and then all of it again.
    for batch in (said[:20], said[20:45], said, said):
        done = connection.execute("select * from rag.import_lines('copy', %s)", [batch]).fetchall()
    assert [(kind, imported) for kind, imported, _ in done] == [
        ("tenant", 1), ("collection", 0), ("document", 0), ("chunks", 0), ("eval_set", 0),
    ]  # fmt: skip
    assert jobs(connection, "acme") == jobs(connection, "copy") == 1
    original, copy = contents(connection, "acme"), contents(connection, "copy")
    assert len(original) > 50
    # The mean length that weights are stored for is that of the first lines.
    assert [row[:20] for row in copy] == [row[:20] for row in original]
    assert lines(connection, "copy")[1:] == said[1:]
    connection.execute("select rag.drop_tenant('copy')")


def test_an_import_keeps_what_is_there(connection: Connection) -> None:
    furnish(connection, "acme")
    said = lines(connection, "acme")
    connection.execute("select rag.create_tenant('copy')")
    connection.execute("select rag.set_tenant('copy')")
    connection.execute("select rag.put('Mine.', 'es')")
    connection.execute("select * from rag.import_lines('copy', %s)", [said])
    [(content, chunks)] = connection.execute(
        "select d.content, (select count(*) from rag.chunks as c where c.document_id = "
        "d.document_id) from rag.documents as d join rag.tenants as t using (tenant_id) "
        "where d.uri = 'es' and t.name = 'copy'"
    ).fetchall()
    assert (content, chunks) == ("Mine.", 1)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("{", "22P02"),
        ("[]", "22023"),
        ('{"kind": "other"}', "22023"),
        ('{"kind": "tenant", "format": 2}', "22023"),
        ('{"kind": "document", "collection": "none", "document": {}}', "RG003"),
        ('{"kind": "document", "collection": "default", "document": {"content": ""}}', "22023"),
    ],
)
def test_a_line_that_is_none_is_refused(connection: Connection, line: str, state: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute("select * from rag.import_lines('default', %s)", [[line]])
    assert caught.value.sqlstate == state


@pytest.mark.parametrize(
    ("kind", "key", "given", "state"),
    [
        ("collection", "chunk_size", 2000000000, "22023"),
        ("collection", "strategy", "no such", "22023"),
        ("collection", "language", "no such", "22023"),
        ("collection", "k1", -1, "22023"),
        ("collection", "fusion", "no such", "22023"),
        ("collection", "lifetime", "-1 day", "22023"),
        ("document", "language", "no such", "22023"),
        ("document", "version", 2147483647, "22023"),
        ("document", "version", 0, "22023"),
        ("document", "updated_at", "infinity", "22023"),
        ("document", "created_at", "-infinity", "22023"),
        ("document", "expires_at", "infinity", "22023"),
        ("document", "chunking", {"strategy": "markdown", "size": 2000000000}, "22023"),
    ],
)
def test_what_no_put_makes_is_not_imported(
    connection: Connection, kind: str, key: str, given: object, state: str
) -> None:
    connection.execute("select rag.set_tenant('default')")
    connection.execute("select rag.put('one', 'x')")
    said = [json.loads(line) for line in lines(connection, "default")]
    connection.execute("select rag.create_tenant('copy')")
    for line in said:
        if line["kind"] == kind:
            line["settings" if kind == "collection" else kind][key] = given
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(
            "select * from rag.import_lines('copy', %s)", [[json.dumps(line) for line in said]]
        )
    assert caught.value.sqlstate == state


def test_imported_embeddings_have_length_1(connection: Connection) -> None:
    connection.execute("select rag.set_tenant('default')")
    connection.execute("select rag.put('one', 'x')")
    connection.execute(EMBED)
    said = [json.loads(line) for line in lines(connection, "default")]
    for line in said:
        if line["kind"] == "chunks":
            [label] = line["chunks"][0]["embeddings"]
            line["chunks"][0]["embeddings"][label] = str([3] * 384)
    connection.execute("select rag.create_tenant('copy')")
    connection.execute(
        "select * from rag.import_lines('copy', %s)", [[json.dumps(line) for line in said]]
    )
    assert connection.execute(
        "select round(l2_norm(e.embedding)::numeric, 2) from rag.embeddings as e "
        "join rag.tenants as t using (tenant_id) where t.name = 'copy'"
    ).fetchall() == [(1,)]


def test_a_zero_vector_is_not_imported(connection: Connection) -> None:
    """It has no direction, and no index finds it: the chunk waits to be embedded."""
    connection.execute("select rag.set_tenant('default')")
    for uri in ("x", "y"):
        connection.execute("select rag.put(%s, %s)", [f"text of {uri}", uri])
    connection.execute(EMBED)
    said = [json.loads(line) for line in lines(connection, "default")]
    for line in said:
        if line["kind"] == "chunks" and line["uri"] == "x":
            [label] = line["chunks"][0]["embeddings"]
            line["chunks"][0]["embeddings"][label] = str([0] * 384)
    connection.execute("select rag.create_tenant('copy')")
    connection.execute(
        "select * from rag.import_lines('copy', %s)", [[json.dumps(line) for line in said]]
    )
    found = (
        "select d.uri, exists (select from rag.embeddings as e where e.tenant_id = c.tenant_id "
        "and e.chunk_id = c.chunk_id), exists (select from rag.jobs as j "
        "where j.tenant_id = c.tenant_id and j.chunk_id = c.chunk_id) "
        "from rag.chunks as c join rag.documents as d using (tenant_id, document_id) "
        "join rag.tenants as t using (tenant_id) where t.name = 'copy' order by 1"
    )
    assert connection.execute(found.encode()).fetchall() == [("x", False, True), ("y", True, False)]


def test_embeddings_of_another_model_are_not_taken(connection: Connection) -> None:
    furnish(connection, "acme")
    said = lines(connection, "acme")
    assert "[" not in "".join(lines(connection, "acme", ", embeddings => false")[-4])[:30]
    connection.execute("update rag.models set revision = 'other'")
    connection.execute("select rag.create_tenant('copy')")
    connection.execute("select * from rag.import_lines('copy', %s)", [said])
    [(embeddings, chunks)] = connection.execute(
        "select (select count(*) from rag.embeddings as e where e.tenant_id = t.tenant_id), "
        "(select count(*) from rag.chunks as c where c.tenant_id = t.tenant_id) "
        "from rag.tenants as t where t.name = 'copy'"
    ).fetchall()
    assert embeddings == 0
    assert jobs(connection, "copy") == chunks > 30


def test_only_who_may_act_as_a_tenant_exports_it(connection: Connection, role: RoleFactory) -> None:
    furnish(connection, "acme")
    connection.execute("select rag.create_tenant('copy')")
    own = role("acme", "copy")
    with psycopg.connect(own.url, autocommit=True) as session:
        said = lines(session, "acme", ", grants => true")
        assert [json.loads(line) for line in said if '"grant"' in line] == [
            {"kind": "grant", "role": own.name}
        ]
        done = session.execute("select * from rag.import_lines('copy', %s)", [said]).fetchall()
        # Settings and grants are an administrator's to give.
        assert [row for row in done if row[0] in ("tenant", "grant")] == [
            ("tenant", 0, 1), ("grant", 0, 1),
        ]  # fmt: skip
        for statement in ("select rag.clone_tenant('acme', 'x')", "call rag.maintain()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement.encode())
    for other in (role("neighbour 1"), role(member_of=("rag_admin",))):
        with psycopg.connect(other.url, autocommit=True) as session:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="may not act"):
                lines(session, "acme")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="may not act"):
                session.execute("select * from rag.import_lines('acme', %s)", [said])
    administrator = role("acme", member_of=("rag_admin",))
    with psycopg.connect(administrator.url, autocommit=True) as session:
        assert lines(session, "acme")[1:] == [line for line in said[1:] if '"grant"' not in line]


def test_a_token_exports_its_own_tenant_alone(connection: Connection, role: RoleFactory) -> None:
    for name in ("acme", "globex"):
        connection.execute("select rag.create_tenant(%s)", [name])
    connection.execute("select rag.set_tenant('acme')")
    connection.execute("select rag.add_token_key(%s, %s)", [KEY, SECRET])
    row = [sign(claims("acme"))]
    with psycopg.connect(role("acme", "globex").url, autocommit=True) as session:
        with session.transaction():
            session.execute("select rag.authenticate(%s)", row)
            assert lines(session, "acme")
        for call in (
            "select * from rag.export_tenant('globex')",
            "select * from rag.import_lines('globex', '{}')",
        ):
            with session.transaction(force_rollback=True):
                session.execute("select rag.authenticate(%s)", row)
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not one of"):
                    session.execute(call.encode())
        connection.execute("select rag.suspend_tenant('acme')")
        with session.transaction(force_rollback=True):
            session.execute("select rag.authenticate(%s)", row)
            with pytest.raises(psycopg.Error) as error:
                lines(session, "acme")
            assert error.value.sqlstate == "RG022"


def test_an_import_goes_on_counting_versions(connection: Connection) -> None:
    connection.execute("select rag.set_tenant('default')")
    connection.execute("select rag.set_retention('default', 5, null, '1 day')")
    connection.execute("select rag.put('one', 'x')")
    said = lines(connection, "default")
    connection.execute("select rag.delete('x')")
    connection.execute("select * from rag.import_lines('default', %s)", [said])
    connection.execute("select rag.put('two', 'x')")
    assert connection.execute("select version from rag.history('x')").fetchall() == [
        (3,), (2,), (1,),
    ]  # fmt: skip
    connection.execute("select rag.restore('x', 1)")
    assert connection.execute("select content, version from rag.get('x')").fetchall() == [
        ("one", 4)
    ]


def test_export_and_import_by_command(
    connection: Connection,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    furnish(connection, "acme")
    said = lines(connection, "acme")
    monkeypatch.setenv("DATABASE_URL", database)
    for name in ("acme.jsonl", "acme.jsonl.gz"):
        path = tmp_path / name
        assert main(["export", "acme", str(path)]) == 0
        tenant = f"from {name}"
        assert main(["import", tenant, str(path)]) == 0
        assert lines(connection, tenant)[1:] == said[1:]
    assert (tmp_path / "acme.jsonl").read_text().splitlines()[1:] == said[1:]
    capsys.readouterr()
    assert main(["export", "acme"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == said[1:]
    # A file that was cut off is told, after what it has was taken.
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said[:-1])))
    assert main(["import", "cut"]) == 1
    assert "error: standard input is cut off; what was read" in capsys.readouterr().err
    assert main(["export", "missing"]) == 1


def test_an_import_keeps_to_a_small_quota(
    connection: Connection,
    role: RoleFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fewer lines at once, and the rest when the minute is over."""
    connection.execute("select rag.create_tenant('small')")
    connection.execute("select rag.set_tenant('default')")
    for n in range(20):
        connection.execute("select rag.put('Text ' || %s, 'u' || %s)", [n, n])
    path = tmp_path / "lines"
    path.write_text("".join(f"{line}\n" for line in lines(connection, "default")))
    connection.execute("select rag.set_quota('small', puts_per_minute => 8)")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        # A new minute, which this test does not wait for.
        connection.execute(
            "select setval(rag._counter(t.tenant_id, 'puts'), rag._minute() - 1) "
            "from rag.tenants as t where t.name = 'small'"
        )

    monkeypatch.setattr("embedder.imports.time.sleep", wait)
    monkeypatch.setenv("DATABASE_URL", role("small").url)
    assert main(["import", "small", str(path)]) == 0
    assert len(waits) >= 2
    assert all(1 <= seconds <= 61 for seconds in waits)
    assert "going on in the next one" in capsys.readouterr().err
    connection.execute("select rag.set_tenant('small')")
    assert connection.execute("select rag.count()").fetchall() == [(20,)]


def test_the_past_is_cloned_and_not_exported(connection: Connection) -> None:
    connection.execute("select rag.create_tenant('acme')")
    connection.execute("select rag.set_tenant('acme')")
    connection.execute("select rag.set_retention('default', 3, keep_deleted => '9 days')")
    for text in ("The first text.", "The second text."):
        connection.execute("select rag.put(%s, 'a')", [text])
        connection.execute("select rag.put(%s, 'gone')", [text])
    connection.execute("select rag.delete('gone')")
    said = lines(connection, "acme")
    assert not any("first" in line or "gone" in line for line in said)
    connection.execute("select rag.create_tenant('copy')")
    connection.execute("select * from rag.import_lines('copy', %s)", [said])
    connection.execute("select * from rag.clone_tenant('acme', 'clone')")
    history = "select h.version, h.state from rag.history(%s) as h"
    for tenant, past, gone in (("copy", [], 0), ("clone", [(1, "past")], 2)):
        connection.execute("select rag.set_tenant(%s)", [tenant])
        rows = connection.execute(history, ["a"]).fetchall()
        assert rows == [(2, "current"), *past]
        assert len(connection.execute(history, ["gone"]).fetchall()) == gone
        # Both go on counting, and keep from then on what is to be kept.
        connection.execute("select rag.put('The third text.', 'a')")
        rows = connection.execute(history, ["a"]).fetchall()
        assert rows == [(3, "current"), (2, "past"), *past]


def test_a_file_without_record_retention_leaves_it_as_it_is(
    connection: Connection, role: RoleFactory
) -> None:
    connection.execute("select rag.create_tenant('acme')")
    connection.execute("select rag.set_tenant('acme')")
    kept = "select t.keep_records::text from rag.tenants as t where t.name = 'acme'"
    first = json.loads(lines(connection, "acme")[0])
    with psycopg.connect(role("acme").url, autocommit=True) as app:
        for given, expected in (("30 days", "30 days"), (None, None)):
            first["settings"]["keep_records"] = given
            app.execute("select * from rag.import_lines('acme', %s)", [[json.dumps(first)]])
            assert connection.execute(kept).fetchall() == [(expected,)]
        connection.execute("select rag.set_record_retention('7 days')")
        del first["settings"]["keep_records"]
        app.execute("select * from rag.import_lines('acme', %s)", [[json.dumps(first)]])
        assert connection.execute(kept).fetchall() == [("7 days",)]
        first["settings"]["keep_records"] = "-1 day"
        with pytest.raises(psycopg.errors.CheckViolation):
            app.execute("select * from rag.import_lines('acme', %s)", [[json.dumps(first)]])


def test_what_has_expired_is_not_exported_or_explained(connection: Connection) -> None:
    connection.execute("select rag.set_tenant('default')")
    connection.execute("select rag.put('Words that stay', 'stays')")
    connection.execute("select rag.put(%s, 'goes', lifetime => '1 hour')", [f"Words {CANARY}"])
    [(chunk,)] = connection.execute(
        "select s.chunk_id from rag.search('words') as s where s.uri = 'goes'"
    ).fetchall()
    connection.execute(
        "update rag.documents set expires_at = statement_timestamp() where uri = 'goes'"
    )
    said = lines(connection, "default")
    assert CANARY not in "\n".join(said)
    assert json.loads(said[-1]) == {"kind": "end", "documents": 1, "chunks": 1}
    told = connection.execute(
        "select item, value from rag.explain('words', chunk_id => %s)", [chunk]
    ).fetchall()
    assert ("absent", "its document has expired") in told
    assert "goes" not in repr(told)


def test_files_that_cannot_be_read_or_written_are_told_in_a_line(
    connection: Connection,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    for n in range(300):
        connection.execute("select rag.put(%s, %s)", [f"Text {n}.", f"{n}"])
    whole = tmp_path / "whole.jsonl.gz"
    assert main(["export", "default", str(whole)]) == 0
    assert "300 documents in 1 collection of tenant default" in capsys.readouterr().err
    text = gzip.decompress(whole.read_bytes())
    (tmp_path / "none.gz").write_bytes(text)
    (tmp_path / "cut.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "short.gz").write_bytes(whole.read_bytes()[:20])
    (tmp_path / "cut.jsonl").write_bytes(text[: text.index(b"Text 250.")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0\x80")
    (tmp_path / "nul").write_bytes(b"\0\n")
    (tmp_path / "words").write_bytes(b"Once upon a time.\n")
    (tmp_path / "list").write_bytes(b"[1]\n")
    (tmp_path / "other").write_bytes(text.replace(b'"format" : 1', b'"format" : 9', 1))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    more = "what was read before is imported, call again with the whole file"
    for command, name, told in (
        ("import", "nope.jsonl", "cannot read {}: No such file or directory"),
        ("import", "folder", "cannot read {}: Is a directory"),
        ("import", "none.gz", "cannot read {}: Not a gzipped file (b'{{\"')"),
        ("import", "short.gz", "{} is cut off; nothing of it can be read"),
        ("import", "binary", "cannot read {}: it is no text in UTF-8"),
        ("import", "nul", "line 1 of {} is not a line of an export"),
        ("import", "words", "line 1 of {} is not a line of an export"),
        ("import", "list", "line 1 of {} is not a line of an export"),
        ("import", "other", "unknown format of an export; format is '9'.; This version"),
        ("import", "empty", "{} is empty"),
        ("export", "folder", "cannot write {}: Is a directory"),
        ("export", "nowhere/a.gz", "cannot write {}: No such file or directory"),
    ):
        path = tmp_path / name
        tenant = "default" if command == "export" else "new"
        assert main([command, tenant, str(path)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {told.format(path)}")
        tenants = connection.execute("select t.name from rag.tenants as t").fetchall()
        assert tenants == [("default",)]
    for name, documents in (("cut.gz", 300), ("cut.jsonl", 250)):
        assert main(["import", name, str(tmp_path / name)]) == 1
        assert capsys.readouterr().err == f"error: {tmp_path / name} is cut off; {more}\n"
        connection.execute("select rag.set_tenant(%s)", [name])
        assert connection.execute("select rag.count()").fetchall() == [(documents,)]
        assert main(["import", name, str(whole)]) == 0
        assert len(lines(connection, name)) == len(lines(connection, "default"))
        capsys.readouterr()


def test_a_database_without_ragdb_and_a_role_without_rights_are_told(
    database: str,
    empty_database: str,
    role: RoleFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del database
    monkeypatch.setenv("DATABASE_URL", empty_database)
    for command in (["maintain"], ["export", "default"]):
        assert main(command) == 1
        assert "`make migrate` makes it" in capsys.readouterr().err
    for command, groups, needed in (
        (["maintain"], ("rag_app",), "rag_admin"),
        (["maintain", "--dry-run"], (), "rag_admin"),
        (["run", "--once"], ("rag_app",), "rag_worker"),
        (["wait"], (), "rag_worker"),
        (["export", "default"], (), "rag_app"),
    ):
        monkeypatch.setenv("DATABASE_URL", role(member_of=groups).url)
        assert main(command) == 1
        assert f"needs a login in role {needed}\n" in capsys.readouterr().err


def test_a_clone_is_the_same(connection: Connection) -> None:
    furnish(connection, "acme")
    connection.execute("select * from rag.clone_tenant('acme', 'clone')")
    assert contents(connection, "clone") == contents(connection, "acme")
    assert jobs(connection, "clone") == 1
    # They go their own ways.
    connection.execute("select rag.set_tenant('clone')")
    connection.execute("select rag.delete(d.uri) from rag.documents as d where d.uri <> 'late'")
    connection.execute("select rag.put('Of the clone alone.', 'own')")
    connection.execute(EMBED)
    connection.execute("call rag.isolate_tenant('acme')")
    connection.execute("select rag.clone_tenant('acme', 'third')")
    assert contents(connection, "third") == contents(connection, "acme")
    connection.execute("select rag.drop_tenant('clone')")
    assert contents(connection, "third") == contents(connection, "acme")
    for statement, state in (
        ("select rag.clone_tenant('acme', 'third')", "42710"),
        ("select rag.clone_tenant('missing', 'x')", "RG002"),
        ("select rag.clone_tenant('acme', '')", "22023"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(statement.encode())
        assert caught.value.sqlstate == state


def everything(connection: Connection) -> dict[str, str]:
    """All that the database holds as text, by where it is: tables, columns of statistics."""
    found: dict[str, str] = {}
    for (name,) in connection.execute(
        "select c.oid::regclass::text from pg_class as c where c.relkind in ('r', 'm') "
        "and c.relpersistence <> 't' "
        "and c.relnamespace::regnamespace::text !~ '^(pg_toast|pg_temp|information_schema)' "
        # What it had, and the copy of all that is being made here.
        "and c.oid not in ('pg_statistic'::regclass)"
    ).fetchall():
        rows = connection.execute(
            sql.SQL("select coalesce(string_agg(t::text, ' '), '') from {} as t").format(
                sql.SQL(name)
            )
        ).fetchall()
        found[name] = rows[0][0]
    statistics = connection.execute(
        "select format('statistics of %s.%s', s.tablename, s.attname), string_agg(s::text, ' ') "
        "from pg_stats as s group by 1"
    ).fetchall()
    return {**found, **dict(statistics)}


@pytest.mark.parametrize("is_dedicated", [False, True])
def test_a_dropped_tenant_leaves_no_trace(connection: Connection, is_dedicated: bool) -> None:
    """Of his text in any table or statistic, nor of his number or an HNSW index of his."""
    furnish(connection, CANARY)
    # A search that notes its query, an embedding of it in the cache, completions, failures.
    connection.execute("select count(*) from rag.search(%s)", [f"who is {CANARY}"])
    if is_dedicated:
        connection.execute("call rag.isolate_tenant(%s)", [CANARY])
    connection.execute("analyze")
    places = [place for place, text in everything(connection).items() if CANARY in text]
    assert len(places) > 12
    assert any("statistics" in place for place in places)
    [(tenant_id,)] = connection.execute(
        "select tenant_id from rag.tenants where name = %s", [CANARY]
    ).fetchall()
    report = connection.execute("select * from rag.drop_tenant(%s)", [CANARY]).fetchall()
    [(removed, settled)] = connection.execute(
        "select removed, settled_at from rag.erasures where erased_id = %s", [tenant_id]
    ).fetchall()
    assert removed == dict(report)
    assert settled is None
    # At once in no table; the planner's statistics are told from the plan.
    assert not [
        place
        for place, text in everything(connection).items()
        if CANARY in text and not place.startswith("statistics")
    ]
    assert connection.execute(
        "select action, object from rag.maintenance_plan() where action = 'settle'"
    ).fetchall() == [("settle", "rag.erasures")]
    connection.execute("call rag.maintain()")
    if is_dedicated:
        assert connection.execute("select rag.drop_empty_partitions('0')").fetchall() == [(True,)]
        connection.execute("call rag.maintain()")
        assert connection.execute(
            "select count(*) from rag.partitions where kind = 'dedicated'"
        ).fetchall() == [(0,)]
    assert [place for place, text in everything(connection).items() if CANARY in text] == []
    for (table,) in connection.execute(
        "select a.attrelid::regclass::text from pg_attribute as a join pg_class as c "
        "on c.oid = a.attrelid where a.attname = 'tenant_id' and c.relkind in ('r', 'p')"
    ).fetchall():
        statement = sql.SQL("select count(*) from {} where tenant_id = %s").format(sql.SQL(table))
        assert connection.execute(statement, [tenant_id]).fetchall() == [(0,)], table
    [(settled,)] = connection.execute("select settled_at from rag.erasures").fetchall()
    assert settled is not None
