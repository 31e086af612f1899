-- The semantic leg: which of a tenant's chunks are nearest in meaning, best first.

create or replace function rag._query_vector(embedding vector, model rag.models)
    returns halfvec
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _query_vector.model is null then
        raise exception 'no model is active' using
            errcode = 'RG005',
            detail = 'The vector of a query can only be compared with vectors of its own model.',
            hint = 'Use mode lexical, or activate a model.';
    end if;
    if vector_dims(_query_vector.embedding) <> (_query_vector.model).dimensions then
        raise exception 'the embedding has the wrong number of dimensions' using
            errcode = 'invalid_parameter_value',
            detail = format('It has %s, model %s has %s.', vector_dims(_query_vector.embedding),
                (_query_vector.model).name, (_query_vector.model).dimensions),
            hint = 'Embed the query with the model that is active: select name, dimensions '
            'from rag.models where is_active.';
    end if;
    if vector_norm(_query_vector.embedding) = 0 then
        raise exception 'the embedding is a zero vector' using
            errcode = 'invalid_parameter_value',
            detail = 'A zero vector has no direction, so nothing is near to it.',
            hint = 'Check what embedded the query.';
    end if;
    -- Normalised first: half precision ends at 65,504, and some models do not normalise.
    return l2_normalize(_query_vector.embedding)::halfvec;
end
$$;

comment on function rag._query_vector(vector, rag.models) is
    'The caller''s vector as the semantic leg takes it, or the error for one it cannot take.';

create or replace function rag._semantic_leg(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    collection_id int,
    filter jsonpath,
    must tsquery,
    depth int
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
    -- Exact: every vector of the tenant is compared, so no filter makes it return too few, and
    -- mean and deviation cost no second scan.
    return query
    with
    compared as materialized (
        select e.chunk_id, e.collection_id, 1 - (e.embedding <=> _semantic_leg.query) as similarity
        from rag.embeddings as e
        where
            e.model_id = _semantic_leg.model_id
            and e.partition_id = _semantic_leg.partition_id
            and e.tenant_id = _semantic_leg.tenant_id
    ),
    spread as (
        select avg(c.similarity) as mean, nullif(stddev_pop(c.similarity), 0) as deviation
        from compared as c
    )
    select
        c.chunk_id, c.similarity, coalesce((c.similarity - s.mean) / s.deviation, 0)
    from compared as c
    cross join spread as s
    where
        (_semantic_leg.collection_id is null or c.collection_id = _semantic_leg.collection_id)
        and (
            _semantic_leg.filter is null
            or exists (
                select
                from rag.chunks as k
                where
                    k.partition_id = _semantic_leg.partition_id
                    and k.tenant_id = _semantic_leg.tenant_id
                    and k.chunk_id = c.chunk_id
                    and k.metadata @@ _semantic_leg.filter
            )
        )
        and (
            _semantic_leg.must is null
            or exists (
                select
                from rag.lexemes as l
                where
                    l.partition_id = _semantic_leg.partition_id
                    and l.tenant_id = _semantic_leg.tenant_id
                    and l.chunk_id = c.chunk_id
                    and l.lexemes @@ _semantic_leg.must
            )
        )
    order by c.similarity desc, c.chunk_id
    limit _semantic_leg.depth;
end
$$;

comment on function rag._semantic_leg(
    int, int, int, halfvec, int, jsonpath, tsquery, int
) is
    'The tenant''s chunks nearest to the query vector by cosine similarity; standard is that in '
    'standard deviations above the mean of all his chunks.';
