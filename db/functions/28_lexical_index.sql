-- The lexical index: what the lexical leg searches.

create or replace function rag._index_chunks(tenant_id int, partition_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_reference real;
    v_is_first boolean := false;
begin
    perform rag._unindex_chunks(
        _index_chunks.tenant_id, _index_chunks.partition_id, _index_chunks.chunks
    );
    perform rag._note_posting_changes(_index_chunks.tenant_id, _index_chunks.chunks);
    -- It does not change meanwhile: who writes has locked the tenant against rag._reweigh.
    select s.reference_length into v_reference
    from rag.lexeme_statistics as s
    where s.tenant_id = _index_chunks.tenant_id and s.lexeme = '' and s.delta_id = 0;
    -- A tenant's first chunks tell better than a guess, if nobody else is writing yet.
    if (rag._lexical_totals(_index_chunks.tenant_id)).chunks = 0 then
        perform
        from rag.tenants as t
        where t.tenant_id = _index_chunks.tenant_id
        for update skip locked;
        v_is_first := found;
    end if;

    -- Chunk by chunk, without a join between sets of them: in a new database the planner takes
    -- every set for small, and its nested loops made 50 MB of text a matter of an hour.
    with
    texts as materialized (
        select
            s.chunk_id,
            s.collection_id,
            s.k1,
            s.b,
            s.title_weight,
            s.heading_weight,
            s.enrich_weight,
            s.index_version,
            x.lexemes,
            l.length,
            rag._facets(_index_chunks.tenant_id, s.collection_id, s.metadata) as facets
        from (
            select
                c.chunk_id,
                c.collection_id,
                c.heading_path,
                c.content,
                c.metadata,
                d.uri,
                d.title,
                d.language,
                n.k1,
                n.b,
                n.title_weight,
                n.heading_weight,
                n.enrich_weight,
                n.enrich,
                n.index_version
            from rag.chunks as c
            join rag.documents as d
                on d.tenant_id = _index_chunks.tenant_id and d.document_id = c.document_id
            join rag.collections as n
                on n.tenant_id = _index_chunks.tenant_id and n.collection_id = c.collection_id
            where
                c.partition_id = _index_chunks.partition_id
                and c.tenant_id = _index_chunks.tenant_id
                and c.chunk_id = any(_index_chunks.chunks)
            -- Or lexemes may be made of each chunk with each document before the join tells which
            -- belong together: for 60 documents of a tenant newer than the statistics 10,800
            -- times instead of 180.
            offset 0
        ) as s
        cross join lateral (
            select
                setweight(rag._lexemes(s.language, coalesce(s.title, '')), 'A')
                || setweight(rag._lexemes(s.language, array_to_string(s.heading_path, ' ')), 'B')
                || case
                    when s.enrich = '{}' then ''
                    else setweight(
                        rag._lexemes(
                            s.language,
                            coalesce(rag._enriched_text(s.metadata, s.uri, s.enrich), '')
                        ),
                        'C'
                    )
                end
                || rag._lexemes(s.language, s.content) as found
            -- Or it would be computed again wherever it is named.
            offset 0
        ) as f
        cross join lateral (
            select
                case when length(f.found) <= 16000 then f.found else rag._most_frequent(f.found) end
                as lexemes
            offset 0
        ) as x
        cross join lateral (
            select
                coalesce(sum(
                    rag._frequency(
                        u.positions, u.weights, s.title_weight, s.heading_weight, s.enrich_weight
                    )
                ), 0) as length
            from unnest(x.lexemes) as u
        ) as l
    ),
    reference as materialized (
        select
            (case when v_is_first then avg(nullif(t.length, 0)) end)::real as found_length,
            count(*) as chunks
        from texts as t
    ),
    settled as (
        update rag.lexeme_statistics as s
        set reference_length = r.found_length, is_settled = r.chunks >= 1000
        from reference as r
        where
            s.tenant_id = _index_chunks.tenant_id
            and s.lexeme = ''
            and s.delta_id = 0
            and r.found_length is not null
    ),
    indexed as (
        insert into rag.lexemes (
            partition_id, tenant_id, chunk_id, collection_id, length, lexemes, weights, k1, b,
            index_version, facets
        )
        select
            _index_chunks.partition_id, _index_chunks.tenant_id, t.chunk_id, t.collection_id,
            t.length, t.lexemes, coalesce(v.weights, '{}/1000000000'), t.k1, t.b, t.index_version,
            t.facets
        from texts as t
        cross join reference as r
        cross join lateral (
            select
                (
                    '{' || string_agg(w.dimension || ':' || w.weight, ',') || '}/1000000000'
                )::sparsevec as weights
            from (
                select
                    rag._lexeme_dimension(u.lexeme) as dimension,
                    max(rag._weight(
                        rag._frequency(
                            u.positions, u.weights, t.title_weight, t.heading_weight,
                            t.enrich_weight
                        ),
                        t.length / coalesce(r.found_length, v_reference), t.k1, t.b
                    )) as weight
                from unnest(t.lexemes) as u
                group by rag._lexeme_dimension(u.lexeme)
            ) as w
            where w.weight > 0
        ) as v
        order by t.chunk_id
    ),
    terms as materialized (
        select
            u.lexeme,
            rag._frequency(
                u.positions, u.weights, t.title_weight, t.heading_weight, t.enrich_weight
            ) as frequency,
            t.length / coalesce(r.found_length, v_reference) as relative_length,
            t.k1,
            t.b
        from texts as t
        cross join reference as r
        cross join lateral unnest(t.lexemes) as u
    ),
    weighted as materialized (
        select t.lexeme, rag._weight(t.frequency, t.relative_length, t.k1, t.b) as weight
        from terms as t
        where t.frequency > 0
    ),
    counted as (
        select
            w.lexeme,
            count(*)::int as chunks,
            max(w.weight) as max_weight,
            sum(w.weight) as sum_weight,
            sum(w.weight * w.weight) as sum_square
        from weighted as w
        group by w.lexeme
    )
    insert into rag.lexeme_statistics (
        tenant_id, lexeme, delta_id, chunks, total_length, size, lexemes, counts, max_weights,
        sum_weights, sum_squares
    )
    select
        _index_chunks.tenant_id,
        '',
        nextval('rag.lexeme_delta_ids'),
        (select count(*) from texts),
        (select sum(t.length) from texts as t),
        count(*),
        coalesce(array_agg(c.lexeme), '{}'),
        coalesce(array_agg(c.chunks), '{}'),
        coalesce(array_agg(c.max_weight), '{}'),
        coalesce(array_agg(c.sum_weight), '{}'),
        coalesce(array_agg(c.sum_square), '{}')
    from counted as c
    having exists (select from texts);
end
$$;

comment on function rag._index_chunks(int, int, bigint[]) is
    'Index chunks anew: their lexemes, their BM25 weights, and what they change in the statistics.';

create or replace function rag._index_vectors(tenant_id int, partition_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    -- In a partition with an HNSW index a row that changes is looked up in it anew, a millisecond
    -- each; pgvector adds it to the node that has the same vector already.
    update rag.embeddings as e
    set facets = l.facets
    from rag.lexemes as l
    where
        e.partition_id = _index_vectors.partition_id
        and e.tenant_id = _index_vectors.tenant_id
        and e.chunk_id = any(_index_vectors.chunks)
        and e.facets <> l.facets
        and l.partition_id = _index_vectors.partition_id
        and l.tenant_id = _index_vectors.tenant_id
        and l.chunk_id = e.chunk_id
        and l.facets <> '{}';
end
$$;

comment on function rag._index_vectors(int, int, bigint[]) is
    'After a change of facets: those of chunks'' embeddings, of every model, anew.';

create or replace function rag._fill_facets(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_partition int;
begin
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = _fill_facets.tenant_id
    for key share;
    perform rag._index_vectors(
        _fill_facets.tenant_id, v_partition,
        array(
            select l.chunk_id
            from rag.lexemes as l
            where
                l.partition_id = v_partition
                and l.tenant_id = _fill_facets.tenant_id
                and l.chunk_id in (
                    select e.chunk_id
                    from rag.embeddings as e
                    where
                        e.partition_id = v_partition
                        and e.tenant_id = _fill_facets.tenant_id
                        and e.facets = '{0}'
                )
            -- Whoever changes them right now fills them in, too.
            for share of l skip locked
        )
    );
end
$$;

comment on function rag._fill_facets(int) is
    'Give those of a tenant''s embeddings their facets that were stored without.';

create or replace function rag._index_metadata(
    tenant_id int, partition_id int, documents bigint[]
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_changed bigint[];
begin
    with
    changed as (
        update rag.lexemes as l
        set facets = f.facets
        from rag.chunks as c
        cross join lateral (
            select rag._facets(_index_metadata.tenant_id, c.collection_id, c.metadata) as facets
            offset 0
        ) as f
        where
            l.partition_id = _index_metadata.partition_id
            and l.tenant_id = _index_metadata.tenant_id
            and l.chunk_id = c.chunk_id
            and l.facets <> f.facets
            and c.partition_id = _index_metadata.partition_id
            and c.tenant_id = _index_metadata.tenant_id
            and c.document_id = any(_index_metadata.documents)
        returning l.chunk_id
    )
    select array_agg(g.chunk_id) into v_changed from changed as g;
    perform rag._note_posting_changes(_index_metadata.tenant_id, v_changed);
    -- A statement of its own: whoever has stored an embedding meanwhile was waited for.
    perform rag._index_vectors(
        _index_metadata.tenant_id, _index_metadata.partition_id,
        array(
            select c.chunk_id
            from rag.chunks as c
            where
                c.partition_id = _index_metadata.partition_id
                and c.tenant_id = _index_metadata.tenant_id
                and c.document_id = any(_index_metadata.documents)
        )
    );
end
$$;

comment on function rag._index_metadata(int, int, bigint[]) is
    'After a change of documents'' metadata: the facets of their chunks anew. Where words of the '
    'metadata are searched with the text, rag._index_chunks has done it.';

create or replace function rag._unindex_chunks(tenant_id int, partition_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    with
    gone as (
        delete from rag.lexemes as l
        where
            l.partition_id = _unindex_chunks.partition_id
            and l.tenant_id = _unindex_chunks.tenant_id
            and l.chunk_id = any(_unindex_chunks.chunks)
        returning l.lexemes, l.length, l.weights
    ),
    -- By the weights that are stored, whatever settings they were made with: just what was added
    -- to the statistics is taken away. (Of two lexemes of a chunk that share a dimension the
    -- greater weight counts for both; that is rarer than one chunk in 100,000.)
    weighted as materialized (
        select u.lexeme, w.weight
        from gone as g
        cross join lateral (
            select rag._weights_by_dimension(g.weights) as by_dimension
            offset 0
        ) as o
        cross join lateral unnest(g.lexemes) as u
        cross join lateral (
            select (o.by_dimension ->> rag._lexeme_dimension(u.lexeme)::text)::real as weight
        ) as w
        where w.weight is not null
    ),
    counted as (
        select
            w.lexeme,
            count(*)::int as chunks,
            sum(w.weight) as sum_weight,
            sum(w.weight * w.weight) as sum_square
        from weighted as w
        group by w.lexeme
    ),
    summed as (
        select count(*) as chunks, sum(g.length) as length from gone as g
    )
    insert into rag.lexeme_statistics (
        tenant_id, lexeme, delta_id, chunks, total_length, size, lexemes, counts, max_weights,
        sum_weights, sum_squares
    )
    select
        _unindex_chunks.tenant_id,
        '',
        nextval('rag.lexeme_delta_ids'),
        -s.chunks,
        -s.length,
        (select count(*) from counted),
        coalesce((select array_agg(c.lexeme order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(-c.chunks order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(0::real) from counted), '{}'),
        coalesce((select array_agg(-c.sum_weight order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(-c.sum_square order by c.lexeme) from counted as c), '{}')
    from summed as s
    where s.chunks > 0;
end
$$;

comment on function rag._unindex_chunks(int, int, bigint[]) is
    'Take chunks out of the lexical index and of its statistics.';
