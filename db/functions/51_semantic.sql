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
            hint = 'Embed the query with the model that is active: '
            'select * from rag.active_model().';
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

-- Two ways. A tenant in a shared partition is searched exactly: every vector of his is compared,
-- so no filter makes it return too few, and mean and deviation of his similarities cost no second
-- scan. One in a partition of his own has an HNSW index for each model (tenants.hnsw_models).

create or replace function rag._compare_all(
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
    set jit = off
as $$
declare
    v_conditions text := '';
begin
    if _compare_all.filter is not null then
        v_conditions := format(
            ' and (select k.metadata @@ $5 from rag_data.chunks_p%s as k '
            'where k.tenant_id = $1 and k.chunk_id = n.chunk_id)', _compare_all.partition_id
        );
    end if;
    if _compare_all.must is not null then
        v_conditions := v_conditions || format(
            ' and (select l.lexemes @@ $6 from rag_data.lexemes_p%s as l '
            'where l.tenant_id = $1 and l.chunk_id = n.chunk_id)', _compare_all.partition_id
        );
    end if;
    -- Materialized, or without statistics of the table the spread is computed for each row anew:
    -- 3.5 s instead of 16 ms for 5,000 chunks just put. The conditions from the nearest on, until
    -- enough have met them. The partition by its name: through rag.embeddings three times as many
    -- locks are taken.
    return query execute format(
        'with compared as materialized ('
        'select e.chunk_id, e.collection_id, 1 - (e.embedding <=> $2) as similarity '
        'from rag_data.embeddings_m%s_p%s as e where e.tenant_id = $1), '
        'spread as materialized ('
        'select avg(c.similarity) as mean, nullif(stddev_pop(c.similarity), 0) as deviation '
        'from compared as c) '
        'select n.chunk_id, n.similarity, '
        'coalesce((n.similarity - (select s.mean from spread as s)) '
        '/ (select s.deviation from spread as s), 0) '
        'from (select c.chunk_id, c.similarity from compared as c '
        'where $3 is null or c.collection_id = $3 '
        'order by c.similarity desc, c.chunk_id %s) as n '
        'where true%s limit $4',
        _compare_all.model_id, _compare_all.partition_id,
        case when v_conditions = '' then 'limit $4' else 'offset 0' end, v_conditions
    )
    using _compare_all.tenant_id, _compare_all.query, _compare_all.collection_id,
        _compare_all.depth, _compare_all.filter, _compare_all.must;
end
$$;

comment on function rag._compare_all(
    int, int, int, halfvec, int, jsonpath, tsquery, int
) is 'The semantic leg of a tenant in a shared partition, exactly.';

create or replace function rag._sampled(name text, alias text, pages int)
    returns text
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_pages constant bigint :=
        pg_relation_size(format('rag_data.%I', _sampled.name)::regclass) / 8192;
    -- A power of two: a score must not change from call to call, and as the table grows the same
    -- pages are read, and new ones, until it has twice the size.
    v_step constant bigint :=
        2 ^ floor(log(2, greatest(1, v_pages / (0.7 * _sampled.pages))));
begin
    -- Page by page: tablesample makes a hash of the number of each page that the table has, 0.6 ms
    -- for a million vectors.
    return format(
        'generate_series(%s, %s, %s) as page cross join lateral ('
        'select r.* from rag_data.%I as r where r.ctid >= format(''(%%s,0)'', page)::tid '
        'and r.ctid < format(''(%%s,0)'', page + 1)::tid offset 0) as %I',
        v_step / 2, v_pages - 1, v_step, _sampled.name, _sampled.alias
    );
end
$$;

comment on function rag._sampled(text, text, int) is
    'A table of rag_data as the from clause of a statement that reads about so many of its pages, '
    'from all parts.';

create or replace function rag._within(
    tenant_id int,
    partition_id int,
    collection_id int,
    filter jsonpath,
    facets text[],
    must tsquery,
    depth int,
    model_id int,
    out share double precision,
    out chunks bigint[],
    out by_facets boolean
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_chunks constant text := format('chunks_p%s', _within.partition_id);
    v_lexemes constant text := format('lexemes_p%s', _within.partition_id);
    v_embeddings constant text := format(
        'embeddings_m%s_p%s', _within.model_id, _within.partition_id
    );
    v_has_facets constant boolean := _within.facets <> '{}';
    v_rows double precision;
    v_found double precision;
    v_unknown double precision;
    v_within bigint[];
begin
    by_facets := false;
    if _within.filter is null and _within.collection_id is null and _within.must is null then
        share := 1;
        return;
    end if;
    if v_has_facets and _within.model_id is not null then
        -- Some 540 vectors. Only what has the facets is asked against the filter.
        execute format(
            'select avg(coalesce(s.is_found, false)::int), '
            'avg(coalesce(s.is_within, false)::int), avg(s.is_unknown::int) from ('
            'select e.facets = ''{0}'' as is_unknown, true%1$s as is_found, '
            'case when true%1$s then ($2 is null or e.collection_id = $2) and ($3 is null or ('
            'select c.metadata @@ $3 from rag_data.%2$I as c '
            'where c.tenant_id = $1 and c.chunk_id = e.chunk_id)) end as is_within '
            'from %3$s where e.tenant_id = $1) as s',
            rag._facet_conditions(_within.facets, 'e'), v_chunks,
            rag._sampled(v_embeddings, 'e', 60)
        )
        into v_found, share, v_unknown
        using _within.tenant_id, _within.collection_id, _within.filter;
    end if;
    -- Or nothing is embedded yet.
    if share is null and (_within.filter is not null or _within.collection_id is not null) then
        execute format(
            'select avg((($1 is null or c.collection_id = $1) '
            'and ($2 is null or coalesce(c.metadata @@ $2, false)))::int) from %s',
            rag._sampled(v_chunks, 'c', 100)
        )
        into share using _within.collection_id, _within.filter;
    end if;
    share := coalesce(share, 1);
    if _within.must is not null then
        execute format(
            'select $2 * avg((l.lexemes @@ $1)::int) from %s', rag._sampled(v_lexemes, 'l', 100)
        )
        into share using _within.must, share;
    end if;
    -- The lexical leg alone asks GIN for facets.
    if _within.model_id is null and v_has_facets then
        return;
    end if;
    v_rows := greatest(1, (rag._lexical_totals(_within.tenant_id)).chunks);
    -- HNSW walks through depth / share vectors until enough of them pass, at 12 µs each (2 % of
    -- 160,000 in 28 ms). By the index of facets a vector is compared in 1.8 µs (2 % of a million in
    -- 35 ms), but all that have them are.
    if v_unknown = 0 and _within.must is null then
        by_facets := v_found * v_rows * 1.8
            < 12 * greatest(50, _within.depth) / greatest(share, 1 / v_rows);
        return;
    end if;
    -- With other conditions each of those few is looked up, at 4 µs.
    if share > sqrt(3.0 * greatest(50, _within.depth) / v_rows) then
        return;
    end if;
    if v_has_facets then
        -- What facets let pass is asked against the filter where it is listed.
        execute format(
            'select array_agg(l.chunk_id) from rag_data.%I as l where l.tenant_id = $1 '
            'and ($2 is null or l.collection_id = $2)%s %s',
            v_lexemes,
            case
                when _within.must is null then ''
                -- Nothing but exclusions: GIN would go through all of the index for them.
                when querytree(_within.must) in ('', 'T') then ' and (l.lexemes @@ $3) is true'
                else ' and l.lexemes @@ $3'
            end,
            (
                select string_agg(format('and l.facets && %L', f.any_of), ' ')
                from unnest(_within.facets) as f (any_of)
            )
        )
        into v_within using _within.tenant_id, _within.collection_id, _within.must;
    else
        execute format(
            'select array_agg(c.chunk_id) from rag_data.%I as c where c.tenant_id = $1 '
            'and ($2 is null or c.collection_id = $2) and ($3 is null or c.metadata @@ $3) '
            'and ($4 is null or exists (select from rag_data.%I as l where l.tenant_id = $1 '
            'and l.chunk_id = c.chunk_id and l.lexemes @@ $4))',
            v_chunks, v_lexemes
        )
        into v_within
        using _within.tenant_id, _within.collection_id, _within.filter, _within.must;
    end if;
    chunks := coalesce(v_within, '{}');
end
$$;

comment on function rag._within(int, int, int, jsonpath, text[], tsquery, int, int) is
    'The share of the chunks of a tenant in a partition of his own that meet the conditions, by a '
    'sample of the rows; and if they are so few that it is best to compare each, whether facets '
    'find them among the embeddings of the model, or else all of them. Where facets tell, some '
    'that do not meet the filter may be among them.';

create or replace function rag._spread(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    out mean double precision,
    out deviation double precision
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
begin
    -- 50 pages are some 480 vectors: mean and deviation to a few hundredths of what they are.
    execute format(
        'select avg(1 - (e.embedding <=> $1)), stddev_pop(1 - (e.embedding <=> $1)) from %s '
        'where e.tenant_id = $2',
        rag._sampled(
            format('embeddings_m%s_p%s', _spread.model_id, _spread.partition_id), 'e', 50
        )
    )
    into mean, deviation
    using _spread.query, _spread.tenant_id;
end
$$;

comment on function rag._spread(int, int, int, halfvec) is
    'Mean and deviation of the similarity of a query to a tenant''s chunks, from a sample of them.';

create or replace function rag._compare_within(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    chunks bigint[],
    filter jsonpath,
    depth int
)
    returns table (chunk_id bigint, similarity double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set jit = off
    -- An index that gives some of the nearest is no help where all of few are wanted.
    set enable_indexscan = on
as $$
begin
    return query execute format(
        'select n.chunk_id, 1 - n.distance from ('
        'select e.chunk_id, e.embedding <=> $1 as distance '
        'from rag_data.embeddings_m%1$s_p%2$s as e '
        'where e.tenant_id = $2 and e.chunk_id = any($3) '
        'order by 2, e.chunk_id offset 0) as n '
        'where $5 is null or (select c.metadata @@ $5 from rag_data.chunks_p%2$s as c '
        'where c.tenant_id = $2 and c.chunk_id = n.chunk_id) limit $4',
        _compare_within.model_id, _compare_within.partition_id
    )
    using _compare_within.query, _compare_within.tenant_id, _compare_within.chunks,
        _compare_within.depth, _compare_within.filter;
end
$$;

comment on function rag._compare_within(int, int, int, halfvec, bigint[], jsonpath, int) is
    'The nearest of the given chunks that meet the filter, exactly.';

create or replace function rag._compare_facets(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    collection_id int,
    filter jsonpath,
    facets text[],
    depth int
)
    returns table (chunk_id bigint, similarity double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set jit = off
    set enable_seqscan = off
    set enable_indexscan = off
as $$
declare
    -- All but a few of those that have the facets meet the filter, or as few as a range lets pass.
    v_rows int := greatest(200, 2 * _compare_facets.depth);
    v_chunks bigint[];
    v_similarities double precision[];
    v_compared bigint;
begin
    loop
        execute format(
            'with nearest as materialized ('
            'select e.chunk_id, e.embedding <=> $1 as distance '
            'from rag_data.embeddings_m%1$s_p%2$s as e '
            'where e.tenant_id = $2%3$s order by 2, e.chunk_id limit $6) '
            'select array_agg(f.chunk_id), array_agg(1 - f.distance), '
            '(select count(*) from nearest) from ('
            'select n.chunk_id, n.distance from nearest as n '
            'join lateral (select c.metadata, c.collection_id from rag_data.chunks_p%2$s as c '
            'where c.tenant_id = $2 and c.chunk_id = n.chunk_id offset 0) as k '
            'on ($3 is null or k.collection_id = $3) and ($4 is null or k.metadata @@ $4) '
            'order by n.distance, n.chunk_id limit $5) as f',
            _compare_facets.model_id, _compare_facets.partition_id,
            rag._facet_conditions(_compare_facets.facets, 'e')
        )
        into v_chunks, v_similarities, v_compared
        using _compare_facets.query, _compare_facets.tenant_id, _compare_facets.collection_id,
            _compare_facets.filter, _compare_facets.depth, v_rows;
        exit when cardinality(v_chunks) >= _compare_facets.depth or v_compared < v_rows;
        v_rows := 16 * v_rows;
    end loop;
    return query
    select g.chunk_id, g.similarity
    from unnest(v_chunks, v_similarities) as g (chunk_id, similarity);
end
$$;

comment on function rag._compare_facets(
    int, int, int, halfvec, int, jsonpath, text[], int
) is 'The nearest of the chunks that have the facets and meet the conditions, exactly.';

create or replace function rag._ef_search(chunks double precision)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
-- Of 500 questions, the ten nearest beside a scan of 1,000 candidates: 200 find them by 0.998 of
-- 100,000 chunks, 0.990 of 300,000 and 0.972 of 1,000,000, of which 300 find 0.989. As many are
-- missed where candidates grow with the third root.
return least(1000, greatest(200, round(200 * (_ef_search.chunks / 300000) ^ (1.0 / 3))))::int;

comment on function rag._ef_search(double precision) is
    'How many candidates a scan of the HNSW index of so many chunks keeps.';

create or replace function rag._nearest(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    collection_id int,
    filter jsonpath,
    facets text[],
    must tsquery,
    share double precision,
    depth int
)
    returns table (chunk_id bigint, similarity double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set jit = off
    -- With relaxed order the scan goes on until enough rows pass the conditions, and they come
    -- nearly in order. So more than wanted are taken where they cost nothing, as many as one round
    -- of the scan gives.
    set hnsw.iterative_scan = relaxed_order
    set hnsw.ef_search = 200
    set hnsw.max_scan_tuples = 100000
    set hnsw.scan_mem_multiplier = 16
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
declare
    v_conditions text := '';
    v_candidates int := rag._ef_search((rag._lexical_totals(_nearest.tenant_id)).chunks);
    v_rows int;
begin
    if _nearest.collection_id is not null then
        v_conditions := ' and e.collection_id = $4';
    end if;
    if _nearest.filter is not null then
        -- Facets are in the row that is read anyway. A look-up of the chunk takes 5 µs, as long as
        -- HNSW takes to come to a vector: only what has the facets is asked against the filter.
        v_conditions := v_conditions || rag._facet_conditions(_nearest.facets, 'e') || format(
            ' and exists (select from rag_data.chunks_p%s as c where c.tenant_id = $2 '
            'and c.chunk_id = e.chunk_id and c.metadata @@ $5)', _nearest.partition_id
        );
    end if;
    if _nearest.must is not null then
        v_conditions := v_conditions || format(
            ' and exists (select from rag_data.lexemes_p%s as l where l.tenant_id = $2 '
            'and l.chunk_id = e.chunk_id and l.lexemes @@ $6)', _nearest.partition_id
        );
    end if;
    if v_conditions = '' then
        v_rows := greatest(v_candidates, 2 * _nearest.depth);
    else
        -- One round that is long enough for the 50 is faster and finds more than two that are not:
        -- of a tenth of 1,000,000 chunks rounds of 600 find the ten nearest by 0.987 in 8.8 ms,
        -- rounds of 400 by 0.983 in 10.2, one that ends with 40 of them by 0.963 in 7.9. Of a
        -- twentieth 600 and 1,000 find as many, in 15.1 and 17.8 ms.
        v_rows := greatest(50, _nearest.depth);
        v_candidates := greatest(
            v_candidates, least(600, round(60 / greatest(0.01, _nearest.share)))
        );
    end if;
    perform set_config('hnsw.ef_search', v_candidates::text, true);
    -- Only "order by distance limit n" is served by the index, and it wants the size in the type.
    return query execute format(
        'with nearest as materialized ('
        'select e.chunk_id, e.embedding::halfvec(%1$s) <=> $1::halfvec(%1$s) as distance '
        'from rag_data.embeddings_m%2$s_p%3$s as e '
        'where e.tenant_id = $2%4$s '
        'order by e.embedding::halfvec(%1$s) <=> $1::halfvec(%1$s) limit $7) '
        'select n.chunk_id, 1 - n.distance from nearest as n order by n.distance + 0, n.chunk_id '
        'limit $3',
        vector_dims(_nearest.query), _nearest.model_id, _nearest.partition_id, v_conditions
    )
    using _nearest.query, _nearest.tenant_id, _nearest.depth, _nearest.collection_id,
        _nearest.filter, _nearest.must, v_rows;
end
$$;

comment on function rag._nearest(
    int, int, int, halfvec, int, jsonpath, text[], tsquery, double precision, int
) is 'The tenant''s nearest chunks by HNSW that meet the conditions.';

create or replace function rag._between(
    tenant_id int, partition_id int, model_id int, query halfvec, chunk bigint
)
    returns halfvec
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_between halfvec;
begin
    execute format(
        'select l2_normalize($1 + e.embedding) from rag_data.embeddings_m%s_p%s as e '
        'where e.tenant_id = $2 and e.chunk_id = $3',
        _between.model_id, _between.partition_id
    )
    into v_between
    using _between.query, _between.tenant_id, _between.chunk;
    return v_between;
end
$$;

comment on function rag._between(int, int, int, halfvec, bigint) is
    'The vector in the middle between a query and a chunk.';

create or replace function rag._semantic_leg(
    tenant_id int,
    partition_id int,
    model_id int,
    query halfvec,
    collection_id int,
    filter jsonpath,
    must tsquery,
    depth int,
    within bigint[] default null,
    seeds bigint[] default null,
    facets text[] default '{}',
    share double precision default 1,
    by_facets boolean default false,
    has_hnsw boolean default false
)
    returns table (chunk_id bigint, similarity double precision, standard double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_spread record;
    v_missed bigint[];
    v_missed_similarities double precision[];
    v_is_astray boolean;
    v_more bigint[];
    v_chunks bigint[];
    v_similarities double precision[];
begin
    if not _semantic_leg.has_hnsw then
        if rag._is_traced() then perform rag._note('semantic plan', '{"plan": "exact"}'); end if;
        return query
        select c.chunk_id, c.similarity, c.standard
        from rag._compare_all(
            _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
            _semantic_leg.query, _semantic_leg.collection_id, _semantic_leg.filter,
            _semantic_leg.must, _semantic_leg.depth
        ) as c;
        return;
    end if;
    v_spread := rag._spread(
        _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
        _semantic_leg.query
    );
    if _semantic_leg.by_facets then
        select
            array_agg(c.chunk_id order by c.similarity desc, c.chunk_id),
            array_agg(c.similarity order by c.similarity desc, c.chunk_id)
        into v_chunks, v_similarities
        from rag._compare_facets(
            _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
            _semantic_leg.query, _semantic_leg.collection_id, _semantic_leg.filter,
            _semantic_leg.facets, _semantic_leg.depth
        ) as c;
        if rag._is_traced() then
            perform rag._note('semantic plan', jsonb_build_object(
                'plan', 'exact, of those that have the facets',
                'found', coalesce(cardinality(v_chunks), 0), 'wanted', _semantic_leg.depth
            ));
        end if;
    elsif _semantic_leg.within is not null then
        if rag._is_traced() then
            perform rag._note('semantic plan', jsonb_build_object(
                'plan', 'exact, of those that meet the conditions',
                'chunks', cardinality(_semantic_leg.within)
            ));
        end if;
        select
            array_agg(c.chunk_id order by c.similarity desc, c.chunk_id),
            array_agg(c.similarity order by c.similarity desc, c.chunk_id)
        into v_chunks, v_similarities
        from rag._compare_within(
            _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
            _semantic_leg.query, _semantic_leg.within, _semantic_leg.filter, _semantic_leg.depth
        ) as c;
    else
        select
            array_agg(n.chunk_id order by n.similarity desc, n.chunk_id),
            array_agg(n.similarity order by n.similarity desc, n.chunk_id)
        into v_chunks, v_similarities
        from rag._nearest(
            _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
            _semantic_leg.query, _semantic_leg.collection_id, _semantic_leg.filter,
            _semantic_leg.facets, _semantic_leg.must, _semantic_leg.share, _semantic_leg.depth
        ) as n;
        -- A graph of clusters has dead ends: of 30 questions at 1,000,000 chunks one ended far from
        -- what is nearest, whatever ef_search. Chunks with the query's words that are nearer than
        -- the last of the list but not in it tell, and belong there. One that is nearer than half
        -- of the list also tells the way: a second scan, from the middle between it and the query.
        select
            array_agg(c.chunk_id order by c.similarity desc, c.chunk_id),
            array_agg(c.similarity order by c.similarity desc, c.chunk_id)
        into v_missed, v_missed_similarities
        from rag._compare_within(
            _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
            _semantic_leg.query, _semantic_leg.seeds, null, cardinality(_semantic_leg.seeds)
        ) as c
        where
            c.similarity > v_similarities[cardinality(v_similarities)]
            and not c.chunk_id = any(v_chunks);
        if v_missed is not null then
            v_is_astray :=
                v_missed_similarities[1] > v_similarities[(cardinality(v_similarities) + 1) / 2];
            if v_is_astray then
                v_more := array(
                    select n.chunk_id
                    from rag._nearest(
                        _semantic_leg.tenant_id, _semantic_leg.partition_id,
                        _semantic_leg.model_id,
                        rag._between(
                            _semantic_leg.tenant_id, _semantic_leg.partition_id,
                            _semantic_leg.model_id, _semantic_leg.query, v_missed[1]
                        ),
                        _semantic_leg.collection_id, _semantic_leg.filter, _semantic_leg.facets,
                        _semantic_leg.must, _semantic_leg.share, _semantic_leg.depth
                    ) as n
                    where n.chunk_id <> all(v_chunks || v_missed)
                );
            end if;
            select
                array_agg(g.chunk_id order by g.similarity desc, g.chunk_id),
                array_agg(g.similarity order by g.similarity desc, g.chunk_id)
            into v_chunks, v_similarities
            from (
                select u.chunk_id, u.similarity
                from unnest(
                    v_chunks || v_missed, v_similarities || v_missed_similarities
                ) as u (chunk_id, similarity)
                union all
                select c.chunk_id, c.similarity
                from rag._compare_within(
                    _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
                    _semantic_leg.query, v_more, null, _semantic_leg.depth
                ) as c
                where v_is_astray
                order by similarity desc, chunk_id
                limit _semantic_leg.depth
            ) as g;
        end if;
        -- An index scan may end before it has found enough. Then all are compared, so that a
        -- list is never shorter than it need be.
        if rag._is_traced() then
            perform rag._note('semantic plan', jsonb_build_object(
                'plan', 'hnsw', 'scans', 1 + coalesce(v_is_astray, false)::int,
                'found', coalesce(cardinality(v_chunks), 0), 'wanted', _semantic_leg.depth
            ));
        end if;
        if coalesce(cardinality(v_chunks), 0) < _semantic_leg.depth then
            return query
            select c.chunk_id, c.similarity, c.standard
            from rag._compare_all(
                _semantic_leg.tenant_id, _semantic_leg.partition_id, _semantic_leg.model_id,
                _semantic_leg.query, _semantic_leg.collection_id, _semantic_leg.filter,
                _semantic_leg.must, _semantic_leg.depth
            ) as c;
            return;
        end if;
    end if;
    return query
    select
        g.chunk_id, g.similarity,
        coalesce((g.similarity - v_spread.mean) / nullif(v_spread.deviation, 0), 0)
    from unnest(v_chunks, v_similarities) as g (chunk_id, similarity);
end
$$;

comment on function rag._semantic_leg(
    int, int, int, halfvec, int, jsonpath, tsquery, int, bigint[], bigint[], text[],
    double precision, boolean, boolean
) is
    'The tenant''s chunks nearest to the query vector by cosine similarity; standard is that in '
    'standard deviations above the mean of all his chunks. within are the chunks that meet the '
    'conditions, if it is known that they are few; seeds are some that may be near. facets are '
    'what rag._search_facets says, share is that of the chunks that meet the conditions; '
    'by_facets: few have the facets, so that each of those is compared; has_hnsw: whether his '
    'vectors of the model have an HNSW index.';
