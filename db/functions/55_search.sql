-- rag.search: both legs, fused, then the passages.
--
-- Two steps on purpose. rag._candidates finds ids and scores with the owner's rights (under a
-- policy no GIN index can be used) and takes the tenant from the verified context only.
-- rag.search then reads the text with the caller's rights, under row-level security: were a
-- predicate forgotten in the first step, no foreign text would come out of the second.

create or replace function rag._check_search(
    k int, mode text, lexical_weight real, fusion text
)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _check_search.k is null or _check_search.k not between 1 and 1000 then
        raise exception 'invalid k' using
            errcode = 'invalid_parameter_value',
            detail = format('k is %s.', coalesce(_check_search.k::text, 'null')),
            hint = 'k is the number of passages wanted, 1 to 1,000.';
    end if;
    if _check_search.mode is null or _check_search.mode not in ('hybrid', 'lexical', 'semantic')
    then
        raise exception 'unknown mode "%"', coalesce(_check_search.mode, 'null') using
            errcode = 'invalid_parameter_value',
            detail = 'mode says which legs are used.',
            hint = 'Modes are hybrid, lexical and semantic.';
    end if;
    if _check_search.lexical_weight not between 0 and 1 then
        raise exception 'invalid lexical_weight' using
            errcode = 'invalid_parameter_value',
            detail = format('lexical_weight is %s.', _check_search.lexical_weight),
            hint = 'It is between 0 (only the semantic leg counts) and 1 (only the lexical one).';
    end if;
    if _check_search.fusion not in ('standard', 'linear', 'rrf') then
        raise exception 'unknown fusion "%"', _check_search.fusion using
            errcode = 'invalid_parameter_value',
            detail = 'fusion says how the two ranked lists become one.',
            hint = 'Fusions are standard (the default), linear and rrf.';
    end if;
end
$$;

comment on function rag._check_search(int, text, real, text) is
    'Raise the error for parameters that rag.search cannot take.';

create or replace function rag._contribution(
    fusion text,
    place bigint,
    standard double precision,
    score double precision,
    least_score double precision,
    greatest_score double precision
)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return case fusion
    -- Reciprocal rank fusion with k = 60 (Cormack, Clarke and Büttcher 2009), times 61, so that
    -- 1 means: first in every leg.
    when 'rrf' then 61.0 / (60 + place)
    -- Each list from 0 (its last) to 1 (its first).
    when 'linear' then coalesce(
        (score - least_score) / nullif(greatest_score - least_score, 0), 1
    )
    -- In standard deviations of the tenant's own chunks for this query, from a chunk without any of
    -- the words and from one of average meaning: a leg that tells chunks apart speaks up, one that
    -- finds all of them alike keeps quiet. What a leg has not listed gets 0.
    else standard
end;

comment on function rag._contribution(
    text, bigint, double precision, double precision, double precision, double precision
) is 'What its place and score in one leg add to a chunk''s score, before the leg''s weight.';

create or replace function rag._candidates(
    query text,
    k int,
    collection text,
    filter jsonb,
    embedding vector,
    mode text,
    lexical_weight real,
    min_score real,
    fusion text
)
    returns table (
        chunk_id bigint,
        score double precision,
        lexical_rank int,
        lexical_score double precision,
        semantic_rank int,
        similarity double precision,
        query_embedding text
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_partition int;
    v_collection int;
    v_filter jsonpath := rag._compile_filter(_candidates.filter);
    v_model rag.models;
    v_vector halfvec;
    v_must tsquery;
    v_kind text := 'none';
    -- A fused list is only as good as its legs are deep: a chunk that is 60th in both beats one
    -- that is 10th in one.
    v_depth int := greatest(100, 2 * _candidates.k);
    v_within bigint[];
    v_has_lexical boolean := _candidates.mode <> 'semantic';
    v_has_semantic boolean;
    v_chunks bigint[];
    v_scores double precision[];
    v_standards double precision[];
    v_weight double precision;
    v_fusion text := coalesce(_candidates.fusion, 'standard');
begin
    perform rag._check_search(
        _candidates.k, _candidates.mode, _candidates.lexical_weight, _candidates.fusion
    );
    select c.tenant_id, c.partition_id into v_tenant, v_partition from rag._context() as c;
    if _candidates.collection is not null then
        v_collection := (rag._collection(v_tenant, _candidates.collection)).collection_id;
    end if;
    if _candidates.mode <> 'lexical' then
        v_model := rag._active_model(v_tenant);
        select e.kind, e.embedding into v_kind, v_vector
        from rag._query_embedding(
            v_tenant, v_model, _candidates.query, _candidates.embedding
        ) as e;
    end if;
    -- What a phrase demands and a minus forbids holds for both legs.
    v_must := (rag._query_terms(v_tenant, v_collection, _candidates.query)).must;
    v_within := rag._within(v_tenant, v_partition, v_collection, v_filter, v_must, v_depth);
    v_has_semantic := v_kind <> 'none';
    if _candidates.mode = 'semantic' and not v_has_semantic then
        raise exception 'mode semantic needs the embedding of the query' using
            errcode = 'RG006',
            detail = 'None was given, none is in the cache, and no word of the query has a vector.',
            hint = 'Give embedding => the query''s vector, or use mode hybrid or lexical; '
            'rag.status() tells whether there are word vectors.';
    end if;
    if v_has_lexical or v_kind = 'words' then
        select
            array_agg(l.chunk_id order by l.score desc, l.chunk_id),
            array_agg(l.score order by l.score desc, l.chunk_id),
            array_agg(l.standard order by l.score desc, l.chunk_id)
        into v_chunks, v_scores, v_standards
        from rag._lexical_leg(
            v_tenant, v_partition, _candidates.query, v_collection, v_filter,
            case when v_has_lexical then v_depth else rag._feedback_depth() end,
            v_within
        ) as l;
    end if;
    if v_kind = 'words' then
        v_vector := rag._with_feedback(
            v_tenant, v_partition, v_model.model_id, v_vector, v_chunks
        );
    end if;
    -- With one leg its own weight is all there is.
    v_weight := case
        when not v_has_semantic then 1
        when not v_has_lexical then 0
        else coalesce(_candidates.lexical_weight, 0.5)
    end;

    return query
    with
    lexical as (
        select l.chunk_id, l.score, l.standard, l.place
        from unnest(v_chunks, v_scores, v_standards)
            with ordinality as l (chunk_id, score, standard, place)
        where v_has_lexical
    ),
    semantic as (
        select
            s.chunk_id,
            s.similarity,
            s.standard,
            row_number() over (order by s.similarity desc, s.chunk_id) as place
        from rag._semantic_leg(
            v_tenant, v_partition, v_model.model_id, v_vector, v_collection, v_filter, v_must,
            v_depth, v_within
        ) as s
        where v_has_semantic
    ),
    legs as (
        select
            l.chunk_id,
            v_weight * rag._contribution(
                v_fusion, l.place, l.standard, l.score,
                min(l.score) over (), max(l.score) over ()
            ) as score,
            l.place as lexical_place,
            l.score as lexical_score,
            null::bigint as semantic_place,
            null::double precision as similarity
        from lexical as l
        union all
        select
            s.chunk_id,
            (1 - v_weight) * rag._contribution(
                v_fusion, s.place, s.standard, s.similarity,
                min(s.similarity) over (), max(s.similarity) over ()
            ),
            null,
            null,
            s.place,
            s.similarity
        from semantic as s
    ),
    fused as (
        select
            g.chunk_id,
            sum(g.score) as score,
            max(g.lexical_place)::int as lexical_rank,
            max(g.lexical_score) as lexical_score,
            max(g.semantic_place)::int as semantic_rank,
            max(g.similarity) as similarity
        from legs as g
        group by g.chunk_id
    )
    select
        f.chunk_id, f.score, f.lexical_rank, f.lexical_score, f.semantic_rank, f.similarity, v_kind
    from fused as f
    where _candidates.min_score is null or f.score >= _candidates.min_score
    order by f.score desc, f.similarity desc nulls last, f.chunk_id
    limit _candidates.k;
end
$$;

comment on function rag._candidates(
    text, int, text, jsonb, vector, text, real, real, text
) is 'The best chunks of the caller''s tenant by id, without their text; see rag.search.';

create or replace function rag.search(
    query text,
    k int default 10,
    collection text default null,
    filter jsonb default null,
    embedding vector default null,
    mode text default 'hybrid',
    lexical_weight real default null,
    min_score real default null,
    fusion text default null
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
    -- Only because it notes the query. What is searched is one statement, and so one snapshot.
    volatile
    parallel unsafe
    security invoker
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_partition int;
    v_now int;
begin
    select c.tenant_id, c.partition_id into v_tenant, v_partition from rag._context() as c;
    loop
        return query
        select
            row_number() over (
                order by h.score desc, h.similarity desc nulls last, h.chunk_id
            )::int,
            h.score,
            c.document_id,
            h.chunk_id,
            d.uri,
            d.title,
            c.content,
            c.metadata,
            h.lexical_rank,
            h.lexical_score,
            h.semantic_rank,
            h.similarity,
            h.query_embedding,
            n.name,
            c.heading_path,
            c.ordinal,
            c.start_offset,
            c.end_offset
        from rag._candidates(
            search.query, search.k, search.collection, search.filter, search.embedding,
            search.mode, search.lexical_weight, search.min_score, search.fusion
        ) as h
        join rag.chunks as c
            on c.partition_id = v_partition
            and c.tenant_id = v_tenant
            and c.chunk_id = h.chunk_id
        join rag.documents as d on d.tenant_id = v_tenant and d.document_id = c.document_id
        join rag.collections as n
            on n.tenant_id = v_tenant and n.collection_id = c.collection_id
        order by h.score desc, h.similarity desc nulls last, h.chunk_id;
        exit when found;
        -- Nothing, because the tenant moved between the two statements?
        select c.partition_id into v_now from rag._context() as c;
        exit when v_now = v_partition;
        v_partition := v_now;
    end loop;
    if search.embedding is null and search.mode <> 'lexical' then
        perform rag.prepare_query(search.query);
    end if;
end
$$;

comment on function rag.search(text, int, text, jsonb, vector, text, real, real, text) is
    'The k passages of the caller''s tenant that answer the query best, best first. '
    'query_embedding says what the semantic leg had: given (the caller''s vector), cached (the '
    'model''s for this text), words (the sum of its words'' vectors), or none: then the lexical '
    'leg served alone.';
