-- Documents in and out: put, put_many, delete. Functions, not triggers, so that a tenant's tables
-- can be distributed later, and one statement does the work of many rows.

create or replace function rag._hash(content text)
    returns uuid
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- 128 bits of SHA-256: as narrow as an id, and no collision that anybody could make.
    select encode(substring(sha256(convert_to(content, 'UTF8')) for 16), 'hex')::uuid
$$;

comment on function rag._hash(text) is 'The first 128 bits of the SHA-256 of a text, as a uuid.';

create or replace function rag._check_document(
    content text, uri text, title text, metadata jsonb, place text
)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- Text and its chunks are held in memory while it is put: 100 MB needs about 1 GB.
    if octet_length(_check_document.content) > 100 * 1024 * 1024 then
        raise exception 'document is too large' using
            errcode = 'RG004',
            detail = format('%s has %s bytes; the limit is %s.', _check_document.place,
                octet_length(_check_document.content), 100 * 1024 * 1024),
            hint = 'Put it in parts, each with a uri of its own.';
    end if;
    -- White space is what rag.chunk takes for it, or a document could have no chunk. A pattern is
    -- matched against 4 bytes a character, so the beginning is asked first.
    if _check_document.content is null
        or (
            left(_check_document.content, 1000) !~ ('[^' || rag._whitespace() || ']')
            and _check_document.content !~ ('[^' || rag._whitespace() || ']')
        )
    then
        raise exception 'content is empty' using
            errcode = 'invalid_parameter_value',
            detail = format('%s has no text.', _check_document.place),
            hint = 'To take a document away call rag.delete(uri).';
    end if;
    -- A uri is the key of an index, whose entries end at about 2,700 bytes.
    if _check_document.uri = '' or octet_length(_check_document.uri) > 2000 then
        raise exception 'invalid uri' using
            errcode = 'invalid_parameter_value',
            detail = format('The uri of %s has %s bytes.', lower(_check_document.place),
                octet_length(_check_document.uri)),
            hint = 'A uri has 1 to 2,000 bytes; without one the content''s hash is the identity.';
    end if;
    -- Title and metadata are repeated in each chunk, a large document has 100,000 of them; and a
    -- tsvector ends at 1 MB.
    if octet_length(_check_document.title) > 2000 then
        raise exception 'title is too long' using
            errcode = 'invalid_parameter_value',
            detail = format('The title of %s has %s bytes.', lower(_check_document.place),
                octet_length(_check_document.title)),
            hint = 'A title has at most 2,000 bytes.';
    end if;
    if jsonb_typeof(_check_document.metadata) <> 'object' then
        raise exception 'metadata is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('%s has metadata of type %s.', _check_document.place,
                jsonb_typeof(_check_document.metadata)),
            hint = 'Metadata is a JSON object, such as {"lang": "en", "page": 3}.';
    end if;
    if octet_length(_check_document.metadata::text) > 100000 then
        raise exception 'metadata is too large' using
            errcode = 'invalid_parameter_value',
            detail = format('The metadata of %s has %s bytes.', lower(_check_document.place),
                octet_length(_check_document.metadata::text)),
            hint = 'Metadata has at most 100,000 bytes: what filters ask for. Keep the rest in a '
            'table of your own, under the id of the document.';
    end if;
end
$$;

comment on function rag._check_document(text, text, text, jsonb, text) is
    'Raise the error for a document that cannot be put; place names it in the message.';

create or replace function rag._put_documents(
    collection text,
    contents text[],
    uris text[],
    titles text[],
    metadatas jsonb[],
    strategy text,
    chunk_size int,
    chunk_overlap int,
    language text,
    priority smallint,
    preset text,
    min_chunk_size int,
    separators text[],
    lifetime interval,
    tenant_id int default null
)
    returns table (uri text, document_id bigint, chunks int, status text)
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
    -- A worker that has read a file puts it for the tenant who handed it over.
    v_tenant int := coalesce(
        _put_documents.tenant_id, (select c.tenant_id from rag._context() as c)
    );
    v_partition int;
    v_collection rag.collections;
    v_chunking jsonb;
    v_language text;
    v_expires_at timestamptz;
    v_has_expiry boolean;
    v_expired bigint[];
    v_inserted bigint[] := '{}';
    v_rechunked bigint[] := '{}';
    v_edited bigint[] := '{}';
    v_retitled bigint[] := '{}';
    v_before bigint[];
begin
    -- Whoever puts for a tenant has counted it.
    if _put_documents.tenant_id is null then
        perform rag._count_requests(v_tenant, 'puts', cardinality(_put_documents.uris));
    end if;
    perform rag._lock_tenant(v_tenant);
    perform rag._queue_for_quota(
        v_tenant, cardinality(_put_documents.uris),
        (select sum(octet_length(c.content)) from unnest(_put_documents.contents) as c (content))
    );
    -- Under the lock: a move between partitions waits for it.
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, _put_documents.collection);
    v_chunking := rag._chunking(
        v_collection, _put_documents.preset, _put_documents.strategy, _put_documents.chunk_size,
        _put_documents.chunk_overlap, _put_documents.min_chunk_size, _put_documents.separators
    );
    v_expires_at := now() + rag._check_lifetime(
        coalesce(_put_documents.lifetime, v_collection.lifetime)
    );
    if v_expires_at is not null then
        perform rag._note_expiries(v_tenant);
    end if;
    -- That of the collection, too: it may have been dropped since.
    v_language := rag._language(coalesce(_put_documents.language, v_collection.language));

    if not v_language = any(v_collection.languages) then
        update rag.collections as n
        set languages = n.languages || v_language
        where
            n.tenant_id = v_tenant
            and n.collection_id = v_collection.collection_id
            and not v_language = any(n.languages);
    end if;

    -- 1. Every document gets a row that this transaction holds until it ends: a new one, or that
    --    which is there, locked. "do update" locks a row although its condition never holds. Both
    --    in one pass over the sorted uris, so that two calls never wait for each other: inserting
    --    first and locking then, they did, as soon as somebody deleted in between.
    with added as (
        insert into rag.documents as d (
            tenant_id, collection_id, uri, title, metadata, content, content_hash, language,
            chunking, expires_at
        )
        select distinct on (g.uri)
            v_tenant, v_collection.collection_id, g.uri, g.title, g.metadata, g.content,
            rag._hash(g.content), v_language, v_chunking, v_expires_at
        from unnest(
            _put_documents.contents, _put_documents.uris, _put_documents.titles,
            _put_documents.metadatas
        ) as g (content, uri, title, metadata)
        order by g.uri
        on conflict on constraint documents_uri_is_unique do update
        set updated_at = d.updated_at
        where false
        returning d.document_id
    )
    select coalesce(array_agg(a.document_id), '{}') into v_inserted
    from added as a;
    -- What was deleted under a uri goes on being counted. By now, and not in the statement that
    -- inserts: that one may have waited for the delete, and does not see what it left behind.
    perform rag._number_documents(v_tenant, v_inserted);

    -- 2. What differs? Another text, language or way of chunking: chunk it again. Another title
    --    or other metadata: only those are written.
    with
    given as (
        select
            d.document_id,
            d.content_hash is distinct from h.content_hash
            or d.language is distinct from v_language
            or d.chunking is distinct from v_chunking as is_rechunked,
            d.title is distinct from g.title
            or d.language is distinct from v_language
            or v_collection.enrich <> '{}' and d.metadata is distinct from g.metadata
            as is_retitled,
            d.title is distinct from g.title or d.metadata is distinct from g.metadata as is_edited,
            d.expires_at is not null as has_expiry,
            d.expires_at <= statement_timestamp() as is_expired
        from unnest(_put_documents.contents, _put_documents.uris, _put_documents.titles,
            _put_documents.metadatas) as g (content, uri, title, metadata)
        cross join lateral (select rag._hash(g.content) as content_hash) as h
        join rag.documents as d
            on d.tenant_id = v_tenant
            and d.collection_id = v_collection.collection_id
            and d.uri = g.uri
        where not d.document_id = any(v_inserted)
    )
    select
        coalesce(array_agg(g.document_id) filter (where g.is_rechunked), '{}'),
        coalesce(array_agg(g.document_id) filter (where g.is_edited and not g.is_rechunked), '{}'),
        coalesce(array_agg(g.document_id) filter (where g.is_retitled), '{}'),
        coalesce(bool_or(g.has_expiry), false),
        array_agg(g.document_id) filter (where g.is_expired)
    into v_rechunked, v_edited, v_retitled, v_has_expiry, v_expired
    from given as g;

    v_before := rag._measure(v_tenant, v_partition, v_rechunked || v_edited);
    if v_collection.versions > 1 and cardinality(v_rechunked) + cardinality(v_edited) > 0 then
        -- What had expired is not brought back by what takes its place.
        perform rag._erase_past(v_tenant, v_expired);
        perform rag._archive(
            v_tenant, v_partition, rag._without(v_rechunked || v_edited, v_expired), null
        );
        perform rag._prune_versions(v_tenant, v_rechunked || v_edited, v_collection.versions);
    end if;
    if cardinality(v_rechunked) + cardinality(v_edited) > 0 then
        update rag.documents as d
        set
            title = g.title,
            metadata = g.metadata,
            content = case when d.content_hash = h.content_hash then d.content else g.content end,
            content_hash = h.content_hash,
            language = v_language,
            chunking = v_chunking,
            version = d.version + 1,
            -- Never before the version before it, which another transaction may have written that
            -- began later.
            updated_at = greatest(now(), d.updated_at)
        from unnest(_put_documents.contents, _put_documents.uris, _put_documents.titles,
            _put_documents.metadatas) as g (content, uri, title, metadata)
        cross join lateral (select rag._hash(g.content) as content_hash) as h
        where
            d.tenant_id = v_tenant
            and d.collection_id = v_collection.collection_id
            and d.uri = g.uri
            and d.document_id = any(v_rechunked || v_edited);
    end if;
    if v_expires_at is not null or v_has_expiry then
        update rag.documents as d
        set expires_at = v_expires_at
        where
            d.tenant_id = v_tenant
            and d.collection_id = v_collection.collection_id
            and d.uri = any(_put_documents.uris)
            and d.expires_at is distinct from v_expires_at;
    end if;
    if cardinality(v_inserted) + cardinality(v_rechunked) > 0 then
        perform rag._replace_chunks(
            v_tenant, v_partition, v_inserted, v_rechunked, _put_documents.priority
        );
    end if;
    perform rag._count_usage(
        v_tenant, v_before,
        rag._measure(v_tenant, v_partition, v_inserted || v_rechunked || v_edited)
    );
    if cardinality(v_edited) > 0 then
        perform rag._copy_metadata(v_tenant, v_partition, v_edited);
    end if;
    if cardinality(v_rechunked) > 0 then
        perform rag._index_metadata(v_tenant, v_partition, v_rechunked);
    end if;
    if cardinality(v_retitled) > 0 then
        perform rag._index_documents(v_tenant, v_partition, v_retitled);
    end if;
    perform rag._fold_statistics(v_tenant, v_partition);

    return query
    select
        g.uri,
        d.document_id,
        (
            select count(*)::int
            from rag.chunks as c
            where
                c.partition_id = v_partition
                and c.tenant_id = v_tenant
                and c.document_id = d.document_id
        ),
        case
            when d.document_id = any(v_inserted) then 'inserted'
            when d.document_id = any(v_rechunked || v_edited) then 'updated'
            else 'unchanged'
        end
    from unnest(_put_documents.uris) with ordinality as g (uri, n)
    join rag.documents as d
        on d.tenant_id = v_tenant
        and d.collection_id = v_collection.collection_id
        and d.uri = g.uri
    order by g.n;
end
$$;

comment on function rag._put_documents(
    text, text[], text[], text[], jsonb[], text, int, int, text, smallint, text, int, text[],
    interval, int
) is 'Insert or replace checked documents of distinct uris; a row for each, in their order.';

create or replace function rag._without(list bigint[], left_out bigint[])
    returns bigint[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select case
        when left_out is null then list
        else array(select u.item from unnest(list) as u (item) where u.item <> all(left_out))
    end
$$;

comment on function rag._without(bigint[], bigint[]) is
    'The first list without what is in the second one.';

create or replace function rag._copy_metadata(tenant_id int, partition_id int, documents bigint[])
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
    update rag.chunks as c
    set metadata = rag._chunk_metadata(d.metadata, c.start_offset)
    from rag.documents as d
    where
        c.partition_id = _copy_metadata.partition_id
        and c.tenant_id = _copy_metadata.tenant_id
        and c.document_id = any(_copy_metadata.documents)
        and d.tenant_id = _copy_metadata.tenant_id
        and d.document_id = c.document_id
        and c.metadata is distinct from rag._chunk_metadata(d.metadata, c.start_offset);
    perform rag._index_metadata(
        _copy_metadata.tenant_id, _copy_metadata.partition_id, _copy_metadata.documents
    );
end
$$;

comment on function rag._copy_metadata(int, int, bigint[]) is
    'Write the metadata of documents to their chunks, for filters also as facets.';

create or replace function rag._index_documents(
    tenant_id int, partition_id int, documents bigint[]
)
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
    perform rag._language(g.language)
    from (
        select distinct d.language
        from rag.documents as d
        where
            d.tenant_id = _index_documents.tenant_id
            and d.document_id = any(_index_documents.documents)
    ) as g;
    perform rag._index_chunks(_index_documents.tenant_id, _index_documents.partition_id, array(
        select c.chunk_id
        from rag.chunks as c
        where
            c.partition_id = _index_documents.partition_id
            and c.tenant_id = _index_documents.tenant_id
            and c.document_id = any(_index_documents.documents)
    ));
end
$$;

comment on function rag._index_documents(int, int, bigint[]) is
    'Index all chunks of documents anew, whose title or metadata have changed.';

create or replace function rag._replace_chunks(
    tenant_id int, partition_id int, inserted bigint[], rechunked bigint[], priority smallint
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
    v_gone bigint[];
    v_moved bigint[];
    v_added bigint[];
begin
    -- A chunk's text never changes: the same text of the same document keeps its row, and with
    -- it its embedding; other text is a new chunk. So an embedding can never be of an old text.
    with
    fresh as materialized (
        select
            d.document_id,
            d.collection_id,
            rag._chunk_metadata(d.metadata, c.start_offset) as metadata,
            c.ordinal,
            c.content,
            c.start_offset,
            c.end_offset,
            c.heading_path,
            h.content_hash,
            -- The same text twice in one document: first with first, second with second.
            row_number() over (
                partition by d.document_id, h.content_hash order by c.ordinal
            ) as nth
        from rag.documents as d
        cross join lateral rag.chunk(
            d.content, d.chunking ->> 'strategy', (d.chunking ->> 'size')::int,
            (d.chunking ->> 'overlap')::int, coalesce((d.chunking ->> 'min_size')::int, 0),
            rag._separators(d.chunking)
        ) as c
        cross join lateral (select rag._hash(c.content) as content_hash) as h
        where
            d.tenant_id = _replace_chunks.tenant_id
            and d.document_id = any(_replace_chunks.inserted || _replace_chunks.rechunked)
    ),
    old as materialized (
        select
            c.chunk_id,
            c.document_id,
            c.content_hash,
            c.heading_path as old_heading_path,
            row_number() over (
                partition by c.document_id, c.content_hash order by c.ordinal
            ) as nth
        from rag.chunks as c
        where
            c.partition_id = _replace_chunks.partition_id
            and c.tenant_id = _replace_chunks.tenant_id
            and c.document_id = any(_replace_chunks.rechunked)
    ),
    matched as materialized (
        select
            f.*,
            o.chunk_id,
            o.old_heading_path
        from fresh as f
        left join old as o using (document_id, content_hash, nth)
    ),
    kept as (
        update rag.chunks as c
        set
            ordinal = m.ordinal,
            start_offset = m.start_offset,
            end_offset = m.end_offset,
            heading_path = m.heading_path,
            metadata = m.metadata
        from matched as m
        where
            c.partition_id = _replace_chunks.partition_id
            and c.tenant_id = _replace_chunks.tenant_id
            and c.chunk_id = m.chunk_id
            -- What stands before an edit stays as it is: no new row, no new index entries.
            and (c.ordinal, c.start_offset, c.end_offset, c.heading_path, c.metadata)
            is distinct from (m.ordinal, m.start_offset, m.end_offset, m.heading_path, m.metadata)
    ),
    added as (
        insert into rag.chunks (
            partition_id, tenant_id, document_id, collection_id, ordinal, start_offset,
            end_offset, heading_path, content, content_hash, metadata
        )
        select
            _replace_chunks.partition_id, _replace_chunks.tenant_id, m.document_id,
            m.collection_id, m.ordinal, m.start_offset, m.end_offset, m.heading_path, m.content,
            m.content_hash, m.metadata
        from matched as m
        where m.chunk_id is null
        order by m.document_id, m.ordinal
        returning chunk_id
    )
    select
        (select array_agg(a.chunk_id) from added as a),
        (
            select array_agg(m.chunk_id)
            from matched as m
            where m.old_heading_path is distinct from m.heading_path and m.chunk_id is not null
        ),
        (
            select array_agg(o.chunk_id)
            from old as o
            where not exists (select from matched as m where m.chunk_id = o.chunk_id)
        )
    into v_added, v_moved, v_gone;

    -- A chunk found by its headings is found by the new ones from now on.
    if v_added is not null or v_moved is not null then
        perform rag._index_chunks(
            _replace_chunks.tenant_id, _replace_chunks.partition_id,
            array_cat(v_added, v_moved)
        );
    end if;
    if v_added is not null then
        perform rag._enqueue(
            _replace_chunks.tenant_id, _replace_chunks.partition_id, v_added,
            _replace_chunks.priority
        );
    end if;
    if v_gone is not null then
        perform rag._delete_chunks(
            _replace_chunks.tenant_id, _replace_chunks.partition_id, v_gone
        );
    end if;
end
$$;

comment on function rag._replace_chunks(int, int, bigint[], bigint[], smallint) is
    'Chunk documents anew: chunks of unchanged text stay, the others are added and deleted.';

create or replace function rag._delete_chunks(tenant_id int, partition_id int, chunks bigint[])
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
    perform rag._share_models();
    -- No model's backfill queues a chunk that is locked, and what it has queued the next statement
    -- sees.
    perform
    from rag.chunks as c
    where
        c.partition_id = _delete_chunks.partition_id
        and c.tenant_id = _delete_chunks.tenant_id
        and c.chunk_id = any(_delete_chunks.chunks)
    order by c.chunk_id
    for update;
    -- Jobs first, in a statement of their own: rag.complete_jobs holds the row of a job while it
    -- stores the embedding, so the next statement sees what it stored. Locked in its order, or
    -- the two could wait for each other.
    perform
    from rag.jobs as j
    where
        j.tenant_id = _delete_chunks.tenant_id and j.chunk_id = any(_delete_chunks.chunks)
    order by j.job_id
    for update;
    delete from rag.jobs as j
    where
        j.tenant_id = _delete_chunks.tenant_id and j.chunk_id = any(_delete_chunks.chunks);
    delete from rag.embeddings as e
    where
        e.partition_id = _delete_chunks.partition_id
        and e.tenant_id = _delete_chunks.tenant_id
        and e.chunk_id = any(_delete_chunks.chunks);
    perform rag._unindex_chunks(
        _delete_chunks.tenant_id, _delete_chunks.partition_id, _delete_chunks.chunks
    );
    delete from rag.chunks as c
    where
        c.partition_id = _delete_chunks.partition_id
        and c.tenant_id = _delete_chunks.tenant_id
        and c.chunk_id = any(_delete_chunks.chunks);
end
$$;

comment on function rag._delete_chunks(int, int, bigint[]) is
    'Delete chunks with their jobs, embeddings and lexemes.';

create or replace function rag.put(
    content text,
    uri text default null,
    title text default null,
    metadata jsonb default '{}',
    collection text default 'default',
    strategy text default null,
    chunk_size int default null,
    chunk_overlap int default null,
    language text default null,
    preset text default null,
    min_chunk_size int default null,
    separators text[] default null,
    lifetime interval default null
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_document bigint;
begin
    perform rag._check_document(
        put.content, put.uri, put.title, coalesce(put.metadata, '{}'), 'The document'
    );
    select d.document_id into v_document
    from rag._put_documents(
        put.collection,
        array[put.content],
        array[coalesce(put.uri, rag._content_uri(put.content))],
        array[put.title],
        array[coalesce(put.metadata, '{}')],
        put.strategy, put.chunk_size, put.chunk_overlap, put.language,
        0::smallint, put.preset, put.min_chunk_size, put.separators, put.lifetime
    ) as d;
    return v_document;
end
$$;

comment on function rag.put(
    text, text, text, jsonb, text, text, int, int, text, text, int, text[], interval
) is
    'Insert or replace a document by its uri (without one, by its content); returns its id. '
    'The same again is a no-op; searchable by its words at commit, by meaning once embedded.';

create or replace function rag._content_uri(content text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select 'sha256:' || encode(sha256(convert_to(content, 'UTF8')), 'hex')
$$;

comment on function rag._content_uri(text) is 'The uri of a document that was put without one.';

create or replace function rag.put_many(
    documents jsonb,
    collection text default 'default',
    strategy text default null,
    chunk_size int default null,
    chunk_overlap int default null,
    language text default null,
    preset text default null,
    min_chunk_size int default null,
    separators text[] default null,
    lifetime interval default null
)
    returns table (uri text, document_id bigint, chunks int, status text)
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_contents text[];
    v_uris text[];
    v_titles text[];
    v_metadatas jsonb[];
    v_twice text;
begin
    if jsonb_typeof(put_many.documents) is distinct from 'array' then
        raise exception 'documents is not an array' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(put_many.documents), 'null')),
            hint = 'Give an array such as [{"content": "…", "uri": "…", "title": "…", '
            '"metadata": {}}].';
    end if;
    perform rag._check_item(e.item, e.n)
    from jsonb_array_elements(put_many.documents) with ordinality as e (item, n);

    with items as (
        select
            i.content,
            coalesce(i.uri, rag._content_uri(i.content)) as uri,
            i.title,
            coalesce(nullif(i.metadata, 'null'), '{}') as metadata,
            i.n
        from rows from (
            jsonb_to_recordset(put_many.documents)
            as (content text, uri text, title text, metadata jsonb)
        ) with ordinality as i (content, uri, title, metadata, n)
    )
    select
        array_agg(i.content order by i.n),
        array_agg(i.uri order by i.n),
        array_agg(i.title order by i.n),
        array_agg(i.metadata order by i.n),
        (
            select min(a.uri)
            from items as a
            join items as b on b.uri = a.uri and b.n > a.n
            where
                (a.content, a.title, a.metadata)
                is distinct from (b.content, b.title, b.metadata)
        )
    into v_contents, v_uris, v_titles, v_metadatas, v_twice
    from items as i;
    if v_twice is not null then
        raise exception 'two documents have the same uri' using
            errcode = 'invalid_parameter_value',
            detail = format('%L stands for two different documents.', v_twice),
            hint = 'Give each document of a call its own uri, or put them one after the other.';
    end if;
    if v_uris is null then
        return;
    end if;
    return query
    select d.uri, d.document_id, d.chunks, d.status
    from rag._put_documents(
        put_many.collection, v_contents, v_uris, v_titles, v_metadatas,
        put_many.strategy, put_many.chunk_size, put_many.chunk_overlap, put_many.language,
        -- Behind single puts: whoever puts one document waits for it, a bulk load does not.
        case when cardinality(v_uris) = 1 then 0 else 10 end::smallint,
        put_many.preset, put_many.min_chunk_size, put_many.separators, put_many.lifetime
    ) as d;
end
$$;

comment on function rag.put_many(
    jsonb, text, text, int, int, text, text, int, text[], interval
) is
    'rag.put for an array of {content, uri, title, metadata}, all of them or none; one row each '
    'with its id, its number of chunks and inserted, updated or unchanged.';

create or replace function rag._check_item(item jsonb, n bigint)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_key text;
begin
    if jsonb_typeof(_check_item.item) <> 'object' then
        raise exception 'a document is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('Document %s of the array is of type %s.', _check_item.n,
                jsonb_typeof(_check_item.item)),
            hint = 'Each document is {"content": "…", "uri": "…", "title": "…", "metadata": {}}.';
    end if;
    select min(k.key) into v_key
    from jsonb_object_keys(_check_item.item) as k (key)
    where k.key not in ('content', 'uri', 'title', 'metadata');
    if v_key is not null then
        raise exception 'unknown key "%" in a document', v_key using
            errcode = 'invalid_parameter_value',
            detail = format('Document %s of the array has it.', _check_item.n),
            hint = 'The keys are content, uri, title and metadata; what else is to be kept goes '
            'into metadata.';
    end if;
    select min(e.key) into v_key
    from jsonb_each(_check_item.item) as e (key, value)
    where e.key <> 'metadata' and jsonb_typeof(e.value) not in ('string', 'null');
    if v_key is not null then
        raise exception '"%" of a document is not a string', v_key using
            errcode = 'invalid_parameter_value',
            detail = format('Document %s of the array has it as %s.', _check_item.n,
                jsonb_typeof(_check_item.item -> v_key)),
            hint = 'content, uri and title are strings; metadata is an object.';
    end if;
    perform rag._check_document(
        _check_item.item ->> 'content',
        _check_item.item ->> 'uri',
        _check_item.item ->> 'title',
        coalesce(nullif(_check_item.item -> 'metadata', 'null'), '{}'),
        format('Document %s of the array', _check_item.n)
    );
end
$$;

comment on function rag._check_item(jsonb, bigint) is
    'Raise the error for an element of put_many''s array that is no document.';

create or replace function rag.delete(
    uri text, collection text default 'default', purge boolean default false
)
    returns boolean
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
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_collection rag.collections;
    v_document bigint;
    v_past int := 0;
    v_deleted bigint[];
    v_before bigint[];
begin
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, delete.collection);
    select d.document_id into v_document
    from rag.documents as d
    where
        d.tenant_id = v_tenant
        and d.collection_id = v_collection.collection_id
        and d.uri = delete.uri
    for update;
    if v_document is not null then
        perform rag._delete_documents(
            v_tenant, v_partition, array[v_document],
            case when not coalesce(delete.purge, false) then v_collection.keep_deleted end
        );
    end if;
    if delete.purge then
        -- Those of documents deleted before, too, that had this uri.
        v_deleted := array(
            select p.document_id
            from rag.past_documents as p
            where
                p.tenant_id = v_tenant
                and p.collection_id = v_collection.collection_id
                and p.uri = delete.uri
        );
        v_before := rag._measure(v_tenant, v_partition, v_deleted);
        v_past := rag._erase_past(v_tenant, v_deleted);
        perform rag._count_usage(
            v_tenant, v_before, rag._measure(v_tenant, v_partition, v_deleted)
        );
    end if;
    perform rag._fold_statistics(v_tenant, v_partition);
    return v_document is not null or v_past > 0;
end
$$;

comment on function rag.delete(text, text, boolean) is
    'Delete the document of that uri with all that was made of it, past versions included; false '
    'if there is none. In a collection that keeps deleted documents it can be restored for so '
    'long, unless purge is said.';

create or replace function rag._delete_documents(
    tenant_id int, partition_id int, documents bigint[], keep interval
)
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
    v_erased bigint[] := _delete_documents.documents;
    v_before bigint[] := rag._measure(
        _delete_documents.tenant_id, _delete_documents.partition_id, _delete_documents.documents
    );
begin
    if _delete_documents.keep is not null then
        -- What has expired is not to be restored.
        v_erased := array(
            select d.document_id
            from rag.documents as d
            where
                d.tenant_id = _delete_documents.tenant_id
                and d.document_id = any(_delete_documents.documents)
                and d.expires_at <= statement_timestamp()
        );
        perform rag._archive(
            _delete_documents.tenant_id, _delete_documents.partition_id,
            rag._without(_delete_documents.documents, v_erased), _delete_documents.keep
        );
    end if;
    perform rag._erase_past(_delete_documents.tenant_id, v_erased);
    perform rag._delete_chunks(
        _delete_documents.tenant_id, _delete_documents.partition_id, array(
            select c.chunk_id
            from rag.chunks as c
            where
                c.partition_id = _delete_documents.partition_id
                and c.tenant_id = _delete_documents.tenant_id
                and c.document_id = any(_delete_documents.documents)
        )
    );
    delete from rag.documents as d
    where
        d.tenant_id = _delete_documents.tenant_id
        and d.document_id = any(_delete_documents.documents);
    perform rag._count_usage(
        _delete_documents.tenant_id, v_before,
        rag._measure(
            _delete_documents.tenant_id, _delete_documents.partition_id,
            _delete_documents.documents
        )
    );
end
$$;

comment on function rag._delete_documents(int, int, bigint[], interval) is
    'Delete documents whose rows are locked; to be restored for so long, or with their past.';
