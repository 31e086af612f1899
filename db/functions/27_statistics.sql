-- The statistics that BM25 needs: per tenant, kept as deltas that are folded.
--
-- A row for each lexeme, and under '', which is no lexeme, what is of all of them together: at
-- delta_id 0 the totals, above it deltas, which a search adds up. In one table, because a search
-- takes a lock on each table and each index that it reads.

create or replace function rag._fold_statistics(
    tenant_id int, partition_id int, at_least int default 5000
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_lexemes bigint;
    v_rows bigint;
    v_is_settled boolean;
begin
    -- A search adds up what is not taken in: 5,000 lexemes cost it about half a millisecond.
    select sum(d.size), count(*) into v_lexemes, v_rows
    from rag.lexeme_statistics as d
    where d.tenant_id = _fold_statistics.tenant_id and d.lexeme = '' and d.delta_id > 0;
    if v_rows = 0
        or (v_lexemes < _fold_statistics.at_least and v_rows < _fold_statistics.at_least / 50)
        -- Not in a transaction that could not see what another one has taken in meanwhile.
        or current_setting('transaction_isolation') <> 'read committed'
    then
        return 0;
    end if;
    -- One at a time; whoever comes second leaves it to the first. No advisory lock, which any role
    -- could take and keep.
    perform
    from rag.lexeme_statistics as s
    where s.tenant_id = _fold_statistics.tenant_id and s.lexeme = '' and s.delta_id = 0
    for update skip locked;
    if not found then
        return 0;
    end if;
    with
    taken as (
        delete from rag.lexeme_statistics as d
        where d.tenant_id = _fold_statistics.tenant_id and d.lexeme = '' and d.delta_id > 0
        returning
            d.chunks, d.total_length, d.lexemes, d.counts, d.max_weights, d.sum_weights,
            d.sum_squares
    ),
    totals as (
        update rag.lexeme_statistics as s
        set
            chunks = s.chunks + t.chunks,
            total_length = s.total_length + t.total_length
        from (
            select sum(x.chunks) as chunks, sum(x.total_length) as total_length from taken as x
        ) as t
        where s.tenant_id = _fold_statistics.tenant_id and s.lexeme = '' and s.delta_id = 0
    ),
    summed as (
        select
            u.lexeme,
            sum(u.chunks)::int as chunks,
            max(u.max_weight) as max_weight,
            sum(u.sum_weight::double precision) as sum_weight,
            sum(u.sum_square::double precision) as sum_square
        from taken as t
        cross join lateral unnest(
            t.lexemes, t.counts, t.max_weights, t.sum_weights, t.sum_squares
        ) as u (lexeme, chunks, max_weight, sum_weight, sum_square)
        group by u.lexeme
    )
    insert into rag.lexeme_statistics as s (
        tenant_id, lexeme, chunks, max_weight, sum_weight, sum_square
    )
    select
        _fold_statistics.tenant_id, m.lexeme, m.chunks, m.max_weight, m.sum_weight, m.sum_square
    from summed as m
    on conflict on constraint lexeme_statistics_pkey
    do update set
        chunks = s.chunks + excluded.chunks,
        max_weight = greatest(s.max_weight, excluded.max_weight),
        sum_weight = s.sum_weight + excluded.sum_weight,
        sum_square = s.sum_square + excluded.sum_square;

    -- A new tenant's reference length is a guess: weigh anew, once, when 1,000 chunks tell better.
    -- That takes half a second.
    update rag.lexeme_statistics as s
    set is_settled = true
    where
        s.tenant_id = _fold_statistics.tenant_id
        and s.lexeme = ''
        and s.delta_id = 0
        and s.chunks >= 1000
        and not s.is_settled
    returning true into v_is_settled;
    if v_is_settled then
        perform rag._reweigh(_fold_statistics.tenant_id, _fold_statistics.partition_id);
    end if;
    return v_lexemes;
end
$$;

comment on function rag._fold_statistics(int, int, int) is
    'Take the tenant''s deltas into its statistics once they have that many lexemes; returns how '
    'many were taken in.';

create or replace function rag._reweigh(tenant_id int, partition_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    -- Only while nobody else is writing for this tenant (all who do hold a key share lock of its
    -- row, see rag._lock_tenant); otherwise the next one tries again.
    perform from rag.tenants as t where t.tenant_id = _reweigh.tenant_id for update skip locked;
    if not found then
        update rag.lexeme_statistics as s
        set is_settled = false
        where s.tenant_id = _reweigh.tenant_id and s.lexeme = '' and s.delta_id = 0;
        return false;
    end if;
    -- All of them at once are a tenant's first chunks again, whose mean length is the reference.
    perform rag._index_chunks(_reweigh.tenant_id, _reweigh.partition_id, array(
        select l.chunk_id
        from rag.lexemes as l
        where l.partition_id = _reweigh.partition_id and l.tenant_id = _reweigh.tenant_id
    ));
    return true;
end
$$;

comment on function rag._reweigh(int, int) is
    'Store the tenant''s BM25 weights anew, for the mean length of today; false if somebody is '
    'writing and it must wait.';

create or replace function rag._lexical_totals(
    tenant_id int,
    out chunks double precision,
    out mean_length double precision,
    out reference_length double precision
)
    returns record
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work. By index, however few deltas there
    -- were when it was made.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    select
        case when s.chunks > 0 then nullif(s.total_length, 0) / s.chunks end,
        s.reference_length,
        s.chunks::double precision
    into mean_length, reference_length, chunks
    from (
        select
            sum(x.chunks) as chunks,
            max(x.total_length) filter (where x.delta_id = 0)
            + coalesce(sum(x.total_length) filter (where x.delta_id > 0), 0) as total_length,
            max(x.reference_length) as reference_length
        from rag.lexeme_statistics as x
        where x.tenant_id = _lexical_totals.tenant_id and x.lexeme = ''
    ) as s;
end
$$;

comment on function rag._lexical_totals(int) is
    'BM25: the tenant''s number of chunks and their mean length, deltas included.';

create or replace function rag._lexeme_totals(tenant_id int, lexemes text[])
    returns table (
        lexeme text,
        chunks double precision,
        max_weight double precision,
        sum_weight double precision,
        sum_square double precision
    )
    language plpgsql
    stable
    parallel safe
    security invoker
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    return query
    select
        u.lexeme,
        sum(u.chunks)::double precision,
        max(u.max_weight)::double precision,
        sum(u.sum_weight),
        sum(u.sum_square)
    from (
        select s.lexeme, s.chunks, s.max_weight, s.sum_weight, s.sum_square
        from rag.lexeme_statistics as s
        where
            s.tenant_id = _lexeme_totals.tenant_id and s.lexeme = any(_lexeme_totals.lexemes)
        union all
        select x.lexeme, x.chunks, x.max_weight, x.sum_weight, x.sum_square
        from rag.lexeme_statistics as d
        cross join lateral unnest(
            d.lexemes, d.counts, d.max_weights, d.sum_weights, d.sum_squares
        ) as x (lexeme, chunks, max_weight, sum_weight, sum_square)
        where
            d.tenant_id = _lexeme_totals.tenant_id
            and d.lexeme = ''
            and d.delta_id > 0
            and x.lexeme = any(_lexeme_totals.lexemes)
    ) as u
    group by u.lexeme
    having sum(u.chunks) > 0;
end
$$;

comment on function rag._lexeme_totals(int, text[]) is
    'BM25: in how many of the tenant''s chunks each lexeme is, the greatest of its stored weights, '
    'their sum and that of their squares; deltas included, lexemes in no chunk left out.';
