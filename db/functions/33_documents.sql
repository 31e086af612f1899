-- Documents as they are: read, listed, counted, their metadata changed, deleted by filter.

create or replace function rag.get(
    uri text, collection text default 'default', at_version int default null
)
    returns table (
        document_id bigint,
        title text,
        content text,
        metadata jsonb,
        version int,
        is_current boolean,
        language text,
        chunks int,
        created_at timestamptz,
        updated_at timestamptz,
        expires_at timestamptz
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
    v_collection rag.collections;
begin
    v_context := rag._context();
    v_collection := rag._collection(v_context.tenant_id, get.collection);
    return query
    select
        d.document_id, d.title, d.content, d.metadata, d.version, true, d.language,
        (
            select count(*)::int
            from rag.chunks as c
            where
                c.partition_id = v_context.partition_id
                and c.tenant_id = v_context.tenant_id
                and c.document_id = d.document_id
        ),
        d.created_at, d.updated_at, d.expires_at
    from rag.documents as d
    where
        d.tenant_id = v_context.tenant_id
        and d.collection_id = v_collection.collection_id
        and d.uri = get.uri
        and (get.at_version is null or d.version = get.at_version)
        and (d.expires_at is null or d.expires_at > statement_timestamp());
    if found or get.at_version is null then
        return;
    end if;
    return query
    select
        p.document_id, p.title, p.content, p.metadata, p.version, false, p.language,
        (
            select count(*)::int
            from rag.past_chunks as c
            where
                c.tenant_id = v_context.tenant_id
                and c.document_id = p.document_id
                and c.version = p.version
        ),
        p.created_at, p.valid_from, null::timestamptz
    from rag.past_documents as p
    where
        p.tenant_id = v_context.tenant_id
        and p.collection_id = v_collection.collection_id
        and p.uri = get.uri
        and p.version = get.at_version
        and rag._is_open(p)
    order by p.valid_to desc
    limit 1;
end
$$;

comment on function rag.get(text, text, int) is
    'The document of that uri with its text, or a past version of it; no row if there is none.';

create or replace function rag.list(
    filter jsonb default null,
    collection text default null,
    page_size int default 100,
    after bigint default 0
)
    returns table (
        document_id bigint,
        uri text,
        title text,
        metadata jsonb,
        collection_name text,
        version int,
        characters int,
        created_at timestamptz,
        updated_at timestamptz,
        expires_at timestamptz
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_filter jsonpath := rag._compile_filter(list.filter);
    v_collection int;
begin
    if list.page_size is null or list.page_size not between 1 and 10000 then
        raise exception 'invalid page_size' using
            errcode = 'invalid_parameter_value',
            detail = format('page_size is %s.', coalesce(list.page_size::text, 'null')),
            hint = 'A page has 1 to 10,000 documents.';
    end if;
    if list.collection is not null then
        v_collection := (rag._collection(v_tenant, list.collection)).collection_id;
    end if;
    return query
    select
        d.document_id, d.uri, d.title, d.metadata, n.name, d.version, length(d.content),
        d.created_at, d.updated_at, d.expires_at
    from rag.documents as d
    join rag.collections as n on n.tenant_id = v_tenant and n.collection_id = d.collection_id
    where
        d.tenant_id = v_tenant
        and d.document_id > coalesce(list.after, 0)
        and (v_collection is null or d.collection_id = v_collection)
        and (v_filter is null or d.metadata @@ v_filter)
        and (d.expires_at is null or d.expires_at > statement_timestamp())
    order by d.document_id
    limit list.page_size;
end
$$;

comment on function rag.list(jsonb, text, int, bigint) is
    'Documents in the order of their ids, which is that in which they came, a page at a time: '
    'after is the document_id of the last one of the page before.';

create or replace function rag.count(filter jsonb default null, collection text default null)
    returns bigint
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_filter jsonpath := rag._compile_filter(count.filter);
    v_collection int;
begin
    if count.collection is not null then
        v_collection := (rag._collection(v_tenant, count.collection)).collection_id;
    end if;
    return (
        select count(*)
        from rag.documents as d
        where
            d.tenant_id = v_tenant
            and (v_collection is null or d.collection_id = v_collection)
            and (v_filter is null or d.metadata @@ v_filter)
            and (d.expires_at is null or d.expires_at > statement_timestamp())
    );
end
$$;

comment on function rag.count(jsonb, text) is 'How many documents there are that meet a filter.';

create or replace function rag._merge_patch(target jsonb, patch jsonb)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- RFC 7396: null takes a key away, objects are merged, everything else is replaced.
    if jsonb_typeof(_merge_patch.patch) <> 'object' then
        return _merge_patch.patch;
    end if;
    return coalesce(
        (
            select jsonb_object_agg(
                coalesce(t.key, p.key),
                case
                    when p.key is null then t.value
                    when jsonb_typeof(p.value) = 'object'
                        then rag._merge_patch(coalesce(t.value, '{}'), p.value)
                    else p.value
                end
            )
            from jsonb_each(
                case jsonb_typeof(_merge_patch.target)
                    when 'object' then _merge_patch.target
                    else '{}'
                end
            ) as t
            full join jsonb_each(_merge_patch.patch) as p on p.key = t.key
            where p.value is distinct from 'null'
        ),
        '{}'
    );
end
$$;

comment on function rag._merge_patch(jsonb, jsonb) is 'A JSON value with a merge patch applied.';

create or replace function rag._write_metadata(
    tenant_id int, partition_id int, collection rag.collections, documents bigint[],
    metadatas jsonb[]
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
    v_before bigint[];
begin
    perform rag._count_requests(
        _write_metadata.tenant_id, 'puts', cardinality(_write_metadata.documents)
    );
    perform rag._check_document(
        'x', d.uri, null, g.metadata, format('The document %s', d.uri)
    )
    from unnest(_write_metadata.documents, _write_metadata.metadatas) as g (document_id, metadata)
    join rag.documents as d
        on d.tenant_id = _write_metadata.tenant_id and d.document_id = g.document_id;
    if (_write_metadata.collection).versions > 1 then
        v_before := rag._measure(
            _write_metadata.tenant_id, _write_metadata.partition_id, _write_metadata.documents
        );
        perform rag._archive(
            _write_metadata.tenant_id, _write_metadata.partition_id, _write_metadata.documents,
            null
        );
        perform rag._prune_versions(
            _write_metadata.tenant_id, _write_metadata.documents,
            (_write_metadata.collection).versions
        );
        perform rag._count_usage(
            _write_metadata.tenant_id, v_before,
            rag._measure(
                _write_metadata.tenant_id, _write_metadata.partition_id, _write_metadata.documents
            )
        );
    end if;
    update rag.documents as d
    set
        metadata = g.metadata,
        version = d.version + 1,
        updated_at = greatest(now(), d.updated_at)
    from unnest(_write_metadata.documents, _write_metadata.metadatas) as g (document_id, metadata)
    where d.tenant_id = _write_metadata.tenant_id and d.document_id = g.document_id;
    perform rag._copy_metadata(
        _write_metadata.tenant_id, _write_metadata.partition_id, _write_metadata.documents
    );
    if (_write_metadata.collection).enrich <> '{}' then
        perform rag._index_documents(
            _write_metadata.tenant_id, _write_metadata.partition_id, _write_metadata.documents
        );
        perform rag._fold_statistics(_write_metadata.tenant_id, _write_metadata.partition_id);
    end if;
end
$$;

comment on function rag._write_metadata(int, int, rag.collections, bigint[], jsonb[]) is
    'Give documents of a collection, whose rows are locked, other metadata; nothing is cut or '
    'embedded again.';

create or replace function rag._change_metadata(
    uri text, collection text, given jsonb, is_patch boolean
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_collection rag.collections;
    v_document bigint;
    v_old jsonb;
    v_new jsonb;
begin
    if jsonb_typeof(_change_metadata.given) is distinct from 'object' then
        raise exception 'metadata is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(_change_metadata.given), 'null')),
            hint = 'Metadata is a JSON object, such as {"lang": "en", "page": 3}.';
    end if;
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, _change_metadata.collection);
    select d.document_id, d.metadata into v_document, v_old
    from rag.documents as d
    where
        d.tenant_id = v_tenant
        and d.collection_id = v_collection.collection_id
        and d.uri = _change_metadata.uri
        and (d.expires_at is null or d.expires_at > statement_timestamp())
    for update;
    if v_document is null then
        return false;
    end if;
    v_new := case
        when _change_metadata.is_patch then rag._merge_patch(v_old, _change_metadata.given)
        else _change_metadata.given
    end;
    if v_new is distinct from v_old then
        perform rag._write_metadata(
            v_tenant, v_partition, v_collection, array[v_document], array[v_new]
        );
    end if;
    return true;
end
$$;

comment on function rag._change_metadata(text, text, jsonb, boolean) is
    'Replace or patch the metadata of the caller''s document of that uri; false if there is none.';

create or replace function rag.set_metadata(
    uri text, metadata jsonb, collection text default 'default'
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
begin
    return rag._change_metadata(
        set_metadata.uri, set_metadata.collection, set_metadata.metadata, false
    );
end
$$;

comment on function rag.set_metadata(text, jsonb, text) is
    'Give a document other metadata, without cutting or embedding it again; false if there is none '
    'of that uri.';

create or replace function rag.patch_metadata(
    uri text, patch jsonb, collection text default 'default'
)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
begin
    return rag._change_metadata(
        patch_metadata.uri, patch_metadata.collection, patch_metadata.patch, true
    );
end
$$;

comment on function rag.patch_metadata(text, jsonb, text) is
    'Change some of a document''s metadata by a JSON merge patch (null takes a key away), without '
    'cutting or embedding it again; false if there is none of that uri.';

create or replace function rag._required_filter(filter jsonb)
    returns jsonpath
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _required_filter.filter is null or _required_filter.filter = '{}' then
        raise exception 'a filter is needed' using
            errcode = 'invalid_parameter_value',
            detail = 'Without one it would be all documents.',
            hint = 'Say which, such as {"year": {"$lt": 2020}}. All: rag.drop_collection(name), '
            'or of default {"no such key": {"$exists": false}}.';
    end if;
    return rag._compile_filter(_required_filter.filter);
end
$$;

comment on function rag._required_filter(jsonb) is
    'A filter for a change of many documents, or the error for one that says nothing.';

create or replace function rag.delete_where(
    filter jsonb, collection text default 'default', most int default 10000
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
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_collection rag.collections;
    v_filter jsonpath := rag._required_filter(delete_where.filter);
    v_documents bigint[];
begin
    perform rag._check_most(delete_where.most);
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, delete_where.collection);
    -- Locked in the order in which rag.put_many locks them.
    v_documents := array(
        select d.document_id
        from rag.documents as d
        where
            d.tenant_id = v_tenant
            and d.collection_id = v_collection.collection_id
            and d.metadata @@ v_filter
        order by d.uri
        limit delete_where.most
        for update
    );
    if v_documents <> '{}' then
        perform rag._delete_documents(
            v_tenant, v_partition, v_documents, v_collection.keep_deleted
        );
        perform rag._fold_statistics(v_tenant, v_partition);
    end if;
    return cardinality(v_documents);
end
$$;

comment on function rag.delete_where(jsonb, text, int) is
    'Delete the documents of a collection whose metadata meet a filter, up to so many; returns how '
    'many there were: call it again until that is 0.';

create or replace function rag.patch_metadata_where(
    filter jsonb, patch jsonb, collection text default 'default', most int default 10000
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
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_collection rag.collections;
    v_filter jsonpath := rag._required_filter(patch_metadata_where.filter);
    v_documents bigint[];
    v_metadatas jsonb[];
begin
    perform rag._check_most(patch_metadata_where.most);
    if jsonb_typeof(patch_metadata_where.patch) is distinct from 'object' then
        raise exception 'the patch is not an object' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(patch_metadata_where.patch), 'null')),
            hint = 'A patch is a JSON object, such as {"reviewed": true, "draft": null}.';
    end if;
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, patch_metadata_where.collection);
    select array_agg(f.document_id), array_agg(f.metadata) into v_documents, v_metadatas
    from (
        select
            d.document_id,
            rag._merge_patch(d.metadata, patch_metadata_where.patch) as metadata
        from rag.documents as d
        where
            d.tenant_id = v_tenant
            and d.collection_id = v_collection.collection_id
            and d.metadata @@ v_filter
            and (d.expires_at is null or d.expires_at > statement_timestamp())
            -- What has it already is done: so calling it again comes to an end.
            and d.metadata <> rag._merge_patch(d.metadata, patch_metadata_where.patch)
        order by d.uri
        limit patch_metadata_where.most
        for update
    ) as f;
    if v_documents is null then
        return 0;
    end if;
    perform rag._write_metadata(v_tenant, v_partition, v_collection, v_documents, v_metadatas);
    return cardinality(v_documents);
end
$$;

comment on function rag.patch_metadata_where(jsonb, jsonb, text, int) is
    'rag.patch_metadata for the documents of a collection that meet a filter, up to so many; '
    'returns how many changed: call it again until that is 0.';

create or replace function rag._changeable_collection(tenant_id int, name text)
    returns rag.collections
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    if _changeable_collection.name = 'default' then
        raise exception 'collection "default" stays' using
            errcode = 'invalid_parameter_value',
            detail = 'Calls that name no collection mean it.',
            hint = 'Delete its documents by rag.delete_where, or use collections of other names.';
    end if;
    -- Nobody writes meanwhile; whoever comes later finds it changed.
    perform from rag.tenants as t where t.tenant_id = _changeable_collection.tenant_id for update;
    return rag._collection(_changeable_collection.tenant_id, _changeable_collection.name);
end
$$;

comment on function rag._changeable_collection(int, text) is
    'A collection that may be renamed or dropped, with the tenant''s writers kept out.';

create or replace function rag.rename_collection(name text, new_name text)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_collection rag.collections;
begin
    perform rag._check_collection_name(rename_collection.new_name);
    v_collection := rag._changeable_collection(v_tenant, rename_collection.name);
    if exists (
        select
        from rag.collections as c
        where
            c.tenant_id = v_tenant
            and c.name = rename_collection.new_name
            and c.collection_id <> v_collection.collection_id
    ) then
        raise exception 'collection "%" exists already', rename_collection.new_name using
            errcode = 'duplicate_object',
            detail = format('Tenant %L has a collection of that name.', rag.current_tenant()),
            hint = 'Choose another name.';
    end if;
    update rag.collections as c
    set name = rename_collection.new_name
    where c.tenant_id = v_tenant and c.collection_id = v_collection.collection_id;
end
$$;

comment on function rag.rename_collection(text, text) is 'Give a collection another name.';

create or replace function rag.drop_collection(name text)
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
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_collection rag.collections;
    v_documents bigint[];
    v_past bigint[];
    v_before bigint[];
begin
    perform rag._require_fresh_snapshots('dropping a collection');
    v_collection := rag._changeable_collection(v_tenant, drop_collection.name);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_documents := array(
        select d.document_id
        from rag.documents as d
        where d.tenant_id = v_tenant and d.collection_id = v_collection.collection_id
        order by d.uri
        for update
    );
    perform rag._delete_documents(v_tenant, v_partition, v_documents, null);
    v_past := array(
        select distinct p.document_id
        from rag.past_documents as p
        where p.tenant_id = v_tenant and p.collection_id = v_collection.collection_id
    );
    v_before := rag._measure(v_tenant, v_partition, v_past);
    perform rag._erase_past(v_tenant, v_past);
    perform rag._count_usage(v_tenant, v_before, rag._measure(v_tenant, v_partition, v_past));
    delete from rag.collections as c
    where c.tenant_id = v_tenant and c.collection_id = v_collection.collection_id;
    perform rag._fold_statistics(v_tenant, v_partition);
    return cardinality(v_documents);
end
$$;

comment on function rag.drop_collection(text) is
    'Erase a collection with all its documents, past versions and evaluation sets; returns how '
    'many documents it had. The tenant''s writers wait meanwhile; of a big one delete the '
    'documents before, by rag.delete_where.';
