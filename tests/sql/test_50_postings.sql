-- Posting lists: which of two packed sums are above a threshold, at its very edge, too.

begin;

select plan(7);

create function pg_temp.is_told_apart(threshold int)
    returns boolean
    language sql
as $$
    with
    sums as materialized (
        -- As many as a vector holds: all of 0 to 2,046, and most of them next to the threshold.
        select
            g.n,
            case
                when g.n % 3 = 0 then (g.n * 7) % 2047
                else greatest(0, least(2046, threshold - 2 + g.n % 5))
            end as first,
            case
                when g.n % 4 = 0 then (g.n * 11) % 2047
                else greatest(0, least(2046, threshold - 2 + (g.n / 5) % 5))
            end as second
        from generate_series(1, rag._posting_block_size() / 2) as g (n)
    )
    select
        rag._places_above(
            array_agg((s.first + 4096 * s.second)::real order by s.n)::vector
            + rag._posting_bias(threshold)
        )::text = string_agg((s.first > threshold)::int::text, '' order by s.n)
        || string_agg((s.second > threshold)::int::text, '' order by s.n)
    from sums as s
$$;

select ok(pg_temp.is_told_apart(t.threshold), format('above %s', t.threshold))
from unnest(array[0, 1, 2, 255, 1023, 1024, 2046]) as t (threshold);

select * from finish();
rollback;
