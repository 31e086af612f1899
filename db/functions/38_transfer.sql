-- A tenant as lines of JSON, out of one database and into another; and a clone of a tenant.
--
-- Who may act as the tenant may export him: an administrator who reads no documents reads none in
-- this way either. Columns are asked of the catalog, so that those to come go along.

create or replace function rag._tenant_of_caller(name text)
    returns int
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_name text := coalesce(_tenant_of_caller.name, '');
    v_has_token boolean := coalesce(current_setting('rag.authenticated', true), '') <> '';
    v_tenant int;
    v_is_suspended boolean;
begin
    if v_has_token then
        -- Nothing else counts, whatever was granted to the role.
        v_tenant := rag._caller();
        if v_tenant is null then
            perform rag._refuse_caller();
        end if;
        if not exists (
            select
            from rag.tenants as t
            where t.tenant_id = v_tenant and t.name = v_name
        ) then
            raise exception 'the token is not one of tenant "%"', v_name using
                errcode = 'insufficient_privilege',
                detail = 'A token is for one tenant.',
                hint = 'Call rag.authenticate with a token of that tenant.';
        end if;
    else
        v_tenant := rag._allowed_tenant(v_name);
        if v_tenant is null then
            perform rag._refuse_tenant(v_name);
        end if;
    end if;
    select t.is_suspended into v_is_suspended
    from rag.tenants as t
    where t.tenant_id = v_tenant;
    -- Who can let it go on may carry it elsewhere as well.
    if v_is_suspended and (v_has_token or not pg_has_role(rag._role(), 'rag_admin', 'member')) then
        perform rag._refuse_suspended(v_tenant);
    end if;
    return v_tenant;
end
$$;

comment on function rag._tenant_of_caller(text) is
    'The id of the tenant of that name if the caller may act as it, or the error: that of '
    'rag.set_tenant, that of a token for another one, or, unless an administrator calls, that of a '
    'suspended tenant.';

create or replace function rag._model_label(model rag.models)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select concat_ws(
        ' ', (_model_label.model).name, '@' || (_model_label.model).revision,
        nullif((_model_label.model).document_prefix, '')
    )
$$;

comment on function rag._model_label(rag.models) is
    'What tells by which model a vector was made, in any database: name, revision and prefix.';

create or replace function rag.export_tenant(
    name text, embeddings boolean default true, grants boolean default false
)
    returns table (line text)
    language plpgsql
    -- Stable: all of it by one snapshot.
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := rag._tenant_of_caller(export_tenant.name);
    v_partition int := (select t.partition_id from rag.tenants as t where t.tenant_id = v_tenant);
    v_model rag.models := rag._active_model(v_tenant);
    v_documents bigint := 0;
    v_chunks bigint := 0;
begin
    return query
    select json_build_object(
        'kind', 'tenant',
        'format', 1,
        'tenant', t.name,
        'exported_at', now(),
        'settings', json_build_object(
            'query_cache_size', t.query_cache_size,
            'query_cache_lifetime', t.query_cache_lifetime,
            'max_documents', t.max_documents,
            'max_chunks', t.max_chunks,
            'max_bytes', t.max_bytes,
            'puts_per_minute', t.puts_per_minute,
            'searches_per_minute', t.searches_per_minute,
            'keep_records', t.keep_records
        ),
        'models', (
            select json_agg(rag._model_label(m) order by m.model_id)
            from rag.models as m
            where m.dropped_at is null and export_tenant.embeddings
        )
    )::text
    from rag.tenants as t
    where t.tenant_id = v_tenant;

    return query
    select json_build_object(
        'kind', 'collection',
        'name', n.name,
        'settings', to_jsonb(n) - array[
            'tenant_id', 'collection_id', 'name', 'created_at', 'index_version', 'reindexed_to',
            'languages'
        ],
        'languages', (
            select json_agg(l.language order by l.language)
            from unnest(n.languages) as l (language)
        )
    )::text
    from rag.collections as n
    where n.tenant_id = v_tenant
    order by n.collection_id;

    return query
    select json_build_object(
        'kind', 'document',
        'collection', n.name,
        'document', to_jsonb(d)
        - array['tenant_id', 'document_id', 'collection_id', 'content_hash']
    )::text
    from rag.documents as d
    join rag.collections as n on n.tenant_id = v_tenant and n.collection_id = d.collection_id
    where
        d.tenant_id = v_tenant
        -- Nobody finds what has expired, though it may not be purged yet.
        and (d.expires_at is null or d.expires_at > statement_timestamp())
    order by d.document_id;

    -- A document may have 100,000 of them: no more than 100 in a line.
    return query
    select json_build_object(
        'kind', 'chunks',
        'collection', n.name,
        'uri', d.uri,
        'content_hash', d.content_hash,
        'chunks', c.chunks
    )::text
    from (
        select
            k.document_id,
            k.ordinal / 100 as part,
            json_agg(
                to_jsonb(k)
                - array[
                    'partition_id', 'tenant_id', 'chunk_id', 'document_id', 'collection_id',
                    'content_hash', 'metadata'
                ]
                || case when export_tenant.embeddings then jsonb_build_object('embeddings', (
                    select coalesce(jsonb_object_agg(rag._model_label(m), e.embedding::text), '{}')
                    from rag.embeddings as e
                    join rag.models as m on m.model_id = e.model_id and m.dropped_at is null
                    where
                        e.partition_id = v_partition
                        and e.tenant_id = v_tenant
                        and e.chunk_id = k.chunk_id
                )) else '{}' end
                order by k.ordinal
            ) as chunks
        from rag.chunks as k
        where k.partition_id = v_partition and k.tenant_id = v_tenant
        group by k.document_id, k.ordinal / 100
    ) as c
    join rag.documents as d
        on d.tenant_id = v_tenant
        and d.document_id = c.document_id
        and (d.expires_at is null or d.expires_at > statement_timestamp())
    join rag.collections as n on n.tenant_id = v_tenant and n.collection_id = d.collection_id
    order by c.document_id, c.part;

    return query
    select json_build_object(
        'kind', 'eval_set',
        'name', s.name,
        'collection', n.name,
        'model', rag._model_label(v_model),
        'queries', (
            select coalesce(json_agg(
                json_build_object(
                    'query_id', q.query_id,
                    'query', q.query,
                    'embedding', case when export_tenant.embeddings then q.embedding::text end,
                    'judgements', (
                        select json_object_agg(j.uri, j.grade order by j.uri)
                        from rag.judgements as j
                        where
                            j.tenant_id = v_tenant
                            and j.eval_set_id = s.eval_set_id
                            and j.query_id = q.query_id
                    )
                )
                order by q.query_id
            ), '[]')
            from rag.eval_queries as q
            where q.tenant_id = v_tenant and q.eval_set_id = s.eval_set_id
        )
    )::text
    from rag.eval_sets as s
    join rag.collections as n on n.tenant_id = v_tenant and n.collection_id = s.collection_id
    where s.tenant_id = v_tenant
    order by s.eval_set_id;

    if export_tenant.grants then
        return query
        select json_build_object('kind', 'grant', 'role', r.rolname)::text
        from rag.tenant_grants as g
        join pg_roles as r on r.oid = g.role
        where g.tenant_id = v_tenant
        order by r.rolname;
    end if;

    select count(*) into v_documents
    from rag.documents as d
    where
        d.tenant_id = v_tenant
        and (d.expires_at is null or d.expires_at > statement_timestamp());
    select count(*) into v_chunks
    from rag.chunks as c
    where
        c.partition_id = v_partition
        and c.tenant_id = v_tenant
        and not c.document_id = any(array(
            select d.document_id
            from rag.documents as d
            where d.tenant_id = v_tenant and d.expires_at <= statement_timestamp()
        ));
    -- By it a file that was cut off is known.
    return query
    select json_build_object(
        'kind', 'end',
        'documents', v_documents,
        'chunks', v_chunks
    )::text;
end
$$;

comment on function rag.export_tenant(text, boolean, boolean) is
    'A tenant as lines of JSON for rag.import_lines: settings, collections, documents, chunks with '
    'their embeddings (unless told not to), evaluation sets and, if asked for, the roles that it '
    'is granted to. Of documents what is current: no past versions, nothing deleted or expired. '
    'The caller must be allowed to act as it.';

create or replace function rag._known_columns(relation regclass, given jsonb, but text[])
    returns text[]
    language sql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select coalesce(array_agg(quote_ident(a.attname) order by a.attnum), '{}')
    from pg_attribute as a
    where
        a.attrelid = _known_columns.relation
        and a.attnum > 0
        and not a.attisdropped
        and a.attgenerated = ''
        and a.attidentity = ''
        and _known_columns.given ? a.attname
        and not a.attname = any(_known_columns.but)
$$;

comment on function rag._known_columns(regclass, jsonb, text[]) is
    'The columns of a table that an object of JSON has a key for, quoted.';

create or replace function rag._check_imported_collection(name text, settings jsonb)
    returns void
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_given rag.collections := jsonb_populate_record(
        null::rag.collections, _check_imported_collection.settings
    );
begin
    perform rag._check_collection_name(_check_imported_collection.name);
    perform rag._check_chunking(
        v_given.strategy, v_given.chunk_size, v_given.chunk_overlap,
        -- What an older version has exported says nothing of it.
        coalesce(v_given.min_chunk_size, 0), v_given.separators
    );
    perform rag._check_ranking(
        v_given.k1, v_given.b, v_given.title_weight, v_given.heading_weight, v_given.enrich,
        v_given.enrich_weight, coalesce(v_given.lexical_weight, 0.5),
        coalesce(v_given.fusion, 'standard')
    );
    perform rag._check_lifetime(v_given.lifetime);
end
$$;

comment on function rag._check_imported_collection(text, jsonb) is
    'Raise the error for settings in a line that rag.create_collection would not take.';

create or replace function rag._check_imported_document(document jsonb)
    returns void
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_given rag.documents := jsonb_populate_record(
        null::rag.documents, _check_imported_document.document
    );
    v_place constant text := format('Document %L', v_given.uri);
begin
    perform rag._check_document(
        v_given.content, v_given.uri, v_given.title, v_given.metadata, v_place
    );
    perform rag._check_chunking(
        v_given.chunking ->> 'strategy', (v_given.chunking ->> 'size')::int,
        (v_given.chunking ->> 'overlap')::int,
        coalesce((v_given.chunking ->> 'min_size')::int, 0), rag._separators(v_given.chunking)
    );
    perform rag._language(v_given.language);
    if v_given.version not between 1 and 1000000000 then
        raise exception 'invalid version' using
            errcode = 'invalid_parameter_value',
            detail = format('%s has version %s.', v_place, v_given.version),
            hint = 'Versions count from 1, to 1,000,000,000 at most in an import.';
    end if;
    -- A day for clocks that differ. Infinity is later than any of them.
    if greatest(v_given.created_at, v_given.updated_at) > now() + interval '1 day'
        or v_given.expires_at > now() + interval '1001 years'
        or least(v_given.created_at, v_given.updated_at, v_given.expires_at) = '-infinity'
    then
        raise exception 'invalid time' using
            errcode = 'invalid_parameter_value',
            detail = format('%s has created_at %s, updated_at %s, expires_at %s.', v_place,
                v_given.created_at, v_given.updated_at,
                coalesce(v_given.expires_at::text, 'null')),
            hint = 'A document was put in the past, and expires within 1,000 years.';
    end if;
end
$$;

comment on function rag._check_imported_document(jsonb) is
    'Raise the error for a document in a line that no put could have made.';

create or replace function rag._import_collection(tenant_id int, line jsonb)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_given jsonb := _import_collection.line -> 'settings';
    v_columns text[];
    v_collection int;
begin
    perform rag._check_imported_collection(_import_collection.line ->> 'name', v_given);
    -- Spelled as here.
    v_given := v_given
        || jsonb_build_object('language', rag._language(v_given ->> 'language'));
    select n.collection_id into v_collection
    from rag.collections as n
    where
        n.tenant_id = _import_collection.tenant_id
        and n.name = _import_collection.line ->> 'name';
    if v_collection is null then
        v_collection := rag._add_collection(
            _import_collection.tenant_id, _import_collection.line ->> 'name',
            v_given ->> 'strategy', (v_given ->> 'chunk_size')::int,
            (v_given ->> 'chunk_overlap')::int, v_given ->> 'language'
        );
    elsif exists (
        select
        from rag.documents as d
        where
            d.tenant_id = _import_collection.tenant_id and d.collection_id = v_collection
    ) then
        return false;
    end if;
    v_columns := rag._known_columns('rag.collections', v_given, array[
        'tenant_id', 'collection_id', 'name', 'created_at', 'index_version', 'reindexed_to',
        'languages'
    ]);
    execute format(
        'update rag.collections as n set (%1$s) = row(r.%2$s) '
        'from jsonb_populate_record(null::rag.collections, $3) as r '
        'where n.tenant_id = $1 and n.collection_id = $2',
        array_to_string(v_columns, ', '), array_to_string(v_columns, ', r.')
    )
    using _import_collection.tenant_id, v_collection, v_given;
    update rag.collections as n
    set
        languages = array(
            select distinct l.language
            from (
                select u.language from unnest(n.languages) as u (language)
                union all
                select rag._language(g.language)
                from jsonb_array_elements_text(_import_collection.line -> 'languages')
                    as g (language)
            ) as l
            order by l.language
        )
    where n.tenant_id = _import_collection.tenant_id and n.collection_id = v_collection;
    return true;
end
$$;

comment on function rag._import_collection(int, jsonb) is
    'Make a collection with the settings of a line, or give them to one that has no documents; '
    'false if it has some.';

create or replace function rag._import_documents(
    tenant_id int, lines jsonb[], out imported bigint, out bytes bigint
)
    returns record
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_missing text;
    v_columns text[];
    v_lines jsonb[];
    v_inserted record;
begin
    imported := 0;
    bytes := 0;
    select min(l.line ->> 'collection') into v_missing
    from unnest(_import_documents.lines) as l (line)
    where not exists (
        select
        from rag.collections as n
        where n.tenant_id = _import_documents.tenant_id and n.name = l.line ->> 'collection'
    );
    if v_missing is not null then
        raise exception 'collection "%" does not exist', v_missing using
            errcode = 'RG003',
            detail = 'The lines have a document of it, but not the collection itself.',
            hint = 'Import the lines in the order in which they were exported.';
    end if;
    perform rag._check_imported_document(l.line -> 'document')
    from unnest(_import_documents.lines) as l (line);
    perform rag._note_expiries(_import_documents.tenant_id)
    where exists (
        select
        from unnest(_import_documents.lines) as l (line)
        where l.line -> 'document' ->> 'expires_at' is not null
    );
    for v_columns, v_lines in
        select g.columns, array_agg(g.line order by g.n)
        from (
            select
                rag._known_columns('rag.documents', l.line -> 'document', array[
                    'tenant_id', 'document_id', 'collection_id', 'content_hash'
                ]) as columns,
                l.line,
                l.n
            from unnest(_import_documents.lines) with ordinality as l (line, n)
        ) as g
        group by g.columns
    loop
        execute format(
            'with inserted as ('
            'insert into rag.documents (tenant_id, collection_id, content_hash, %1$s) '
            'select $1, n.collection_id, rag._hash(r.content), r.%2$s '
            'from unnest($2) with ordinality as l (line, n) '
            'join rag.collections as n on n.tenant_id = $1 and n.name = l.line ->> ''collection'' '
            'cross join lateral jsonb_populate_record(null::rag.documents, l.line -> ''document'') '
            'as r order by l.n '
            'on conflict on constraint documents_uri_is_unique do nothing '
            'returning document_id, octet_length(content) as bytes) '
            'select count(*) as documents, coalesce(sum(i.bytes), 0) as bytes, '
            'coalesce(array_agg(i.document_id), ''{}'') as ids from inserted as i',
            array_to_string(v_columns, ', '), array_to_string(v_columns, ', r.')
        )
        into v_inserted
        using _import_documents.tenant_id, v_lines;
        perform rag._number_documents(_import_documents.tenant_id, v_inserted.ids);
        imported := imported + v_inserted.documents;
        bytes := bytes + v_inserted.bytes;
    end loop;
end
$$;

comment on function rag._import_documents(int, jsonb[]) is
    'Store the documents of lines without their chunks, those whose uri is there stay as they are; '
    'how many were stored, and the bytes of their texts.';

create or replace function rag._import_chunks(tenant_id int, partition_id int, lines jsonb[])
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
    v_columns text[];
    v_documents bigint[];
    v_chunks jsonb[];
    v_added bigint[] := '{}';
    v_ids bigint[];
    v_vectors text[];
    v_stored bigint[];
    v_model record;
begin
    perform rag._share_models();
    for v_columns, v_documents, v_chunks in
        select g.columns, array_agg(g.document_id order by g.n), array_agg(g.chunk order by g.n)
        from (
            select
                rag._known_columns('rag.chunks', c.chunk, array[
                    'partition_id', 'tenant_id', 'chunk_id', 'document_id', 'collection_id',
                    'content_hash', 'metadata'
                ]) as columns,
                d.document_id,
                c.chunk,
                row_number() over (order by l.n, c.n) as n
            from unnest(_import_chunks.lines) with ordinality as l (line, n)
            -- Of a document that has another text by now they are not.
            cross join lateral (
                select o.document_id
                from rag.documents as o
                join rag.collections as n
                    on n.tenant_id = _import_chunks.tenant_id
                    and n.collection_id = o.collection_id
                    and n.name = l.line ->> 'collection'
                where
                    o.tenant_id = _import_chunks.tenant_id
                    and o.uri = l.line ->> 'uri'
                    and o.content_hash = (l.line ->> 'content_hash')::uuid
                for no key update of o
            ) as d
            cross join lateral jsonb_array_elements(l.line -> 'chunks') with ordinality
            as c (chunk, n)
            where not exists (
                select
                from rag.chunks as k
                where
                    k.partition_id = _import_chunks.partition_id
                    and k.tenant_id = _import_chunks.tenant_id
                    and k.document_id = d.document_id
                    and k.ordinal = (c.chunk ->> 'ordinal')::int
            )
        ) as g
        group by g.columns
    loop
        v_ids := array(
            select nextval('rag.chunk_ids') from generate_series(1, cardinality(v_chunks))
        );
        execute format(
            'insert into rag.chunks (partition_id, tenant_id, chunk_id, document_id, '
            'collection_id, content_hash, metadata, %1$s) '
            'select $1, $2, l.chunk_id, d.document_id, d.collection_id, rag._hash(r.content), '
            'd.metadata, r.%2$s '
            'from unnest($3, $4, $5) as l (chunk_id, document_id, chunk) '
            'cross join lateral (select o.document_id, o.collection_id, o.metadata '
            'from rag.documents as o '
            'where o.tenant_id = $2 and o.document_id = l.document_id offset 0) as d '
            'cross join lateral jsonb_populate_record(null::rag.chunks, l.chunk) as r '
            'order by l.chunk_id',
            array_to_string(v_columns, ', '), array_to_string(v_columns, ', r.')
        )
        using
            _import_chunks.partition_id, _import_chunks.tenant_id, v_ids, v_documents, v_chunks;
        v_added := v_added || v_ids;
        perform rag._enqueue(
            _import_chunks.tenant_id, _import_chunks.partition_id, v_ids, 10::smallint
        );
        for v_model in
            select m.model_id, m.dimensions, rag._model_label(m) as label
            from rag.models as m
            where m.dropped_at is null
        loop
            v_vectors := array(
                select c.chunk -> 'embeddings' ->> v_model.label
                from unnest(v_chunks) with ordinality as c (chunk, n)
                order by c.n
            );
            -- Text becomes a vector once. Joined with chunks of a table that has no statistics yet
            -- it did so for each pair of them, and 200 lines took half a minute.
            with
            given as materialized (
                select
                    v.chunk_id,
                    v.document_id,
                    -- One that has length 1 stays as it is, to the last bit.
                    case
                        when abs(l2_norm(h.embedding) - 1) > 0.01 then l2_normalize(h.embedding)
                        else h.embedding
                    end as embedding
                from unnest(v_ids, v_documents, v_vectors) as v (chunk_id, document_id, vector)
                cross join lateral (select v.vector::halfvec as embedding) as h
                where v.vector is not null
            ),
            stored as (
                insert into rag.embeddings (
                    partition_id, tenant_id, chunk_id, model_id, collection_id, embedding, facets
                )
                select
                    _import_chunks.partition_id, _import_chunks.tenant_id, g.chunk_id,
                    v_model.model_id, d.collection_id, g.embedding,
                    rag._facets(_import_chunks.tenant_id, d.collection_id, d.metadata)
                from given as g
                cross join lateral (
                    select o.collection_id, c.metadata
                    from rag.documents as o
                    join rag.chunks as c
                        on c.partition_id = _import_chunks.partition_id
                        and c.tenant_id = _import_chunks.tenant_id
                        and c.chunk_id = g.chunk_id
                    where
                        o.tenant_id = _import_chunks.tenant_id
                        and o.document_id = g.document_id
                    offset 0
                ) as d
                where
                    vector_dims(g.embedding) = v_model.dimensions and l2_norm(g.embedding) > 0
                order by g.chunk_id
                on conflict do nothing
                returning chunk_id
            )
            select array_agg(s.chunk_id) into v_stored
            from stored as s;
            delete from rag.jobs as j
            where
                j.tenant_id = _import_chunks.tenant_id
                and j.chunk_id = any(v_stored)
                and j.model_id = v_model.model_id;
        end loop;
    end loop;
    if v_added <> '{}' then
        perform rag._index_chunks(
            _import_chunks.tenant_id, _import_chunks.partition_id, v_added
        );
        perform rag._fold_statistics(_import_chunks.tenant_id, _import_chunks.partition_id);
    end if;
    return cardinality(v_added);
end
$$;

comment on function rag._import_chunks(int, int, jsonb[]) is
    'Store the chunks of lines with their embeddings, or jobs for those that have none; chunks '
    'that are there stay as they are.';

create or replace function rag._import_eval_set(tenant_id int, line jsonb)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_set int;
begin
    insert into rag.eval_sets (tenant_id, collection_id, name)
    select _import_eval_set.tenant_id, n.collection_id, _import_eval_set.line ->> 'name'
    from rag.collections as n
    where
        n.tenant_id = _import_eval_set.tenant_id
        and n.name = _import_eval_set.line ->> 'collection'
    on conflict do nothing
    returning eval_set_id into v_set;
    if v_set is null then
        return false;
    end if;
    insert into rag.eval_queries (tenant_id, eval_set_id, query_id, query, embedding)
    select
        _import_eval_set.tenant_id, v_set, q.query ->> 'query_id', q.query ->> 'query',
        case
            when _import_eval_set.line ->> 'model'
                = rag._model_label(rag._active_model(_import_eval_set.tenant_id))
                then (q.query ->> 'embedding')::vector
        end
    from jsonb_array_elements(_import_eval_set.line -> 'queries') as q (query);
    insert into rag.judgements (tenant_id, eval_set_id, query_id, uri, grade)
    select
        _import_eval_set.tenant_id, v_set, q.query ->> 'query_id', j.key, j.value::text::real
    from jsonb_array_elements(_import_eval_set.line -> 'queries') as q (query)
    cross join lateral jsonb_each(
        coalesce(nullif(q.query -> 'judgements', 'null'), '{}')
    ) as j (key, value);
    return true;
end
$$;

comment on function rag._import_eval_set(int, jsonb) is
    'Make an evaluation set of a line; false if there is one of that name, or no such collection.';

create or replace function rag._import_settings(tenant_id int, line jsonb)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if (_import_settings.line ->> 'format')::int is distinct from 1 then
        raise exception 'unknown format of an export' using
            errcode = 'invalid_parameter_value',
            detail = format('format is %L.', _import_settings.line ->> 'format'),
            hint = 'This version reads format 1.';
    end if;
    -- The tenant's own to set. What an older version has exported says nothing of it.
    if _import_settings.line -> 'settings' ? 'keep_records' then
        update rag.tenants as t
        set keep_records = (_import_settings.line -> 'settings' ->> 'keep_records')::interval
        where t.tenant_id = _import_settings.tenant_id;
    end if;
    -- What an administrator sets, an administrator imports.
    if not pg_has_role(rag._role(), 'rag_admin', 'member') then
        return false;
    end if;
    update rag.tenants as t
    set
        query_cache_size = (_import_settings.line -> 'settings' ->> 'query_cache_size')::int,
        query_cache_lifetime
            = (_import_settings.line -> 'settings' ->> 'query_cache_lifetime')::interval,
        max_documents = (_import_settings.line -> 'settings' ->> 'max_documents')::bigint,
        max_chunks = (_import_settings.line -> 'settings' ->> 'max_chunks')::bigint,
        max_bytes = (_import_settings.line -> 'settings' ->> 'max_bytes')::bigint,
        puts_per_minute = (_import_settings.line -> 'settings' ->> 'puts_per_minute')::int,
        searches_per_minute = (_import_settings.line -> 'settings' ->> 'searches_per_minute')::int
    where t.tenant_id = _import_settings.tenant_id;
    perform rag._create_counters(_import_settings.tenant_id);
    return true;
end
$$;

comment on function rag._import_settings(int, jsonb) is
    'Give a tenant the settings of the first line of an export; false if the caller may not set '
    'quotas, which are left as they are.';

create or replace function rag._import_grant(tenant_id int, line jsonb)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_role regrole := to_regrole(quote_ident(_import_grant.line ->> 'role'));
begin
    if v_role is null or not pg_has_role(rag._role(), 'rag_admin', 'member') then
        return false;
    end if;
    insert into rag.tenant_grants (role, tenant_id)
    values (v_role, _import_grant.tenant_id)
    on conflict on constraint tenant_grants_are_unique do nothing;
    return true;
end
$$;

comment on function rag._import_grant(int, jsonb) is
    'Grant a tenant to the role of a line; false if there is none, or the caller may not.';

create or replace function rag.import_lines(name text, lines text[])
    returns table (kind text, imported bigint, skipped bigint)
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
    v_tenant int := rag._tenant_of_caller(import_lines.name);
    v_partition int;
    v_lines jsonb[] := array(
        select l.line::jsonb
        from unnest(import_lines.lines) with ordinality as l (line, n)
        where btrim(l.line) <> ''
        order by l.n
    );
    v_unknown text;
    v_of_kind jsonb[];
    v_line jsonb;
    v_documents bigint := 0;
    v_chunks bigint := 0;
    v_bytes bigint := 0;
    -- A call is work, whatever it brings.
    v_puts int := 1;
begin
    perform rag._require_fresh_snapshots('an import');
    perform rag._lock_tenant(v_tenant);
    perform rag._queue_for_quota(v_tenant, null, null);
    -- Under the lock: a move between partitions waits for it.
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    select min(coalesce(l.line ->> 'kind', 'null')) into v_unknown
    from unnest(v_lines) as l (line)
    where (l.line ->> 'kind' in (
        'tenant', 'collection', 'document', 'chunks', 'eval_set', 'grant', 'end'
    )) is not true;
    if v_unknown is not null then
        raise exception 'a line is not of an export' using
            errcode = 'invalid_parameter_value',
            detail = format('Its kind is %L.', v_unknown),
            hint = 'Lines are those of rag.export_tenant, a JSON object each.';
    end if;
    -- By kind, in the order in which they need each other.
    foreach kind in array array['tenant', 'collection', 'document', 'chunks', 'eval_set', 'grant']
    loop
        v_of_kind := array(
            select l.line
            from unnest(v_lines) with ordinality as l (line, n)
            where l.line ->> 'kind' = kind
            order by l.n
        );
        continue when v_of_kind = '{}';
        imported := 0;
        skipped := cardinality(v_of_kind);
        if kind = 'document' then
            select d.imported, d.bytes into imported, v_bytes
            from rag._import_documents(v_tenant, v_of_kind) as d;
            v_documents := imported;
            -- What is there already costs nothing, so that a repeated import gets further.
            v_puts := greatest(1, imported);
        elsif kind = 'chunks' then
            imported := rag._import_chunks(v_tenant, v_partition, v_of_kind);
            v_chunks := imported;
            skipped := (
                select sum(jsonb_array_length(l.line -> 'chunks'))
                from unnest(v_of_kind) as l (line)
            );
        else
            foreach v_line in array v_of_kind loop
                imported := imported + case kind
                    when 'tenant' then rag._import_settings(v_tenant, v_line)
                    when 'collection' then rag._import_collection(v_tenant, v_line)
                    when 'eval_set' then rag._import_eval_set(v_tenant, v_line)
                    else rag._import_grant(v_tenant, v_line)
                end::int;
            end loop;
        end if;
        skipped := skipped - imported;
        return next;
    end loop;
    -- Whoever gives quotas may import past them in a minute; how much there is has its limit still.
    if not pg_has_role(rag._role(), 'rag_admin', 'member') then
        perform rag._count_requests(v_tenant, 'puts', v_puts);
    end if;
    perform rag._count_usage(v_tenant, '{0,0,0}', array[v_documents, v_chunks, v_bytes]);
end
$$;

comment on function rag.import_lines(text, text[]) is
    'Store lines of rag.export_tenant in a tenant, all or none, in their order; what is there '
    'already stays as it is, so that an import which was broken off can be repeated. One row by '
    'kind: what was imported, what was skipped. The caller must be allowed to act as the tenant.';

create or replace function rag._copy_tenant_rows(
    relation regclass, from_tenant int, from_partition int, to_tenant int, to_partition int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
declare
    v_columns text;
    v_is_placed boolean;
    v_rows bigint;
begin
    select
        string_agg(quote_ident(a.attname), ', ' order by a.attnum)
        filter (where a.attname not in ('tenant_id', 'partition_id')),
        bool_or(a.attname = 'partition_id')
    into v_columns, v_is_placed
    from pg_attribute as a
    where
        a.attrelid = _copy_tenant_rows.relation
        and a.attnum > 0
        and not a.attisdropped
        and a.attgenerated = ''
        and a.attidentity = '';
    -- Constants, so that one partition is read and one written.
    execute format(
        'insert into %1$s (tenant_id, %2$s%3$s) select %4$s, %5$s%3$s from %1$s as s '
        'where s.tenant_id = %6$s%7$s',
        _copy_tenant_rows.relation,
        case when v_is_placed then 'partition_id, ' else '' end,
        v_columns,
        _copy_tenant_rows.to_tenant,
        case when v_is_placed then format('%s, ', _copy_tenant_rows.to_partition) else '' end,
        _copy_tenant_rows.from_tenant,
        case
            when v_is_placed then format(' and s.partition_id = %s order by s.chunk_id',
                _copy_tenant_rows.from_partition)
            else ''
        end
    );
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag._copy_tenant_rows(regclass, int, int, int, int) is
    'Copy the rows that one tenant has in a table to another one, with all columns there are.';

create or replace function rag.clone_tenant(from_tenant text, to_tenant text)
    returns table (kind text, rows bigint)
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
    v_from int := rag._tenant_id(clone_tenant.from_tenant);
    v_old int;
    v_to int;
    v_new int;
begin
    perform rag._require_fresh_snapshots('a clone');
    perform rag._share_models();
    v_to := rag.create_tenant(clone_tenant.to_tenant);
    -- His writers wait, so that all is of one moment.
    select t.partition_id into v_old from rag.tenants as t where t.tenant_id = v_from for update;
    if not found then
        perform rag._lock_tenant(v_from);
    end if;
    update rag.tenants as t
    set
        query_cache_size = s.query_cache_size,
        query_cache_lifetime = s.query_cache_lifetime,
        max_documents = s.max_documents,
        max_chunks = s.max_chunks,
        max_bytes = s.max_bytes,
        puts_per_minute = s.puts_per_minute,
        searches_per_minute = s.searches_per_minute,
        keep_records = s.keep_records,
        model_id = s.model_id,
        has_expiries = s.has_expiries
    from rag.tenants as s
    where t.tenant_id = v_to and s.tenant_id = v_from
    returning t.partition_id into v_new;
    perform rag._create_counters(v_to);
    perform rag._create_embedding_child(m.model_id, v_new)
    from rag.models as m
    where m.dropped_at is null;
    -- Made with the tenant; the originals come.
    delete from rag.collections as n where n.tenant_id = v_to;
    delete from rag.lexeme_statistics as s where s.tenant_id = v_to;
    -- With the same ids, which are ids inside of a tenant. Jobs before embeddings: an embedder that
    -- stores one meanwhile leaves either here.
    foreach kind in array array[
        'collections', 'documents', 'past_documents', 'past_chunks',
        'past_embeddings', 'chunks', 'lexemes', 'lexeme_statistics', 'jobs', 'embeddings',
        'eval_sets', 'eval_queries', 'judgements', 'eval_runs', 'eval_results'
    ] loop
        if kind = 'jobs' then
            insert into rag.jobs (
                tenant_id, chunk_id, model_id, partition_id, content_hash, priority
            )
            select v_to, j.chunk_id, j.model_id, v_new, j.content_hash, greatest(10, j.priority)
            from rag.jobs as j
            where j.tenant_id = v_from;
            get diagnostics rows = row_count;
        else
            rows := rag._copy_tenant_rows(
                format('rag.%I', kind)::regclass, v_from, v_old, v_to, v_new
            );
        end if;
        return next;
    end loop;
    -- The tenant is a facet, the first one.
    update rag.lexemes as l
    set facets[1] = rag._facet('tenant', to_jsonb(v_to))
    where l.partition_id = v_new and l.tenant_id = v_to and l.facets <> '{}';
    update rag.embeddings as e
    set facets[1] = rag._facet('tenant', to_jsonb(v_to))
    where e.partition_id = v_new and e.tenant_id = v_to and e.facets <> '{0}';
    delete from rag.jobs as j
    using rag.embeddings as e
    where
        j.tenant_id = v_to
        and e.partition_id = v_new
        and e.tenant_id = v_to
        and e.chunk_id = j.chunk_id
        and e.model_id = j.model_id;
    perform rag._count_usage(v_to, '{0,0,0}', array[u.documents, u.chunks, u.bytes])
    from rag._usage(v_from) as u;
    if exists (select from rag.jobs as j where j.tenant_id = v_to) then
        perform rag._ring();
    end if;
end
$$;

comment on function rag.clone_tenant(text, text) is
    'Make a new tenant that has all that another one has: collections, documents, embeddings, '
    'evaluation sets and their runs; nobody is granted it yet. Reports the rows by kind. Writers '
    'of the original wait meanwhile, searches do not.';
