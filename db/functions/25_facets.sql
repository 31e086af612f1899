-- Facets: what a metadata filter finds by an index.
--
-- A facet is a number made of a key's path and one of its values; the lexical index keeps those of
-- a chunk beside its lexemes, in the same GIN index (rag.lexemes.facets). A search for a word under
-- a filter so reads the postings that both have, and not first all with the word: a tenth of them
-- under a filter that keeps a tenth. The tenant and the collection are facets, too.
--
-- Facets only ever narrow down. Two values may share a number, a condition such as $gte has none:
-- what comes out is asked against the whole filter (rag._compile_filter) in the end.

create or replace function rag._facet(path text, value jsonb)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
-- 1 and 1.0 are equal to jsonpath.
return (hashtextextended(
    path || ' ' || case jsonb_typeof(value)
        when 'number' then trim_scale(value::numeric)::text
        else value::text
    end,
    0
) % 2147483647)::int;

comment on function rag._facet(text, jsonb) is
    'The facet of a value at a path: the keys, each as ."key"; or at no path (tenant, collection).';

create or replace function rag._facets(tenant_id int, collection_id int, metadata jsonb)
    returns int[]
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Called for each chunk by functions that force custom plans: that would plan it each time.
    set plan_cache_mode = auto
as $$
declare
    v_facets int[];
begin
    -- As jsonpath's lax mode reaches values: it opens one level of arrays for a key and one for a
    -- comparison. Filters are nested 32 levels deep at most. A null equals a missing key, and what
    -- is missing has no facet.
    with recursive members as (
        select '.' || to_json(e.key)::text as path, e.value, 1 as depth
        from jsonb_each(_facets.metadata) as e
        union all
        select m.path || '.' || to_json(e.key)::text, e.value, m.depth + 1
        from members as m
        cross join lateral jsonb_path_query(m.value, 'lax $ ? (@.type() == "object")') as o (item)
        cross join lateral jsonb_each(o.item) as e
        where m.depth < 32 and jsonb_typeof(m.value) in ('array', 'object')
    )
    select array_agg(distinct rag._facet(m.path, v.item)) into v_facets
    from members as m
    cross join lateral (
        select m.value as item where jsonb_typeof(m.value) in ('string', 'number', 'boolean')
        union all
        select a.item
        from jsonb_path_query(m.value, 'strict $[*]', '{}', true) as a (item)
        where jsonb_typeof(a.item) in ('string', 'number', 'boolean')
    ) as v;
    -- Of more than 1,000 none is kept, but a mark that every filter looks for as well.
    if cardinality(v_facets) > 1000 then
        v_facets := array[0];
    end if;
    return array[
        rag._facet('tenant', to_jsonb(_facets.tenant_id)),
        rag._facet('collection', to_jsonb(_facets.collection_id))
    ] || v_facets;
end
$$;

comment on function rag._facets(int, int, jsonb) is
    'The facets of a chunk: its tenant, its collection, and the scalars of its metadata.';

create or replace function rag._facet_conditions(facets text[], alias text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(
        string_agg(
            format(
                ' and %I.facets && %L::int[]',
                alias,
                -- 0 is there already where a set is of the metadata.
                (0 || array_remove(f.any_of::int[], 0))::text
            ),
            ''
        ),
        ''
    )
    from unnest(facets) as f (any_of)
$$;

comment on function rag._facet_conditions(text[], text) is
    'What rag._search_facets says, as conditions of a statement on embeddings, whose facets may be '
    'unknown.';

create or replace function rag._filter_facets(condition jsonb, path text default '')
    returns text[]
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_key text;
    v_operand jsonb;
    v_values jsonb;
    v_each text[];
    v_facets text[] := '{}';
begin
    for v_key, v_operand in select e.key, e.value from jsonb_each(condition) as e loop
        v_values := null;
        if v_key = '$contains' and jsonb_typeof(v_operand) in ('number', 'boolean') then
            -- In an array; of a string it may be any part.
            v_values := jsonb_build_array(v_operand);
        elsif v_key = '$and' then
            v_facets := v_facets || array(
                select f.any_of
                from jsonb_array_elements(v_operand) as e (condition)
                cross join lateral unnest(rag._filter_facets(e.condition, path)) as f (any_of)
            );
        elsif v_key = '$or' and jsonb_array_length(v_operand) <= 100 then
            -- One facet of each alternative; without any, an alternative lets everything pass.
            v_each := array(
                select (rag._filter_facets(e.condition, path))[1]
                from jsonb_array_elements(v_operand) as e (condition)
            );
            if array_position(v_each, null) is null then
                v_facets := v_facets || array(
                    select distinct a.facet
                    from unnest(v_each) as f (any_of)
                    cross join lateral unnest(f.any_of::int[]) as a (facet)
                )::text;
            end if;
        elsif v_key = '$eq' then
            v_values := jsonb_build_array(v_operand);
        elsif v_key = '$in' then
            v_values := v_operand;
        elsif v_key like '$%' then
            continue;
        elsif jsonb_typeof(v_operand) = 'object' then
            v_facets := v_facets
                || rag._filter_facets(v_operand, path || '.' || to_json(v_key)::text);
        else
            v_facets := v_facets || rag._filter_facets(
                jsonb_build_object('$eq', v_operand), path || '.' || to_json(v_key)::text
            );
        end if;
        -- With more values than that, GIN has more to do than what it saves.
        continue when v_values is null
            or v_values @> '[null]'
            or jsonb_array_length(v_values) not between 1 and 1000;
        v_facets := v_facets || (array[0] || array(
            select distinct rag._facet(path, e.item)
            from jsonb_array_elements(v_values) as e (item)
        ))::text;
    end loop;
    return v_facets[:20];
end
$$;

comment on function rag._filter_facets(jsonb, text) is
    'What a valid filter says of facets: sets, as text, of each of which a chunk that meets it has '
    'a member. None for a filter that facets cannot narrow down.';

create or replace function rag._search_facets(
    tenant_id int, collection_id int, filter jsonb, is_dedicated boolean
)
    returns text[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work, and opens every index.
    set plan_cache_mode = force_generic_plan
as $$
begin
    -- Until all are indexed anew some may not have theirs.
    -- In the order of the primary key, which a search has open anyway: a lock less.
    if exists (
        select
        from (
            select n.reindexed_to
            from rag.collections as n
            where n.tenant_id = _search_facets.tenant_id
            order by n.collection_id
            offset 0
        ) as o
        where o.reindexed_to is not null
    ) then
        return '{}';
    end if;
    return case
        -- He is alone there, and every chunk has it.
        when _search_facets.is_dedicated then '{}'::text[]
        else array[array[rag._facet('tenant', to_jsonb(_search_facets.tenant_id))]::text]
    end || case
        when _search_facets.collection_id is null then '{}'::text[]
        else array[array[rag._facet('collection', to_jsonb(_search_facets.collection_id))]::text]
    end || rag._filter_facets(coalesce(_search_facets.filter, '{}'));
end
$$;

comment on function rag._search_facets(int, int, jsonb, boolean) is
    'What a search of a tenant says of facets, as rag._filter_facets has it; none while some of '
    'his chunks may not have theirs.';
