-- rag.explain(chunk_id => ...): why one chunk stands where it stands, or why it is absent.

create or replace function rag._semantic_place(
    tenant_id int,
    partition_id int,
    model_id int,
    embedding halfvec,
    collection_id int,
    filter jsonpath,
    must tsquery,
    chunk_id bigint,
    out similarity double precision,
    out place bigint
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
#variable_conflict use_column
begin
    select 1 - (e.embedding <=> _semantic_place.embedding) into similarity
    from rag.embeddings as e
    where
        e.model_id = _semantic_place.model_id
        and e.partition_id = _semantic_place.partition_id
        and e.tenant_id = _semantic_place.tenant_id
        and e.chunk_id = _semantic_place.chunk_id;
    if similarity is null then
        return;
    end if;
    select 1 + count(*) into place
    from (
        select e.chunk_id, 1 - (e.embedding <=> _semantic_place.embedding) as similarity
        from rag.embeddings as e
        where
            e.model_id = _semantic_place.model_id
            and e.partition_id = _semantic_place.partition_id
            and e.tenant_id = _semantic_place.tenant_id
            and (
                _semantic_place.collection_id is null
                or e.collection_id = _semantic_place.collection_id
            )
        offset 0
    ) as o
    where
        (
            o.similarity > _semantic_place.similarity
            or o.similarity = _semantic_place.similarity
            and o.chunk_id < _semantic_place.chunk_id
        )
        and (
            _semantic_place.filter is null
            or exists (
                select
                from rag.chunks as c
                where
                    c.partition_id = _semantic_place.partition_id
                    and c.tenant_id = _semantic_place.tenant_id
                    and c.chunk_id = o.chunk_id
                    and c.metadata @@ _semantic_place.filter
            )
        )
        and (
            _semantic_place.must is null
            or exists (
                select
                from rag.lexemes as l
                where
                    l.partition_id = _semantic_place.partition_id
                    and l.tenant_id = _semantic_place.tenant_id
                    and l.chunk_id = o.chunk_id
                    and l.lexemes @@ _semantic_place.must
            )
        );
end
$$;

comment on function rag._semantic_place(
    int, int, int, halfvec, int, jsonpath, tsquery, bigint
) is 'How near a chunk is to a query, and how many of those that may be found are nearer, plus 1.';

create or replace function rag._lexical_place(
    tenant_id int,
    partition_id int,
    query text,
    terms jsonb,
    collection_id int,
    filter jsonpath,
    chunk_id bigint
)
    returns bigint
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_lexemes text[] := array(select jsonb_array_elements_text(terms -> 'terms'));
    v_weights sparsevec := rag._sparse(v_lexemes, rag._reals(terms -> 'idfs'));
    v_depth bigint;
    v_place bigint;
begin
    -- At most so many stand before it: by stored weights, that are off by the drift of the mean
    -- length at most, twice.
    select count(*) into v_depth
    from rag.lexemes as l
    cross join (
        select -(o.weights <#> v_weights) as score
        from rag.lexemes as o
        where
            o.partition_id = _lexical_place.partition_id
            and o.tenant_id = _lexical_place.tenant_id
            and o.chunk_id = _lexical_place.chunk_id
    ) as own
    where
        l.partition_id = _lexical_place.partition_id
        and l.tenant_id = _lexical_place.tenant_id
        and l.lexemes @@ (
            select string_agg(rag._quote_lexeme(g.lexeme), ' | ')
            from unnest(v_lexemes) as g (lexeme)
        )::tsquery
        and -(l.weights <#> v_weights) >= own.score / 1.01 / exp(2 * abs(ln(
            (terms ->> 'mean_length')::double precision
            / (terms ->> 'reference_length')::double precision
        )));
    select f.place into v_place
    from rag._lexical_leg(
        _lexical_place.tenant_id, _lexical_place.partition_id, _lexical_place.query,
        _lexical_place.collection_id, _lexical_place.filter, v_depth::int
    ) with ordinality as f (chunk_id, score, standard, place)
    where f.chunk_id = _lexical_place.chunk_id;
    return v_place;
end
$$;

comment on function rag._lexical_place(int, int, text, jsonb, int, jsonpath, bigint) is
    'Where a chunk would stand in the lexical leg if that were as long as it takes.';

create or replace function rag._unmet_conditions(metadata jsonb, filter jsonb)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select string_agg(jsonb_build_object(e.key, e.value)::text, ', ' order by e.key)
    from jsonb_each(filter) as e (key, value)
    where not (
        metadata @@ coalesce(rag._compile_filter(jsonb_build_object(e.key, e.value)), '1 == 1')
    )
$$;

comment on function rag._unmet_conditions(jsonb, jsonb) is
    'Which conditions of a filter, by its keys, a chunk''s metadata do not fulfil.';

create or replace function rag._explain_chunk(
    tenant_id int,
    partition_id int,
    chunk_id bigint,
    query text,
    filter jsonb,
    embedding jsonb,
    terms jsonb,
    fused jsonb,
    must tsquery,
    returned bigint[],
    min_score real,
    max_per_document int
)
    returns table (item text, value text, detail jsonb)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_chunk record;
    v_collection int := (embedding ->> 'collection_id')::int;
    v_filter jsonpath := (embedding ->> 'filter')::jsonpath;
    v_weight double precision := (fused ->> 'lexical_weight')::double precision;
    v_depth int := (fused ->> 'depth')::int;
    v_lexical bigint := rag._place(fused -> 'lexical_chunks', _explain_chunk.chunk_id);
    v_semantic bigint := rag._place(fused -> 'semantic_chunks', _explain_chunk.chunk_id);
    v_place bigint := rag._place(fused -> 'chunk_ids', _explain_chunk.chunk_id);
    v_score double precision := (fused -> 'scores' ->> (v_place - 1)::int)::double precision;
    v_list double precision[];
    v_last bigint := rag._last_place(
        fused ->> 'fusion', cardinality(rag._reals(fused -> 'lexical_scores')),
        cardinality(rag._reals(fused -> 'similarities'))
    );
    -- For one that only the other leg lists.
    v_unlisted double precision := case
        when v_last is not null
            then rag._contribution(fused ->> 'fusion', v_last, null, null, null, null)
    end;
    v_part double precision;
    v_lexical_score double precision;
    v_near record;
    v_reason text;
    v_reasons text[] := '{}';
begin
    select
        c.document_id, c.ordinal, c.collection_id, c.metadata, d.uri, d.expires_at, n.name,
        l.lexemes
    into v_chunk
    from rag.chunks as c
    join rag.documents as d
        on d.tenant_id = _explain_chunk.tenant_id and d.document_id = c.document_id
    join rag.collections as n
        on n.tenant_id = _explain_chunk.tenant_id and n.collection_id = c.collection_id
    join rag.lexemes as l
        on l.partition_id = _explain_chunk.partition_id
        and l.tenant_id = _explain_chunk.tenant_id
        and l.chunk_id = c.chunk_id
    where
        c.partition_id = _explain_chunk.partition_id
        and c.tenant_id = _explain_chunk.tenant_id
        and c.chunk_id = _explain_chunk.chunk_id;
    if not found then
        return query
        select 'absent', 'unknown: the tenant has no chunk of this id', null::jsonb;
        return;
    end if;
    if v_chunk.expires_at <= statement_timestamp() then
        return query
        select 'absent', 'its document has expired', null::jsonb;
        return;
    end if;
    return query
    select 'passage', format('%s of %s', v_chunk.ordinal, v_chunk.uri), null::jsonb;

    if v_collection <> v_chunk.collection_id then
        v_reason := format('it is in collection %s', v_chunk.name);
    elsif v_filter is not null and not v_chunk.metadata @@ v_filter then
        v_reason := 'the filter is not met: ' || rag._unmet_conditions(
            v_chunk.metadata, _explain_chunk.filter
        );
    elsif must is not null and not v_chunk.lexemes @@ must then
        v_reason := 'a phrase is missing or an excluded word is there: ' || must::text;
    end if;

    -- The lexical leg, word by word.
    if terms is not null and (v_reason is null or v_lexical is not null) then
        return query
        select
            'word ' || t.lexeme, 'adds ' || round(s.score::numeric, 4),
            jsonb_build_object('score', s.score)
        from unnest(
            array(select jsonb_array_elements_text(terms -> 'terms')),
            rag._reals(terms -> 'idfs')
        ) with ordinality as t (lexeme, idf, place)
        cross join lateral rag._rescore(
            _explain_chunk.tenant_id, _explain_chunk.partition_id,
            array[_explain_chunk.chunk_id], array[t.lexeme], array[t.idf],
            (terms ->> 'mean_length')::double precision,
            (terms ->> 'reference_length')::double precision
        ) as s
        order by t.place;
        select s.score into v_lexical_score
        from rag._rescore(
            _explain_chunk.tenant_id, _explain_chunk.partition_id,
            array[_explain_chunk.chunk_id],
            array(select jsonb_array_elements_text(terms -> 'terms')),
            rag._reals(terms -> 'idfs'),
            (terms ->> 'mean_length')::double precision,
            (terms ->> 'reference_length')::double precision
        ) as s;
    end if;
    v_list := rag._reals(fused -> 'lexical_scores');
    if v_lexical is not null then
        return query
        select
            'lexical leg',
            format(
                'rank %s, score %s, %s standard deviations: adds %s',
                v_lexical, round(x.score::numeric, 4), round(x.standard::numeric, 3),
                round(x.part::numeric, 4)
            ),
            to_jsonb(x)
        from (
            select
                v_lexical as rank, v_list[v_lexical] as score, s.standard,
                v_weight * rag._contribution(
                    fused ->> 'fusion', least(v_lexical, v_last), s.standard, v_list[v_lexical],
                    v_list[cardinality(v_list)], v_list[1]
                ) as part
            from (
                select (rag._reals(fused -> 'lexical_standards'))[v_lexical] as standard
            ) as s
        ) as x;
    elsif v_reason is null and v_weight is not null and fused -> 'lexical_chunks' is not null then
        v_reasons := v_reasons || case
            when v_lexical_score is null then 'no word in common with the query'
            else format(
                'rank %s of the lexical leg, which lists %s',
                rag._lexical_place(
                    _explain_chunk.tenant_id, _explain_chunk.partition_id, query, terms,
                    v_collection, v_filter, _explain_chunk.chunk_id
                ),
                v_depth
            )
        end;
        v_part := case when v_place is not null then v_weight * v_unlisted end;
        return query
        select
            'lexical leg',
            'not listed: ' || v_reasons[1]
            || coalesce('; adds ' || round(v_part::numeric, 4), ''),
            jsonb_build_object('score', v_lexical_score, 'part', v_part);
    end if;

    -- The semantic leg.
    v_list := rag._reals(fused -> 'similarities');
    if v_semantic is not null then
        return query
        select
            'semantic leg',
            format(
                'rank %s, similarity %s, %s standard deviations: adds %s',
                v_semantic, round(x.similarity::numeric, 4), round(x.standard::numeric, 3),
                round(x.part::numeric, 4)
            ),
            to_jsonb(x)
        from (
            select
                v_semantic as rank, v_list[v_semantic] as similarity, s.standard,
                (1 - v_weight) * rag._contribution(
                    fused ->> 'fusion', least(v_semantic, v_last), s.standard, v_list[v_semantic],
                    v_list[cardinality(v_list)], v_list[1]
                ) as part
            from (
                select (rag._reals(fused -> 'semantic_standards'))[v_semantic] as standard
            ) as s
        ) as x;
    elsif v_reason is null and embedding ->> 'embedding' is not null then
        v_near := rag._semantic_place(
            _explain_chunk.tenant_id, _explain_chunk.partition_id,
            (embedding ->> 'model_id')::int, (embedding ->> 'embedding')::halfvec,
            v_collection, v_filter, must, _explain_chunk.chunk_id
        );
        v_reasons := v_reasons || case
            when v_near.similarity is null then 'it has no embedding yet'
            else format('rank %s of the semantic leg, which lists %s', v_near.place, v_depth)
        end;
        v_part := case when v_place is not null then (1 - v_weight) * v_unlisted end;
        return query
        select
            'semantic leg',
            'not listed: ' || v_reasons[cardinality(v_reasons)]
            || coalesce('; adds ' || round(v_part::numeric, 4), ''),
            jsonb_build_object(
                'similarity', v_near.similarity, 'rank', v_near.place, 'part', v_part
            );
    end if;

    if v_place is not null and (rag._reals(fused -> 'supports'))[v_place] <> 0 then
        return query
        select
            'likeness to the best', format('adds %s', round(x.part::numeric, 4)), to_jsonb(x)
        from (select (rag._reals(fused -> 'supports'))[v_place] as part) as x;
    end if;
    if v_place is not null then
        return query
        select
            'score', format('%s, place %s of both legs', round(v_score::numeric, 4), v_place),
            jsonb_build_object('score', v_score, 'place', v_place);
    end if;
    if _explain_chunk.chunk_id = any(_explain_chunk.returned) then
        return query
        select
            'rank', array_position(_explain_chunk.returned, _explain_chunk.chunk_id)::text,
            null::jsonb;
        return;
    end if;
    if v_reason is null then
        v_reason := case
            when v_place is null then coalesce(array_to_string(v_reasons, '; '), 'in no leg')
            when fused -> 'places' @> to_jsonb(v_place)
                then format(
                    'its score %s is below min_score %s', round(v_score::numeric, 4),
                    _explain_chunk.min_score
                )
            when _explain_chunk.max_per_document <= (
                select count(*)
                from jsonb_array_elements_text(fused -> 'chunk_ids')
                    with ordinality as e (id, place)
                join rag.chunks as c
                    on c.partition_id = _explain_chunk.partition_id
                    and c.tenant_id = _explain_chunk.tenant_id
                    and c.chunk_id = e.id::bigint
                where e.place < v_place and c.document_id = v_chunk.document_id
            ) then format(
                'max_per_document is %s, and as many of its document are better',
                _explain_chunk.max_per_document
            )
            else format('place %s is below the first k', v_place)
        end;
    end if;
    return query
    select 'absent', v_reason, null::jsonb;
end
$$;

comment on function rag._explain_chunk(
    int, int, bigint, text, jsonb, jsonb, jsonb, jsonb, tsquery, bigint[], real, int
) is 'Why a chunk stands where it stands in a search that was noted, or why it is absent.';
