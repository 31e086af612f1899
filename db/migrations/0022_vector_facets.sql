-- Facets beside the vectors: a scan for the nearest passages under a filter asks it of the row that
-- it reads anyway, and not of another one for each vector.
--
-- Takes rag.embeddings with all its partitions exclusively for a moment, and reads those of tenants
-- who have a partition of their own against writers: some seconds for a million. No row is written.
-- With thousands of partitions raise max_locks_per_transaction before: each takes a lock.
--
-- Rows that are there get the facet that every filter looks for as well, so none is lost to one,
-- only asked the long way. They get theirs by rag.reindex where it has to do anyway, and when their
-- tenant's partition is made anew, which rag.maintain() sees to.

alter table rag.embeddings
add column facets int[] not null default '{0}';

-- Tables of tenants who are moving are no partitions yet.
do $$
declare
    v_table regclass;
begin
    for v_table in
        select c.oid::regclass
        from pg_class as c
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and not c.relispartition
            and c.relname ~ '^embeddings_m\d+_p\d+$'
    loop
        execute format('alter table %s add column facets int[] not null default ''{0}''', v_table);
    end loop;
    for v_table in
        select c.oid::regclass
        from pg_class as c
        join rag.partitions as p on c.relname ~ format('^embeddings_m\d+_p%s$', p.partition_id)
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and p.kind = 'dedicated'
    loop
        execute format('create index on %s using gin (facets) with (fastupdate = off)', v_table);
    end loop;
end
$$;

comment on column rag.embeddings.facets is
    'As rag.lexemes.facets, by which filters narrow down; {0}: not known yet.';
