-- Posting lists of big tenants: made by maintenance, and completed by it.

create or replace function rag._begin_postings(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_set rag.posting_sets;
    v_generation int;
    v_chunks double precision := (rag._lexical_totals(_begin_postings.tenant_id)).chunks;
    v_facets int[];
    v_shares real[];
begin
    -- From its commit on, all who write note it.
    update rag.tenants as t
    set has_posting_changes = true
    where t.tenant_id = _begin_postings.tenant_id and not t.has_posting_changes;
    select t.posting_generation into v_generation
    from rag.tenants as t
    where t.tenant_id = _begin_postings.tenant_id;
    select s.* into v_set
    from rag.posting_sets as s
    where s.tenant_id = _begin_postings.tenant_id and s.generation = v_generation;
    -- A block costs a search the same whatever is in it, and a place that is of no chunk any more
    -- a look: once a third is too much, all are made anew.
    if found
        and v_set.blocks < 8 + 1.3 * v_chunks / rag._posting_block_size()
        and 1.3 * v_chunks > v_set.places + rag._posting_changes(_begin_postings.tenant_id)
    then
        update rag.posting_sets as s
        set is_building = true, waits_for = null, last_chunk = 0
        where s.tenant_id = _begin_postings.tenant_id and s.generation = v_generation;
        return;
    end if;
    perform rag._drop_postings(_begin_postings.tenant_id, coalesce(v_generation, 0));
    -- Some 10,000 rows tell what one in a thousand chunks has, 32 of a block: of fewer GIN is fast.
    -- What nearly all have, such as the only collection there is, leaves nothing out.
    execute format(
        'with sampled as materialized (select l.facets from %s where l.tenant_id = $1) '
        'select array_agg(f.dimension), array_agg(f.share) from ('
        'select rag._facet_dimension(u.facet) as dimension, '
        'count(*)::real / (select count(*) from sampled) as share '
        'from sampled as s cross join unnest(s.facets) as u (facet) where u.facet <> 0 group by 1'
        ') as f where f.share between 0.001 and 0.9',
        rag._sampled(
            format(
                'lexemes_p%s',
                (
                    select t.partition_id
                    from rag.tenants as t
                    where t.tenant_id = _begin_postings.tenant_id
                )
            ),
            'l', 3000
        )
    )
    into v_facets, v_shares using _begin_postings.tenant_id;
    insert into rag.posting_sets (tenant_id, generation, dimensions, idfs)
    select
        _begin_postings.tenant_id, coalesce(v_generation, 0) + 1,
        -- Facet 0 is of chunks with too many: whatever is looked for, they may have it.
        coalesce(array_agg(d.dimension), '{}')
        || rag._facet_dimension(0)
        || coalesce(v_facets, '{}'),
        coalesce(array_agg(d.idf), '{}') || 1::real || coalesce(v_shares, '{}')
    from (
        select
            rag._lexeme_dimension(s.lexeme) as dimension,
            max(ln(1 + (greatest(v_chunks, s.chunks) - s.chunks + 0.5) / (s.chunks + 0.5)))::real
            as idf
        from rag.lexeme_statistics as s
        where
            s.tenant_id = _begin_postings.tenant_id
            and s.lexeme <> ''
            -- To add a block of a list takes 18 µs, to look up and score a chunk 1.3: GIN is as
            -- fast for 14 chunks a block, and takes no room.
            and s.chunks >= greatest(100, 16 * v_chunks / rag._posting_block_size())
        group by 1
    ) as d;
end
$$;

comment on function rag._begin_postings(int) is
    'Begin to make a tenant''s posting lists, or to complete those that are there.';

create or replace function rag._can_read_postings(tenant_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_waits_for xid8;
    v_last bigint;
begin
    select s.waits_for into v_waits_for
    from rag.posting_sets as s
    where s.tenant_id = _can_read_postings.tenant_id and s.is_building;
    -- A number from the future is another cluster's, where a dump of this database was made.
    if v_waits_for is null or v_waits_for >= pg_snapshot_xmax(pg_current_snapshot()) then
        -- Whoever noted a change up to the last one, or saw no need to note one, has a number that
        -- is not above this one, which is taken later.
        select coalesce(max(p.change_id), 0) into v_last
        from rag.postings as p
        where
            p.tenant_id = _can_read_postings.tenant_id
            and p.generation = 0
            and p.dimension = 0;
        v_waits_for := pg_current_xact_id();
        update rag.posting_sets as s
        set waits_for = v_waits_for, last_change = v_last
        where s.tenant_id = _can_read_postings.tenant_id and s.is_building;
        return false;
    end if;
    -- What they wrote is seen now, and what is written since is behind the last change. No lock:
    -- where several write all the time there is no moment at which nobody does.
    return pg_snapshot_xmin(pg_current_snapshot()) > v_waits_for;
end
$$;

comment on function rag._can_read_postings(int) is
    'Whether all that was written before the build began can be seen; the first call, in a '
    'transaction after that of rag._begin_postings, only notes what there is to wait for.';

create or replace function rag._build_postings(tenant_id int, partition_id int)
    returns boolean
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
    v_half constant int := rag._posting_block_size() / 2;
    v_set rag.posting_sets;
    v_members bigint[];
    v_most real;
begin
    select s.* into strict v_set
    from rag.posting_sets as s
    where s.tenant_id = _build_postings.tenant_id and s.is_building
    for update;
    if v_set.is_ready then
        v_members := array(
            select distinct c.chunk_id
            from rag.postings as p
            cross join lateral unnest(p.chunk_ids) as c (chunk_id)
            where
                p.tenant_id = _build_postings.tenant_id
                and p.generation = 0
                and p.dimension = 0
                and p.change_id <= v_set.last_change
                and c.chunk_id > v_set.last_chunk
            order by c.chunk_id
            limit rag._posting_block_size()
        );
    else
        v_members := array(
            select l.chunk_id
            from rag.lexemes as l
            where
                l.partition_id = _build_postings.partition_id
                and l.tenant_id = _build_postings.tenant_id
                and l.chunk_id > v_set.last_chunk
            order by l.chunk_id
            limit rag._posting_block_size()
        );
    end if;
    if v_members = '{}' then
        return false;
    end if;
    with
    found as materialized (
        select
            m.place, l.facets,
            -- {1:0.5,2:0.7}/1000000000 is {1,0.5,2,0.7}.
            replace(split_part(l.weights::text, '/', 1), ':', ',')::float8[] as pairs
        from unnest(v_members) with ordinality as m (chunk_id, place)
        join rag.lexemes as l
            on l.partition_id = _build_postings.partition_id
            and l.tenant_id = _build_postings.tenant_id
            and l.chunk_id = m.chunk_id
    ),
    lists as materialized (
        select d.dimension, d.dimension as list, d.idf, rag._posting_quantum() as quantum
        from unnest(v_set.dimensions, v_set.idfs) as d (dimension, idf)
        union all
        select d.dimension, rag._fine_dimension(d.dimension), d.idf, rag._fine_posting_quantum()
        from unnest(v_set.dimensions, v_set.idfs) as d (dimension, idf)
        where rag._has_fine_list(d.dimension, d.idf)
    ),
    weighed as materialized (
        select f.place, f.pairs[2 * g.n - 1]::int as dimension, f.pairs[2 * g.n] as weight
        from found as f
        cross join lateral generate_series(1, cardinality(f.pairs) / 2) as g (n)
    ),
    counted as (
        select w.place, d.list, d.idf, ceil(w.weight * d.idf / d.quantum) as quanta
        from weighed as w
        join lists as d on d.dimension = w.dimension
        union all
        select f.place, d.list, d.idf, rag._posting_mark()
        from found as f
        cross join lateral (
            select distinct rag._facet_dimension(a.facet) as dimension
            from unnest(f.facets) as a (facet)
        ) as u
        join lists as d on d.dimension = u.dimension
    ),
    listed as (
        insert into rag.postings (tenant_id, generation, dimension, block, idf, weights)
        select
            _build_postings.tenant_id, v_set.generation, x.list, v_set.blocks, x.idf,
            ('{' || string_agg(x.axis || ':' || x.quanta, ',') || '}/' || v_half)::sparsevec
        from (
            select
                c.list, c.idf, (c.place - 1) % v_half + 1 as axis,
                sum(case when c.place > v_half then 4096 else 1 end * c.quanta)::int as quanta
            from counted as c
            group by c.list, c.idf, 3
        ) as x
        group by x.list, x.idf
    )
    select greatest(v_set.max_weight, max(w.weight)) into v_most from weighed as w;
    insert into rag.postings (tenant_id, generation, dimension, block, idf, chunk_ids)
    select
        _build_postings.tenant_id, v_set.generation, -1 - (m.place - 1) / 500, v_set.blocks,
        case when (m.place - 1) / 500 = 0 then v_most end,
        array_agg(m.chunk_id order by m.place)
    from unnest(v_members) with ordinality as m (chunk_id, place)
    group by (m.place - 1) / 500;
    update rag.posting_sets as s
    set
        blocks = s.blocks + 1,
        places = s.places + cardinality(v_members),
        last_chunk = v_members[cardinality(v_members)],
        max_weight = v_most
    where s.tenant_id = _build_postings.tenant_id and s.generation = v_set.generation;
    -- What comes behind a block that is not full has come since the build began: it is a change.
    return cardinality(v_members) = rag._posting_block_size();
end
$$;

comment on function rag._build_postings(int, int) is
    'Make the next block of a tenant''s posting lists; false if it was the last one.';

create or replace function rag._finish_postings(tenant_id int)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_set rag.posting_sets;
begin
    update rag.posting_sets as s
    set is_building = false, is_ready = true
    where s.tenant_id = _finish_postings.tenant_id and s.is_building
    returning s.* into v_set;
    delete from rag.postings as p
    where
        p.tenant_id = _finish_postings.tenant_id
        and p.generation = 0
        and p.dimension = 0
        and p.change_id <= v_set.last_change;
    update rag.tenants as t
    set posting_generation = v_set.generation
    where
        t.tenant_id = _finish_postings.tenant_id
        and t.posting_generation is distinct from v_set.generation;
    perform rag._drop_postings(_finish_postings.tenant_id, v_set.generation);
    return format('%s chunks in %s blocks', v_set.places, v_set.blocks);
end
$$;

comment on function rag._finish_postings(int) is
    'From now on searches use what was built; returns what there is.';

create or replace function rag._postings_step(tenant_id int)
    returns text
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_partition int;
begin
    -- Nobody drops or moves him meanwhile. Writers do not mind.
    perform from rag.tenants as t where t.tenant_id = _postings_step.tenant_id for key share;
    if not found then
        return 'the tenant was dropped meanwhile';
    end if;
    select p.partition_id into v_partition
    from rag.tenants as t
    join rag.partitions as p on p.partition_id = t.partition_id and p.kind = 'dedicated'
    where t.tenant_id = _postings_step.tenant_id;
    if v_partition is null then
        perform rag._drop_postings(_postings_step.tenant_id);
        return 'dropped';
    end if;
    perform
    from rag.posting_sets as s
    where s.tenant_id = _postings_step.tenant_id and s.is_building;
    if not found then
        perform rag._begin_postings(_postings_step.tenant_id);
        return '';
    end if;
    if not rag._can_read_postings(_postings_step.tenant_id) then
        return 'waiting';
    end if;
    if rag._build_postings(_postings_step.tenant_id, v_partition) then
        return '';
    end if;
    return rag._finish_postings(_postings_step.tenant_id);
end
$$;

comment on function rag._postings_step(int) is
    'Go on with a tenant''s posting lists: empty if there is more to do, waiting (for transactions '
    'that were there before), or the result.';
