"""Tenants of any size without the work of putting them: rows as rag.put and a worker leave them.

Vectors have topics, as those of texts do: random ones have no neighbours to be found.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

LARGE = int(os.environ.get("RAGDB_TEST_CHUNKS", "12000"))
"""Chunks of a large tenant; `make test-large` takes 50,000."""

# One word that all have, one of ten, one of a thousand; numbers in the metadata likewise. A vector
# is the sum of two of 200 directions, as a text has topics, and one of its own.
FILL = """
with place as (
    select t.tenant_id, t.partition_id, n.collection_id, m.model_id, m.dimensions
    from rag.tenants as t
    join rag.collections as n on n.tenant_id = t.tenant_id and n.name = 'default'
    join rag.models as m on m.is_active
    where t.name = %(tenant)s
),
directions as materialized (
    select
        d,
        (
            select array_agg(sqrt(-2 * ln(1 - random())) * cos(6.2832 * random()))::real[]::vector
            from generate_series(1, p.dimensions + 0 * d)
        ) as direction
    from place as p
    cross join generate_series(0, 199) as d
),
documents as (
    insert into rag.documents (
        tenant_id, collection_id, uri, content, content_hash, language, chunking
    )
    select p.tenant_id, p.collection_id, 'many/' || i, x.content, rag._hash(x.content), 'english',
        '{}'
    from place as p
    cross join generate_series(1, %(chunks)s) as i
    cross join lateral (select format('common word%%s rare%%s', i %% 10, i %% 1000) as content) as x
    returning tenant_id, document_id, collection_id, content, content_hash
),
chunks as (
    insert into rag.chunks (
        partition_id, tenant_id, document_id, collection_id, ordinal, start_offset, end_offset,
        content, content_hash, metadata
    )
    select p.partition_id, d.tenant_id, d.document_id, d.collection_id, 0, 0, length(d.content),
        d.content, d.content_hash,
        jsonb_build_object(
            'tenth', substring(d.content from 'word(\\d+)')::int,
            'hundredth', substring(d.content from 'rare(\\d+)')::int %% 100,
            'thousandth', substring(d.content from 'rare(\\d+)')::int
        )
    from documents as d
    cross join place as p
    returning partition_id, tenant_id, chunk_id, collection_id, content, metadata
),
lexemes as (
    insert into rag.lexemes (
        partition_id, tenant_id, chunk_id, collection_id, length, lexemes, weights, facets
    )
    select c.partition_id, c.tenant_id, c.chunk_id, c.collection_id, 3,
        x.lexemes,
        rag._sparse(tsvector_to_array(x.lexemes), array[1, 1, 1]),
        rag._facets(c.tenant_id, c.collection_id, c.metadata)
    from chunks as c
    cross join lateral (select to_tsvector('english', c.content) as lexemes) as x
),
statistics as (
    insert into rag.lexeme_statistics (
        tenant_id, lexeme, chunks, max_weight, sum_weight, sum_square
    )
    select p.tenant_id, s.word, s.n, 1, s.n, s.n
    from place as p
    cross join lateral (
        select 'common' as word, %(chunks)s as n
        union all
        select 'word' || i, 1 + (%(chunks)s - i) / 10 from generate_series(0, 9) as i
        union all
        select 'rare' || i, 1 + (%(chunks)s - i) / 1000 from generate_series(0, 999) as i
    ) as s
    where s.n > 0
),
totals as (
    update rag.lexeme_statistics as s
    set chunks = %(chunks)s, total_length = 3 * %(chunks)s, reference_length = 3, is_settled = true
    from place as p
    where s.tenant_id = p.tenant_id and s.lexeme = '' and s.delta_id = 0
)
insert into rag.embeddings (
    partition_id, tenant_id, chunk_id, model_id, collection_id, facets, embedding
)
select
    c.partition_id, c.tenant_id, c.chunk_id, p.model_id, c.collection_id,
    rag._facets(c.tenant_id, c.collection_id, c.metadata),
    l2_normalize(d.direction + o.direction + (
        select array_agg(3.5 * (random() - 0.5))::real[]::vector
        from generate_series(1, p.dimensions + 0 * c.chunk_id::int)
    ))::halfvec
from chunks as c
cross join place as p
join directions as d on d.d = c.chunk_id %% 200
join directions as o on o.d = c.chunk_id * 7919 %% 199
"""


def fill(connection: psycopg.Connection[Any], tenant: str, chunks: int) -> None:
    """Make a tenant with so many chunks."""
    connection.execute("select rag.create_tenant(%s)", [tenant])
    connection.execute(FILL, {"tenant": tenant, "chunks": chunks})
