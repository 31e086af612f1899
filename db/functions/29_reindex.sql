-- Indexing anew after a change of settings.

create or replace function rag._reindex_batch(
    tenant_id int, partition_id int, collection_id int, batch int
)
    returns bigint
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
    v_collection rag.collections;
    v_chunks bigint[];
    v_to bigint;
begin
    -- One at a time; puts, whose foreign keys only share the row, go on.
    select n.* into v_collection
    from rag.collections as n
    where
        n.tenant_id = _reindex_batch.tenant_id
        and n.collection_id = _reindex_batch.collection_id
    for no key update;
    if v_collection.reindexed_to is null then
        return 0;
    end if;
    v_chunks := array(
        select l.chunk_id
        from rag.lexemes as l
        where
            l.partition_id = _reindex_batch.partition_id
            and l.tenant_id = _reindex_batch.tenant_id
            and l.chunk_id > v_collection.reindexed_to
            and l.collection_id = _reindex_batch.collection_id
            and l.index_version <> v_collection.index_version
        order by l.chunk_id
        limit _reindex_batch.batch
    );
    if cardinality(v_chunks) = _reindex_batch.batch then
        v_to := v_chunks[_reindex_batch.batch];
    end if;
    -- Whoever writes a document holds its row: no chunk is indexed by two at once, nor after it was
    -- deleted. In the order in which rag.put_many takes them.
    perform
    from rag.documents as d
    where
        d.tenant_id = _reindex_batch.tenant_id
        and d.document_id in (
            select c.document_id
            from rag.chunks as c
            where
                c.partition_id = _reindex_batch.partition_id
                and c.tenant_id = _reindex_batch.tenant_id
                and c.chunk_id = any(v_chunks)
        )
    order by d.uri
    for update;
    v_chunks := array(
        select c.chunk_id
        from rag.chunks as c
        where
            c.partition_id = _reindex_batch.partition_id
            and c.tenant_id = _reindex_batch.tenant_id
            and c.chunk_id = any(v_chunks)
    );
    perform rag._index_chunks(_reindex_batch.tenant_id, _reindex_batch.partition_id, v_chunks);
    perform rag._index_vectors(_reindex_batch.tenant_id, _reindex_batch.partition_id, v_chunks);
    update rag.collections as n
    set reindexed_to = v_to
    where
        n.tenant_id = _reindex_batch.tenant_id
        and n.collection_id = _reindex_batch.collection_id;
    if v_to is null then
        perform rag._forget_languages(_reindex_batch.tenant_id, v_collection);
    end if;
    perform rag._fold_statistics(_reindex_batch.tenant_id, _reindex_batch.partition_id);
    return cardinality(v_chunks);
end
$$;

comment on function rag._reindex_batch(int, int, int, int) is
    'Index up to so many of the chunks anew that were indexed with other settings than their '
    'collection has now; returns how many.';

create or replace function rag._forget_languages(tenant_id int, collection rag.collections)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    -- Only while nobody is writing, who might be using one; it does no harm to keep it.
    perform
    from rag.tenants as t
    where t.tenant_id = _forget_languages.tenant_id
    for update skip locked;
    if found then
        update rag.collections as n
        set
            languages = array(
                select l.language
                from unnest(n.languages) with ordinality as l (language, place)
                where
                    l.language = n.language
                    or exists (
                        select
                        from rag.documents as d
                        where
                            d.tenant_id = n.tenant_id
                            and d.collection_id = n.collection_id
                            and d.language = l.language
                    )
                order by l.place
            )
        where
            n.tenant_id = _forget_languages.tenant_id
            and n.collection_id = (_forget_languages.collection).collection_id
            and cardinality(n.languages) > 1;
    end if;
end
$$;

comment on function rag._forget_languages(int, rag.collections) is
    'No longer ask in languages that no document of the collection is in any more.';

create or replace function rag.reindex(collection text default null, batch int default 2000)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_context record;
    v_partition int;
    v_collection int;
begin
    perform rag._require_fresh_snapshots('indexing anew');
    if reindex.batch is null or reindex.batch not between 1 and 100000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(reindex.batch::text, 'null')),
            hint = 'A batch has 1 to 100,000 chunks.';
    end if;
    v_context := rag._context();
    if reindex.collection is not null then
        v_collection := (rag._collection(v_context.tenant_id, reindex.collection)).collection_id;
    else
        select n.collection_id into v_collection
        from rag.collections as n
        where n.tenant_id = v_context.tenant_id and n.reindexed_to is not null
        order by n.collection_id
        limit 1;
    end if;
    if v_collection is null then
        return 0;
    end if;
    perform rag._lock_tenant(v_context.tenant_id);
    -- Again under the lock: a move between partitions waits for it.
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = v_context.tenant_id;
    return rag._reindex_batch(
        v_context.tenant_id, v_partition, v_collection, reindex.batch
    );
end
$$;

comment on function rag.reindex(text, int) is
    'After rag.alter_collection: index the next batch of chunks by the new settings; returns how '
    'many there were, 0 when it is done. Searches and puts go on meanwhile.';
