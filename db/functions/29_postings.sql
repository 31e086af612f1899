-- Posting lists of big tenants: how they are laid out, who needs some, and what has changed since.
--
-- A block is up to 32,000 chunks, two for each of the 16,000 dimensions that a vector has room
-- for. The list of a lexeme is a sparsevec for each block, so that the sum of a query's lists is
-- the scores of all its chunks. A score there is a whole number of quanta, rounded up, so that no
-- sum is below the score; of two chunks in a dimension the second one's is 4,096 times as much, so
-- that one number holds both sums (11 bits each of the 24 that a real is exact to). Common lexemes
-- have a second list in finer quanta, for questions of nothing else: their scores are so low that
-- the coarse ones hardly tell them apart. The list of a facet has the same mark for all chunks that
-- have it, more than any score: a sum above the mark is that of a chunk that meets the filter.
--
-- What blocks, quanta, marks and dimensions are is known to the lists that are there: whoever
-- changes one of these functions drops them in a migration.
--
-- Rows are never changed. A chunk that is indexed anew stays where it is, which may only make a
-- search look at it in vain, and is noted as a change, which makes every search look at it; the
-- next maintenance puts changes into a block of their own, and all into new ones when there have
-- been many.
--
-- All of it is in one table, because a search takes a lock on each table and each index that it
-- reads. By dimension: above 0 the lists, at 0 (and generation 0) what has changed, and below 0
-- which chunk a place is, -1 for the first 500 places of a block.

create or replace function rag._least_chunks_with_postings()
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 10000;

comment on function rag._least_chunks_with_postings() is
    'From how many chunks on a tenant with a partition of his own has posting lists.';

create or replace function rag._posting_block_size()
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 32000;

comment on function rag._posting_block_size() is
    'How many chunks a block of posting lists holds: two for each dimension of a vector.';

create or replace function rag._posting_quantum()
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return 0.25;

comment on function rag._posting_quantum() is
    'The part of a score that posting lists count in. Sums end at 2,046 of them, 511: a question '
    'of ten words has 60 to 150 at most. Rounding up makes a sum some 2 % more than the score.';

create or replace function rag._fine_posting_quantum()
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return 0.015625;

comment on function rag._fine_posting_quantum() is
    'The part of a score that fine lists count in. Sums end at 32: the best chunk for a word of '
    'half of all chunks has 1 to 2.';

create or replace function rag._has_fine_list(dimension int, idf double precision)
    returns boolean
    language sql
    immutable
    parallel safe
    security invoker
-- At 1,000,000 chunks a word alone that is in .43 of them takes 20 ms instead of 72, in .1 of them
-- 16 instead of 25, in .07 the same; two or more take the same from .2 on.
return _has_fine_list.dimension <= 1000000000 and _has_fine_list.idf <= 2.5;

comment on function rag._has_fine_list(int, double precision) is
    'Whether a list is of a lexeme that is in a twelfth of all chunks or more, which has a fine '
    'list, too.';

create or replace function rag._fine_dimension(dimension int)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 1147483647 + _fine_dimension.dimension;

comment on function rag._fine_dimension(int) is
    'Under which dimension a lexeme has its fine list: behind those of facets.';

create or replace function rag._posting_mark()
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 1024;

comment on function rag._posting_mark() is
    'What the list of a facet has for each chunk that has it, in quanta.';

create or replace function rag._facet_dimension(facet int)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
return 1000000001 + abs(facet % 147483647);

comment on function rag._facet_dimension(int) is
    'Under which dimension a facet has its posting list: lexemes have those up to a thousand '
    'million, and fine lists those above 1,147,483,647. Two facets may share one, which only lets '
    'more pass.';

create or replace function rag._drop_postings(tenant_id int, generation int default null)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    delete from rag.postings as p
    where
        p.tenant_id = _drop_postings.tenant_id
        and (
            _drop_postings.generation is null
            or p.generation not in (0, _drop_postings.generation)
        );
    delete from rag.posting_sets as s
    where
        s.tenant_id = _drop_postings.tenant_id
        and s.generation <> all(array_remove(array[_drop_postings.generation], null));
    if _drop_postings.generation is null then
        update rag.tenants as t
        set posting_generation = null, has_posting_changes = false
        where t.tenant_id = _drop_postings.tenant_id;
    end if;
end
$$;

comment on function rag._drop_postings(int, int) is
    'Delete a tenant''s posting lists, but for those of the generation that is given.';

create or replace function rag._posting_changes(tenant_id int)
    returns bigint
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Of few rows among many lists.
    set enable_seqscan = off
as $$
begin
    return (
        select coalesce(sum(cardinality(p.chunk_ids)), 0)
        from rag.postings as p
        where
            p.tenant_id = _posting_changes.tenant_id
            and p.generation = 0
            and p.dimension = 0
    );
end
$$;

comment on function rag._posting_changes(int) is
    'How many times a chunk of the tenant was indexed since his posting lists were made.';

create or replace function rag._postings_due()
    returns table (tenant_id int, reason text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select
        t.tenant_id,
        case
            when p.kind = 'shared' then 'small tenants need none'
            when s.is_building then 'they are not finished'
            when t.posting_generation is null then format('none for %s chunks', n.chunks)
            else format('%s chunks have changed', c.changes)
        end
    from rag.tenants as t
    join rag.partitions as p on p.partition_id = t.partition_id
    join rag._tenant_chunks() as n on n.tenant_id = t.tenant_id
    cross join lateral (select rag._posting_changes(t.tenant_id) as changes) as c
    left join rag.posting_sets as s on s.tenant_id = t.tenant_id and s.is_building
    where
        case p.kind
            -- Who has notes of writers in repeatable read, who cannot tell, is rid of them, too.
            when 'shared' then t.has_posting_changes or c.changes > 0
            else t.posting_generation is null and n.chunks >= rag._least_chunks_with_postings()
                or s.is_building
                -- A search looks at a thousand of them in 2 ms.
                or c.changes >= 1000
        end
    order by n.chunks;
end
$$;

comment on function rag._postings_due() is
    'Tenants whose posting lists are to be made, completed or dropped, and why.';

create or replace function rag._note_posting_changes(tenant_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- As many a row as places: what is not compressed has to fit into a page.
    insert into rag.postings (tenant_id, generation, dimension, block, change_id, chunk_ids)
    select
        t.tenant_id, 0, 0, 0, nextval('rag.posting_change_ids'),
        _note_posting_changes.chunks[n:n + 499]
    from rag.tenants as t
    cross join generate_series(1, cardinality(_note_posting_changes.chunks), 500) as n
    where
        t.tenant_id = _note_posting_changes.tenant_id
        -- Who cannot see today's answer notes them in any case.
        and (
            t.has_posting_changes
            or current_setting('transaction_isolation') not in ('read committed')
        );
end
$$;

comment on function rag._note_posting_changes(int, bigint[]) is
    'Note that chunks were indexed or have other facets, for searches by posting lists that were '
    'made before.';
