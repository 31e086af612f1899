-- A search of the past: what is current and was so then comes from the legs of every search; what
-- was current then and is no more is scored exactly, row by row, as it is kept.

create or replace function rag._valid_chunks(
    tenant_id int, partition_id int, chunks bigint[], as_of timestamptz
)
    returns bigint[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return array(
        select g.chunk_id
        from (select distinct u.chunk_id from unnest(_valid_chunks.chunks) as u (chunk_id)) as g
        cross join lateral (
            select c.document_id
            from rag.chunks as c
            where
                c.partition_id = _valid_chunks.partition_id
                and c.tenant_id = _valid_chunks.tenant_id
                and c.chunk_id = g.chunk_id
        ) as c
        cross join lateral (
            select
            from rag.documents as d
            where
                d.tenant_id = _valid_chunks.tenant_id
                and d.document_id = c.document_id
                and (d.expires_at is null or d.expires_at > statement_timestamp())
                and (_valid_chunks.as_of is null or d.updated_at <= _valid_chunks.as_of)
        ) as d
    );
end
$$;

comment on function rag._valid_chunks(int, int, bigint[], timestamptz) is
    'Those of some current chunks whose documents have not expired and, where a time is given, '
    'have been as they are since then.';

create or replace function rag._valid_legs(
    tenant_id int,
    partition_id int,
    collection_id int,
    query text,
    filter jsonpath,
    mode text,
    model_id int,
    kind text,
    embedding halfvec,
    must tsquery,
    depth int,
    as_of timestamptz,
    inout lexical_chunks bigint[],
    inout lexical_scores double precision[],
    inout lexical_standards double precision[],
    inout semantic_chunks bigint[],
    inout similarities double precision[],
    inout semantic_standards double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_variable
declare
    v_valid bigint[] := rag._valid_chunks(
        tenant_id, partition_id, lexical_chunks || semantic_chunks, as_of
    );
    v_terms record;
    v_embedding halfvec := embedding;
    v_slope double precision;
    v_intercept double precision;
    v_chunks bigint[];
    v_scores double precision[];
    v_standards double precision[];
begin
    if kind = 'words' and as_of is not null then
        v_embedding := rag._with_feedback(
            tenant_id, partition_id, model_id, embedding, lexical_chunks, lexical_scores
        );
    end if;
    -- From a cosine to deviations, as the semantic leg has it.
    select regr_slope(s.standard, s.similarity), regr_intercept(s.standard, s.similarity)
    into v_slope, v_intercept
    from unnest(similarities, semantic_standards) as s (similarity, standard);

    select
        array_agg(l.chunk_id order by l.place),
        array_agg(l.score order by l.place),
        array_agg(l.standard order by l.place)
    into lexical_chunks, lexical_scores, lexical_standards
    from unnest(lexical_chunks, lexical_scores, lexical_standards)
        with ordinality as l (chunk_id, score, standard, place)
    where l.chunk_id = any(v_valid);
    select
        array_agg(s.chunk_id order by s.place),
        array_agg(s.similarity order by s.place),
        array_agg(s.standard order by s.place)
    into semantic_chunks, similarities, semantic_standards
    from unnest(semantic_chunks, similarities, semantic_standards)
        with ordinality as s (chunk_id, similarity, standard, place)
    where s.chunk_id = any(v_valid);
    if as_of is null then
        return;
    end if;

    if mode <> 'semantic' then
        v_terms := rag._query_terms(tenant_id, collection_id, query);
        select
            array_agg(p.chunk_id), array_agg(p.score),
            array_agg(coalesce(p.score / nullif(v_terms.deviation, 0), 1))
        into v_chunks, v_scores, v_standards
        from rag._past_scores(
            tenant_id, collection_id, filter, must, as_of, v_terms.terms, v_terms.idfs,
            v_terms.mean_length
        ) as p;
        select
            array_agg(o.chunk_id order by o.score desc, o.chunk_id),
            array_agg(o.score order by o.score desc, o.chunk_id),
            array_agg(o.standard order by o.score desc, o.chunk_id)
        into lexical_chunks, lexical_scores, lexical_standards
        from (
            select l.*
            from unnest(
                lexical_chunks || v_chunks, lexical_scores || v_scores,
                lexical_standards || v_standards
            ) as l (chunk_id, score, standard)
            order by l.score desc, l.chunk_id
            limit depth
        ) as o;
    end if;
    if kind <> 'none' then
        select
            array_agg(p.chunk_id), array_agg(p.similarity),
            array_agg(coalesce(v_slope * p.similarity + v_intercept, p.standard))
        into v_chunks, v_scores, v_standards
        from rag._past_similarities(
            tenant_id, partition_id, collection_id, filter, must, as_of, model_id, v_embedding
        ) as p;
        select
            array_agg(o.chunk_id order by o.similarity desc, o.chunk_id),
            array_agg(o.similarity order by o.similarity desc, o.chunk_id),
            array_agg(o.standard order by o.similarity desc, o.chunk_id)
        into semantic_chunks, similarities, semantic_standards
        from (
            select s.*
            from unnest(
                semantic_chunks || v_chunks, similarities || v_scores,
                semantic_standards || v_standards
            ) as s (chunk_id, similarity, standard)
            order by s.similarity desc, s.chunk_id
            limit depth
        ) as o;
    end if;
end
$$;

comment on function rag._valid_legs(
    int, int, int, text, jsonpath, text, int, text, halfvec, tsquery, int, timestamptz, bigint[],
    double precision[], double precision[], bigint[], double precision[], double precision[]
) is
    'Both legs'' lists without what has expired and, of a search of the past, without what is '
    'newer and with what was current then.';

create or replace function rag._past_scores(
    tenant_id int,
    collection_id int,
    filter jsonpath,
    must tsquery,
    as_of timestamptz,
    lexemes text[],
    idfs double precision[],
    mean_length double precision
)
    returns table (chunk_id bigint, score double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with
    axes as materialized (
        select rag._sparse(array[g.lexeme], array[1]) as axis, g.idf
        from unnest(_past_scores.lexemes, _past_scores.idfs) as g (lexeme, idf)
    )
    -- As rag._rescore.
    select
        c.chunk_id,
        sum(t.idf * f.frequency * (c.k1 + 1) / (
            f.frequency + c.k1 * (1 - c.b + c.b * c.length / _past_scores.mean_length)
        ))
    from rag.past_documents as p
    join rag.past_chunks as c
        on c.tenant_id = _past_scores.tenant_id
        and c.document_id = p.document_id
        and c.version = p.version
    cross join axes as t
    cross join lateral (select -(c.weights <#> t.axis) as weight) as w
    cross join lateral (
        select
            w.weight * c.k1 * (1 - c.b + c.b * c.length / c.reference_length)
            / (c.k1 + 1 - w.weight) as frequency
    ) as f
    where
        p.tenant_id = _past_scores.tenant_id
        and p.valid_from <= _past_scores.as_of
        and p.valid_to > _past_scores.as_of
        and (
            _past_scores.collection_id is null or p.collection_id = _past_scores.collection_id
        )
        and (_past_scores.filter is null or p.metadata @@ _past_scores.filter)
        and (_past_scores.must is null or c.lexemes @@ _past_scores.must)
        and rag._is_open(p)
        and w.weight > 0
    group by c.chunk_id;
end
$$;

comment on function rag._past_scores(
    int, int, jsonpath, tsquery, timestamptz, text[], double precision[], double precision
) is 'BM25 of the past chunks that were current at a time, by today''s statistics.';

create or replace function rag._past_similarities(
    tenant_id int,
    partition_id int,
    collection_id int,
    filter jsonpath,
    must tsquery,
    as_of timestamptz,
    model_id int,
    query halfvec
)
    returns table (chunk_id bigint, similarity double precision, standard double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with
    compared as materialized (
        select c.chunk_id, 1 - (v.embedding <=> _past_similarities.query) as similarity
        from rag.past_documents as p
        join rag.past_chunks as c
            on c.tenant_id = _past_similarities.tenant_id
            and c.document_id = p.document_id
            and c.version = p.version
        cross join lateral (
            select coalesce(
                (
                    select e.embedding
                    from rag.past_embeddings as e
                    where
                        e.tenant_id = _past_similarities.tenant_id
                        and e.content_hash = c.content_hash
                        and e.model_id = _past_similarities.model_id
                ),
                -- It came after the version had ended, for a chunk that lives on.
                (
                    select e.embedding
                    from rag.embeddings as e
                    where
                        e.model_id = _past_similarities.model_id
                        and e.partition_id = _past_similarities.partition_id
                        and e.tenant_id = _past_similarities.tenant_id
                        and e.chunk_id = c.chunk_id
                )
            ) as embedding
        ) as v
        where
            p.tenant_id = _past_similarities.tenant_id
            and p.valid_from <= _past_similarities.as_of
            and p.valid_to > _past_similarities.as_of
            and (
                _past_similarities.collection_id is null
                or p.collection_id = _past_similarities.collection_id
            )
            and (_past_similarities.filter is null or p.metadata @@ _past_similarities.filter)
            and (_past_similarities.must is null or c.lexemes @@ _past_similarities.must)
            and rag._is_open(p)
            and v.embedding is not null
    )
    select
        c.chunk_id,
        c.similarity,
        coalesce(
            (c.similarity - avg(c.similarity) over ())
            / nullif(stddev_pop(c.similarity) over (), 0),
            0
        )
    from compared as c;
end
$$;

comment on function rag._past_similarities(
    int, int, int, jsonpath, tsquery, timestamptz, int, halfvec
) is 'How near to a query the past chunks are that were current at a time.';

create or replace function rag._past_passages(
    chunk_ids bigint[],
    scores double precision[],
    lexical_ranks int[],
    lexical_scores double precision[],
    semantic_ranks int[],
    similarities double precision[],
    kind text,
    neighbours int,
    as_of timestamptz
)
    returns table (
        rank int,
        score double precision,
        document_id bigint,
        chunk_id bigint,
        uri text,
        title text,
        content text,
        metadata jsonb,
        lexical_rank int,
        lexical_score double precision,
        semantic_rank int,
        similarity double precision,
        query_embedding text,
        collection_name text,
        heading_path text[],
        ordinal int,
        start_offset int,
        end_offset int
    )
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
begin
    v_context := rag._context();
    return query
    select
        h.rank::int,
        h.score,
        v.document_id,
        h.chunk_id,
        v.uri,
        v.title,
        substr(
            v.content, coalesce(w.start_offset, v.start_offset) + 1,
            coalesce(w.end_offset, v.end_offset) - coalesce(w.start_offset, v.start_offset)
        ),
        v.metadata,
        h.lexical_rank,
        h.lexical_score,
        h.semantic_rank,
        h.similarity,
        _past_passages.kind,
        n.name,
        v.heading_path,
        v.ordinal,
        coalesce(w.start_offset, v.start_offset),
        coalesce(w.end_offset, v.end_offset)
    from unnest(
        _past_passages.chunk_ids, _past_passages.scores, _past_passages.lexical_ranks,
        _past_passages.lexical_scores, _past_passages.semantic_ranks, _past_passages.similarities
    ) with ordinality as h (
        chunk_id, score, lexical_rank, lexical_score, semantic_rank, similarity, rank
    )
    cross join lateral (
        select
            d.document_id, null::int as version, d.collection_id, d.uri, d.title, d.content,
            d.metadata, c.heading_path, c.ordinal, c.start_offset, c.end_offset
        from rag.chunks as c
        join rag.documents as d
            on d.tenant_id = v_context.tenant_id and d.document_id = c.document_id
        where
            c.partition_id = v_context.partition_id
            and c.tenant_id = v_context.tenant_id
            and c.chunk_id = h.chunk_id
            and d.updated_at <= _past_passages.as_of
        union all
        select
            p.document_id, p.version, p.collection_id, p.uri, p.title, p.content,
            p.metadata, c.heading_path, c.ordinal, c.start_offset, c.end_offset
        from rag.past_chunks as c
        join rag.past_documents as p
            on p.tenant_id = v_context.tenant_id
            and p.document_id = c.document_id
            and p.version = c.version
        where
            c.tenant_id = v_context.tenant_id
            and c.chunk_id = h.chunk_id
            and p.valid_from <= _past_passages.as_of
            and p.valid_to > _past_passages.as_of
    ) as v
    join rag.collections as n
        on n.tenant_id = v_context.tenant_id and n.collection_id = v.collection_id
    left join lateral (
        select min(x.start_offset) as start_offset, max(x.end_offset) as end_offset
        from (
            select c.ordinal, c.start_offset, c.end_offset
            from rag.chunks as c
            where
                v.version is null
                and c.partition_id = v_context.partition_id
                and c.tenant_id = v_context.tenant_id
                and c.document_id = v.document_id
            union all
            select c.ordinal, c.start_offset, c.end_offset
            from rag.past_chunks as c
            where
                c.tenant_id = v_context.tenant_id
                and c.document_id = v.document_id
                and c.version = v.version
        ) as x
        where
            x.ordinal between v.ordinal - _past_passages.neighbours
            and v.ordinal + _past_passages.neighbours
    ) as w on _past_passages.neighbours > 0
    order by h.rank;
end
$$;

comment on function rag._past_passages(
    bigint[], double precision[], int[], double precision[], int[], double precision[], text, int,
    timestamptz
) is 'The chunks that a search of the past found, with the text they had then, read with the '
    'caller''s rights.';
