-- Runs: what a sync or a migration did, and the way back from a migration.

create or replace function rag._run(tenant_id int, run_id bigint)
    returns rag.runs
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_run rag.runs;
begin
    select r.* into v_run
    from rag.runs as r
    where r.tenant_id = _run.tenant_id and r.run_id = _run.run_id
    for no key update;
    if not found then
        raise exception 'run % does not exist', coalesce(_run.run_id::text, 'null') using
            errcode = 'no_data_found',
            detail = 'The tenant has no run of that id.',
            hint = 'Those that are: select run_id, kind, source, state from rag.runs.';
    end if;
    return v_run;
end
$$;

comment on function rag._run(int, bigint) is 'Lock the tenant''s run of that id, or an error.';

create or replace function rag._check_uris(documents jsonb)
    returns void
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_bad bigint;
    v_twice text;
begin
    if jsonb_typeof(_check_uris.documents) is distinct from 'array' then
        raise exception 'documents is not an array' using
            errcode = 'invalid_parameter_value',
            detail = format('It is of type %s.',
                coalesce(jsonb_typeof(_check_uris.documents), 'null')),
            hint = 'Give an array of objects, each with a uri.';
    end if;
    select min(e.n) into v_bad
    from jsonb_array_elements(_check_uris.documents) with ordinality as e (item, n)
    where
        -- Of what is no object there is no uri either.
        jsonb_typeof(e.item -> 'uri') is distinct from 'string'
        or octet_length(e.item ->> 'uri') not between 1 and 2000;
    if v_bad is not null then
        raise exception 'a document has no uri' using
            errcode = 'invalid_parameter_value',
            detail = format('It is document %s of the array.', v_bad),
            hint = 'Each is an object with a uri, a string of 1 to 2,000 bytes.';
    end if;
    select min(t.uri) into v_twice
    from (
        select e.item ->> 'uri' as uri
        from jsonb_array_elements(_check_uris.documents) as e (item)
        group by e.item ->> 'uri'
        having count(*) > 1
    ) as t;
    if v_twice is not null then
        raise exception 'two documents have the same uri' using
            errcode = 'invalid_parameter_value',
            detail = format('%L is there more than once.', v_twice),
            hint = 'Give each document of a call its own uri.';
    end if;
end
$$;

comment on function rag._check_uris(jsonb) is
    'Raise the error for what is no array of objects, each with a uri of its own.';

create or replace function rag.begin_run(
    kind text, source text, details jsonb default '{}', run_id bigint default null
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
    v_tenant int := (select c.tenant_id from rag._context() as c);
    v_run bigint;
begin
    if coalesce(length(begin_run.kind), 0) not between 1 and 100
        or begin_run.source is null
        or octet_length(begin_run.source) > 10000
        or jsonb_typeof(begin_run.details) is distinct from 'object'
    then
        raise exception 'invalid run' using
            errcode = 'invalid_parameter_value',
            detail = format('kind is %L, details are of type %s.', left(begin_run.kind, 200),
                coalesce(jsonb_typeof(begin_run.details), 'null')),
            hint = 'kind has 1 to 100 characters, source is a text, details is a JSON object.';
    end if;
    perform rag._lock_tenant(v_tenant);
    if begin_run.run_id is not null then
        perform rag._run(v_tenant, begin_run.run_id);
        update rag.runs as r
        set state = 'running', finished_at = null, details = r.details || begin_run.details
        where r.tenant_id = v_tenant and r.run_id = begin_run.run_id;
        return begin_run.run_id;
    end if;
    -- Of the same source only one is at work: whatever still says so was killed.
    update rag.runs as r
    set state = 'interrupted', finished_at = clock_timestamp()
    where
        r.tenant_id = v_tenant
        and r.kind = begin_run.kind
        and r.source = begin_run.source
        and r.state = 'running';
    insert into rag.runs (tenant_id, kind, source, details)
    values (v_tenant, begin_run.kind, begin_run.source, begin_run.details)
    returning run_id into v_run;
    return v_run;
end
$$;

comment on function rag.begin_run(text, text, jsonb, bigint) is
    'Begin the record of a run, or with run_id go on with one; returns its id.';

create or replace function rag.note_run(run_id bigint, documents jsonb, collection text)
    returns int
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
    v_collection rag.collections := rag._collection(v_tenant, note_run.collection);
    v_rows int;
begin
    perform rag._check_uris(note_run.documents);
    if exists (
        select
        from jsonb_to_recordset(note_run.documents) as d (action text)
        where d.action is null or d.action not in ('inserted', 'updated', 'deleted')
    ) then
        raise exception 'invalid action' using
            errcode = 'invalid_parameter_value',
            detail = 'A document has none, or another one.',
            hint = 'The action is inserted, updated or deleted.';
    end if;
    perform rag._lock_tenant(v_tenant);
    perform rag._run(v_tenant, note_run.run_id);
    insert into rag.run_documents (
        tenant_id, run_id, collection_id, uri, action, document_id, version
    )
    select
        v_tenant, note_run.run_id, v_collection.collection_id, g.uri, g.action, d.document_id,
        d.version
    from jsonb_to_recordset(note_run.documents) as g (uri text, action text)
    left join rag.documents as d
        on d.tenant_id = v_tenant
        and d.collection_id = v_collection.collection_id
        and d.uri = g.uri
    on conflict (tenant_id, run_id, collection_id, uri)
    do update set
        action = excluded.action, document_id = excluded.document_id, version = excluded.version,
        noted_at = excluded.noted_at;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;

comment on function rag.note_run(bigint, jsonb, text) is
    'Note what a run did: an array of {uri, action}, action being inserted, updated or deleted.';

create or replace function rag.end_run(run_id bigint, state text, report jsonb default '{}')
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
begin
    if end_run.state is null or end_run.state not in ('completed', 'interrupted', 'failed') then
        raise exception 'invalid state of a run' using
            errcode = 'invalid_parameter_value',
            detail = format('state is %L.', end_run.state),
            hint = 'A run ends completed, interrupted or failed.';
    end if;
    perform rag._run(v_tenant, end_run.run_id);
    update rag.runs as r
    set
        state = end_run.state,
        report = coalesce(end_run.report, '{}'),
        finished_at = clock_timestamp()
    where r.tenant_id = v_tenant and r.run_id = end_run.run_id;
end
$$;

comment on function rag.end_run(bigint, text, jsonb) is 'End a run with what came of it.';

create or replace function rag.import_documents(
    run_id bigint,
    documents jsonb,
    embeddings vector[] default null,
    model text default null,
    collection text default 'default'
)
    returns table (uri text, status text)
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
    v_model rag.models;
    v_bad text;
    v_new bigint[];
begin
    perform rag._check_uris(import_documents.documents);
    perform rag._check_item(e.item, e.n)
    from jsonb_array_elements(import_documents.documents) with ordinality as e (item, n);
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_collection := rag._collection(v_tenant, import_documents.collection);
    perform rag._run(v_tenant, import_documents.run_id);
    select m.* into v_model
    from rag.models as m
    where m.name = import_documents.model and m.dropped_at is null;
    if import_documents.model is not null and v_model.model_id is null then
        raise exception 'model "%" does not exist', import_documents.model using
            errcode = 'RG005',
            detail = format('No row of rag.models has the name %L.', import_documents.model),
            hint = 'Leave model and embeddings out, and the embedder embeds the texts.';
    end if;
    if cardinality(import_documents.embeddings)
        <> jsonb_array_length(import_documents.documents)
        or (import_documents.embeddings is null) <> (import_documents.model is null)
    then
        raise exception 'documents and embeddings do not match' using
            errcode = 'invalid_parameter_value',
            detail = format('%s documents, %s embeddings, model %L.',
                jsonb_array_length(import_documents.documents),
                coalesce(cardinality(import_documents.embeddings)::text, 'no'),
                import_documents.model),
            hint = 'Give one embedding for each document, null where there is none, and the model '
            'that made them; or neither.';
    end if;
    select format('embedding %s has %s dimensions%s', g.n, vector_dims(g.embedding),
        case when vector_norm(g.embedding) = 0 then ' and no direction' else '' end)
    into v_bad
    from unnest(import_documents.embeddings) with ordinality as g (embedding, n)
    where
        vector_dims(g.embedding) <> v_model.dimensions or vector_norm(g.embedding) = 0
    order by g.n
    limit 1;
    if v_bad is not null then
        raise exception 'an embedding does not fit the model' using
            errcode = 'invalid_parameter_value',
            detail = format('%s; model %s has %s dimensions.', v_bad, v_model.name,
                v_model.dimensions),
            hint = 'Give null for it, and the embedder embeds the text.';
    end if;
    perform rag._share_models();

    -- What the run has brought is not brought again; what others have put is not replaced.
    select array_agg(e.n order by e.n) into v_new
    from jsonb_array_elements(import_documents.documents) with ordinality as e (item, n)
    where
        not exists (
            select
            from rag.documents as d
            where
                d.tenant_id = v_tenant
                and d.collection_id = v_collection.collection_id
                and d.uri = e.item ->> 'uri'
        );
    if v_new is not null then
        perform rag._count_requests(v_tenant, 'puts', cardinality(v_new));
        perform rag._import(
            v_tenant, v_partition, v_collection, v_model.model_id, import_documents.run_id,
            (
                select jsonb_agg(import_documents.documents -> (g.n - 1)::int order by g.n)
                from unnest(v_new) as g (n)
            ),
            (
                select array_agg(import_documents.embeddings[g.n] order by g.n)
                from unnest(v_new) as g (n)
            )
        );
    end if;
    return query
    select
        e.item ->> 'uri',
        case
            when e.n = any(v_new) then 'inserted'
            when exists (
                select
                from rag.run_documents as r
                where
                    r.tenant_id = v_tenant
                    and r.run_id = import_documents.run_id
                    and r.collection_id = v_collection.collection_id
                    and r.uri = e.item ->> 'uri'
            ) then 'present'
            else 'taken'
        end
    from jsonb_array_elements(import_documents.documents) with ordinality as e (item, n)
    order by e.n;
end
$$;

comment on function rag.import_documents(bigint, jsonb, vector[], text, text) is
    'For a migration: insert documents, each one chunk, with the embeddings that a model made of '
    'them; null among them is queued. Never replaces: status is inserted, present (brought by '
    'this run before) or taken (the uri is another''s). rag.rollback_run takes it all back.';

create or replace function rag._import(
    tenant_id int,
    partition_id int,
    collection rag.collections,
    model_id int,
    run_id bigint,
    documents jsonb,
    embeddings vector[]
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
    v_contents text[];
    v_uris text[];
    v_titles text[];
    v_metadatas jsonb[];
    v_documents bigint[];
    v_chunks bigint[];
    v_taken text;
begin
    select
        array_agg(i.content order by i.n),
        array_agg(i.uri order by i.n),
        array_agg(i.title order by i.n),
        array_agg(coalesce(nullif(i.metadata, 'null'), '{}') order by i.n)
    into v_contents, v_uris, v_titles, v_metadatas
    from rows from (
        jsonb_to_recordset(_import.documents)
        as (content text, uri text, title text, metadata jsonb)
    ) with ordinality as i (content, uri, title, metadata, n);
    select array_agg(d.document_id), min(d.uri) filter (where d.status <> 'inserted')
    into v_documents, v_taken
    from rag._put_documents(
        (_import.collection).name, v_contents, v_uris, v_titles, v_metadatas,
        'none', null, null, null, 10::smallint, null, null, null, null, _import.tenant_id
    ) as d;
    -- Free when it was looked up, put by another since then: it is not replaced.
    if v_taken is not null then
        raise exception 'a uri was taken meanwhile' using
            errcode = 'serialization_failure',
            detail = format('Another session put %L while it was imported.', v_taken),
            hint = 'Nothing was written. Call again: its status will be taken.';
    end if;
    insert into rag.run_documents (
        tenant_id, run_id, collection_id, uri, action, document_id, version
    )
    select
        d.tenant_id, _import.run_id, d.collection_id, d.uri, 'inserted', d.document_id, d.version
    from rag.documents as d
    where d.tenant_id = _import.tenant_id and d.document_id = any(v_documents);
    if _import.model_id is null then
        return;
    end if;
    perform rag._create_embedding_child(_import.model_id, _import.partition_id);
    with stored as (
        insert into rag.embeddings (
            partition_id, tenant_id, chunk_id, model_id, collection_id, embedding, facets
        )
        select
            c.partition_id, c.tenant_id, c.chunk_id, _import.model_id, c.collection_id,
            l2_normalize(g.embedding)::halfvec,
            coalesce(
                (
                    select nullif(l.facets, '{}')
                    from rag.lexemes as l
                    where
                        l.partition_id = _import.partition_id
                        and l.tenant_id = _import.tenant_id
                        and l.chunk_id = c.chunk_id
                ),
                '{0}'
            )
        from unnest(v_uris, _import.embeddings) as g (uri, embedding)
        join rag.documents as d
            on d.tenant_id = _import.tenant_id
            and d.collection_id = (_import.collection).collection_id
            and d.uri = g.uri
        join rag.chunks as c
            on c.partition_id = _import.partition_id
            and c.tenant_id = _import.tenant_id
            and c.document_id = d.document_id
        where d.document_id = any(v_documents) and g.embedding is not null
        -- The tenant may have had this very text, and its embedding with it.
        on conflict (tenant_id, chunk_id, model_id, partition_id)
        do update set embedding = excluded.embedding
        returning chunk_id
    )
    select array_agg(s.chunk_id) into v_chunks from stored as s;
    -- Nobody else knows these jobs yet.
    delete from rag.jobs as j
    where
        j.tenant_id = _import.tenant_id
        and j.chunk_id = any(v_chunks)
        and j.model_id = _import.model_id;
end
$$;

comment on function rag._import(int, int, rag.collections, int, bigint, jsonb, vector[]) is
    'Put checked documents of uris that are free, each in one chunk, with their embeddings.';

create or replace function rag.rollback_run(run_id bigint, batch int default 1000)
    returns table (removed int, kept int)
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
    v_run rag.runs;
    v_uris text[];
    v_collections int[];
    v_documents bigint[];
    v_made int[];
begin
    if rollback_run.batch is null or rollback_run.batch not between 1 and 100000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(rollback_run.batch::text, 'null')),
            hint = 'A batch has 1 to 100,000 documents.';
    end if;
    perform rag._lock_tenant(v_tenant);
    select t.partition_id into v_partition from rag.tenants as t where t.tenant_id = v_tenant;
    v_run := rag._run(v_tenant, rollback_run.run_id);
    if exists (
        select
        from rag.run_documents as r
        where
            r.tenant_id = v_tenant
            and r.run_id = rollback_run.run_id
            and r.action <> 'inserted'
    ) then
        raise exception 'this run cannot be rolled back' using
            errcode = 'object_not_in_prerequisite_state',
            detail = format('Run %s replaced or deleted documents, whose text is gone.',
                rollback_run.run_id),
            hint = 'Only a run that did nothing but insert can be taken back.';
    end if;
    select array_agg(r.collection_id), array_agg(r.uri) into v_collections, v_uris
    from (
        select o.collection_id, o.uri
        from rag.run_documents as o
        where o.tenant_id = v_tenant and o.run_id = rollback_run.run_id
        order by o.collection_id, o.uri
        limit rollback_run.batch
    ) as r;
    -- What was put anew since then is not the run's any more.
    select array_agg(d.document_id) into v_documents
    from (
        select o.document_id
        from unnest(v_collections, v_uris) as g (collection_id, uri)
        join rag.run_documents as r
            on r.tenant_id = v_tenant
            and r.run_id = rollback_run.run_id
            and r.collection_id = g.collection_id
            and r.uri = g.uri
        join rag.documents as o
            on o.tenant_id = v_tenant
            and o.collection_id = g.collection_id
            and o.uri = g.uri
            and o.document_id = r.document_id
            and o.version = r.version
        order by o.uri
        for update of o
    ) as d;
    perform rag._delete_documents(v_tenant, v_partition, coalesce(v_documents, '{}'), null);
    select count(*) into kept
    from unnest(v_collections, v_uris) as g (collection_id, uri)
    join rag.documents as d
        on d.tenant_id = v_tenant and d.collection_id = g.collection_id and d.uri = g.uri;
    removed := coalesce(cardinality(v_documents), 0);
    delete from rag.run_documents as r
    using unnest(v_collections, v_uris) as g (collection_id, uri)
    where
        r.tenant_id = v_tenant
        and r.run_id = rollback_run.run_id
        and r.collection_id = g.collection_id
        and r.uri = g.uri;
    perform rag._fold_statistics(v_tenant, v_partition);
    if coalesce(cardinality(v_uris), 0) < rollback_run.batch then
        -- The collections that it made, if nobody has anything there. Locked first, so that the
        -- next statement sees what others have put meanwhile.
        select array_agg(l.collection_id) into v_made
        from (
            select c.collection_id
            from rag.collections as c
            where
                c.tenant_id = v_tenant
                and c.name <> 'default'
                and c.name in (
                    select x.name
                    from jsonb_array_elements_text(
                        case jsonb_typeof(v_run.details -> 'made')
                            when 'array' then v_run.details -> 'made' else '[]'
                        end
                    ) as x (name)
                )
            order by c.collection_id
            for update
        ) as l;
        delete from rag.collections as c
        where
            c.tenant_id = v_tenant
            and c.collection_id = any(v_made)
            and not exists (
                select
                from rag.documents as d
                where d.tenant_id = v_tenant and d.collection_id = c.collection_id
            )
            and not exists (
                select
                from rag.past_documents as p
                where p.tenant_id = v_tenant and p.collection_id = c.collection_id
            )
            and not exists (
                select
                from rag.uploads as u
                where u.tenant_id = v_tenant and u.collection_id = c.collection_id
            )
            and not exists (
                select
                from rag.eval_sets as e
                where e.tenant_id = v_tenant and e.collection_id = c.collection_id
            );
        update rag.runs as r
        set state = 'rolled back', finished_at = clock_timestamp()
        where r.tenant_id = v_tenant and r.run_id = rollback_run.run_id;
    end if;
    return next;
end
$$;

comment on function rag.rollback_run(bigint, int) is
    'Take back a batch of what a run inserted, until the run is rolled back; documents that were '
    'put anew since then are kept, and collections that it made go when they are empty.';
