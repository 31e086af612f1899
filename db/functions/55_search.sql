-- rag.search: both legs, fused, then the passages.
--
-- Two steps on purpose. rag._candidates finds ids and scores, rag._texts their passages, both with
-- the owner's rights (under a policy no GIN index can be used) and with the tenant of the verified
-- context only. rag._passages then reads the documents that they are of with the caller's rights,
-- under row-level security: were a predicate forgotten in the first step, no foreign text would
-- come out of the second, because its document is not seen.

create or replace function rag._search_depth(
    k int, mode text, lexical_weight real, fusion text, max_per_document int
)
    returns int
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _search_depth.k is null or _search_depth.k not between 1 and 1000 then
        raise exception 'invalid k' using
            errcode = 'invalid_parameter_value',
            detail = format('k is %s.', coalesce(_search_depth.k::text, 'null')),
            hint = 'k is the number of passages wanted, 1 to 1,000.';
    end if;
    if _search_depth.mode is null or _search_depth.mode not in ('hybrid', 'lexical', 'semantic')
    then
        raise exception 'unknown mode "%"', coalesce(_search_depth.mode, 'null') using
            errcode = 'invalid_parameter_value',
            detail = 'mode says which legs are used.',
            hint = 'Modes are hybrid, lexical and semantic.';
    end if;
    if _search_depth.lexical_weight not between 0 and 1 then
        raise exception 'invalid lexical_weight' using
            errcode = 'invalid_parameter_value',
            detail = format('lexical_weight is %s.', _search_depth.lexical_weight),
            hint = 'It is between 0 (only the semantic leg counts) and 1 (only the lexical one).';
    end if;
    if _search_depth.fusion not in ('standard', 'linear', 'rrf') then
        raise exception 'unknown fusion "%"', _search_depth.fusion using
            errcode = 'invalid_parameter_value',
            detail = 'fusion says how the two ranked lists become one.',
            hint = 'Fusions are standard (the default), linear and rrf.';
    end if;
    if _search_depth.max_per_document < 1 then
        raise exception 'invalid max_per_document' using
            errcode = 'invalid_parameter_value',
            detail = format('max_per_document is %s.', _search_depth.max_per_document),
            hint = 'It is how many passages of one document may be found, 1 or more; null: any.';
    end if;
    if _search_depth.mode <> 'hybrid' and coalesce(_search_depth.fusion, 'standard') = 'standard'
    then
        return _search_depth.k;
    end if;
    -- A list that is scaled by its own last is steadier for being longer. Sums of standard scores
    -- are not better for it: by legs of 50 the mean nDCG@10 of four collections is 0.7435, of 100
    -- 0.7432, and 100 take the lexical leg a third as much time again. Of ranks the first 30 count;
    -- what is further down only tells ties apart.
    return greatest(
        case when _search_depth.fusion = 'linear' then 150 else 50 end, 2 * _search_depth.k
    );
end
$$;

comment on function rag._search_depth(int, text, real, text, int) is
    'How many chunks each leg has to list for a search, or the error for parameters that it cannot '
    'take.';

-- What happens in a search, for rag.explain: where the setting rag.trace is not empty, the parts of
-- a search note what they do in it. It costs nothing where it is empty, as it always is but within
-- rag.explain; who sets it by hand reads there what his own searches did.

create or replace function rag._is_traced()
    returns boolean
    language sql
    stable
    parallel restricted
    security invoker
return coalesce(current_setting('rag.trace', true), '') <> '';

comment on function rag._is_traced() is 'Whether somebody wants to know what a search does.';

create or replace function rag._note(stage text, detail jsonb)
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- A line each; jsonb has no line ends. For this transaction only, and no row is written: so
    -- this is as stable as what calls it, and works on a standby.
    perform set_config(
        'rag.trace',
        current_setting('rag.trace') || E'\n' || jsonb_build_object(
            'stage', _note.stage, 'at', clock_timestamp(), 'detail', _note.detail
        )::text,
        true
    );
end
$$;

comment on function rag._note(text, jsonb) is
    'Note what a search has just done; the time since the note before is this stage''s.';

create or replace function rag._legs(
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
    within bigint[],
    facets text[],
    share double precision,
    by_facets boolean default false,
    has_hnsw boolean default false,
    posting_generation int default null,
    out lexical_chunks bigint[],
    out lexical_scores double precision[],
    out lexical_standards double precision[],
    out semantic_chunks bigint[],
    out similarities double precision[],
    out semantic_standards double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- It plans nothing that reads a partition.
    set plan_cache_mode = auto
    set jit = off
as $$
#variable_conflict use_column
declare
    v_has_lexical boolean := _legs.mode <> 'semantic';
    -- What holds the query's words tells an index scan that it went astray.
    v_has_seeds boolean := _legs.kind <> 'none'
        and _legs.within is null
        and not _legs.by_facets
        and _legs.has_hnsw;
    v_embedding halfvec := _legs.embedding;
    v_list record;
    v_seeds bigint[];
begin
    if v_has_lexical or _legs.kind = 'words' or v_has_seeds then
        v_list := rag._lexical_lists(
            _legs.tenant_id, _legs.partition_id, _legs.query, _legs.collection_id, _legs.filter,
            case when v_has_lexical then _legs.depth else rag._feedback_depth() end,
            -- With facets GIN knows who is within, and who of them has a word of the query.
            case when coalesce(_legs.facets, '{}') = '{}' then _legs.within end,
            _legs.facets, _legs.share, _legs.posting_generation
        );
        lexical_chunks := v_list.chunk_ids;
        lexical_scores := v_list.scores;
        lexical_standards := v_list.standards;
        if rag._is_traced() then
            perform rag._note('lexical leg', jsonb_build_object(
                'listed', coalesce(cardinality(lexical_chunks), 0),
                'is_only_feedback', not v_has_lexical
            ));
        end if;
    end if;
    if _legs.kind = 'words' then
        v_embedding := rag._with_feedback(
            _legs.tenant_id, _legs.partition_id, _legs.model_id, v_embedding, lexical_chunks,
            lexical_scores
        );
        if rag._is_traced() then
            perform rag._note('feedback', jsonb_build_object(
                'passages', coalesce(to_jsonb(lexical_chunks[:rag._feedback_depth()]), '[]'),
                'embedding', v_embedding::text
            ));
        end if;
    end if;
    v_seeds := lexical_chunks;
    if not v_has_lexical then
        lexical_chunks := null;
        lexical_scores := null;
        lexical_standards := null;
    end if;
    if _legs.kind <> 'none' then
        select
            array_agg(s.chunk_id order by s.similarity desc, s.chunk_id),
            array_agg(s.similarity order by s.similarity desc, s.chunk_id),
            array_agg(s.standard order by s.similarity desc, s.chunk_id)
        into semantic_chunks, similarities, semantic_standards
        from rag._semantic_leg(
            _legs.tenant_id, _legs.partition_id, _legs.model_id, v_embedding,
            _legs.collection_id, _legs.filter, _legs.must, _legs.depth, _legs.within,
            v_seeds[:20], coalesce(_legs.facets, '{}'), _legs.share, _legs.by_facets,
            _legs.has_hnsw
        ) as s;
        if rag._is_traced() then
            perform rag._note('semantic leg', jsonb_build_object(
                'listed', coalesce(cardinality(semantic_chunks), 0)
            ));
        end if;
    end if;
end
$$;

comment on function rag._legs(
    int, int, int, text, jsonpath, text, int, text, halfvec, tsquery, int, bigint[], text[],
    double precision, boolean, boolean, int
) is 'Both legs'' lists for a query whose embedding is known; null for a leg that lists nothing.';

create or replace function rag._places(places int)
    returns int[]
    language sql
    immutable
    parallel safe
    security invoker
return array(select n from generate_series(1, places) as n);

comment on function rag._places(int) is 'The numbers from 1 on.';

create or replace function rag._limit_per_document(
    tenant_id int, partition_id int, chunks bigint[], max_per_document int, k int, of_past boolean
)
    returns int[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_places int[];
begin
    -- The partition by its name: through rag.chunks twice as many locks are taken.
    execute format(
        'select array(select n.place from ('
        'select g.place, row_number() over (partition by %s order by g.place) as nth '
        'from unnest($2) with ordinality as g (chunk_id, place) '
        'left join rag_data.chunks_p%s as c on c.tenant_id = $1 and c.chunk_id = g.chunk_id) as n '
        'where n.nth <= $3 order by n.place limit $4)',
        case
            when _limit_per_document.of_past then
                'coalesce(c.document_id, (select p.document_id from rag.past_chunks as p '
                'where p.tenant_id = $1 and p.chunk_id = g.chunk_id limit 1))'
            else 'c.document_id'
        end,
        _limit_per_document.partition_id
    )
    into v_places
    using _limit_per_document.tenant_id, _limit_per_document.chunks,
        _limit_per_document.max_per_document, _limit_per_document.k;
    return v_places;
end
$$;

comment on function rag._limit_per_document(int, int, bigint[], int, int, boolean) is
    'The places in a list of the first k chunks, not more than so many of one document.';

create or replace function rag._search_model(tenant rag.tenants, name text)
    returns rag.models
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_active rag.models := rag._serving_model((_search_model.tenant).model_id);
    v_model rag.models;
    v_is_there boolean;
begin
    if _search_model.name is null or _search_model.name = v_active.name then
        return v_active;
    end if;
    v_model := rag._model(_search_model.name);
    execute format(
        'select exists (select from rag_data.embeddings_m%s_p%s as e where e.tenant_id = $1)',
        v_model.model_id, (_search_model.tenant).partition_id
    )
    into v_is_there using (_search_model.tenant).tenant_id;
    if not v_is_there then
        raise exception 'no passage has an embedding of model "%"', _search_model.name using
            errcode = 'RG005',
            detail = format('The active model is %s.', coalesce(v_active.name, 'none')),
            hint = 'Embed the query with the model that is active, or wait until the passages '
            'are embedded by the other: select * from rag.progress().';
    end if;
    return v_model;
end
$$;

comment on function rag._search_model(rag.tenants, text) is
    'The model whose embeddings a search compares: the tenant''s active one, or the one named if '
    'his passages have embeddings of it.';

create or replace function rag._search_collection(tenant_id int, name text)
    returns rag.collections
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning opens every index.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    v_collection rag.collections;
begin
    -- Most tenants have a few: found by the primary key, which a search has open anyway, a lock
    -- less. Of more than that the rest is found by name.
    select c.* into v_collection
    from (
        select n.*
        from rag.collections as n
        where n.tenant_id = _search_collection.tenant_id
        order by n.collection_id
        limit 30
    ) as c
    where c.name = _search_collection.name;
    if not found then
        v_collection := rag._collection(_search_collection.tenant_id, _search_collection.name);
    end if;
    return v_collection;
end
$$;

comment on function rag._search_collection(int, text) is
    'The tenant''s collection of that name, or an error, as rag._collection; for searches.';

create or replace function rag._has_expired(tenant_id int)
    returns boolean
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning opens every index.
    set plan_cache_mode = force_generic_plan
as $$
begin
    return exists (
        select
        from rag.documents as d
        where d.tenant_id = _has_expired.tenant_id and d.expires_at <= statement_timestamp()
    );
end
$$;

comment on function rag._has_expired(int) is
    'Whether the tenant has documents whose time is up and that are not purged yet; there are none '
    'unless tenants.has_expiries.';

create or replace function rag._candidates(
    query text,
    k int,
    collection text,
    filter jsonb,
    embedding vector,
    mode text,
    lexical_weight real,
    min_score real,
    fusion text,
    max_per_document int,
    as_of timestamptz,
    model text,
    out chunk_ids bigint[],
    out scores double precision[],
    out lexical_ranks int[],
    out lexical_scores double precision[],
    out semantic_ranks int[],
    out similarities double precision[],
    out query_embedding text,
    out tenant_id int
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    -- It plans nothing that reads a partition.
    set plan_cache_mode = auto
    set jit = off
as $$
#variable_conflict use_column
-- Assigned rather than selected: an error in there then comes with a line of context for each
-- function, not with a page of SQL.
declare
    -- Read once, and whatever is to be known of it with it.
    v_context rag.tenants := rag._acting_tenant();
    v_depth int := rag._search_depth(
        _candidates.k, _candidates.mode, _candidates.lexical_weight, _candidates.fusion,
        _candidates.max_per_document
    );
    v_collection rag.collections;
    v_filter jsonpath := rag._compile_filter(_candidates.filter);
    v_model rag.models;
    v_embedded record;
    v_vector halfvec;
    v_must tsquery;
    v_is_dedicated boolean;
    v_facets text[];
    v_within record;
    v_weight double precision;
    v_fusion text;
    v_legs record;
    v_fused record;
    v_places int[];
    v_found int;
    v_is_trimmed boolean;
    v_listed int;
begin
    tenant_id := v_context.tenant_id;
    if v_context.searches_per_minute is not null then
        perform rag._count_requests(v_context.tenant_id, 'searches');
    end if;
    if _candidates.collection is not null then
        v_collection := rag._search_collection(v_context.tenant_id, _candidates.collection);
    end if;
    v_fusion := coalesce(_candidates.fusion, v_collection.fusion, 'standard');
    if v_fusion is distinct from coalesce(_candidates.fusion, 'standard') then
        v_depth := rag._search_depth(
            _candidates.k, _candidates.mode, _candidates.lexical_weight, v_fusion,
            _candidates.max_per_document
        );
    end if;
    query_embedding := 'none';
    if _candidates.mode <> 'lexical' then
        v_model := rag._search_model(v_context, _candidates.model);
        v_embedded := rag._query_embedding(
            v_context.tenant_id, v_model, _candidates.query, _candidates.embedding
        );
        query_embedding := v_embedded.kind;
        v_vector := v_embedded.embedding;
    end if;
    -- What a phrase demands and a minus forbids holds for both legs. Most queries have neither, and
    -- looking up their words twice is a millisecond.
    if _candidates.query ~ '"|(^|\s)-' then
        v_must := (
            rag._query_terms(v_context.tenant_id, v_collection.collection_id, _candidates.query)
        ).must;
    end if;
    v_is_dedicated := v_context.hnsw_models <> '{}';
    -- He who is alone in his partition and wants no part of it has none.
    v_facets := case
        when v_is_dedicated and v_collection.collection_id is null and _candidates.filter is null
            then '{}'
        else rag._search_facets(
            v_context.tenant_id, v_collection.collection_id, _candidates.filter, v_is_dedicated
        )
    end;
    if v_is_dedicated then
        v_within := rag._within(
            v_context.tenant_id, v_context.partition_id, v_collection.collection_id, v_filter,
            v_facets, v_must, v_depth,
            case when query_embedding <> 'none' then v_model.model_id end
        );
    else
        -- In a shared partition all of a tenant's chunks are few.
        select 1::double precision as share, null::bigint[] as chunks, false as by_facets
        into v_within;
    end if;
    if _candidates.mode = 'semantic' and query_embedding = 'none' then
        raise exception 'mode semantic needs the embedding of the query' using
            errcode = 'RG006',
            detail = 'None was given, none is in the cache, and no word of the query has a vector.',
            hint = 'Give embedding => the query''s vector, or use mode hybrid or lexical; '
            'rag.status() tells whether there are word vectors.';
    end if;
    -- With one leg its own weight is all there is. A collection's weight belongs to its fusion.
    v_weight := case
        when query_embedding = 'none' then 1
        when _candidates.mode = 'semantic' then 0
        else coalesce(
            _candidates.lexical_weight,
            case when v_fusion = v_collection.fusion then v_collection.lexical_weight end,
            0.5
        )
    end;
    if rag._is_traced() then
        perform rag._note('query embedding', jsonb_build_object(
            'kind', query_embedding, 'model', v_model.name, 'model_id', v_model.model_id,
            'embedding', v_vector::text,
            'collection_id', v_collection.collection_id, 'filter', v_filter::text
        ));
    end if;
    -- Documents that have expired are not found, though their chunks are there until the purge.
    v_is_trimmed := _candidates.as_of is not null
        or (v_context.has_expiries and rag._has_expired(v_context.tenant_id));
    loop
        v_legs := rag._legs(
            v_context.tenant_id, v_context.partition_id, v_collection.collection_id,
            _candidates.query, v_filter, _candidates.mode, v_model.model_id, query_embedding,
            v_vector, v_must, v_depth, v_within.chunks, v_facets, v_within.share,
            v_within.by_facets, coalesce(v_model.model_id = any(v_context.hnsw_models), false),
            v_context.posting_generation
        );
        v_listed := greatest(
            cardinality(v_legs.lexical_chunks), cardinality(v_legs.semantic_chunks), 0
        );
        if v_is_trimmed then
            v_legs := rag._valid_legs(
                v_context.tenant_id, v_context.partition_id, v_collection.collection_id,
                _candidates.query, v_filter, _candidates.mode, v_model.model_id, query_embedding,
                v_vector, v_must, v_depth, _candidates.as_of, v_legs.lexical_chunks,
                v_legs.lexical_scores, v_legs.lexical_standards, v_legs.semantic_chunks,
                v_legs.similarities, v_legs.semantic_standards
            );
        end if;
        v_fused := rag._fuse(
            v_context.tenant_id, v_context.partition_id, v_model.model_id,
            v_legs.lexical_chunks, v_legs.lexical_scores, v_legs.lexical_standards,
            v_legs.semantic_chunks, v_legs.similarities, v_legs.semantic_standards,
            v_fusion, v_weight
        );
        v_found := coalesce(cardinality(v_fused.chunk_ids), 0);
        if _candidates.max_per_document is not null then
            v_places := rag._limit_per_document(
                v_context.tenant_id, v_context.partition_id, v_fused.chunk_ids,
                _candidates.max_per_document, _candidates.k, _candidates.as_of is not null
            );
            v_found := cardinality(v_places);
        end if;
        if rag._is_traced() then
            perform rag._note('fusion', to_jsonb(v_legs) || jsonb_build_object(
                'fusion', v_fusion, 'lexical_weight', v_weight, 'depth', v_depth,
                'chunk_ids', v_fused.chunk_ids, 'scores', v_fused.scores,
                'supports', v_fused.supports,
                'places', coalesce(v_places, rag._places(least(_candidates.k, v_found)))
            ));
        end if;
        -- Documents with many passages may fill a list between them, and so may what is not valid:
        -- look deeper until there are enough others, or nothing is left.
        exit when v_found >= _candidates.k
            or (_candidates.max_per_document is null and not v_is_trimmed)
            or v_listed < v_depth;
        v_depth := 4 * v_depth;
    end loop;
    if v_places is null and _candidates.min_score is null then
        -- As in most searches: the first of the list.
        chunk_ids := v_fused.chunk_ids[:_candidates.k];
        scores := v_fused.scores[:_candidates.k];
        lexical_ranks := v_fused.lexical_ranks[:_candidates.k];
        lexical_scores := v_fused.lexical_matches[:_candidates.k];
        semantic_ranks := v_fused.semantic_ranks[:_candidates.k];
        similarities := v_fused.semantic_matches[:_candidates.k];
        return;
    end if;
    v_places := coalesce(v_places, rag._places(least(_candidates.k, v_found)));
    select
        array_agg(v_fused.chunk_ids[p.place] order by p.place),
        array_agg(v_fused.scores[p.place] order by p.place),
        array_agg(v_fused.lexical_ranks[p.place] order by p.place),
        array_agg(v_fused.lexical_matches[p.place] order by p.place),
        array_agg(v_fused.semantic_ranks[p.place] order by p.place),
        array_agg(v_fused.semantic_matches[p.place] order by p.place)
    into chunk_ids, scores, lexical_ranks, lexical_scores, semantic_ranks, similarities
    from unnest(v_places) as p (place)
    where _candidates.min_score is null or v_fused.scores[p.place] >= _candidates.min_score;
end
$$;

comment on function rag._candidates(
    text, int, text, jsonb, vector, text, real, real, text, int, timestamptz, text
) is 'The best chunks of the caller''s tenant by id, without their text; see rag.search.';

create or replace function rag._texts(chunks bigint[], neighbours int)
    returns table (
        chunk_id bigint,
        document_id bigint,
        content text,
        metadata jsonb,
        heading_path text[],
        ordinal int,
        start_offset int,
        end_offset int
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_context record := rag._context();
    v_chunks constant text := format('rag_data.chunks_p%s', v_context.partition_id);
begin
    -- The partition by its name: through rag.chunks twice as many locks are taken. To plan this is
    -- most of the work, and most searches want no neighbours: half the time.
    if _texts.neighbours = 0 then
        return query execute format(
            'select c.chunk_id, c.document_id, c.content, c.metadata, c.heading_path, c.ordinal, '
            'c.start_offset, c.end_offset from %s as c '
            'where c.tenant_id = $1 and c.chunk_id = any($2)',
            v_chunks
        )
        using v_context.tenant_id, _texts.chunks;
        return;
    end if;
    return query execute format(
        'select c.chunk_id, c.document_id, c.content, c.metadata, c.heading_path, c.ordinal, '
        'w.start_offset, w.end_offset from %1$s as c '
        'cross join lateral ('
        'select min(x.start_offset) as start_offset, max(x.end_offset) as end_offset '
        'from %1$s as x where x.tenant_id = $1 and x.document_id = c.document_id '
        'and x.ordinal between c.ordinal - $3 and c.ordinal + $3) as w '
        'where c.tenant_id = $1 and c.chunk_id = any($2)',
        v_chunks
    )
    using v_context.tenant_id, _texts.chunks, _texts.neighbours;
end
$$;

comment on function rag._texts(bigint[], int) is
    'Chunks of the caller''s tenant; with neighbours the offsets are those of the text from so '
    'many chunks before each to so many behind it.';

create or replace function rag._passages(
    query text,
    k int,
    collection text,
    filter jsonb,
    embedding vector,
    mode text,
    lexical_weight real,
    min_score real,
    fusion text,
    max_per_document int,
    neighbours int,
    as_of timestamptz,
    model text
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
    -- One plan for a session: planning is most of the work, and opens every index. By index
    -- whatever size the tables had when it was made.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set jit = off
as $$
#variable_conflict use_column
declare
    v_found record;
begin
    if _passages.neighbours is null or _passages.neighbours not between 0 and 100 then
        raise exception 'invalid neighbours' using
            errcode = 'invalid_parameter_value',
            detail = format('neighbours is %s.', coalesce(_passages.neighbours::text, 'null')),
            hint = 'It is how many chunks before and after each one come with it, 0 to 100.';
    end if;
    v_found := rag._candidates(
        _passages.query, _passages.k, _passages.collection, _passages.filter,
        _passages.embedding, _passages.mode, _passages.lexical_weight, _passages.min_score,
        _passages.fusion, _passages.max_per_document, _passages.as_of, _passages.model
    );
    if _passages.as_of is not null then
        return query
        select p.*
        from rag._past_passages(
            v_found.chunk_ids, v_found.scores, v_found.lexical_ranks, v_found.lexical_scores,
            v_found.semantic_ranks, v_found.similarities, v_found.query_embedding,
            _passages.neighbours, _passages.as_of
        ) as p;
        return;
    end if;
    return query
    select
        h.rank::int,
        h.score,
        c.document_id,
        h.chunk_id,
        d.uri,
        d.title,
        -- By offsets: chunks overlap, and between them may be what is in none.
        case
            when _passages.neighbours = 0 then c.content
            else substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset)
        end,
        c.metadata,
        h.lexical_rank,
        h.lexical_score,
        h.semantic_rank,
        h.similarity,
        v_found.query_embedding,
        d.collection,
        c.heading_path,
        c.ordinal,
        c.start_offset,
        c.end_offset
    from unnest(
        v_found.chunk_ids, v_found.scores, v_found.lexical_ranks, v_found.lexical_scores,
        v_found.semantic_ranks, v_found.similarities
    ) with ordinality as h (
        chunk_id, score, lexical_rank, lexical_score, semantic_rank, similarity, rank
    )
    join rag._texts(v_found.chunk_ids, _passages.neighbours) as c on c.chunk_id = h.chunk_id
    cross join lateral (
        select x.uri, x.title, x.content, n.name as collection
        from rag.documents as x
        join rag.collections as n
            on n.tenant_id = v_found.tenant_id and n.collection_id = x.collection_id
        where x.tenant_id = v_found.tenant_id and x.document_id = c.document_id
        offset 0
    ) as d
    order by h.rank;
end
$$;

comment on function rag._passages(
    text, int, text, jsonb, vector, text, real, real, text, int, int, timestamptz, text
) is 'The best chunks with their documents, which are read with the caller''s rights; see '
    'rag.search.';

create or replace function rag.search(
    query text,
    k int default 10,
    collection text default null,
    filter jsonb default null,
    embedding vector default null,
    mode text default 'hybrid',
    lexical_weight real default null,
    min_score real default null,
    fusion text default null,
    max_per_document int default null,
    neighbours int default 0,
    as_of timestamptz default null,
    model text default null
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
as $$
#variable_conflict use_column
begin
    -- By numbers, because the statement is printed in the context of every error.
    return query
    select p.* from rag._passages($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    as p;
    if search.embedding is null and search.mode <> 'lexical' then
        perform rag.prepare_query(search.query);
    end if;
end
$$;

comment on function rag.search(
    text, int, text, jsonb, vector, text, real, real, text, int, int, timestamptz, text
) is
    'The k passages of the caller''s tenant that answer the query best, best first. '
    'query_embedding says what the semantic leg had: given (the caller''s vector), cached (the '
    'model''s for this text), words (the sum of its words'' vectors), or none: then the lexical '
    'leg served alone. With neighbours, content and offsets are those of the passage together with '
    'so many chunks before and after it. With as_of it is searched what there was at that time, as '
    'far as past versions are kept.';
