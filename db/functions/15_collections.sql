-- Collections: named sets of documents with their settings.

create or replace function rag._language(language text)
    returns text
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Or the same configuration would have a second name, in quotes.
    set quote_all_identifiers = off
as $$
declare
    v_language text;
begin
    if _language.language is null then
        return null;
    end if;
    begin
        -- Spelled as Postgres would, so that one configuration has one name in our tables; and
        -- looked up, because '-' and every number pass for a regconfig until they are used.
        select c.oid::regconfig::text into v_language
        from pg_ts_config as c
        where c.oid = _language.language::regconfig;
    exception
        when undefined_object or invalid_name or invalid_schema_name or invalid_parameter_value
            or syntax_error or feature_not_supported or numeric_value_out_of_range then
            v_language := null;
    end;
    if v_language is null then
        raise exception 'unknown language "%"', _language.language using
            errcode = 'invalid_parameter_value',
            detail = 'A language is the name of a text search configuration.',
            hint = 'select cfgname from pg_ts_config lists them; ''simple'' fits every language.';
    end if;
    return v_language;
end
$$;

comment on function rag._language(text) is
    'The canonical name of a text search configuration (null for null), or an error.';

create or replace function rag._check_chunking(strategy text, size int, overlap int)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    -- rag.chunk refuses bad settings; a text of one word asks it for nothing else.
    perform from rag.chunk(
        'x', _check_chunking.strategy, _check_chunking.size, _check_chunking.overlap
    );
    return jsonb_build_object(
        'strategy', _check_chunking.strategy,
        'size', _check_chunking.size,
        'overlap', _check_chunking.overlap
    );
end
$$;

comment on function rag._check_chunking(text, int, int) is
    'The settings of chunking as one value, or the error that rag.chunk would raise.';

create or replace function rag.create_collection(
    name text,
    strategy text default 'markdown',
    chunk_size int default 800,
    chunk_overlap int default 100,
    language text default 'english'
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_collection int;
begin
    if create_collection.name is null
        or create_collection.name <> btrim(create_collection.name)
        or length(create_collection.name) not between 1 and 200
    then
        raise exception 'invalid collection name' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L.', create_collection.name),
            hint = 'A name has 1 to 200 characters and no spaces around it.';
    end if;
    if num_nulls(
        create_collection.strategy, create_collection.chunk_size,
        create_collection.chunk_overlap, create_collection.language
    ) > 0 then
        raise exception 'a setting of the collection is null' using
            errcode = 'invalid_parameter_value',
            detail = format('strategy is %L, chunk_size %L, chunk_overlap %L, language %L.',
                create_collection.strategy, create_collection.chunk_size,
                create_collection.chunk_overlap, create_collection.language),
            hint = 'Leave a setting out to get its default.';
    end if;
    perform rag._check_chunking(
        create_collection.strategy, create_collection.chunk_size, create_collection.chunk_overlap
    );
    v_collection := rag._add_collection(
        v_tenant, create_collection.name, create_collection.strategy,
        create_collection.chunk_size, create_collection.chunk_overlap,
        rag._language(create_collection.language)
    );
    if v_collection is null then
        raise exception 'collection "%" exists already', create_collection.name using
            errcode = 'duplicate_object',
            detail = format('Tenant %L has a collection of that name.', rag.current_tenant()),
            hint = 'Choose another name, or go on with the collection that is there.';
    end if;
    return v_collection;
end
$$;

comment on function rag.create_collection(text, text, int, int, text) is
    'Create a collection in the caller''s tenant; returns its id.';

create or replace function rag._add_collection(
    tenant_id int, name text, strategy text, chunk_size int, chunk_overlap int, language text
)
    returns int
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_collection int;
begin
    insert into rag.collections (tenant_id, name, strategy, chunk_size, chunk_overlap, language)
    values (
        _add_collection.tenant_id, _add_collection.name, _add_collection.strategy,
        _add_collection.chunk_size, _add_collection.chunk_overlap, _add_collection.language
    )
    on conflict on constraint collections_name_is_unique do nothing
    returning collection_id into v_collection;
    -- Now, not by the first put: others would wait until that one commits.
    insert into rag.collection_languages (tenant_id, collection_id, language)
    select _add_collection.tenant_id, v_collection, _add_collection.language
    where v_collection is not null;
    return v_collection;
end
$$;

comment on function rag._add_collection(int, text, text, int, int, text) is
    'Add a collection with checked settings; null if the name is taken.';

create or replace function rag._collection(tenant_id int, name text)
    returns rag.collections
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_collection rag.collections;
begin
    select c.* into v_collection
    from rag.collections as c
    where c.tenant_id = _collection.tenant_id and c.name = _collection.name;
    if not found then
        raise exception 'collection "%" does not exist', _collection.name using
            errcode = 'RG003',
            detail = format('Tenant %L has no collection of that name.', rag.current_tenant()),
            hint = format('Create it: select rag.create_collection(%L).', _collection.name);
    end if;
    return v_collection;
end
$$;

comment on function rag._collection(int, text) is
    'The tenant''s collection of that name, or an error.';
