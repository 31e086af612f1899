"""rag.tune: what it computes is what rag.evaluate measures, and its choice is never a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.test_bm25 import lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from psycopg import Connection
    from sentence_transformers import SentenceTransformer

    from tests.conftest import RoleFactory

QUESTIONS = 50


def embed(connection: Connection[Any], model: SentenceTransformer) -> None:
    """What an embedder does with all that waits."""
    while jobs := connection.execute(
        "select job_id, lease_token, content from rag.claim_jobs('test', 256)"
    ).fetchall():
        vectors = [str(vector.tolist()) for vector in model.encode([job[2] for job in jobs])]
        connection.execute(
            "select rag.complete_jobs(%s, %s, %s::vector[])",
            [jobs[0][1], [job[0] for job in jobs], vectors],
        )


def judge(
    connection: Connection[Any], name: str, questions: Sequence[tuple[str, str, str]]
) -> None:
    """Judged questions: text, uri of the answer, vector."""
    connection.execute(
        "select rag.add_judgements(%s, %s, 'c')",
        [
            name,
            Jsonb(
                [
                    {
                        "query": query,
                        "uri": uri,
                        "embedding": [float(x) for x in v[1:-1].split(",")],
                    }
                    for query, uri, v in questions
                ]
            ),
        ],
    )


@pytest.fixture
def judged(
    connection: Connection[Any], shared_data: Path, model: SentenceTransformer
) -> list[tuple[str, str, str]]:
    """240 Spanish paragraphs, an English model, and 250 questions with their vectors."""
    folder = shared_data / "xquad-es"
    connection.execute("select rag.create_collection('c', 'none', language => 'spanish')")
    documents = [
        {"uri": row["id"], "content": row["text"]} for row in lines(folder / "corpus.jsonl")
    ]
    connection.execute("select from rag.put_many(%s, 'c')", [Jsonb(documents)])
    embed(connection, model)
    answers = dict(
        line.split("\t")[:2] for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()
    )
    rows = lines(folder / "queries.jsonl")[:: 1190 // (5 * QUESTIONS)][: 5 * QUESTIONS]
    vectors = model.encode([row["text"] for row in rows])
    return [
        (row["text"], answers[row["id"]], str(vector.tolist()))
        for row, vector in zip(rows, vectors, strict=True)
    ]


def ndcg(connection: Connection[Any], name: str, **arguments: float | str) -> float:
    named = [
        sql.SQL("{} => {}").format(sql.Identifier(key), sql.Literal(value))
        for key, value in arguments.items()
    ]
    row = connection.execute(
        sql.SQL("select ndcg from rag.evaluate({})").format(
            sql.SQL(", ").join([sql.Literal(name), *named])
        )
    ).fetchone()
    assert row is not None
    return row[0]


def test_a_tuned_collection_is_at_or_above_the_better_leg(
    connection: Connection[Any], judged: list[tuple[str, str, str]]
) -> None:
    judge(connection, "seen", judged[::5])
    judge(connection, "unseen", [one for n, one in enumerate(judged) if n % 5])
    rows = connection.execute(
        "select fusion, lexical_weight::float8, ndcg, is_chosen, note, judged_questions,"
        " derived_questions from rag.tune('c', 'seen')"
    ).fetchall()
    assert {row[5:] for row in rows} == {(QUESTIONS, 0)}
    assert len(rows) == 43
    assert [row[3] for row in rows].count(True) == 1
    assert rows[0][3], "the chosen one is first"
    assert (
        rows[0][:2]
        == connection.execute(
            "select fusion, lexical_weight::float8 from rag.collections where name = 'c'"
        ).fetchone()
    )
    # What is computed from the lists of the legs is what searches find.
    by_candidate = {(row[0], round(row[1], 2)): row[2] for row in rows if row[0]}
    for fusion, weight in (("standard", 0.3), ("linear", 0.8), ("standard", 0.5)):
        assert by_candidate[fusion, weight] == pytest.approx(
            ndcg(connection, "seen", fusion=fusion, lexical_weight=weight)
        )
    assert by_candidate["linear", 0] == pytest.approx(ndcg(connection, "seen", mode="semantic"))
    assert rows[0][2] == pytest.approx(ndcg(connection, "seen")), "rag.evaluate honours it"
    better = max(
        ndcg(connection, "unseen", mode="lexical"),
        ndcg(connection, "unseen", mode="semantic"),
    )
    assert ndcg(connection, "unseen") >= better - 0.005
    # Each vector with the words of another question.
    few = judged[:QUESTIONS]
    wrong = [
        (other, uri, vector)
        for (other, *_), (_, uri, vector) in zip([*few[7:], *few[:7]], few, strict=True)
    ]
    judge(connection, "wrong", wrong)
    weight = "select lexical_weight::float8 from rag.collections where name = 'c'"
    before = connection.execute(weight).fetchone()
    connection.execute("select rag.tune('c', 'wrong', apply => false)")
    assert connection.execute(weight).fetchone() == before, "it only said what it would do"
    connection.execute("select rag.tune('c', 'wrong')")
    row = connection.execute(weight).fetchone()
    assert row is not None
    assert row[0] < 0.5, "a leg that only misleads loses its weight"
    assert ndcg(connection, "wrong") >= ndcg(connection, "wrong", mode="semantic") - 0.005


def test_questions_are_made_of_what_is_there(
    connection: Connection[Any], shared_data: Path, model: SentenceTransformer
) -> None:
    connection.execute(
        "select rag.create_collection('c', 'recursive', 300, 0, language => 'spanish')"
    )
    documents = [
        {"uri": row["id"], "content": row["text"]}
        for row in lines(shared_data / "xquad-es" / "corpus.jsonl")[:60]
    ]
    connection.execute("select from rag.put_many(%s, 'c')", [Jsonb(documents)])
    embed(connection, model)
    [(note,)] = connection.execute("select note from rag.tune('c')").fetchall()
    assert "call again when an embedder has made them" in note
    derived = connection.execute(
        "select q.query, q.uri, q.excluded, c.chunk_id is not null"
        " from rag._context() as x"
        " join rag.collections as n on n.tenant_id = x.tenant_id and n.name = 'c'"
        " cross join lateral rag._derived_questions("
        "     x.tenant_id, x.partition_id, n.collection_id, 40) as q"
        " join rag.documents as d on d.tenant_id = x.tenant_id and d.uri = q.uri"
        " left join rag.chunks as c on c.tenant_id = x.tenant_id"
        "     and c.document_id = d.document_id and c.chunk_id <> all(q.excluded)"
        "     and strpos(c.content, q.query) = 0"
    ).fetchall()
    assert len({query for query, *_ in derived}) == 40
    assert all(row[3] for row in derived), "each has something left to be found by"
    queries = sorted({query for query, *_ in derived})
    connection.cursor().executemany(
        "insert into rag.query_embeddings"
        " (tenant_id, model_id, query_hash, embedding, expires_at)"
        " select rag._policy_tenant(), m.model_id, rag._query_hash(%s), %s::vector::halfvec,"
        " now() + interval '1 day' from rag.models as m where m.is_active",
        [
            (query, str(vector.tolist()))
            for query, vector in zip(queries, model.encode(queries), strict=True)
        ],
    )
    row = connection.execute(
        "select judged_questions, derived_questions, lexical_weight between 0.25 and 0.75"
        " from rag.tune('c', questions => 40) where is_chosen"
    ).fetchone()
    assert row == (0, 40, True)


def test_questions_without_embeddings_are_asked_for(connection: Connection[Any]) -> None:
    """They are noted, and stay noted: an error would take them back."""
    connection.execute("select rag.create_tenant('new')")
    connection.execute("select rag.set_tenant('new')")
    text = "\n\n".join(f"The {n}th rule says that item {n} costs {n} coins." for n in range(40))
    connection.execute("select rag.put(%s, 'rules', chunk_size => 120, chunk_overlap => 0)", [text])
    [(chosen, note)] = connection.execute("select is_chosen, note from rag.tune()").fetchall()
    assert not chosen
    assert "wait for their embeddings" in note
    assert connection.execute("select count(*) > 0 from rag.queries").fetchone() == (True,)


def test_tuning_is_for_ones_own_collections(connection: Connection[Any], role: RoleFactory) -> None:
    connection.execute("select rag.create_tenant('tuned')")
    one = role("default")
    with psycopg.connect(one.url, autocommit=True) as session:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("set rag.tenant = 'tuned'").execute("select rag.tune()")
        session.execute("reset rag.tenant")
        with pytest.raises(psycopg.errors.NoDataFound, match="no question to tune by"):
            session.execute("select rag.tune()")
        refused: tuple[LiteralString, ...] = ("folds => 1", "questions => 0", "folds => null")
        for arguments in refused:
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                session.execute(f"select rag.tune({arguments})")
        with pytest.raises(psycopg.errors.NoDataFound, match='"missing" does not exist'):
            session.execute("select rag.tune(eval_set => 'missing')")
