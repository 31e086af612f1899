-- The lexical leg by posting lists: the scores of all chunks at once, for questions whose words are
-- so common that GIN takes longer to tell which chunks could be among the best.

create or replace function rag._posting_lists(
    tenant_id int,
    generation int,
    dimensions int[],
    out blocks int,
    out changes bigint,
    out idfs double precision[]
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
begin
    select
        (
            select max(p.block) + 1
            from rag.postings as p
            where
                p.tenant_id = _posting_lists.tenant_id
                and p.generation = _posting_lists.generation
                and p.dimension = -1
        ),
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
        ),
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
            from unnest(_posting_lists.dimensions) with ordinality as g (dimension, n)
            order by g.n
        )
    into blocks, changes, idfs;
end
$$;

comment on function rag._posting_lists(int, int, int[]) is
    'The tenant''s posting lists of a generation: how many blocks they have, how many chunks have '
    'changed since, and the idf of each of these lexemes there, null for one without a list.';

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
    tenant_id int,
    generation int,
    dimensions int[],
    factors vector[],
    first_block int,
    last_block int,
    step int
)
    returns table (block int, total vector)
    language sql
    stable
    parallel restricted
    security invoker
-- Without settings of its own it becomes a part of the statement that calls it, and vectors of
-- 64 kB are not handed on. Parameters by number, because the linter takes their names for columns.
begin atomic
    select
        p.block,
        sum(
            case
                when $4[g.n] is null then p.weights::vector
                else p.weights::vector * subvector(
                    $4[g.n], 1, vector_dims(p.weights::vector)
                )
            end
        )
    from unnest($3) with ordinality as g (dimension, n)
    join rag.postings as p
        on p.tenant_id = $1
        and p.generation = $2
        and p.dimension = g.dimension
        and p.block between $5 and $6
        and (p.block - $5) % $7 = 0
    group by p.block;
end;

comment on function rag._posting_totals(int, int, int[], vector[], int, int, int) is
    'The scores of all chunks of every so many blocks, as far as these lexemes make them; each '
    'list times its factor, if it has one.';

create or replace function rag._posting_sample(
    tenant_id int,
    generation int,
    dimensions int[],
    factors vector[],
    blocks int
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
    v_step constant int := greatest(1, _posting_sample.blocks / 4);
begin
    return array(
        select s.total
        from rag._posting_totals(
            _posting_sample.tenant_id, _posting_sample.generation, _posting_sample.dimensions,
            _posting_sample.factors, v_step / 2, _posting_sample.blocks - 1, v_step
        ) as s
        order by s.block
        limit 4
    );
end
$$;

comment on function rag._posting_sample(int, int, int[], vector[], int) is
    'The scores in four blocks, or in all of fewer, a vector each; see rag._posting_totals.';

create or replace function rag._count_above(
    sums vector[], threshold double precision, size int
)
    returns bigint
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_threshold vector := array_fill(_count_above.threshold::real, array[_count_above.size]);
    v_count bigint := 0;
    v_sum vector;
begin
    foreach v_sum in array _count_above.sums loop
        v_count := v_count + bit_count(binary_quantize(
            v_sum - subvector(v_threshold, 1, vector_dims(v_sum))
        ));
    end loop;
    return v_count;
end
$$;

comment on function rag._count_above(vector[], double precision, int) is
    'How many members of these vectors, each of at most size, are above the threshold.';

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
    tenant_id int,
    generation int,
    dimensions int[],
    factors vector[],
    blocks int,
    threshold double precision
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
    v_threshold vector := array_fill(
        _posted_above.threshold::real, array[rag._posting_block_size()]
    );
    v_hits record;
    v_chunks bigint[] := '{}';
begin
    -- 32 blocks at a time: their sums take 4 MB, what a hash table may have without a setting.
    for v_first in 0 .. _posted_above.blocks - 1 by 32 loop
        select array_agg(b.block) as blocks, array_agg(b.bits) as bits
        into v_hits
        from (
            select
                s.block,
                binary_quantize(s.total - case
                    when vector_dims(s.total) = vector_dims(v_threshold) then v_threshold
                    else subvector(v_threshold, 1, vector_dims(s.total))
                end)::bit varying as bits
            from rag._posting_totals(
                _posted_above.tenant_id, _posted_above.generation, _posted_above.dimensions,
                _posted_above.factors, v_first, v_first + 31, 1
            ) as s
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

comment on function rag._posted_above(int, int, int[], vector[], int, double precision) is
    'The chunks whose lists of these lexemes add up to more than the threshold.';

create or replace function rag._posted_threshold(
    tenant_id int,
    generation int,
    dimensions int[],
    factors vector[],
    blocks int,
    floor double precision,
    ceiling double precision,
    wanted double precision
)
    returns double precision
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_low double precision := _posted_threshold.floor;
    v_high double precision := _posted_threshold.ceiling;
    -- About half of what a chunk could have at most is where the list of a question ends.
    v_try double precision := case
        when _posted_threshold.floor > 0 then _posted_threshold.floor
        else 0.47 * _posted_threshold.ceiling
    end;
    -- Where the sample has hardly any, others may have many: from above, whoever asks steps down.
    v_least constant double precision := greatest(
        _posted_threshold.floor, _posted_threshold.ceiling / 20
    );
    v_sums vector[];
    v_share double precision;
    v_count double precision;
begin
    -- Four blocks stand for all.
    v_sums := rag._posting_sample(
        _posted_threshold.tenant_id, _posted_threshold.generation, _posted_threshold.dimensions,
        _posted_threshold.factors, _posted_threshold.blocks
    );
    v_share := least(4, _posted_threshold.blocks) / _posted_threshold.blocks::double precision;
    for i in 1 .. 12 loop
        v_count := rag._count_above(v_sums, v_try, rag._posting_block_size()) / v_share;
        if v_count > 8 * _posted_threshold.wanted then
            v_low := v_try;
        elsif v_count >= 3 * _posted_threshold.wanted then
            return v_try;
        else
            exit when v_try <= v_least;
            v_high := v_try;
        end if;
        v_try := (v_low + v_high) / 2;
    end loop;
    return greatest(v_low, v_least);
end
$$;

comment on function rag._posted_threshold(
    int, int, int[], vector[], int, double precision, double precision, double precision
) is
    'A threshold, not below the floor, that a few times as many chunks as wanted are above, by a '
    'sample of the blocks.';

create or replace function rag._posted_chunks(
    tenant_id int,
    partition_id int,
    generation int,
    blocks int,
    has_changes boolean,
    dimensions int[],
    factors double precision[],
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
    -- What an idf has changed by since the lists were made, unless it is less than 2 %.
    v_factors vector[] := array(
        select case
            when f.factor not between 0.98 and 1.02
                then array_fill(f.factor::real, array[rag._posting_block_size()])::vector
        end
        from unnest(_posted_chunks.factors) with ordinality as f (factor, n)
        order by f.n
    );
    -- What a sum may be below the score: that, and the last bits of its addends.
    v_margin constant double precision := 1.02 * (1 + 1e-5);
    v_found bigint[] := '{}';
    v_threshold double precision;
    v_floor double precision;
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
        v_floor := greatest(_posted_chunks.floor, scores[_posted_chunks.depth], 0) / v_margin;
        -- Whatever is not above it has no chance.
        exit when v_threshold <= v_floor;
        v_threshold := case
            when v_threshold is null then rag._posted_threshold(
                _posted_chunks.tenant_id, _posted_chunks.generation, _posted_chunks.dimensions,
                v_factors, _posted_chunks.blocks, v_floor, _posted_chunks.ceiling,
                _posted_chunks.wanted
            )
            -- Enough were above it, but their last is not.
            when cardinality(scores) >= _posted_chunks.depth then v_floor
            -- Too few were.
            when v_threshold > _posted_chunks.ceiling / 50
                then greatest(v_floor, v_step * v_threshold)
            else v_floor
        end;
        v_step := v_step ^ 2;
        v_found := rag._posted_above(
            _posted_chunks.tenant_id, _posted_chunks.generation, _posted_chunks.dimensions,
            v_factors, _posted_chunks.blocks, v_threshold
        );
    end loop;
end
$$;

comment on function rag._posted_chunks(
    int, int, int, int, boolean, int[], double precision[], double precision, double precision,
    tsquery, sparsevec, int, jsonpath, text[], double precision, int, bigint[], double precision[]
) is
    'Complete a list of best chunks, exactly, by those that hold one of these lexemes, which have '
    'posting lists, and by all that have changed since; floor is what is known not to be too much '
    'for as many as are listed, ceiling what no score is above, wanted how many have to be '
    'looked at for enough to meet the conditions.';
