-- The lexical leg by posting lists: the scores of all chunks at once, for questions whose words are
-- so common that GIN takes longer to tell which chunks could be among the best.

create or replace function rag._posting_lists(
    tenant_id int,
    generation int,
    dimensions int[],
    idfs double precision[],
    facets text[],
    out blocks int,
    out changes bigint,
    out times int[],
    out factor double precision,
    out fine_bounds double precision[],
    out mark_dimensions int[],
    out mark_share double precision
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    -- Those of one facet, and whether chunks with too many to have it count as well. Of several
    -- facets a chunk might have two, which would make twice the mark.
    v_conditions int[];
    v_zeros boolean[];
    v_found record;
    v_most double precision;
    v_lists bigint;
begin
    select
        coalesce(array_agg(rag._facet_dimension(o.facets[1]) order by f.n), '{}'),
        array_agg(0 = any(f.any_of::int[]) order by f.n)
    into v_conditions, v_zeros
    from unnest(_posting_lists.facets) with ordinality as f (any_of, n)
    cross join lateral (select array_remove(f.any_of::int[], 0) as facets) as o
    where cardinality(o.facets) = 1;
    select
        l.blocks,
        l.max_weight,
        (
            select coalesce(sum(cardinality(n.chunk_ids)), 0)
            from (
                select p.chunk_ids
                from rag.postings as p
                where
                    p.tenant_id = _posting_lists.tenant_id
                    and p.generation = 0
                    and p.dimension = 0
                -- Of more than that, searches do not look at each.
                limit 20001
            ) as n
        ) as changes,
        array(
            select (
                select p.idf
                from rag.postings as p
                where
                    p.tenant_id = _posting_lists.tenant_id
                    and p.generation = _posting_lists.generation
                    and p.dimension = g.dimension
                limit 1
            )
            from unnest(_posting_lists.dimensions || v_conditions)
                with ordinality as g (dimension, n)
            order by g.n
        ) as idfs
    into v_found
    from (
        select p.block + 1 as blocks, p.idf as max_weight
        from rag.postings as p
        where
            p.tenant_id = _posting_lists.tenant_id
            and p.generation = _posting_lists.generation
            and p.dimension = -1
        order by p.block desc
        limit 1
    ) as l;
    -- A lexeme that a query has twice counts twice. What its idf has become since the lists were
    -- made is the factor's.
    select
        array_agg(f.times order by f.n),
        max(f.factor / f.times),
        sum(f.times * (f.list_idf * v_found.max_weight / rag._posting_quantum() + 1)),
        sum(f.times),
        array_agg(
            case
                when rag._has_fine_list(f.dimension, f.list_idf) then f.times * (
                    f.list_idf * v_found.max_weight / rag._fine_posting_quantum() + 1
                )
            end
            order by f.n
        )
    into times, factor, v_most, v_lists, fine_bounds
    from (
        select
            g.n, g.dimension, g.list_idf, g.idf / g.list_idf as factor,
            -- More than 1,000 are too much in any case; least would make 1,000 of null.
            case
                when g.list_idf is not null then least(1000, ceil(g.idf / g.list_idf / 1.05))::int
            end as times
        from unnest(
            _posting_lists.dimensions, _posting_lists.idfs,
            v_found.idfs[:cardinality(_posting_lists.dimensions)]
        ) with ordinality as g (dimension, idf, list_idf, n)
    ) as f;
    -- Beyond that the sum of one chunk would run into that of another; and a page as a query, whose
    -- words are there 20 times each, would have all lists added 20 times: 144 ms at a million.
    if v_most > 2 * rag._posting_mark() - 2
        or v_lists > 2 * cardinality(_posting_lists.dimensions) + 20
    then
        times := null;
        return;
    end if;
    blocks := v_found.blocks;
    changes := v_found.changes;
    if v_most <= rag._posting_mark() - 2 then
        select
            g.dimension || case when g.has_zero then array[rag._facet_dimension(0)] end, g.share
        into mark_dimensions, mark_share
        from unnest(
            v_conditions, v_zeros, v_found.idfs[cardinality(_posting_lists.dimensions) + 1:]
        ) as g (dimension, has_zero, share)
        where g.share is not null
        order by g.share
        limit 1;
    end if;
end
$$;

comment on function rag._posting_lists(int, int, int[], double precision[], text[]) is
    'The tenant''s posting lists of a generation: how many blocks they have, how many chunks have '
    'changed since, and how many times each of these lexemes has to be added for its idf, null for '
    'one without a list, up to a factor; times is null if the sums could become too much. '
    'fine_bounds are what each of the fine lists adds to a sum at most, null where there is none. '
    'mark_dimensions are the lists of the rarest facet that the search wants, if there are any, '
    'mark_share is how many of all chunks have it.';

create or replace function rag._keep_memory()
    returns void
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- The allocator of most systems hands memory back to the kernel above a limit that it learns
    -- from what is freed: once 8 MB are, a session keeps what it has, and sums take 15 µs a list
    -- and block instead of 40.
    if current_setting('rag.keeps_memory', true) is distinct from 'yes' then
        perform
            set_config('rag.keeps_memory', 'yes', false),
            octet_length(repeat(repeat('0', 8000), 1000));
    end if;
end
$$;

comment on function rag._keep_memory() is
    'Once a session: have it keep some memory of its own for vectors.';

create or replace function rag._posting_totals(
    tenant_id int, generation int, dimensions int[], first_block int, last_block int, step int
)
    returns table (block int, total vector)
    language sql
    stable
    parallel restricted
    security invoker
-- Without settings of its own it becomes a part of the statement that calls it, and vectors of
-- 64 kB are not handed on. Parameters by number, because the linter takes their names for columns.
begin atomic
    select p.block, sum(p.weights::vector)
    from unnest($3) as g (dimension)
    join rag.postings as p
        on p.tenant_id = $1
        and p.generation = $2
        and p.dimension = g.dimension
        and p.block between $4 and $5
        and (p.block - $4) % $6 = 0
    group by p.block;
end;

comment on function rag._posting_totals(int, int, int[], int, int, int) is
    'The sums of these lists for all chunks of every so many blocks.';

create or replace function rag._posting_bias(threshold int)
    returns vector
    language sql
    immutable
    parallel safe
    security invoker
return array_fill(
    (4097 * (2 * rag._posting_mark() - _posting_bias.threshold) - 4096 * 2049 - 0.5)::real,
    array[rag._posting_block_size() / 2]
)::vector;

comment on function rag._posting_bias(int) is
    'What rag._places_above wants to be added to a total: it makes the threshold 2,048 for both of '
    'the chunks in each dimension, and takes away 2,049 from the second one, and a half from the '
    'first, so that no sum is as much as the threshold.';

create or replace function rag._places_above(biased vector)
    returns bit varying
    language sql
    immutable
    parallel safe
    security invoker
-- The first of a dimension by rounding to multiples of 4,096, which is what is left of a real at
-- 3 * 2 ^ 34: up if it is above 2,048. The second one makes the sign of the number. Without
-- settings, so that it becomes a part of the statement that calls it and the constants are made
-- once for a session: they take 0.1 ms each.
return (
    binary_quantize(
        _places_above.biased
        + array_fill((3 * 2.0 ^ 34)::real, array[rag._posting_block_size() / 2])::vector
        - array_fill((3 * 2.0 ^ 34)::real, array[rag._posting_block_size() / 2])::vector
        - _places_above.biased
    )
    || binary_quantize(_places_above.biased)
)::bit varying;

comment on function rag._places_above(vector) is
    'The places in a block whose sum is above the threshold, by the total of a block with '
    'rag._posting_bias added.';

create or replace function rag._posting_sample(
    tenant_id int, generation int, dimensions int[], blocks int
)
    returns vector[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    -- Sorted by block the lists would be copied.
    set enable_sort = off
    set jit = off
as $$
declare
    -- From all parts: what was put together is often about the same things.
    v_step constant int := greatest(1, _posting_sample.blocks / 3);
begin
    return array(
        select s.total
        from rag._posting_totals(
            _posting_sample.tenant_id, _posting_sample.generation, _posting_sample.dimensions,
            v_step / 2, _posting_sample.blocks - 1, v_step
        ) as s
        limit 3
    );
end
$$;

comment on function rag._posting_sample(int, int, int[], int) is
    'The totals of three blocks, or of all of fewer; see rag._posting_totals.';

create or replace function rag._count_above(totals vector[], threshold int)
    returns bigint
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
declare
    v_bias constant vector := rag._posting_bias(_count_above.threshold);
    v_count bigint;
begin
    select coalesce(sum(bit_count(rag._places_above(b.biased))), 0) into v_count
    from (
        select t.total + v_bias as biased
        from unnest(_count_above.totals) as t (total)
        offset 0
    ) as b;
    return v_count;
end
$$;

comment on function rag._count_above(vector[], int) is
    'How many places in the blocks with these totals have more than the threshold, in quanta.';

create or replace function rag._chunks_at(
    tenant_id int, generation int, blocks int[], bits bit varying[]
)
    returns bigint[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    -- Some hundred places are looked up, of as many thousand.
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
as $$
#variable_conflict use_column
begin
    -- By windows of 512 places, most of which have none: half the time of a search in the text of
    -- whole blocks.
    return array(
        select p.chunk_ids[1 + (x.place - 1) % 500]
        from (
            select
                h.block,
                512 * w.n + (
                    sum(octet_length(g.gap) + 1) over (partition by h.block, w.n order by g.place)
                )::int as place
            from unnest(_chunks_at.blocks, _chunks_at.bits) as h (block, bits)
            cross join lateral generate_series(0, (length(h.bits) - 1) / 512) as w (n)
            cross join lateral (
                select substring(h.bits from 512 * w.n + 1 for 512) as bits offset 0
            ) as s
            -- What stands before each 1; and behind the last one, which is left out.
            cross join lateral string_to_table(s.bits::text, '1')
                with ordinality as g (gap, place)
            where bit_count(s.bits) > 0 and g.place <= bit_count(s.bits)
        ) as x
        join rag.postings as p
            on p.tenant_id = _chunks_at.tenant_id
            and p.generation = _chunks_at.generation
            and p.dimension = -1 - (x.place - 1) / 500
            and p.block = x.block
    );
end
$$;

comment on function rag._chunks_at(int, int, int[], bit varying[]) is
    'The chunks at the places of some blocks that have a 1.';

create or replace function rag._posted_above(
    tenant_id int, generation int, dimensions int[], blocks int, threshold int
)
    returns bigint[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    -- Sorted by block the lists would be copied.
    set enable_sort = off
    set jit = off
as $$
#variable_conflict use_column
declare
    v_bias constant vector := rag._posting_bias(_posted_above.threshold);
    v_hits record;
    v_chunks bigint[] := '{}';
begin
    -- 32 blocks at a time: their sums take 2 MB, a hash table may have 4 without a setting.
    for v_first in 0 .. _posted_above.blocks - 1 by 32 loop
        select array_agg(b.block) as blocks, array_agg(b.bits) as bits
        into v_hits
        from (
            select a.block, rag._places_above(a.biased) as bits
            from (
                select s.block, s.total + v_bias as biased
                from rag._posting_totals(
                    _posted_above.tenant_id, _posted_above.generation, _posted_above.dimensions,
                    v_first, v_first + 31, 1
                ) as s
                offset 0
            ) as a
            offset 0
        ) as b
        where bit_count(b.bits) > 0;
        v_chunks := v_chunks || rag._chunks_at(
            _posted_above.tenant_id, _posted_above.generation, v_hits.blocks, v_hits.bits
        );
    end loop;
    return v_chunks;
end
$$;

comment on function rag._posted_above(int, int, int[], int, int) is
    'The chunks whose lists of these lexemes and facets add up to more than the threshold, in '
    'quanta.';

create or replace function rag._posted_threshold(
    tenant_id int,
    generation int,
    dimensions int[],
    blocks int,
    mark int,
    floor int,
    ceiling int,
    wanted double precision
)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_low int := _posted_threshold.floor;
    v_high int := _posted_threshold.ceiling;
    -- About half of what a chunk could have at most is where the list of a question ends.
    v_try int := case
        when _posted_threshold.floor > 0 then _posted_threshold.floor
        else 0.47 * _posted_threshold.ceiling
    end;
    -- Where the sample has hardly any, others may have many: from above, whoever asks steps down.
    v_least constant int := greatest(_posted_threshold.floor, _posted_threshold.ceiling / 20);
    v_totals vector[];
    v_share double precision;
    v_count double precision;
begin
    -- Three blocks stand for all.
    v_totals := rag._posting_sample(
        _posted_threshold.tenant_id, _posted_threshold.generation, _posted_threshold.dimensions,
        _posted_threshold.blocks
    );
    v_share := least(3, _posted_threshold.blocks) / _posted_threshold.blocks::double precision;
    for i in 1 .. 12 loop
        v_count := rag._count_above(v_totals, _posted_threshold.mark + v_try) / v_share;
        if v_count > 5 * _posted_threshold.wanted then
            v_low := v_try;
        elsif v_count >= 2 * _posted_threshold.wanted then
            return v_try;
        else
            exit when v_try <= v_least;
            v_high := v_try;
        end if;
        exit when v_high - v_low <= 1;
        v_try := (v_low + v_high) / 2;
    end loop;
    return greatest(v_low, v_least);
end
$$;

comment on function rag._posted_threshold(
    int, int, int[], int, int, int, int, double precision
) is
    'A threshold in quanta, not below the floor, that a few times as many chunks as wanted are '
    'above, by a sample of the blocks.';

create or replace function rag._posted_chunks(
    tenant_id int,
    partition_id int,
    generation int,
    blocks int,
    has_changes boolean,
    dimensions int[],
    mark_dimensions int[],
    quantum double precision,
    factor double precision,
    floor double precision,
    ceiling double precision,
    must tsquery,
    query sparsevec,
    collection_id int,
    filter jsonpath,
    facets text[],
    wanted double precision,
    depth int,
    inout chunk_ids bigint[],
    inout scores double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_dimensions constant int[] :=
        _posted_chunks.dimensions || coalesce(_posted_chunks.mark_dimensions, '{}');
    v_mark constant int := case
        when _posted_chunks.mark_dimensions is null then 0 else rag._posting_mark()
    end;
    -- A score of so much is a quantum at least, whatever the last bits of its addends are.
    v_quantum constant double precision :=
        _posted_chunks.quantum * greatest(1, _posted_chunks.factor) * (1 + 1e-5);
    -- No sum is above that.
    v_limit constant int := 2 * rag._posting_mark() - 2 - v_mark;
    v_ceiling constant int := least(
        v_limit, ceil(_posted_chunks.ceiling / _posted_chunks.quantum)
    );
    v_found bigint[] := '{}';
    v_threshold int;
    v_floor int;
    v_step double precision := 0.9;
begin
    perform rag._keep_memory();
    if _posted_chunks.has_changes then
        v_found := array(
            select distinct c.chunk_id
            from rag.postings as p
            cross join lateral unnest(p.chunk_ids) as c (chunk_id)
            where
                p.tenant_id = _posted_chunks.tenant_id and p.generation = 0 and p.dimension = 0
        );
    end if;
    loop
        select
            array_agg(b.chunk_id order by b.score desc, b.chunk_id),
            array_agg(b.score order by b.score desc, b.chunk_id)
        into chunk_ids, scores
        from (
            select a.chunk_id, max(a.score) as score
            from (
                select g.chunk_id, g.score
                from unnest(chunk_ids, scores) as g (chunk_id, score)
                union all
                select s.chunk_id, s.score
                from rag._score_chunks(
                    _posted_chunks.tenant_id, _posted_chunks.partition_id, null, null, v_found,
                    _posted_chunks.must, _posted_chunks.query, _posted_chunks.collection_id,
                    _posted_chunks.filter, _posted_chunks.facets, _posted_chunks.depth
                ) as s
            ) as a
            group by a.chunk_id
            order by 2 desc, a.chunk_id
            limit _posted_chunks.depth
        ) as b;
        -- Whoever scores as much is above it.
        v_floor := greatest(0, ceil(
            greatest(_posted_chunks.floor, scores[_posted_chunks.depth], 0) / v_quantum
        ) - 1);
        -- Whatever is not above it has no chance.
        exit when v_threshold <= v_floor or v_floor >= v_limit;
        v_threshold := case
            when v_threshold is null then rag._posted_threshold(
                _posted_chunks.tenant_id, _posted_chunks.generation, v_dimensions,
                _posted_chunks.blocks, v_mark, v_floor, v_ceiling, _posted_chunks.wanted
            )
            -- Enough were above it, but their last is not.
            when cardinality(scores) >= _posted_chunks.depth then v_floor
            -- Too few were.
            when v_threshold > v_ceiling / 50
                then greatest(v_floor, floor(v_step * v_threshold)::int)
            else v_floor
        end;
        v_step := v_step ^ 2;
        v_found := rag._posted_above(
            _posted_chunks.tenant_id, _posted_chunks.generation, v_dimensions,
            _posted_chunks.blocks, v_mark + v_threshold
        );
    end loop;
end
$$;

comment on function rag._posted_chunks(
    int, int, int, int, boolean, int[], int[], double precision, double precision,
    double precision, double precision, tsquery, sparsevec, int, jsonpath, text[], double precision,
    int, bigint[], double precision[]
) is
    'Complete a list of best chunks, exactly, by those that hold one of these lexemes, which have '
    'posting lists, and by all that have changed since. mark_dimensions are the lists of what all '
    'must have, if they have any; quantum is what the lists count in, factor the most that a '
    'score may be above a sum, floor what is known not to be too much for as many as are listed, '
    'ceiling what no score is above, wanted how many have to be looked at for enough to meet the '
    'other conditions.';
