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
        join pg_namespace as n on n.oid = c.cfgnamespace
        -- What one session has made for itself, no other one finds.
        where
            c.oid = _language.language::regconfig
            and n.nspname !~ '^pg_temp_'
            and has_schema_privilege('rag_app', n.oid, 'usage');
    exception
        when undefined_object or invalid_name or invalid_schema_name or invalid_parameter_value
            or syntax_error or feature_not_supported or numeric_value_out_of_range
            or insufficient_privilege then
            v_language := null;
    end;
    if v_language is null then
        raise exception 'unknown language "%"', _language.language using
            errcode = 'invalid_parameter_value',
            detail = 'A language is the name of a text search configuration that is there for all, '
            'neither a temporary one nor in a schema that not everybody may use.',
            hint = 'select cfgname from pg_ts_config lists them; ''simple'' fits every language. '
            'If one was dropped that documents are in, create it again, or put them in another '
            'one: rag.alter_collection(name, language => ''simple'').';
    end if;
    return v_language;
end
$$;

comment on function rag._language(text) is
    'The canonical name of a text search configuration (null for null), or an error.';

create or replace function rag._check_collection_name(name text)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if _check_collection_name.name is null
        or _check_collection_name.name <> btrim(_check_collection_name.name)
        or length(_check_collection_name.name) not between 1 and 200
    then
        raise exception 'invalid collection name' using
            errcode = 'invalid_parameter_value',
            detail = format('The name is %L.', _check_collection_name.name),
            hint = 'A name has 1 to 200 characters and no spaces around it.';
    end if;
end
$$;

comment on function rag._check_collection_name(text) is
    'Raise the error for a name that no collection can have.';

create or replace function rag.create_collection(
    name text,
    strategy text default null,
    chunk_size int default null,
    chunk_overlap int default null,
    language text default 'english',
    k1 real default 1.2,
    b real default 0.75,
    title_weight real default 1,
    heading_weight real default 1,
    enrich text[] default '{}',
    enrich_weight real default 1,
    lexical_weight real default 0.5,
    fusion text default 'standard',
    preset text default null,
    min_chunk_size int default null,
    separators text[] default null
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
    v_chunking jsonb;
begin
    perform rag._check_collection_name(create_collection.name);
    if num_nulls(
        create_collection.language, create_collection.k1,
        create_collection.b, create_collection.title_weight, create_collection.heading_weight,
        create_collection.enrich, create_collection.enrich_weight,
        create_collection.lexical_weight, create_collection.fusion
    ) > 0 then
        raise exception 'a setting of the collection is null' using
            errcode = 'invalid_parameter_value',
            detail = format(
                'language is %L, k1 %L, b %L, '
                'title_weight %L, heading_weight %L, enrich %L, enrich_weight %L, '
                'lexical_weight %L, fusion %L.',
                create_collection.language,
                create_collection.k1, create_collection.b, create_collection.title_weight,
                create_collection.heading_weight, create_collection.enrich,
                create_collection.enrich_weight, create_collection.lexical_weight,
                create_collection.fusion
            ),
            hint = 'Leave a setting out to get its default.';
    end if;
    v_chunking := rag._chunking(
        null, create_collection.preset, create_collection.strategy,
        create_collection.chunk_size, create_collection.chunk_overlap,
        create_collection.min_chunk_size, create_collection.separators
    );
    perform rag._check_ranking(
        create_collection.k1, create_collection.b, create_collection.title_weight,
        create_collection.heading_weight, create_collection.enrich,
        create_collection.enrich_weight, create_collection.lexical_weight,
        create_collection.fusion
    );
    v_collection := rag._add_collection(
        v_tenant, create_collection.name, v_chunking ->> 'strategy',
        (v_chunking ->> 'size')::int, (v_chunking ->> 'overlap')::int,
        rag._language(create_collection.language)
    );
    if v_collection is null then
        raise exception 'collection "%" exists already', create_collection.name using
            errcode = 'duplicate_object',
            detail = format('Tenant %L has a collection of that name.', rag.current_tenant()),
            hint = 'Choose another name, or go on with the collection that is there.';
    end if;
    update rag.collections as n
    set
        k1 = create_collection.k1,
        b = create_collection.b,
        title_weight = create_collection.title_weight,
        heading_weight = create_collection.heading_weight,
        enrich = create_collection.enrich,
        enrich_weight = create_collection.enrich_weight,
        lexical_weight = create_collection.lexical_weight,
        fusion = create_collection.fusion,
        min_chunk_size = coalesce((v_chunking ->> 'min_size')::int, 0),
        separators = rag._separators(v_chunking)
    where n.tenant_id = v_tenant and n.collection_id = v_collection;
    return v_collection;
end
$$;

comment on function rag.create_collection(
    text, text, int, int, text, real, real, real, real, text[], real, real, text, text, int, text[]
) is 'Create a collection in the caller''s tenant; returns its id.';

create or replace function rag.alter_collection(
    name text,
    strategy text default null,
    chunk_size int default null,
    chunk_overlap int default null,
    language text default null,
    k1 real default null,
    b real default null,
    title_weight real default null,
    heading_weight real default null,
    enrich text[] default null,
    enrich_weight real default null,
    lexical_weight real default null,
    fusion text default null,
    preset text default null,
    min_chunk_size int default null,
    separators text[] default null
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
    -- Indexing takes about a second for them; what is more is done in batches by rag.reindex.
    v_small constant int := 2000;
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_partition int;
    v_old rag.collections;
    v_new rag.collections;
    v_chunking jsonb;
    v_chunks bigint;
    v_stale bigint;
begin
    perform rag._require_fresh_snapshots('a change of settings');
    -- Nobody writes meanwhile: whoever began before has its chunks indexed by the old settings.
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = v_tenant
    for update;
    v_old := rag._collection(v_tenant, alter_collection.name);
    v_new := v_old;
    v_chunking := rag._chunking(
        v_old, alter_collection.preset, alter_collection.strategy, alter_collection.chunk_size,
        alter_collection.chunk_overlap, alter_collection.min_chunk_size,
        alter_collection.separators
    );
    v_new.strategy := v_chunking ->> 'strategy';
    v_new.chunk_size := v_chunking ->> 'size';
    v_new.chunk_overlap := v_chunking ->> 'overlap';
    v_new.min_chunk_size := coalesce((v_chunking ->> 'min_size')::int, 0);
    v_new.separators := rag._separators(v_chunking);
    v_new.language := coalesce(rag._language(alter_collection.language), v_old.language);
    v_new.k1 := coalesce(alter_collection.k1, v_old.k1);
    v_new.b := coalesce(alter_collection.b, v_old.b);
    v_new.title_weight := coalesce(alter_collection.title_weight, v_old.title_weight);
    v_new.heading_weight := coalesce(alter_collection.heading_weight, v_old.heading_weight);
    v_new.enrich := coalesce(alter_collection.enrich, v_old.enrich);
    v_new.enrich_weight := coalesce(alter_collection.enrich_weight, v_old.enrich_weight);
    v_new.lexical_weight := coalesce(alter_collection.lexical_weight, v_old.lexical_weight);
    v_new.fusion := coalesce(alter_collection.fusion, v_old.fusion);
    perform rag._check_ranking(
        v_new.k1, v_new.b, v_new.title_weight, v_new.heading_weight, v_new.enrich,
        v_new.enrich_weight, v_new.lexical_weight, v_new.fusion
    );
    if (
        v_new.language, v_new.k1, v_new.b, v_new.title_weight, v_new.heading_weight,
        v_new.enrich, v_new.enrich_weight
    ) is distinct from (
        v_old.language, v_old.k1, v_old.b, v_old.title_weight, v_old.heading_weight,
        v_old.enrich, v_old.enrich_weight
    ) then
        v_new.index_version := v_old.index_version + 1;
        v_new.reindexed_to := 0;
    end if;
    update rag.collections as n
    set
        strategy = v_new.strategy,
        chunk_size = v_new.chunk_size,
        chunk_overlap = v_new.chunk_overlap,
        min_chunk_size = v_new.min_chunk_size,
        separators = v_new.separators,
        language = v_new.language,
        k1 = v_new.k1,
        b = v_new.b,
        title_weight = v_new.title_weight,
        heading_weight = v_new.heading_weight,
        enrich = v_new.enrich,
        enrich_weight = v_new.enrich_weight,
        lexical_weight = v_new.lexical_weight,
        fusion = v_new.fusion,
        index_version = v_new.index_version,
        reindexed_to = v_new.reindexed_to,
        -- Queries are asked in both until all chunks are in the new one.
        languages = case
            when v_new.language = any(n.languages) then n.languages
            else n.languages || v_new.language
        end
    where n.tenant_id = v_tenant and n.collection_id = v_old.collection_id;
    if v_new.language <> v_old.language then
        update rag.documents as d
        set language = v_new.language
        where
            d.tenant_id = v_tenant
            and d.collection_id = v_old.collection_id
            and d.language = v_old.language;
    end if;
    if v_new.reindexed_to is null then
        return 0;
    end if;
    select
        count(*),
        count(*) filter (
            where
                l.collection_id = v_old.collection_id
                and l.index_version <> v_new.index_version
        )
    into v_chunks, v_stale
    from rag.lexemes as l
    where l.partition_id = v_partition and l.tenant_id = v_tenant;
    if v_stale > v_small then
        return v_stale;
    end if;
    if v_chunks <= v_small then
        -- All of them, because other weights may make another mean length.
        perform rag._reweigh(v_tenant, v_partition);
    end if;
    perform rag._reindex_batch(v_tenant, v_partition, v_old.collection_id, v_small + 1);
    return 0;
end
$$;

comment on function rag.alter_collection(
    text, text, int, int, text, real, real, real, real, text[], real, real, text, text, int, text[]
) is
    'Change settings of a collection (null: keep). Returns how many of its chunks have to be '
    'indexed anew by rag.reindex, 0 if none or few enough to have been done at once. Chunking '
    'holds for what is put from now on.';

create or replace function rag._check_ranking(
    k1 real,
    b real,
    title_weight real,
    heading_weight real,
    enrich text[],
    enrich_weight real,
    lexical_weight real,
    fusion text
)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
begin
    if not (_check_ranking.k1 between 0.1 and 10 and _check_ranking.b between 0 and 1) then
        raise exception 'invalid k1 or b' using
            errcode = 'invalid_parameter_value',
            detail = format('k1 is %s, b is %s.', _check_ranking.k1, _check_ranking.b),
            hint = 'k1 is 0.1 to 10 (1.2 unless said otherwise), b is 0 to 1 (0.75).';
    end if;
    if not (
        _check_ranking.title_weight between 0 and 100
        and _check_ranking.heading_weight between 0 and 100
        and _check_ranking.enrich_weight between 0 and 100
    ) then
        raise exception 'invalid weight' using
            errcode = 'invalid_parameter_value',
            detail = format('title_weight is %s, heading_weight %s, enrich_weight %s.',
                _check_ranking.title_weight, _check_ranking.heading_weight,
                _check_ranking.enrich_weight),
            hint = 'A weight is 0 to 100: what a word there counts, in the text 1.';
    end if;
    if cardinality(_check_ranking.enrich) > 20
        or exists (
            select
            from unnest(_check_ranking.enrich) as e (key)
            where
                e.key is null
                or length(e.key) not between 1 and 200
                or e.key like '$%' and e.key <> '$file_name'
        )
    then
        raise exception 'invalid enrich' using
            errcode = 'invalid_parameter_value',
            detail = format('enrich is %s.', _check_ranking.enrich),
            hint = 'It is an array of at most 20 keys of the metadata, and of $file_name for the '
            'last part of the uri.';
    end if;
    -- The same errors as in a search.
    perform rag._search_depth(
        1, 'hybrid', _check_ranking.lexical_weight, _check_ranking.fusion, null
    );
end
$$;

comment on function rag._check_ranking(
    real, real, real, real, text[], real, real, text
) is 'Raise the error for settings of a collection that no ranking can go by.';

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
    -- Its language not by the first put: others would wait until that one commits.
    insert into rag.collections (
        tenant_id, name, strategy, chunk_size, chunk_overlap, language, languages
    )
    values (
        _add_collection.tenant_id, _add_collection.name, _add_collection.strategy,
        _add_collection.chunk_size, _add_collection.chunk_overlap, _add_collection.language,
        array[_add_collection.language]
    )
    on conflict on constraint collections_name_is_unique do nothing
    returning collection_id into v_collection;
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
