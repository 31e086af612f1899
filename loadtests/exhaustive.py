"""The hybrid search with nothing left out: every chunk is scored by both legs.

What rag.search is measured against: BM25 of all that hold a word of the query, cosines of all
vectors, means and deviations of all of them, no list that ends at a hundred. Only what a word is
worth (idf, and the deviation of BM25) is the product's own. It takes seconds at a million chunks.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb

STATEMENT: Final[LiteralString] = """
with
query as materialized (
    select
        %(vector)s::halfvec as vector,
        rag._sparse(t.terms, t.idfs) as weights,
        (
            select string_agg(rag._quote_lexeme(u.term), ' | ') from unnest(t.terms) as u (term)
        )::tsquery as lexemes,
        t.deviation,
        t.must
    from rag._query_terms(rag._policy_tenant(), null, %(query)s) as t
),
compared as materialized (
    select e.chunk_id, 1 - (e.embedding <=> q.vector) as similarity
    from {vectors} as e
    cross join query as q
),
spread as materialized (
    select avg(c.similarity) as mean, stddev_pop(c.similarity) as deviation
    from compared as c
),
matches as materialized (
    select l.chunk_id, -(l.weights <#> q.weights) / q.deviation as standard
    from {lexemes} as l
    join query as q on l.lexemes @@ q.lexemes
),
scored as materialized (
    select
        c.chunk_id,
        0.5 * coalesce(m.standard, 0) + 0.5 * (c.similarity - s.mean) / s.deviation as score
    from compared as c
    cross join spread as s
    cross join query as q
    left join matches as m on m.chunk_id = c.chunk_id
    where
        (
            %(filter)s::jsonb is null
            or c.chunk_id in (select k.chunk_id from {chunks} as k where k.metadata @> %(filter)s)
        )
        and (
            q.must is null
            or exists (
                select from {lexemes} as l where l.chunk_id = c.chunk_id and l.lexemes @@ q.must
            )
        )
),
best as materialized (
    select e.embedding
    from (select o.chunk_id from scored as o order by o.score desc limit 1) as o
    join {vectors} as e on e.chunk_id = o.chunk_id
)
select e.chunk_id
from scored as o
join {vectors} as e on e.chunk_id = o.chunk_id
cross join best as b
cross join spread as s
order by
    o.score + 0.5 * rag._support_weight() * (1 - (e.embedding <=> b.embedding) - s.mean)
    / s.deviation desc
limit %(k)s
"""


def search(
    connection: psycopg.Connection[Any],
    tables: dict[str, sql.Identifier],
    query: str,
    vector: Vector,
    condition: dict[str, int] | None,
    k: int,
) -> list[int]:
    """Chunks by number, best first; `tables` are the tenant's vectors, lexemes and chunks."""
    parameters = {
        "query": query, "vector": vector, "k": k, "filter": condition and Jsonb(condition),
    }  # fmt: skip
    rows = connection.execute(sql.SQL(STATEMENT).format(**tables), parameters)
    return [row[0] for row in rows]
