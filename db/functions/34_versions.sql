-- Past versions: kept, told, restored, cited, purged. What is past lies in tables of its own; a
-- search of the present reads none of them.

create or replace function rag._next_version(tenant_id int, collection_id int, uri text)
    returns int
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(max(p.version), 0) + 1
    from rag.past_documents as p
    where
        p.tenant_id = _next_version.tenant_id
        and p.collection_id = _next_version.collection_id
        and p.uri = _next_version.uri
$$;

comment on function rag._next_version(int, int, text) is
    'The number of the first version of a document: one more than those deleted under its uri.';

create or replace function rag._number_documents(tenant_id int, documents bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    if not exists (
        select
        from rag.past_documents as p
        where p.tenant_id = _number_documents.tenant_id
    ) then
        return;
    end if;
    update rag.documents as d
    set version = rag._next_version(d.tenant_id, d.collection_id, d.uri)
    where
        d.tenant_id = _number_documents.tenant_id
        and d.document_id = any(_number_documents.documents)
        and d.version < rag._next_version(d.tenant_id, d.collection_id, d.uri);
end
$$;

comment on function rag._number_documents(int, bigint[]) is
    'Have the versions of documents that were just inserted follow those deleted under their uris.';

create or replace function rag._join_past(tenant_id int, deleted bigint, document bigint)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_last int := (
        select max(p.version)
        from rag.past_documents as p
        where p.tenant_id = _join_past.tenant_id and p.document_id = _join_past.deleted
    );
    v_current int := (
        select d.version
        from rag.documents as d
        where d.tenant_id = _join_past.tenant_id and d.document_id = _join_past.document
    );
    v_first int := (
        select least(min(p.version), v_current)
        from rag.past_documents as p
        where p.tenant_id = _join_past.tenant_id and p.document_id = _join_past.document
    );
begin
    if v_first <= v_last then
        -- Numbers of both, from before they were kept apart: what came later goes behind.
        update rag.past_documents as p
        set version = p.version + greatest(v_last, v_current)
        where p.tenant_id = _join_past.tenant_id and p.document_id = _join_past.document;
        update rag.documents as d
        set version = d.version + greatest(v_last, v_current)
        where d.tenant_id = _join_past.tenant_id and d.document_id = _join_past.document;
    end if;
    update rag.past_documents as p
    set document_id = _join_past.document, purge_at = null
    where p.tenant_id = _join_past.tenant_id and p.document_id = _join_past.deleted;
end
$$;

comment on function rag._join_past(int, bigint, bigint) is
    'Make the past of a document that was deleted that of the one that took its place.';

create or replace function rag._check_lifetime(lifetime interval)
    returns interval
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _check_lifetime.lifetime <= interval '0'
        or _check_lifetime.lifetime > interval '1000 years'
    then
        raise exception 'invalid lifetime' using
            errcode = 'invalid_parameter_value',
            detail = format('lifetime is %s.', _check_lifetime.lifetime),
            hint = 'It is how long a document is found, such as 30 days; null: for ever.';
    end if;
    return _check_lifetime.lifetime;
end
$$;

comment on function rag._check_lifetime(interval) is
    'A document''s time to live, or the error for one that cannot be.';

create or replace function rag._note_expiries(tenant_id int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Once, and it stays: most tenants never have any, and their searches need not look.
    update rag.tenants as t
    set has_expiries = true
    where t.tenant_id = _note_expiries.tenant_id and not t.has_expiries;
end
$$;

comment on function rag._note_expiries(int) is
    'Note that a tenant has documents that expire; whoever writes one does so.';

create or replace function rag._archive(
    tenant_id int, partition_id int, documents bigint[], keep interval
)
    returns void
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
    v_is_deleted constant boolean := _archive.keep is not null;
begin
    insert into rag.past_documents (
        tenant_id, document_id, version, collection_id, uri, title, metadata, content,
        content_hash, language, chunking, created_at, valid_from, valid_to, expires_at, is_deleted
    )
    select
        d.tenant_id, d.document_id, d.version, d.collection_id, d.uri, d.title, d.metadata,
        d.content, d.content_hash, d.language, d.chunking, d.created_at, d.updated_at,
        greatest(now(), d.updated_at), d.expires_at, v_is_deleted
    from rag.documents as d
    where d.tenant_id = _archive.tenant_id and d.document_id = any(_archive.documents);

    -- Chunk by chunk: the planner takes every set of a new database for small.
    insert into rag.past_chunks (
        tenant_id, document_id, version, ordinal, chunk_id, start_offset, end_offset,
        heading_path, content_hash, length, reference_length, k1, b, lexemes, weights
    )
    select
        c.tenant_id, c.document_id, d.version, c.ordinal, c.chunk_id, c.start_offset,
        c.end_offset, c.heading_path, c.content_hash, l.length, s.reference_length, l.k1, l.b,
        l.lexemes, l.weights
    from rag.documents as d
    join rag.lexeme_statistics as s
        on s.tenant_id = _archive.tenant_id and s.lexeme = '' and s.delta_id = 0
    join rag.chunks as c
        on c.partition_id = _archive.partition_id
        and c.tenant_id = _archive.tenant_id
        and c.document_id = d.document_id
    cross join lateral (
        select x.length, x.k1, x.b, x.lexemes, x.weights
        from rag.lexemes as x
        where
            x.partition_id = _archive.partition_id
            and x.tenant_id = _archive.tenant_id
            and x.chunk_id = c.chunk_id
        offset 0
    ) as l
    where d.tenant_id = _archive.tenant_id and d.document_id = any(_archive.documents);

    insert into rag.past_embeddings (tenant_id, content_hash, model_id, embedding)
    select distinct on (c.content_hash, e.model_id)
        c.tenant_id, c.content_hash, e.model_id, e.embedding
    from rag.chunks as c
    cross join lateral (
        select x.model_id, x.embedding
        from rag.embeddings as x
        where
            x.partition_id = _archive.partition_id
            and x.tenant_id = _archive.tenant_id
            and x.chunk_id = c.chunk_id
        offset 0
    ) as e
    where
        c.partition_id = _archive.partition_id
        and c.tenant_id = _archive.tenant_id
        and c.document_id = any(_archive.documents)
    order by c.content_hash, e.model_id
    on conflict do nothing;

    if v_is_deleted then
        update rag.past_documents as p
        set purge_at = least(now() + _archive.keep, d.expires_at)
        from rag.documents as d
        where
            p.tenant_id = _archive.tenant_id
            and p.document_id = any(_archive.documents)
            and d.tenant_id = _archive.tenant_id
            and d.document_id = p.document_id;
    end if;
end
$$;

comment on function rag._archive(int, int, bigint[], interval) is
    'Keep documents as they are as past versions, before they change or, to be restored for so '
    'long, are deleted. Their rows are locked.';

create or replace function rag._forget_embeddings(tenant_id int, hashes uuid[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    delete from rag.past_embeddings as e
    where
        e.tenant_id = _forget_embeddings.tenant_id
        and e.content_hash = any(_forget_embeddings.hashes)
        and not exists (
            select
            from rag.past_chunks as c
            where
                c.tenant_id = _forget_embeddings.tenant_id and c.content_hash = e.content_hash
        );
end
$$;

comment on function rag._forget_embeddings(int, uuid[]) is
    'Delete embeddings of past texts that no past chunk has any more.';

create or replace function rag._erase_versions(tenant_id int, documents bigint[], versions int[])
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_hashes uuid[];
    v_rows int;
begin
    if cardinality(_erase_versions.documents) = 0 then
        return 0;
    end if;
    select array_agg(distinct c.content_hash) into v_hashes
    from unnest(_erase_versions.documents, _erase_versions.versions) as g (document_id, version)
    join rag.past_chunks as c
        on c.tenant_id = _erase_versions.tenant_id
        and c.document_id = g.document_id
        and c.version = g.version;
    delete from rag.past_documents as p
    using unnest(_erase_versions.documents, _erase_versions.versions) as g (document_id, version)
    where
        p.tenant_id = _erase_versions.tenant_id
        and p.document_id = g.document_id
        and p.version = g.version;
    get diagnostics v_rows = row_count;
    perform rag._forget_embeddings(_erase_versions.tenant_id, v_hashes);
    return v_rows;
end
$$;

comment on function rag._erase_versions(int, bigint[], int[]) is
    'Erase past versions with their chunks, and embeddings that nothing past needs any more.';

create or replace function rag._erase_past(tenant_id int, documents bigint[])
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_documents bigint[];
    v_versions int[];
begin
    select array_agg(p.document_id), array_agg(p.version) into v_documents, v_versions
    from rag.past_documents as p
    where
        p.tenant_id = _erase_past.tenant_id and p.document_id = any(_erase_past.documents);
    if v_documents is null then
        return 0;
    end if;
    return rag._erase_versions(_erase_past.tenant_id, v_documents, v_versions);
end
$$;

comment on function rag._erase_past(int, bigint[]) is
    'Erase all past versions of documents; returns how many there were.';

create or replace function rag._prune_versions(tenant_id int, documents bigint[], keep int)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_documents bigint[];
    v_versions int[];
begin
    select array_agg(n.document_id), array_agg(n.version) into v_documents, v_versions
    from (
        select
            p.document_id,
            p.version,
            row_number() over (partition by p.document_id order by p.version desc) as place
        from rag.past_documents as p
        where
            p.tenant_id = _prune_versions.tenant_id
            and p.document_id = any(_prune_versions.documents)
    ) as n
    where n.place >= _prune_versions.keep;
    if v_documents is not null then
        perform rag._erase_versions(_prune_versions.tenant_id, v_documents, v_versions);
    end if;
end
$$;

comment on function rag._prune_versions(int, bigint[], int) is
    'Erase the versions of documents that are more than their collection keeps.';

create or replace function rag.set_retention(
    collection text default 'default',
    versions int default null,
    -- Null is for ever and not at all; nobody means this.
    lifetime interval default '-1 microsecond',
    keep_deleted interval default '-1 microsecond'
)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_collection rag.collections;
    v_partition int;
    v_versions int;
    v_lifetime interval;
    v_keep_deleted interval;
    v_pruned bigint[];
    v_before bigint[];
begin
    if set_retention.versions not between 1 and 1000 then
        raise exception 'invalid number of versions' using
            errcode = 'invalid_parameter_value',
            detail = format('versions is %s.', set_retention.versions),
            hint = 'It is how many versions of a document are kept, the current one included: 1 '
            'to 1,000.';
    end if;
    if set_retention.keep_deleted <= interval '0'
        and set_retention.keep_deleted <> interval '-1 microsecond'
    then
        raise exception 'invalid keep_deleted' using
            errcode = 'invalid_parameter_value',
            detail = format('keep_deleted is %s.', set_retention.keep_deleted),
            hint = 'It is how long a deleted document can be restored, such as 30 days; null: not '
            'at all.';
    end if;
    perform rag._check_lifetime(nullif(set_retention.lifetime, interval '-1 microsecond'));
    -- Nobody writes meanwhile: a put under way would archive what nothing prunes any more.
    perform from rag.tenants as t where t.tenant_id = v_tenant for update;
    v_collection := rag._collection(v_tenant, set_retention.collection);
    v_versions := coalesce(set_retention.versions, v_collection.versions);
    v_lifetime := case
        when set_retention.lifetime = interval '-1 microsecond' then v_collection.lifetime
        else set_retention.lifetime
    end;
    v_keep_deleted := case
        when set_retention.keep_deleted = interval '-1 microsecond' then v_collection.keep_deleted
        else set_retention.keep_deleted
    end;
    update rag.collections as n
    set versions = v_versions, lifetime = v_lifetime, keep_deleted = v_keep_deleted
    where n.tenant_id = v_tenant and n.collection_id = v_collection.collection_id;
    if v_versions < v_collection.versions then
        select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
        v_pruned := array(
            select distinct p.document_id
            from rag.past_documents as p
            where
                p.tenant_id = v_tenant
                and p.collection_id = v_collection.collection_id
                and p.purge_at is null
        );
        v_before := rag._measure(v_tenant, v_partition, v_pruned);
        perform rag._prune_versions(v_tenant, v_pruned, v_versions);
        perform rag._count_usage(
            v_tenant, v_before, rag._measure(v_tenant, v_partition, v_pruned)
        );
    end if;
    -- Sooner for what is deleted already, never later than was promised then.
    update rag.past_documents as p
    set purge_at = least(p.purge_at, now() + coalesce(v_keep_deleted, interval '0'))
    where
        p.tenant_id = v_tenant
        and p.collection_id = v_collection.collection_id
        and p.purge_at is not null;
end
$$;

comment on function rag.set_retention(text, int, interval, interval) is
    'How many versions of its documents a collection keeps (with the current one), how long a '
    'document lives from its put on (null: for ever; it holds for what is put from now on), and '
    'how long a deleted one can be restored (null: not at all). What is not given stays.';

create or replace function rag.history(uri text, collection text default 'default')
    returns table (
        version int,
        state text,
        title text,
        metadata jsonb,
        characters int,
        chunks int,
        valid_from timestamptz,
        valid_to timestamptz,
        purge_at timestamptz,
        document_id bigint
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
    v_collection rag.collections;
begin
    v_context := rag._context();
    v_collection := rag._collection(v_context.tenant_id, history.collection);
    return query
    select
        d.version, 'current', d.title, d.metadata, length(d.content),
        (
            select count(*)::int
            from rag.chunks as c
            where
                c.partition_id = v_context.partition_id
                and c.tenant_id = v_context.tenant_id
                and c.document_id = d.document_id
        ),
        d.updated_at, d.expires_at, null::timestamptz, d.document_id
    from rag.documents as d
    where
        d.tenant_id = v_context.tenant_id
        and d.collection_id = v_collection.collection_id
        and d.uri = history.uri
        and (d.expires_at is null or d.expires_at > statement_timestamp())
    union all
    select
        p.version, case when p.is_deleted then 'deleted' else 'past' end, p.title, p.metadata,
        length(p.content),
        (
            select count(*)::int
            from rag.past_chunks as c
            where
                c.tenant_id = v_context.tenant_id
                and c.document_id = p.document_id
                and c.version = p.version
        ),
        p.valid_from, p.valid_to, p.purge_at, p.document_id
    from rag.past_documents as p
    where
        p.tenant_id = v_context.tenant_id
        and p.collection_id = v_collection.collection_id
        and p.uri = history.uri
        and rag._is_open(p)
    order by 1 desc;
end
$$;

comment on function rag.history(text, text) is
    'The versions of the document of that uri that are kept, the newest first: current, past, or '
    'deleted (the last one before it was deleted).';

create or replace function rag._is_open(past rag.past_documents)
    returns boolean
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        coalesce((past).purge_at > statement_timestamp(), true)
        and not exists (
            select
            from rag.documents as d
            where
                d.tenant_id = (past).tenant_id
                and d.document_id = (past).document_id
                and d.expires_at <= statement_timestamp()
        )
$$;

comment on function rag._is_open(rag.past_documents) is
    'Whether a past version may still be read: it is not to be purged, its document not expired.';

create or replace function rag.restore(
    uri text, version int default null, collection text default 'default'
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
    v_partition int;
    v_collection rag.collections;
    v_past rag.past_documents;
    v_document bigint;
    v_expires_at timestamptz;
    v_before bigint[];
begin
    v_context := rag._context();
    perform rag._lock_tenant(v_context.tenant_id);
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = v_context.tenant_id;
    v_collection := rag._collection(v_context.tenant_id, restore.collection);
    select p.* into v_past
    from rag.past_documents as p
    where
        p.tenant_id = v_context.tenant_id
        and p.collection_id = v_collection.collection_id
        and p.uri = restore.uri
        and (restore.version is null or p.version = restore.version)
        and rag._is_open(p)
    order by p.version desc, p.valid_to desc
    limit 1;
    if v_past.version is null then
        raise exception 'there is no such version' using
            errcode = 'no_data_found',
            detail = format('Of %L no past version %s is kept.', restore.uri,
                coalesce(restore.version::text, 'at all')),
            hint = format('select * from rag.history(%L, %L) lists what there is.', restore.uri,
                restore.collection);
    end if;
    -- It lives as long as it would have.
    select d.expires_at into v_expires_at
    from rag.documents as d
    where
        d.tenant_id = v_context.tenant_id
        and d.collection_id = v_collection.collection_id
        and d.uri = restore.uri
    for update;
    if not found then
        v_expires_at := v_past.expires_at;
    end if;
    select d.document_id into v_document
    from rag._put_documents(
        restore.collection, array[v_past.content], array[v_past.uri], array[v_past.title],
        array[v_past.metadata], v_past.chunking ->> 'strategy',
        (v_past.chunking ->> 'size')::int, (v_past.chunking ->> 'overlap')::int,
        v_past.language, 0::smallint, null,
        coalesce((v_past.chunking ->> 'min_size')::int, 0),
        coalesce(rag._separators(v_past.chunking), '{}'), null
    ) as d;
    if v_expires_at is not null then
        perform rag._note_expiries(v_context.tenant_id);
        update rag.documents as d
        set expires_at = v_expires_at
        where d.tenant_id = v_context.tenant_id and d.document_id = v_document;
    end if;
    -- What was embedded then need not be embedded again.
    with
    found as materialized (
        select c.chunk_id, c.collection_id, e.model_id, e.embedding
        from rag.chunks as c
        join rag.past_embeddings as e
            on e.tenant_id = v_context.tenant_id and e.content_hash = c.content_hash
        join rag.models as m on m.model_id = e.model_id and m.dropped_at is null
        where
            c.partition_id = v_partition
            and c.tenant_id = v_context.tenant_id
            and c.document_id = v_document
            and exists (
                select
                from rag.jobs as j
                where
                    j.tenant_id = v_context.tenant_id
                    and j.chunk_id = c.chunk_id
                    and j.model_id = e.model_id
                    -- Of this transaction, so that no worker holds it.
                    and j.created_at = now()
            )
    ),
    added as (
        insert into rag.embeddings (
            partition_id, tenant_id, chunk_id, model_id, collection_id, embedding, facets
        )
        select
            v_partition, v_context.tenant_id, f.chunk_id, f.model_id, f.collection_id, f.embedding,
            coalesce(
                (
                    select nullif(l.facets, '{}')
                    from rag.lexemes as l
                    where
                        l.partition_id = v_partition
                        and l.tenant_id = v_context.tenant_id
                        and l.chunk_id = f.chunk_id
                ),
                '{0}'
            )
        from found as f
        where to_regclass(
            format('rag_data.embeddings_m%s_p%s', f.model_id, v_partition)
        ) is not null
        on conflict do nothing
        returning chunk_id, model_id
    )
    delete from rag.jobs as j
    using added as a
    where
        j.tenant_id = v_context.tenant_id
        and j.chunk_id = a.chunk_id
        and j.model_id = a.model_id;
    if v_document <> v_past.document_id then
        perform rag._join_past(v_context.tenant_id, v_past.document_id, v_document);
        v_before := rag._measure(v_context.tenant_id, v_partition, array[v_document]);
        perform rag._prune_versions(
            v_context.tenant_id, array[v_document], v_collection.versions
        );
        perform rag._count_usage(
            v_context.tenant_id, v_before,
            rag._measure(v_context.tenant_id, v_partition, array[v_document])
        );
    end if;
    return v_document;
end
$$;

comment on function rag.restore(text, int, text) is
    'Put a past version of a document again (the last one, unless a version is said), as a new '
    'version; a deleted document is there again. Returns its id. Embeddings are kept.';

create or replace function rag.cite(chunk_id bigint, at_version int default null)
    returns table (
        document_id bigint,
        uri text,
        version int,
        title text,
        content text,
        metadata jsonb,
        heading_path text[],
        start_offset int,
        end_offset int,
        is_current boolean,
        valid_from timestamptz,
        valid_to timestamptz,
        collection_name text
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 1
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
begin
    v_context := rag._context();
    return query
    select
        d.document_id, d.uri, d.version, d.title, c.content, d.metadata, c.heading_path,
        c.start_offset, c.end_offset, true, d.updated_at, d.expires_at, n.name
    from rag.chunks as c
    join rag.documents as d
        on d.tenant_id = v_context.tenant_id and d.document_id = c.document_id
    join rag.collections as n
        on n.tenant_id = v_context.tenant_id and n.collection_id = d.collection_id
    where
        c.partition_id = v_context.partition_id
        and c.tenant_id = v_context.tenant_id
        and c.chunk_id = cite.chunk_id
        and (cite.at_version is null or d.version = cite.at_version)
        and (d.expires_at is null or d.expires_at > statement_timestamp());
    if found then
        return;
    end if;
    return query
    select
        p.document_id, p.uri, p.version, p.title,
        substr(p.content, c.start_offset + 1, c.end_offset - c.start_offset), p.metadata,
        c.heading_path, c.start_offset, c.end_offset, false, p.valid_from, p.valid_to, n.name
    from rag.past_chunks as c
    join rag.past_documents as p
        on p.tenant_id = v_context.tenant_id
        and p.document_id = c.document_id
        and p.version = c.version
    join rag.collections as n
        on n.tenant_id = v_context.tenant_id and n.collection_id = p.collection_id
    where
        c.tenant_id = v_context.tenant_id
        and c.chunk_id = cite.chunk_id
        and (cite.at_version is null or c.version = cite.at_version)
        and rag._is_open(p)
    order by c.version desc
    limit 1;
end
$$;

comment on function rag.cite(bigint, int) is
    'The passage that a chunk''s id stands for, in the newest version of its document that has it '
    'or in the one that is said: its text is the same in all. No row: it is not kept.';

create or replace function rag._purge(tenant_id int, most int)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    v_partition int;
    v_documents bigint[];
    v_past bigint[];
    v_versions int[];
    v_before bigint[];
    v_erased bigint;
begin
    perform rag._lock_tenant(_purge.tenant_id);
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = _purge.tenant_id;
    -- In the order in which rag.put_many takes them; what another transaction is writing waits.
    v_documents := array(
        select d.document_id
        from rag.documents as d
        where d.tenant_id = _purge.tenant_id and d.expires_at <= statement_timestamp()
        order by d.uri
        limit _purge.most
        for update skip locked
    );
    if v_documents <> '{}' then
        perform rag._delete_documents(_purge.tenant_id, v_partition, v_documents, null);
        perform rag._fold_statistics(_purge.tenant_id, v_partition);
    end if;
    select array_agg(p.document_id), array_agg(p.version) into v_past, v_versions
    from (
        select x.document_id, x.version
        from rag.past_documents as x
        where x.tenant_id = _purge.tenant_id and x.purge_at <= statement_timestamp()
        order by x.purge_at, x.document_id, x.version
        limit _purge.most
        for update skip locked
    ) as p;
    v_erased := rag._purge_records(_purge.tenant_id, _purge.most);
    if v_past is not null then
        v_before := rag._measure(_purge.tenant_id, v_partition, v_past);
        v_erased := v_erased + rag._erase_versions(_purge.tenant_id, v_past, v_versions);
        perform rag._count_usage(
            _purge.tenant_id, v_before, rag._measure(_purge.tenant_id, v_partition, v_past)
        );
    end if;
    return cardinality(v_documents) + v_erased;
end
$$;

comment on function rag._purge(int, int) is
    'Erase up to so many of a tenant''s expired documents, so many past versions whose time has '
    'come, and so many old records of uploads and of runs; returns how many there were.';

create or replace function rag._check_most(most int)
    returns int
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _check_most.most is null or _check_most.most not between 1 and 100000 then
        raise exception 'invalid most' using
            errcode = 'invalid_parameter_value',
            detail = format('most is %s.', coalesce(_check_most.most::text, 'null')),
            hint = 'It is how many are done in one call, 1 to 100,000.';
    end if;
    return _check_most.most;
end
$$;

comment on function rag._check_most(int) is
    'How many a call does at most, or the error for a number that cannot be.';

create or replace function rag.purge(most int default 1000)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
begin
    return rag._purge((select c.tenant_id from rag._context() as c), rag._check_most(purge.most));
end
$$;

comment on function rag.purge(int) is
    'Erase documents of the caller''s tenant that have expired, past versions whose time has come, '
    'and old records of uploads and runs (rag.set_record_retention), up to so many of each; '
    'returns how many, 0 when nothing is left. Documents are not found from the moment they '
    'expire; this gives the space back.';

create or replace function rag.purge_all(most int default 1000)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_count bigint := 0;
begin
    perform rag._check_most(purge_all.most);
    for v_tenant in
        select t.tenant_id
        from rag.tenants as t
        where
            exists (
                select
                from rag.documents as d
                where d.tenant_id = t.tenant_id and d.expires_at <= statement_timestamp()
            )
            or exists (
                select
                from rag.past_documents as p
                where p.tenant_id = t.tenant_id and p.purge_at <= statement_timestamp()
            )
            or rag._due_records(t.tenant_id)
        order by t.tenant_id
    loop
        v_count := v_count + rag._purge(v_tenant, (purge_all.most - v_count)::int);
        exit when v_count >= purge_all.most;
    end loop;
    return v_count;
end
$$;

comment on function rag.purge_all(int) is
    'rag.purge for all tenants, for a timer: returns how many were erased, 0 when nothing is left.';
